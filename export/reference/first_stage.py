"""First stage: trains the autoencoder on absolute error, LPIPS and a weak divergence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.autoencoder import Autoencoder, split_moments
from jscc.export.reference.codec import psnr_db
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from jscc.export.reference.perceptual import Lpips
    from jscc.export.reference.tiles import Tiles

FIRST_LOG_VARIANCE: Final = -5.0
COARSE: Final = 32
UNCORRECTED_WEIGHT: Final = 0.1


@dataclass(frozen=True)
class FirstStage:
    """Random crops through encoder, a sample of the latent, and decoder.

    With `encoder_from`, the averaged weights of a finished autoencoder, only the decoder is
    trained further, and latents that were made of it stay valid.
    """

    tiles: Tiles
    params: dict[str, Any]
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    lpips: Lpips | None
    lpips_weight: float = 0.5
    divergence_weight: float = 1e-3
    encoder_from: dict[str, Tensor] | None = None
    name: str = "autoencoder"
    model: Autoencoder = field(init=False)

    def __post_init__(self) -> None:
        model = Autoencoder.from_config(self.params)
        with torch.no_grad():
            # Starts with little noise in the latent; from unit noise the first steps learn nothing.
            bias = model.quant_conv.get_parameter("bias")
            bias[len(bias) // 2 :] += FIRST_LOG_VARIANCE
        if self.encoder_from is not None:
            model.load_state_dict(self.encoder_from)
            model.encoder.requires_grad_(requires_grad=False)
            model.quant_conv.requires_grad_(requires_grad=False)
        object.__setattr__(self, "model", model.to(self.device))

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden convolution: all but the first and the last."""
        ends = ("conv_in.weight", "conv_out.weight", "quant_conv.weight")
        return {
            name
            for name, p in self.model.named_parameters()
            if p.ndim > 1 and not name.endswith(ends)
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the error of a batch; the last fifth of the budget sees larger crops."""
        size = self.crop if progress < 0.8 else self.last_crop
        count = max(1, self.batch * self.crop**2 // size**2)
        # LPIPS prefers anything textured to a first blurred picture, so it joins once there is one.
        weight = self.lpips_weight
        if self.encoder_from is None:
            weight *= min(1.0, max(0.0, (progress - 0.05) / 0.1))
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        image = (2 * image - 1).to(self.device)
        terms: dict[str, Tensor] = {}
        with mixed(self.device):
            mean, log_variance = split_moments(self.model.moments(image).float())
            noise = torch.randn(mean.shape, generator=generator).to(self.device)
            restored = self.model.decode(mean + torch.exp(0.5 * log_variance) * noise)
            corrected = recolour(restored.float(), image)
            if self.lpips is not None and weight > 0:
                terms["lpips"] = self.lpips(corrected, image).mean()
        terms["absolute"] = (corrected - image).abs().mean()
        terms["uncorrected"] = (restored.float() - image).abs().mean()
        terms["divergence"] = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = terms["absolute"] + UNCORRECTED_WEIGHT * terms["uncorrected"]
        loss = loss + self.divergence_weight * terms["divergence"]
        if "lpips" in terms:
            loss = loss + weight * terms["lpips"]
        return terms | {"loss": loss}

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns PSNR, LPIPS and the latent's standard deviation on held-out tiles, unsampled."""
        assert isinstance(model, Autoencoder)
        quality, distance, latents = [], [], []
        for chunk in torch.split(self.tiles.held_out, 8):
            image = (chunk.float() / 255).to(self.device)
            with mixed(self.device):
                mean = split_moments(model.moments(2 * image - 1))[0].float()
                restored = model.decode(mean).float()
            restored = recolour(restored, 2 * image - 1).clamp(-1, 1)
            quality.append(psnr_db((restored + 1) / 2, image))
            latents.append(mean.flatten())
            if self.lpips is not None:
                distance.append(self.lpips(restored, 2 * image - 1))
        figures = {
            "psnr_db": float(torch.cat(quality).mean()),
            "latent_std": float(torch.cat(latents).std()),
        }
        return figures | ({"lpips": float(torch.cat(distance).mean())} if distance else {})


def recolour(restored: Tensor, image: Tensor) -> Tensor:
    """Returns `restored` with the colours of large areas (32 and up) taken from `image`.

    A receiver takes them from the codec's reconstruction, so the autoencoder need not carry them;
    with two features per group, its norms could hardly do it.
    """
    error = functional.avg_pool2d(restored - image, COARSE)
    return restored - functional.interpolate(error, size=image.shape[2:], mode="bilinear")
