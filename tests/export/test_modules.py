"""Two modules of one's own become a bundle that does what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jscc.export.modules import Contract, export_modules
from jscc.runtime.csi import Csi
from jscc.runtime.errors import OutputError, UsageError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = Contract(planes=6, stride=4, snr_db_range=(0.0, 10.0), multiple=8, name="pooling")


class Shrink(nn.Module):
    """Averages 4x4 pixels; two planes per colour, the second smaller with the SNR."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)

    def forward(self, image: Tensor, snr_db: Tensor) -> Tensor:
        small = self.pool(image) - 0.5
        return torch.cat((small, small / (1 + snr_db)[:, None, None, None]), dim=1)


class Grow(nn.Module):
    """Repeats every position 4x4."""

    def __init__(self, gain: float = 0.25) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain]))
        self.grow = nn.UpsamplingNearest2d(scale_factor=4)

    def forward(self, received: Tensor, snr_db: Tensor) -> Tensor:
        return self.grow(received[:, :3] * self.gain) + 0.5 + 0 * snr_db[:, None, None, None]


@pytest.mark.slow
def test_the_bundle_does_what_the_modules_do(tmp_path: Path) -> None:
    """Power 1 on the air; the decoder's image comes out, cut to the size that was sent."""
    encoder, decoder = Shrink().train(), Grow()
    bundle = export_modules(encoder, decoder, tmp_path / "own.jscc", CONTRACT, licence="mine")
    assert encoder.training  # the caller's modules stay as they were
    assert bundle.manifest.system == "generative_jscc"
    assert bundle.manifest.source.licence == "mine"
    assert bundle.manifest.image.multiple == 8
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 28, 3), np.uint8)
    csi = Csi(snr_db=3.0)
    symbols = Transmitter(bundle).send(image, csi=csi)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, rel=1e-5)
    padded = np.zeros((24, 32, 3), np.float32)
    padded[:20, :28] = image / np.float32(255)
    small = padded.reshape(6, 4, 8, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) - 0.5
    expected = small + 1j * small / 4
    expected /= np.sqrt(np.mean(np.abs(expected) ** 2))
    np.testing.assert_allclose(symbols, expected, atol=1e-5)
    pixels, _ = Receiver(bundle).receive(symbols, csi, seed=0, size=(20, 28))
    shown = np.clip(expected.real * 0.25 + 0.5, 0, 1).repeat(4, axis=1).repeat(4, axis=2)
    gap = pixels - shown[:, :20, :28].transpose(1, 2, 0) * 255
    assert np.abs(gap).max() <= 1


@pytest.mark.exhaustive
def test_without_snr_and_with_pairs(tmp_path: Path) -> None:
    """Consecutive values of the flattened code are real and imaginary part of one symbol."""

    class Fold(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.nn.functional.pixel_unshuffle(image.mean(1, keepdim=True), 2)

    class Unfold(nn.Module):
        def forward(self, received: Tensor) -> Tensor:
            return torch.nn.functional.pixel_shuffle(received, 2).expand(-1, 3, -1, -1)

    contract = Contract(
        planes=4, stride=2, snr_db_range=(0, 0), pairs=True, told_snr=False, scale=0.5
    )
    bundle = export_modules(Fold(), Unfold(), tmp_path / "own.jscc", contract)
    assert bundle.manifest.signal.csi_inputs == ()
    image = np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8)
    symbols = Transmitter(bundle).send(image, csi=Csi(snr_db=0.0))
    gray = image.astype(np.float64).mean(axis=2) / 255
    code = np.stack([gray[r::2, c::2] for r in (0, 1) for c in (0, 1)]).ravel()
    expected = code[0::2] + 1j * code[1::2]
    expected /= np.sqrt(np.mean(np.abs(expected) ** 2))
    np.testing.assert_allclose(symbols.ravel(), expected, atol=1e-5)


class Wrong(nn.Module):
    """Leaves out a plane."""

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        return x[:, :2]


def test_modules_that_break_the_contract_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "own.jscc"
    with pytest.raises(UsageError, match=r"encoder: got \[1, 2, 16, 16\]") as caught:
        export_modules(Wrong(), Grow(), out, CONTRACT)
    assert caught.value.code == "E_MODULE"
    with pytest.raises(UsageError, match=r"decoder: got \[1, 2, 4, 4\]"):
        export_modules(Shrink(), Wrong(), out, CONTRACT)
    with pytest.raises(UsageError, match="got 5 planes, stride 4"):
        export_modules(Shrink(), Grow(), out, Contract(5, 4, (0.0, 1.0)))
    assert not out.exists()


def test_an_existing_bundle_stays(tmp_path: Path) -> None:
    out = tmp_path / "own.jscc"
    out.mkdir()
    with pytest.raises(OutputError, match="own.jscc"):
        export_modules(Shrink(), Grow(), out, CONTRACT)
