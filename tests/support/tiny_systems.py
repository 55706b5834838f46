"""Tiny checkpoints of every system's networks, and the exports that turn them into bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import yaml

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.models.adm import Adm
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.generative import Generative
from jscc.export.models.inn import SHELL, Inn
from jscc.export.models.lpips import Lpips
from jscc.export.models.stylegan2 import Generator

if TYPE_CHECKING:
    from pathlib import Path

PRIOR: dict[str, Any] = {
    "family": "adm",
    "model_channels": 16,
    "num_res_blocks": 1,
    "channel_mult": [1, 1],  # attention stands at the lowest size only
    "num_heads": 1,
    "learn_sigma": False,
}
GENERATIVE: dict[str, Any] = {
    "planes": 4,
    "encoder_widths": [4, 4, 4, 6],
    "decoder_widths": [6, 4, 4, 4, 4],
    "style_dim": 4,
}
PLAIN_INN = {"lifts": 1, "blocks": 1, "width": 8}
TOLD_INN = {"family": "inn", **PLAIN_INN, "condition": 6, "hidden": 5, "levels": 1, "snr": True}


def export(system: str, path: Path, checkpoints: list[Path | str], *options: str) -> Path:
    """Export `checkpoints` to `path` with what the tests of `system` choose."""
    given = [part for each in checkpoints for part in ("--checkpoint", str(each))]
    given += [part for each in options for part in ("--option", each)]
    more = ["--precision", "fp32", "-o", str(path)]
    assert main(["--model", system, *given, *more]) == 0
    return path


def deepjscc(folder: Path) -> Path:
    """A codec alone."""
    checkpoint = tiny_checkpoint.write_codec(folder / "codec")
    return export("deepjscc", folder / "bundle.jscc", [checkpoint])


def perceptual(folder: Path) -> Path:
    """The smallest published codec of this kind: the reference weights."""
    return export("perceptual", folder / "bundle.jscc", ["reference:pdjscc-48"])


def diffjscc(folder: Path) -> Path:
    """Latent diffusion with a control module."""
    checkpoint = tiny_checkpoint.write_control_ldm(folder / "ldm")
    return export("diffjscc", folder / "bundle.jscc", [checkpoint])


def sing_zero(folder: Path) -> Path:
    """A pixel prior and a null space."""
    return export("sing_zero", folder / "bundle.jscc", _networks(folder), "operator=avgpool:4")


def sing_inn(folder: Path) -> Path:
    """The gradient through an invertible network that is told the SNR."""
    inn = write(folder / "inn", drawn(Inn.from_config(TOLD_INN), 3), TOLD_INN)
    networks = [*_networks(folder), f"inn={inn}"]
    return export("sing_inn", folder / "bundle.jscc", networks, "zeta=20")


def commin(folder: Path) -> Path:
    """The gradient through the invertible network of the nearest SNR."""
    inns = []
    for seed, name in enumerate(("low", "high"), start=4):
        state = drawn(Inn.from_config(PLAIN_INN), seed).state_dict()
        inns.append(folder / f"{name}.pth")
        torch.save({f"{SHELL}{key}": each for key, each in state.items()}, inns[-1])
    networks = [*_networks(folder), *(f"inn={path}" for path in inns)]
    options = ("snrs_db=1,13", "zeta=1:30,13:10")
    return export("commin", folder / "bundle.jscc", networks, *options)


def inverse_jscc(folder: Path) -> Path:
    """The gradient through a generator, a codec and LPIPS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        codec = Bourtsoulatze.from_config({"family": "bourtsoulatze", "c_out": 4}).state_dict()
        generator = Generator([8, 8, 8, 4], 8, 2).state_dict()
        lpips = Lpips().state_dict()
    heads = {key: value.abs() for key, value in lpips.items() if key.startswith("alex.")}
    trunk = {key: value for key, value in lpips.items() if key not in heads}
    parts = {
        "codec": codec,
        "generator": {"g_ema": generator, "latent_avg": torch.zeros(8)},
        "alexnet": trunk,
        "heads": heads,
    }
    for name, state in parts.items():
        torch.save(state, folder / f"{name}.pt")
    roles = ("codec=", "generator=", "lpips=", "lpips=")
    checkpoints = [f"{role}{folder / name}.pt" for role, name in zip(roles, parts, strict=True)]
    return export("inverse_jscc", folder / "bundle.jscc", checkpoints, "rounds=1")


def generative_jscc(folder: Path) -> Path:
    """Encoder and generator, trained end to end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        torch.save(Generative.from_config(GENERATIVE).state_dict(), folder / "generative.pt")
    return export("generative_jscc", folder / "bundle.jscc", [folder / "generative.pt"])


SYSTEMS = {
    make.__name__: make
    for make in (
        *(deepjscc, perceptual, diffjscc, sing_zero),
        *(sing_inn, commin, inverse_jscc, generative_jscc),
    )
}


def write(folder: Path, network: torch.nn.Module, config: dict[str, Any]) -> Path:
    """Write the weights of `network` with `config` beside them; returns `folder`."""
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`network` with every weight drawn."""
    return tiny_checkpoint._drawn(network, seed)


def _networks(folder: Path) -> list[Path | str]:
    """A codec and a pixel prior, with their roles."""
    codec = tiny_checkpoint.write_codec(folder / "codec")
    prior = write(folder / "prior", drawn(Adm.from_config(PRIOR), 2), {**PRIOR, "image_size": 32})
    return [f"codec={codec}", f"prior={prior}"]
