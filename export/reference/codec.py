"""Codec stage: trains the convolutional codec on mean squared error over a range of SNRs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.tiles import Tiles

CALIBRATION_BATCHES: Final = 16
CALIBRATION_BATCH: Final = 8
EVALUATED_SNR_DB: Final = (1.0, 4.0, 7.0, 10.0, 13.0)


def transmit(planes: Tensor, snr_db: Tensor, noise: Tensor) -> Tensor:
    """Returns what is received of `planes` [B,C,h,w] when symbols of unit mean power meet noise.

    Args:
        planes: First half of the planes real, second half imaginary.
        snr_db: Per picture [B,1].
        noise: Standard normal, the shape of `planes`.
    """
    planes = planes.float()
    # Half as many complex symbols as real values, hence the 2.
    power = 2 * planes.square().mean(dim=(1, 2, 3), keepdim=True)
    sigma = 10 ** (-snr_db.float() / 20)
    return planes / power.sqrt() + sigma[:, :, None, None] / math.sqrt(2) * noise


def psnr_db(image: Tensor, reference: Tensor) -> Tensor:
    """Returns the PSNR [B] of pictures in [0,1]."""
    error = (image.float().clamp(0, 1) - reference).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error)


@dataclass(frozen=True)
class CodecStage:
    """Random crops through encoder, radio channel and decoder."""

    tiles: Tiles
    params: dict[str, Any]
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    muon: bool = True
    name: str = "codec"
    model: DeepJscc = field(init=False)

    def __post_init__(self) -> None:
        model = DeepJscc.from_config(self.params).to(self.device)
        # torch's annotations know this keyword together with a tensor only.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        object.__setattr__(self, "model", model)

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden layer: all but the first and the last."""
        if not self.muon:
            return set()
        ends = {"E.net.1.weight", "E.projection.weight", "G.mask_conv.weight"}
        ends.add(f"G.model.{len(self.model.G.model) - 2}.weight")
        return {
            name for name, p in self.model.named_parameters() if p.ndim > 1 and name not in ends
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the error of a batch; the last third of the budget sees whole tiles."""
        size = self.crop if progress < 2 / 3 else self.last_crop
        count = max(2, self.batch * self.crop**2 // size**2)
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        low, high = float(self.params["SNR_low"]), float(self.params["SNR_high"])
        snr_db = low + (high - low) * torch.rand(count, 1, generator=generator)
        image, snr_db = (
            image.to(self.device, memory_format=torch.channels_last),
            snr_db.to(self.device),
        )
        with mixed(self.device):
            planes = self.model.E(image, snr_db)
            noise = torch.randn(planes.shape, generator=generator).to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                received = transmit(planes, snr_db, noise)
            restored = self.model.G(received, snr_db)
        error = (restored.float() - image).square().mean()
        return {"loss": error * 100, "psnr_db": psnr_db(restored.detach(), image).mean()}

    def settle(self, model: nn.Module) -> None:
        """Measures the statistics of the averaged weights."""
        assert isinstance(model, DeepJscc)
        calibrate(model, self.tiles.train, self.params)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the mean PSNR of the held-out tiles per SNR, always with the same noise."""
        assert isinstance(model, DeepJscc)
        figures = {}
        for snr in EVALUATED_SNR_DB:
            generator = torch.Generator().manual_seed(1)
            values = []
            for chunk in torch.split(self.tiles.held_out, 16):
                image = (chunk.float() / 255).to(self.device)
                with mixed(self.device):
                    restored = receive(model, image, snr, generator)
                values.append(psnr_db(restored, image))
            figures[f"psnr_db@{snr:g}dB"] = float(torch.cat(values).mean())
        return figures


def receive(
    model: DeepJscc, image: Tensor, snr_db: float | Tensor, generator: torch.Generator
) -> Tensor:
    """Returns the codec's reconstruction of `image` [B,3,H,W] in [0,1] after one transmission.

    Args:
        snr_db: One for all, or per picture [B,1].
    """
    csi = torch.as_tensor(snr_db, dtype=torch.float32, device=image.device).expand(len(image), 1)
    planes = model.E(image, csi)
    noise = torch.randn(planes.shape, generator=generator).to(image.device)
    return model.G(transmit(planes, csi, noise), csi)  # type: ignore[no-any-return]


@torch.no_grad()
def calibrate(codec: DeepJscc, tiles: Tensor, params: Mapping[str, Any]) -> None:
    """Measures the statistics of every batch norm anew, on random tiles at random SNRs.

    Averaged weights need their own: those that were collected during training belong to other
    weights, and cost several dB.
    """
    norms = [module for module in codec.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    generator = torch.Generator().manual_seed(2)
    device = next(codec.parameters()).device
    low, high = float(params["SNR_low"]), float(params["SNR_high"])
    for _ in range(CALIBRATION_BATCHES):
        size = tiles.shape[-1]
        image = draw_crops(tiles, count=CALIBRATION_BATCH, size=size, generator=generator)
        snr_db = low + (high - low) * torch.rand(CALIBRATION_BATCH, 1, generator=generator)
        with mixed(device):
            receive(codec, image.to(device), snr_db.to(device), generator)
    codec.eval()
