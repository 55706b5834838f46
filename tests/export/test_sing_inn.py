"""SING-INN and CommIN end to end with tiny networks: what is exported guides, and how is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.exporter import synthetic_image
from jscc.export.models.adm import Adm
from jscc.export.models.commin import Commin
from jscc.export.models.inn import Inn
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "indigo-inn-tiny"
PRIOR = {
    "family": "adm",
    "model_channels": 16,
    "num_res_blocks": 1,
    "channel_mult": [1],
    "num_heads": 1,
    "image_size": 16,
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
PLAIN = {key: INN[key] for key in ("lifts", "blocks", "width", "levels")}
SNRS_DB = [1.0, 7.0, 13.0]
COMMIN = {"family": "commin", **PLAIN, "nets": len(SNRS_DB), "snrs_db": SNRS_DB}


def write(folder: Path, network: torch.nn.Module, config: dict[str, Any]) -> Path:
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    return tiny_checkpoint._drawn(network, seed)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    family = {key: value for key, value in PRIOR.items() if key != "image_size"}
    return {
        "codec": tiny_checkpoint.write_codec(folder / "codec"),
        "prior": write(folder / "prior", drawn(Adm.from_config(family), 2), PRIOR),
        "inn": write(folder / "inn", drawn(Inn.from_config(INN), 3), INN),
        "commin": write(folder / "commin", drawn(Commin.from_config(COMMIN), 4), COMMIN),
    }


@dataclass(frozen=True)
class Link:
    """One bundle and both its ends."""

    bundle: Bundle
    receiver: Receiver
    backend: RecordingBackend

    def receive(self, snr_db: float = 7.0, **choices: Any) -> tuple[npt.NDArray[Any], Any]:
        """What arrives of one image without noise."""
        csi = Csi(snr_db=snr_db)
        symbols = Transmitter(self.bundle).send(synthetic_image(32, 48), csi=csi)
        wanted = {"seed": 1, "steps": 4, **choices}
        image, record = self.receiver.receive(symbols, csi, **wanted)
        return image.astype(int), record


def linked(
    system: str, checkpoints: dict[str, Path], folder: Path, *, multiple: tuple[str, ...] = ()
) -> Link:
    path = folder / f"{system}.jscc"
    inn = "commin" if system == "commin" else "inn"
    command = ["--model", system]
    for role, name in (("codec", "codec"), ("prior", "prior"), ("inn", inn)):
        command += ["--checkpoint", f"{role}={checkpoints[name]}"]
    assert main([*command, "--option", "zeta=20", "-o", str(path)]) == 0
    backend = RecordingBackend()
    bundle = Bundle.open(path)
    return Link(bundle, Receiver(bundle, backend=backend, selftest=False), backend)


@pytest.fixture(scope="module")
def sing(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Link:
    return linked("sing_inn", checkpoints, tmp_path_factory.mktemp("sing"))


@pytest.mark.slow
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
