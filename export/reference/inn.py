"""INN stage: teaches an invertible network that its coarse part of an image is what a codec sends.

Chen, Yilmaz, You, Dragotti, Gündüz, "SING: Semantic Image Communications using Null-Space and
INN-Guided Diffusion Models", arXiv 2503.12484, equation 16: the mean over pairs of
``|c(x; snr) - y|^2``. Here y is the codec's reconstruction, averaged over blocks to the size of the
coarse part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.inn import Inn
from jscc.export.reference.af import receive
from jscc.export.reference.codec import EVALUATED_SNR_DB
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from jscc.export.models.af import Af
    from jscc.export.models.commin import Commin
    from jscc.export.reference.tiles import Tiles


@dataclass(frozen=True)
class InnStage:
    """Random crops, sent through the finished codec at random SNRs, split by the network.

    Attributes:
        codec: Trained; it stays as it is.
        model: A network that is told the SNR, or one network per SNR.
        snrs_db: SNRs that are drawn from; two mean any between them.
    """

    tiles: Tiles
    codec: Af
    model: Inn | Commin
    snrs_db: tuple[float, ...]
    device: torch.device
    batch: int
    crop: int
    name: str

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden convolution."""
        return {
            name
            for name, p in self.model.named_parameters()
            if p.ndim == 4 and (".conv1." in name or ".conv2." in name)
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the error of the coarse part of a batch, all of it at one SNR."""
        del progress
        image = draw_crops(
            self.tiles.train, count=self.batch, size=self.crop, generator=generator
        ).to(self.device)
        low, high = self.snrs_db[0], self.snrs_db[-1]
        if len(self.snrs_db) == 2:
            snr = low + (high - low) * float(torch.rand((), generator=generator))
        else:
            snr = self.snrs_db[int(torch.randint(len(self.snrs_db), (), generator=generator))]
        coarse, wanted = self._pair(self.model, image, snr, generator)
        error = (coarse - wanted).square().mean()
        return {"loss": 100 * error, "psnr_db": -10 * torch.log10(error.detach())}

    def _pair(
        self, model: nn.Module, image: Tensor, snr: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the network takes out of the images and what the codec makes of them."""
        stride = self.model.stride
        known = torch.full((len(image), 1), snr, device=image.device)
        with torch.no_grad():
            received = receive(self.codec, image, known, generator)
            wanted = functional.avg_pool2d(received, stride)
        # A network per SNR is asked for the one SNR of the batch.
        condition = known[:, 0] if isinstance(model, Inn) else known[:1, 0]
        with mixed(self.device):
            coarse, _ = model(image, condition)
        return coarse.float(), wanted

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the PSNR between the two coarse images of the held-out tiles, per SNR."""
        figures = {}
        for snr in EVALUATED_SNR_DB:
            generator = torch.Generator().manual_seed(1)
            errors = []
            for chunk in torch.split(self.tiles.held_out, 8):
                image = (chunk.float() / 255).to(self.device)
                coarse, wanted = self._pair(model, image, snr, generator)
                errors.append((coarse - wanted).square().mean(dim=(1, 2, 3)))
            figures[f"psnr_db@{snr:g}dB"] = float(-10 * torch.log10(torch.cat(errors).mean()))
        return figures
