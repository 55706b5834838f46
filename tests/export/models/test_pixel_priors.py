"""The public pixel-space diffusion models: their names, and outputs from weights by a formula."""

from __future__ import annotations

import ast
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jscc.export.models import adm_config, ddim_unet
from jscc.export.models.adm import Adm
from jscc.export.models.ddim_unet import DdimUnet
from jscc.export.models.precision import halve
from jscc.export.recognise import recognise

SHARED = Path(__file__).resolve().parents[4] / "shared"
KEYS = SHARED / "keys" / "guided_diffusion.txt"
GOLDEN = SHARED / "golden" / "diffusion-formula-weights"
TOLERANCE = 5e-5  # of the golden's README

# Family, parameters and what the headings of the key list say of each file.
PUBLIC = {
    "ffhq_10m.pt": ("adm", 93_563_910, {"model_channels": 128, "attention_resolutions": [16]}),
    "celeba_hq.ckpt": ("ddim", 113_673_219, {"ch": 128, "attn_resolutions": [16]}),
    "iddpm_ffhq512": (
        "adm", 159_788_454, {"num_res_blocks": [1, 2, 2, 2, 2, 3, 4], "resblock_updown": False}
    ),
    "256x256_diffusion_uncond.pt": (
        "adm", 552_814_086, {"attention_resolutions": [8, 16, 32], "num_head_channels": 64}
    ),
}  # fmt: skip


def build(config: dict[str, Any]) -> Adm | DdimUnet:
    family = Adm if config["family"] == "adm" else DdimUnet
    with torch.device("meta"):
        return family.from_config(config)


def read_shapes(lines: list[str]) -> dict[str, tuple[int, ...]]:
    rows = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return {key: ast.literal_eval(shape) for key, shape, _ in rows}


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of each public file, by the file's name."""
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    parts = KEYS.read_text().split("=" * 100 + "\n")[1:]
    found = {}
    for part in parts:
        lines = part.splitlines()
        name = next(name for name in PUBLIC if lines[0].startswith(f"# {name}"))
        found[name] = read_shapes(lines)
    return found


@pytest.mark.parametrize("name", list(PUBLIC))
def test_a_public_file_is_recognised_and_has_these_names_and_shapes(listed, name):
    family, parameters, told = PUBLIC[name]
    found = recognise(listed[name])
    assert found is not None
    assert (found.family.name, found.family.role) == (family, "prior")
    assert dict(found.config).items() >= told.items()
    network = build(dict(found.config))
    own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(own.items()) == list(listed[name].items())
    assert sum(each.numel() for each in network.parameters()) == parameters
    below = found.family.below
    assert all(key.startswith(below) for key in listed[name])


def test_each_family_refuses_the_other(listed):
    assert adm_config.config_of(listed["celeba_hq.ckpt"]) is None
    assert ddim_unet.config_of(listed["ffhq_10m.pt"]) is None


def formula(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight that the golden's README defines."""
    drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        drawn = drawn * (0.8 / np.sqrt(np.prod(shape[1:])))
    else:
        drawn = 1 + 0.1 * drawn if key.endswith(".weight") else 0.05 * drawn
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")
@pytest.mark.parametrize(
    "name",
    [
        "adm_small_mult12",
        "ddim_small",
        pytest.param("adm_ffhq_10m", marks=pytest.mark.slow),
        pytest.param("ddim_celeba_hq", marks=pytest.mark.slow),
    ],
)
def test_outputs_are_the_published_ones(name):
    lines = (GOLDEN / f"{name}_state_dict_keys.txt").read_text().splitlines()
    shapes = read_shapes(lines)
    found = recognise(shapes)
    assert found is not None
    config = dict(found.config)
    if name == "adm_small_mult12":
        config["num_head_channels"] = 16  # its README says so; shapes cannot
    network = build(config)
    network.load_state_dict({key: formula(key, shapes[key]) for key in shapes}, assign=True)
    with np.load(GOLDEN / "io.npz") as io, torch.no_grad():
        out = network.eval()(torch.from_numpy(io[f"{name}.x"]), torch.from_numpy(io[f"{name}.t"]))
        gap = np.abs(out.numpy() - io[f"{name}.out"]).max()
    assert gap <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"resamp_with_conv": False}, "resamp_with_conv: got False, expected True"),
        ({"ch": "128"}, "ch: got '128', expected a positive integer"),
        ({"heads": 2}, "got unknown key 'heads'"),
    ],
)
def test_what_cannot_be_built_says_why(change, shown):
    params = {"family": "ddim", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "out_ch": 3}
    assert build(params).stride == 2
    with pytest.raises(ValueError, match=shown):
        build({**params, **change})


ADM = {
    "family": "adm", "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
    "channel_mult": [1, 2], "attention_resolutions": [2], "num_head_channels": 32,
}  # fmt: skip
DDIM = {
    "family": "ddim", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [128],
}  # fmt: skip


@pytest.mark.parametrize("config", [ADM, DDIM], ids=["adm", "ddim"])
def test_half_precision_stays_close(config, randomise, rng):
    network = randomise((Adm if config["family"] == "adm" else DdimUnet).from_config(config))
    x = torch.randn(2, 3, 12, 16, generator=rng)
    timestep = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        full, half = network(x, timestep), halve(network)(x, timestep)
    assert half.dtype == torch.float32
    gap = float((half - full).abs().max() / full.abs().max())
    assert 0 < gap < 1e-2
