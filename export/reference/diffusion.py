"""Diffusion stage: trains UNet and control module together, from scratch.

Jonathan Ho, Ajay Jain, Pieter Abbeel, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239,
equation 14; the weights of the timesteps follow Tiankai Hang et al., "Efficient Diffusion Training
via Min-SNR Weighting Strategy", arXiv 2303.09556, with a floor for the noisiest timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.models.unet import Control, Unet
from jscc.export.reference.precision import mixed

if TYPE_CHECKING:
    from jscc.export.reference.pairs import Pairs

SIGNAL_TO_NOISE: Final = (0.03, 5.0)
EVALUATED_T: Final = (100, 300, 500, 700, 900)


class Denoiser(nn.Module):
    """The two networks; their context is a constant token of zeros."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        self.unet = Unet.from_config(params["unet_config"]["params"])
        self.control = Control.from_config(params["control_stage_config"]["params"])
        self.context_dim = int(params["unet_config"]["params"]["context_dim"])

    def forward(self, x: Tensor, hint: Tensor, timestep: Tensor, snr_db: Tensor) -> Tensor:
        """Returns the noise in `x` [B,z,h,w]; `hint` is like `x`, `timestep` and `snr_db` [B]."""
        context = torch.zeros(1, 1, self.context_dim, device=x.device)
        residuals = self.control(x, hint, timestep, snr_db, self.control.project_context(context))
        return self.unet(x, timestep, self.unet.project_context(context), residuals)  # type: ignore[no-any-return]


def alphas_cumprod(params: dict[str, Any]) -> Tensor:
    """Returns the share of signal power [T] of the official schedule, float64."""
    start, end = float(params["linear_start"]), float(params["linear_end"])
    betas = torch.linspace(start**0.5, end**0.5, int(params["timesteps"]), dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


@dataclass(frozen=True)
class DiffusionStage:
    """Random pairs, turned noisy and predicted."""

    pairs: Pairs
    held_out: Pairs
    params: dict[str, Any]
    device: torch.device
    batch: int
    crop: int
    name: str = "diffusion"
    model: Denoiser = field(init=False)
    abar: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Denoiser(self.params).to(self.device))
        object.__setattr__(self, "abar", alphas_cumprod(self.params))

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden layer: all but the first and last convolutions."""
        ends = {
            "unet.input_blocks.0.0.weight",
            "unet.out.2.weight",
            "control.input_blocks.0.0.weight",
        }
        return {
            name for name, p in self.model.named_parameters() if p.ndim > 1 and name not in ends
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the weighted error of the noise, at timesteps spread evenly over the batch.

        The last third of the budget sees whole latents.
        """
        total = len(self.abar)
        side = self.pairs.clean.shape[-1]
        size = self.crop if progress < 0.7 else side
        count = max(2, self.batch * self.crop**2 // size**2)
        which = torch.randint(len(self.pairs.clean), (count,), generator=generator)
        snr_index = torch.randint(self.pairs.hint.shape[1], (count,), generator=generator)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        t = (spread * total).long()
        top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
        area = (..., slice(top, top + size), slice(left, left + size))
        noise = torch.randn(self.pairs.clean[which][area].shape, generator=generator)
        error = self._error(self.model, self.pairs, which, snr_index, t, noise, area)
        ratio = self.abar[t] / (1 - self.abar[t])
        weight = (ratio.clamp(*SIGNAL_TO_NOISE) / ratio).float().to(self.device)
        return {"loss": (weight * error).mean(), "error": error.detach().mean()}

    def _error(
        self,
        model: nn.Module,
        pairs: Pairs,
        which: Tensor,
        snr_index: Tensor,
        t: Tensor,
        noise: Tensor,
        area: tuple[Any, ...] = (...,),
    ) -> Tensor:
        scale = float(self.params["scale_factor"])
        clean = pairs.clean[which][area].float() * scale
        hint = pairs.hint[which, snr_index][area].float() * scale
        snr_db = pairs.snr_db[which, snr_index]
        signal = self.abar[t].float()[:, None, None, None]
        x = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        inputs = [value.to(self.device) for value in (x, hint, t.float(), snr_db)]
        with mixed(self.device):
            predicted: Tensor = model(*inputs)
        return (predicted.float() - noise.to(self.device)).square().mean(dim=(1, 2, 3))

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the mean squared error of the noise on held-out pairs at five timesteps."""
        figures = {}
        for timestep in EVALUATED_T:
            generator = torch.Generator().manual_seed(1)
            errors = []
            for which in torch.split(torch.arange(len(self.held_out.clean)), 16):
                noise = torch.randn(self.held_out.clean[which].shape, generator=generator)
                t = torch.full_like(which, timestep)
                errors.append(
                    self._error(model, self.held_out, which, torch.zeros_like(which), t, noise)
                )
            figures[f"error@t{timestep}"] = float(torch.cat(errors).mean())
        return figures
