"""Tiny autoencoder stage: distils the reference first stage into a few convolutions.

Ollin Boer Bohan, "TAESD: Tiny AutoEncoder for Stable Diffusion", github.com/madebyollin/taesd: the
encoder learns the teacher's latents, the decoder learns pictures from them. Latents are scaled, as
the diffusion model has them, and half of them are those of received pictures: a receiver's encoder
sees nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.models.tiny_autoencoder import TinyShape, tiny_decoder, tiny_encoder
from jscc.export.reference.codec import psnr_db, receive
from jscc.export.reference.first_stage import UNCORRECTED_WEIGHT, recolour
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops
from jscc.runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.perceptual import Lpips
    from jscc.export.reference.teacher import Link
    from jscc.export.reference.tiles import Tiles

ENDS: Final = ("encoder.0.weight", "encoder.14.weight", "decoder.1.weight", "decoder.19.weight")
LARGER: Final = 2 / 3
EVALUATED_SNR_DB: Final = 7.0
EVALUATED_AT_ONCE: Final = 4


class TinyAutoencoder(nn.Module):
    """Both halves; their weights have the names of a published file with both."""

    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.encoder = tiny_encoder(shape)
        self.decoder = tiny_decoder(shape)


@dataclass(frozen=True)
class TinyAutoencoderStage:
    """Random crops, as they are and as they are received, through the teacher's encoder and both.

    Attributes:
        params: ``latent``, ``width`` and ``pooled`` of the networks.
        lpips: None leaves LPIPS out of the loss.
        latent_weight: Of the encoder's squared error.

    Raises:
        DataError: ``E_NETWORK``, its latents have other planes than the teacher's.
    """

    tiles: Tiles
    params: Mapping[str, Any]
    teacher: Link
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    lpips: Lpips | None
    name: str
    lpips_weight: float = 0.5
    latent_weight: float = 1.0
    model: TinyAutoencoder = field(init=False)

    def __post_init__(self) -> None:
        shape = shape_of(self.params)
        own = self.teacher.first_stage.post_quant_conv.in_channels
        if shape.latent != own:
            raise DataError(
                "E_NETWORK",
                f"latent: got {shape.latent} planes, expected {own}, those of the latents that it "
                "learns. Leave it as it is.",
            )
        model = TinyAutoencoder(shape).to(self.device)
        # torch's annotations know this keyword together with a tensor only.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        object.__setattr__(self, "model", model)

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden convolution: all but the first and the last."""
        return {
            name for name, p in self.model.named_parameters() if p.ndim > 1 and name not in ENDS
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the errors of a batch; the last third of the budget sees larger crops."""
        size = self.crop if progress < LARGER else self.last_crop
        count = max(2, self.batch * self.crop**2 // size**2)
        # LPIPS prefers anything textured to a first blurred picture, so it joins once there is one.
        weight = self.lpips_weight * min(1.0, max(0.0, (progress - 0.05) / 0.1))
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        image = image.to(self.device, memory_format=torch.channels_last)
        terms: dict[str, Tensor] = {}
        with mixed(self.device):
            shown, wanted = self._targets(image, generator)
            terms["latent"] = (self.model.encoder(shown).float() - wanted).square().mean()
            restored = self.model.decoder(wanted[: len(image)]).float()
            corrected = recolour(restored, image)
            if self.lpips is not None and weight > 0:
                terms["lpips"] = self.lpips(2 * corrected - 1, 2 * image - 1).mean()
        # Pictures in [-1,1], as for the first stage.
        terms["absolute"] = 2 * (corrected - image).abs().mean()
        terms["uncorrected"] = 2 * (restored - image).abs().mean()
        loss = terms["absolute"] + UNCORRECTED_WEIGHT * terms["uncorrected"]
        loss = loss + self.latent_weight * terms["latent"]
        if "lpips" in terms:
            loss = loss + weight * terms["lpips"]
        return terms | {"loss": loss}

    @torch.no_grad()
    def _targets(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns pictures, the second half received at random SNRs, and the teacher's latents."""
        received, _ = self.teacher.send(image, generator)
        shown = torch.cat([image, received])
        return shown, self.teacher.latent(shown)

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns figures of both autoencoders on held-out tiles.

        ``latent`` and ``latent_received`` are the encoder's squared error, where the latent's
        deviation is 1; PSNR in dB and LPIPS are of encoding and decoding, with the colours of large
        areas corrected, of ``teacher_`` by the first stage.
        """
        assert isinstance(model, TinyAutoencoder)
        sums: dict[str, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(1)
        for chunk in torch.split(self.tiles.held_out, EVALUATED_AT_ONCE):
            image = (chunk.float() / 255).to(self.device)
            with mixed(self.device):
                received = receive(self.teacher.codec, image, EVALUATED_SNR_DB, generator).float()
                shown = torch.cat([image, received])
                wanted, latent = self.teacher.latent(shown), model.encoder(shown).float()
                decoded = model.decoder(latent[: len(image)]).float()
                teacher = self.teacher.picture(wanted[: len(image)])
            error = (latent - wanted).square().mean(dim=(1, 2, 3))
            figures = {"latent": error[: len(image)], "latent_received": error[len(image) :]}
            figures |= self._quality("", decoded, image)
            figures |= self._quality("teacher_", teacher, image)
            for name, values in figures.items():
                sums.setdefault(name, []).append(values)
        return {name: float(torch.cat(values).mean()) for name, values in sums.items()}

    def _quality(self, prefix: str, decoded: Tensor, image: Tensor) -> dict[str, Tensor]:
        restored = recolour(decoded, image).clamp(0, 1)
        figures = {f"{prefix}psnr_db": psnr_db(restored, image)}
        if self.lpips is not None:
            figures[f"{prefix}lpips"] = self.lpips(2 * restored - 1, 2 * image - 1)
        return figures


def shape_of(params: Mapping[str, Any]) -> TinyShape:
    """Returns what the networks of a configuration are like."""
    return TinyShape(int(params["latent"]), int(params["width"]), bool(params["pooled"]))
