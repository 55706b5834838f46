"""Pairs: latents of tiles and of what the codec makes of them, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from jscc.export.models.autoencoder import split_moments
from jscc.export.reference.codec import receive
from jscc.export.reference.precision import mixed

if TYPE_CHECKING:
    from jscc.export.models.autoencoder import Autoencoder
    from jscc.export.models.deepjscc_cnn import DeepJscc

CHUNK: Final = 8


@dataclass(frozen=True)
class Pairs:
    """Unscaled latents.

    Attributes:
        clean: Of the tile, float16 [N,z,h,w].
        hint: Of the codec's reconstruction, one per SNR, float16 [N,K,z,h,w].
        snr_db: [N,K].
    """

    clean: Tensor
    hint: Tensor
    snr_db: Tensor

    def dump(self) -> dict[str, Tensor]:
        """The tensors by name, for a file."""
        return {"clean": self.clean, "hint": self.hint, "snr_db": self.snr_db}


@torch.no_grad()
def make_pairs(
    tiles: Tensor,
    codec: DeepJscc,
    autoencoder: Autoencoder,
    *,
    snr_range_db: tuple[float, float],
    snrs: int,
    generator: torch.Generator,
    device: torch.device,
) -> Pairs:
    """Sends every tile of `tiles` uint8 [N,3,H,W] at `snrs` random SNRs and encodes all of it."""
    low, high = snr_range_db
    clean, hint, snr_db = [], [], []
    for chunk in torch.split(tiles, CHUNK):
        image = (chunk.float() / 255).to(device)
        with mixed(device):
            clean.append(_latent(autoencoder, image))
            drawn = low + (high - low) * torch.rand(len(chunk), snrs, generator=generator)
            received = [_receive(codec, image, drawn[:, k], generator) for k in range(snrs)]
            hint.append(torch.stack([_latent(autoencoder, picture) for picture in received], dim=1))
        snr_db.append(drawn)
    return Pairs(torch.cat(clean).half(), torch.cat(hint).half(), torch.cat(snr_db))


def _latent(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    return split_moments(autoencoder.moments(2 * image - 1))[0].float().cpu()


def _receive(codec: DeepJscc, image: Tensor, snr_db: Tensor, generator: torch.Generator) -> Tensor:
    return receive(codec, image, snr_db[:, None].to(image.device), generator).float()
