"""The generative families are told by their names, and our GenerativeJSCC becomes a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.cli import main
from jscc.export.models.generative import Generative
from jscc.export.models.lpips import Lpips
from jscc.export.models.stylegan2 import Generator
from jscc.export.recognise import recognise
from jscc.export.source import RandomSource
from jscc.export.system import Options, find
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CheckpointError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

CONFIG: dict[str, Any] = {
    "planes": 4,
    "encoder_widths": [4, 4, 4, 6],
    "decoder_widths": [6, 4, 4, 4, 4],
    "style_dim": 4,
}


def shapes(module: nn.Module, *beside: str) -> dict[str, tuple[int, ...]]:
    found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return found | dict.fromkeys(beside, (8,))


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_networks_are_told_by_their_names(wrapper: str) -> None:
    with torch.device("meta"):
        networks = {
            "generative": (shapes(Generative.from_config(CONFIG)), "codec"),
            "stylegan2": (shapes(Generator([8, 8, 4], 8, 2), "latent_avg", "mean"), "generator"),
            "lpips": (shapes(Lpips()), "lpips"),
        }
    for name, (names, role) in networks.items():
        found = recognise({f"{wrapper}{key}": shape for key, shape in names.items()})
        assert found is not None
        assert (found.family.name, found.family.role) == (name, role)


def test_another_codec_is_refused(tmp_path: Path) -> None:
    source = RandomSource({"family": "af", "c_feat": 8, "c_out": 4}, tmp_path, seed=0)
    with pytest.raises(CheckpointError, match="got a codec of 'af'") as caught:
        find("generative_jscc").plan(source, Options())
    assert caught.value.code == "E_CKPT_FAMILY"


@pytest.mark.slow
def test_from_a_checkpoint_to_a_picture(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The exporter proves the graphs at a size that they were not traced at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Generative.from_config(CONFIG).eval()
    torch.save(network.state_dict(), tmp_path / "generative.pt")
    path = tmp_path / "generative.jscc"
    checkpoint = str(tmp_path / "generative.pt")
    assert main(["--model", "generative_jscc", "--checkpoint", checkpoint, "-o", str(path)]) == 0
    bundle = Bundle.open(path)
    image = np.random.default_rng(3).integers(0, 256, (48, 80, 3), np.uint8)
    csi = Csi(snr_db=5.0)
    symbols = Transmitter(bundle).send(image, csi=csi)
    assert symbols.shape == (2, 3, 5)
    pixels, _ = Receiver(bundle).receive(symbols, csi, seed=0)
    planes = np.concatenate((symbols.real, symbols.imag))[None]
    with torch.no_grad():
        expected = network.decoder(torch.from_numpy(planes), torch.tensor([5.0]))
    shown = expected[0].clip(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels - shown).max() <= 1
    request.getfixturevalue("tensorrt_takes")(bundle)
