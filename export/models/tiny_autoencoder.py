"""Tiny autoencoder: a few convolutions in place of a latent diffusion model's first stage.

Ollin Boer Bohan, "TAESD: Tiny AutoEncoder for Stable Diffusion", github.com/madebyollin/taesd,
whose published files (TAESD, TAESDXL, TAEF1, TAEF2) these networks load. They speak the diffusion
model's own latents, already scaled, and images in [0,1].

    image [B,3,H,W] in [0,1] --encoder--> latent [B,z,H/8,W/8] --decoder--> image [B,3,H,W]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HALVES: Final = ("encoder.", "decoder.")
LATENT_BOUND: Final = 3.0  # the decoder squashes its input softly to this magnitude
POOL_GROUPS: Final = 4
FACTOR: Final = 8  # image pixels per latent, along height and width
_LAST_ENCODER, _LAST_DECODER = 14, 19  # positions of the last convolutions
_FIRST_DECODER = 1
_ADDED_BY_US = 1  # diffusers counts the decoder's layers without the squashing in front


class _Block(nn.Module):
    """Three convolutions around an identity; in some variants after a bottleneck with a norm."""

    def __init__(self, width: int, *, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.pool = _bottleneck(width) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LATENT_BOUND) * LATENT_BOUND


def _bottleneck(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, 4 * width, 1, bias=False),
        nn.GroupNorm(POOL_GROUPS, 4 * width),
        nn.ReLU(),
        nn.Conv2d(4 * width, width, 1, bias=False),
    )


@dataclass(frozen=True)
class TinyShape:
    """What tells one tiny autoencoder from another.

    Attributes:
        latent: Planes z of the latent.
        width: Planes inside.
        pooled: Whether the blocks at the latent's resolution have a bottleneck.
    """

    latent: int
    width: int = 64
    pooled: bool = False


def tiny_encoder(shape: TinyShape) -> nn.Sequential:
    """Image in [0,1] to latent; the names of its parameters are those of the published files."""
    width = shape.width

    def down() -> nn.Conv2d:
        return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)

    def blocks(*, pooled: bool = False) -> list[nn.Module]:
        return [_Block(width, pooled=pooled) for _ in range(3)]

    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        _Block(width, pooled=False),
        down(),
        *blocks(),
        down(),
        *blocks(),
        down(),
        *blocks(pooled=shape.pooled),
        nn.Conv2d(width, shape.latent, 3, padding=1),
    )


def tiny_decoder(shape: TinyShape) -> nn.Sequential:
    """Latent to image, nearly in [0,1]; the names of its parameters are the published ones."""
    width = shape.width

    def up() -> list[nn.Module]:
        return [
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        ]

    def blocks(*, pooled: bool = False) -> list[nn.Module]:
        return [_Block(width, pooled=pooled) for _ in range(3)]

    return nn.Sequential(
        _Squash(),
        nn.Conv2d(shape.latent, width, 3, padding=1),
        nn.ReLU(),
        *blocks(pooled=shape.pooled),
        *up(),
        *blocks(),
        *up(),
        *blocks(),
        *up(),
        _Block(width, pooled=False),
        nn.Conv2d(width, 3, 3, padding=1),
    )


def tiny_names(names: Iterable[str], file: str) -> dict[str, str]:
    """Names in a published file → ``encoder.N.…`` and ``decoder.N.…``.

    Three forms are known: one file for each half, the layers counted from 0; both in one, under
    ``encoder.`` and ``decoder.``; and diffusers' ``AutoencoderTiny``.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, the names are of no such file.
    """
    names = tuple(names)
    if any(".layers." in name for name in names):
        return {name: _from_diffusers(name, file) for name in names}
    if any(name.startswith(HALVES) for name in names):
        unknown = [name for name in names if not name.startswith(HALVES)]
        if unknown:
            raise _unknown(unknown[0], file)
        return {name: name for name in names}
    for half, last in (("encoder", _LAST_ENCODER), ("decoder", _LAST_DECODER)):
        if f"{last}.weight" in names:
            return {name: f"{half}.{name}" for name in names}
    raise _unknown(next(iter(names), "nothing"), file)


def tiny_shape(shapes: Mapping[str, tuple[int, ...]], file: str) -> TinyShape:
    """What the halves are like whose weights have these shapes, named as by `tiny_names`.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, a half is missing; ``E_CKPT_SHAPE``, they do not fit.
    """
    ends = (f"encoder.{_LAST_ENCODER}.weight", f"decoder.{_FIRST_DECODER}.weight")
    for name in ends:
        if name not in shapes:
            raise CheckpointError(
                "E_CKPT_KEYS",
                f"{file}: got no {name!r}, expected both halves of a tiny autoencoder. "
                "Give the file of the other half too.",
            )
    made, read = (shapes[name] for name in ends)
    latent, width = made[0], made[1]
    if read[:2] != (width, latent):
        raise CheckpointError(
            "E_CKPT_SHAPE",
            f"{file}: got an encoder of {latent} latent planes and width {width} and a decoder of "
            f"{read[1]} and {read[0]}, expected two halves of one network. Give those.",
        )
    return TinyShape(latent, width, any(".pool." in name for name in shapes))


def _from_diffusers(name: str, file: str) -> str:
    found = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
    if found is None:
        raise _unknown(name, file)
    half, number, rest = found[1], int(found[2]), found[3]
    return f"{half}.{number + (_ADDED_BY_US if half == 'decoder' else 0)}.{rest}"


def _unknown(name: str, file: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_KEYS",
        f"{file}: got {name!r}, expected the names of a tiny autoencoder (TAESD, TAEF2 or "
        "diffusers' AutoencoderTiny). Give such a file.",
    )
