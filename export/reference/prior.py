"""Prior stage: trains an unconditional pixel diffusion model on crops of photographs.

Jonathan Ho, Ajay Jain, Pieter Abbeel, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239,
equation 14 (predicted is the noise); the weights of the timesteps follow Tiankai Hang et al.,
"Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.models.adm import Adm
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.tiles import Tiles

FIRST_BETA: Final = 1e-4
LAST_BETA: Final = 2e-2
TIMESTEPS: Final = 1000
# Bounds of the weight SNR -> min(SNR, high) / SNR of the error of the noise, with a floor.
SIGNAL_TO_NOISE: Final = (0.05, 5.0)
EVALUATED_T: Final = (20, 60, 150, 300, 500, 800)


def alphas_cumprod() -> Tensor:
    """Returns the share of signal power [T] of the linear schedule, float64."""
    betas = torch.linspace(FIRST_BETA, LAST_BETA, TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


@dataclass(frozen=True)
class PriorStage:
    """Random crops, turned noisy, and their noise predicted.

    Attributes:
        params: Configuration of the network.
        crop: Pixels; the last third of the budget sees `last_crop`, of which fewer make a batch.
    """

    tiles: Tiles
    params: Mapping[str, Any]
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    name: str = "prior"
    model: Adm = field(init=False)
    abar: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Adm.from_config(self.params).to(self.device))
        object.__setattr__(self, "abar", alphas_cumprod())

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden layer: all but the first and the last."""
        ends = ("input_blocks.0.", "out.")
        return {
            name
            for name, p in self.model.named_parameters()
            if p.ndim > 1 and not name.startswith(ends)
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the weighted error of the noise of a batch."""
        size = self.crop if progress < 2 / 3 else self.last_crop
        count = max(2, self.batch * self.crop**2 // size**2)
        clean = draw_crops(self.tiles.train, count=count, size=size, generator=generator) * 2 - 1
        t = torch.randint(TIMESTEPS, (count,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        error = self._error(self.model, clean, t, noise)
        ratio = (self.abar[t] / (1 - self.abar[t])).float().to(self.device)
        low, high = SIGNAL_TO_NOISE
        weight = ratio.clamp(low, high) / ratio.clamp(min=low)
        return {"loss": (error * weight).mean(), "error": error.mean()}

    def _error(self, model: nn.Module, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error [B] of the predicted noise."""
        share = self.abar[t].float()[:, None, None, None]
        state = share.sqrt() * clean + (1 - share).sqrt() * noise
        with mixed(self.device):
            predicted = model(state.to(self.device), t.float().to(self.device))
        error: Tensor = (predicted.float() - noise.to(self.device)).square()
        return error.mean(dim=(1, 2, 3))

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the error of the noise on the middles of the held-out tiles."""
        edge = self.last_crop
        begin = (self.tiles.held_out.shape[-1] - edge) // 2
        middle = self.tiles.held_out[:, :, begin : begin + edge, begin : begin + edge]
        figures = {}
        for timestep in EVALUATED_T:
            generator = torch.Generator().manual_seed(1)
            errors = []
            for chunk in torch.split(middle, 8):
                clean = chunk.float() / 127.5 - 1
                noise = torch.randn(clean.shape, generator=generator)
                t = torch.full((len(clean),), timestep)
                errors.append(self._error(model, clean, t, noise))
            figures[f"error@t{timestep}"] = float(torch.cat(errors).mean())
        return figures
