"""SING-INN and CommIN end to end with tiny networks: what is exported guides, and how is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import yaml

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.exporter import synthetic_image
from jscc.export.gather import Request, gather
from jscc.export.models.adm import Adm
from jscc.export.models.inn import SHELL, Inn
from jscc.export.proof import evaluate
from jscc.export.system import Options, find
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands import inspect
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from jscc.export.system import StageSpec
    from jscc.runtime.record import Record

    Arrays = dict[str, npt.NDArray[np.float32]]

pytestmark = pytest.mark.slow  # a bundle takes seconds to export

PRIOR = {
    "family": "adm",
    "model_channels": 16,
    "num_res_blocks": 1,
    "channel_mult": [1, 1],  # attention stands at the lowest size only
    "num_heads": 1,
    "image_size": 32,
    "learn_sigma": False,
}
INN = {
    "family": "inn",
    "lifts": 1,
    "blocks": 1,
    "width": 8,
    "condition": 6,
    "hidden": 5,
    "levels": 1,
    "snr": True,
}
PLAIN = {key: INN[key] for key in ("lifts", "blocks", "width")}
SNRS_DB = {"low": 1.0, "high": 13.0}
GRADIENT = 1e-5  # of the whole gradient's length


def write(folder: Path, network: torch.nn.Module, config: dict[str, Any]) -> Path:
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_published(path: Path, network: torch.nn.Module) -> Path:
    """`network` as invertible networks are published: a flat state dict, its names in a shell."""
    torch.save({f"{SHELL}{name}": each for name, each in network.state_dict().items()}, path)
    return path


def drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    return tiny_checkpoint._drawn(network, seed)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    family = {key: value for key, value in PRIOR.items() if key != "image_size"}
    published = {
        name: write_published(folder / f"{name}.pth", drawn(Inn.from_config(PLAIN), seed))
        for seed, name in enumerate(SNRS_DB, start=4)
    }
    return {
        "codec": tiny_checkpoint.write_codec(folder / "codec"),
        "prior": write(folder / "prior", drawn(Adm.from_config(family), 2), PRIOR),
        "inn": write(folder / "inn", drawn(Inn.from_config(INN), 3), INN),
        **published,
    }


def named(checkpoints: dict[str, Path], *inns: str) -> tuple[str, ...]:
    """Checkpoints for the command line."""
    parts = (f"codec={checkpoints['codec']}", f"prior={checkpoints['prior']}")
    return (*parts, *(f"inn={checkpoints[name]}" for name in inns))


def guides(checkpoints: dict[str, Path], inn: str) -> dict[str, StageSpec]:
    """The stages of SING-INN in torch, guided by one network."""
    system = find("sing_inn")
    source, _ = gather(system, Request(named(checkpoints, inn)))
    return {spec.name: spec for spec in system.plan(source, Options()).stages}


@dataclass(frozen=True)
class Link:
    """One bundle and both its ends."""

    bundle: Bundle
    receiver: Receiver
    backend: RecordingBackend

    def receive(self, snr_db: float = 7.0, **choices: Any) -> tuple[npt.NDArray[Any], Record]:
        """What arrives of one image without noise."""
        csi = Csi(snr_db=snr_db)
        symbols = Transmitter(self.bundle).send(synthetic_image(32, 48), csi=csi)
        self.backend.calls.clear()
        wanted = {"seed": 1, "steps": 4, **choices}
        image, record = self.receiver.receive(symbols, csi, **wanted)
        return image.astype(int), record

    def answers(self, stage: str) -> Iterator[tuple[Arrays, Arrays]]:
        """What the engine was asked of `stage` since the last image, and what it said."""
        fed, said = self.backend.inputs(stage), self.backend.outputs(stage)
        assert fed
        return zip(map(dict, fed[:: len(fed) // 4]), map(dict, said[:: len(fed) // 4]), strict=True)


def linked(system: str, folder: Path, checkpoints: tuple[str, ...], *options: str) -> Link:
    path = folder / f"{system}.jscc"
    given = [part for each in checkpoints for part in ("--checkpoint", each)]
    given += [part for each in options for part in ("--option", each)]
    assert main(["--model", system, *given, "-o", str(path)]) == 0
    backend = RecordingBackend()
    bundle = Bundle.open(path)
    return Link(bundle, Receiver(bundle, backend=backend, selftest=False), backend)


@pytest.fixture(scope="module")
def sing(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Link:
    folder = tmp_path_factory.mktemp("sing")
    return linked("sing_inn", folder, named(checkpoints, "inn"), "zeta=20")


@pytest.fixture(scope="module")
def commin(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Link:
    """Made of two published files."""
    folder, inns = tmp_path_factory.mktemp("commin"), named(checkpoints, *SNRS_DB)
    return linked("commin", folder, inns, "snrs_db=1,13", "zeta=1:30,13:10")


def gap(spec: StageSpec, fed: Arrays, said: Arrays) -> float:
    """How far the engine's gradient is from autograd's, by their 2-norms."""
    expected = evaluate(spec.build(), spec, fed)["grad"].astype(np.float64)
    return float(np.linalg.norm(said["grad"] - expected) / np.linalg.norm(expected))


def test_another_size_than_the_tile_is_refused_before_the_work(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for each in named(checkpoints, "inn") for part in ("--checkpoint", each)]
    path = tmp_path / "x.jscc"
    assert main(["--model", "sing_inn", *given, "--size", "32x48", "-o", str(path)]) == 2
    told = capsys.readouterr().err
    assert "--size: got 32x48, expected 32x32 or dynamic: stage 'guided' is made for one" in told
    assert not path.exists()


def test_tensorrt_takes_every_graph(sing: Link, tensorrt_takes: Callable[..., None]) -> None:
    """The gradients' too."""
    assert {"guided", "guided_cheap"} <= set(sing.bundle.manifest.stages)
    tensorrt_takes(sing.bundle)


def test_the_guide_pulls(sing: Link) -> None:
    """Guided and plain differ, no weight is no guide, and the cheap guide is another one."""
    guided, record = sing.receive()
    loop = record.loops["denoise"]
    assert (loop.guide, loop.guidance) == ("inn", 20.0)
    plain, _ = sing.receive(guide="none")
    weightless, _ = sing.receive(guidance=0.0)
    cheap, _ = sing.receive(guide="inn_cheap")
    assert np.array_equal(plain, weightless)
    assert np.abs(guided - plain).max() > 0
    assert np.abs(cheap - plain).max() > 0
    assert np.abs(cheap - guided).max() > 0


@pytest.mark.parametrize(("guide", "stage"), [("inn", "guided"), ("inn_cheap", "guided_cheap")])
def test_gradients_are_those_of_autograd(
    sing: Link, checkpoints: dict[str, Path], guide: str, stage: str
) -> None:
    """As a whole; the elements beside a rectifier's edge may be on either side of it."""
    sing.receive(guide=guide)
    spec = guides(checkpoints, "inn")[stage]
    for fed, said in sing.answers(stage):
        assert gap(spec, fed, said) <= GRADIENT


@pytest.mark.parametrize("stage", ["guided", "guided_cheap"])
def test_both_directions_share_one_set_of_weights(
    sing: Link, checkpoints: dict[str, Path], stage: str
) -> None:
    """Split and merge read it; reverse mode, of both, reads one more, turned around."""
    entry = sing.bundle.manifest.stages[stage]
    initializers = ir.load(sing.bundle.path / entry.graph).graph.initializers.values()
    stored = [each.const_value.numpy() for each in initializers if each.const_value is not None]
    network = Inn.from_config(INN)
    network.load_state_dict(torch.load(checkpoints["inn"] / "model.ckpt", weights_only=True))
    matrices = [each.detach().numpy() for each in network.parameters() if each.dim() == 4]
    assert len(matrices) == 2 * (2 + 2 * INN["blocks"]) * INN["lifts"]
    for weight in matrices:
        alike = [
            each
            for each in stored
            if each.size == weight.size
            and np.array_equal(np.sort(each, axis=None), np.sort(weight, axis=None))
        ]
        assert sum(np.array_equal(each, weight) for each in alike) == 1
        assert len(alike) <= 2


@pytest.mark.exhaustive
def test_the_network_of_the_nearest_snr_guides(commin: Link, checkpoints: dict[str, Path]) -> None:
    """Its gradient is the one that torch finds with this network alone, and not the other's."""
    specs = {name: guides(checkpoints, name)["guided"] for name in SNRS_DB}
    for snr_db, name, other in ((6.5, "low", "high"), (7.5, "high", "low")):
        commin.receive(snr_db)
        for fed, said in commin.answers("guided"):
            told = {port.name: fed[port.name] for port in specs[name].inputs}
            assert gap(specs[name], told, said) <= GRADIENT
            assert gap(specs[other], told, said) > 0.01


@pytest.mark.exhaustive
def test_the_guide_weighs_as_the_snr_says(commin: Link, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {
        snr_db: commin.receive(snr_db)[1].loops["denoise"].guidance for snr_db in (0.0, 4.0, 14.0)
    }
    assert weights == {0.0: 30.0, 4.0: pytest.approx(25.0), 14.0: 10.0}
    _, record = commin.receive(4.0, guidance=2.0)
    assert record.loops["denoise"].guidance == 2.0
    assert inspect.main([str(commin.bundle.path)]) == 0
    assert "30 at 1 dB, 10 at 13 dB by inn" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_commin_says_what_it_is(commin: Link) -> None:
    manifest = commin.bundle.manifest
    assert (manifest.system, manifest.format) == ("commin", 2)
    assert "commin, " in manifest.variant
    assert manifest.source.networks["inn"].name == "low.pth + high.pth"
    assert manifest.signal.csi_inputs == ("snr_db",)
    plain, _ = commin.receive(guide="none")
    guided, _ = commin.receive()
    assert np.abs(guided - plain).max() > 0
