"""Inversion of a generator: from what is searched to a picture, and to the loss of its reception.

Giannis Daras, Joseph Dean, Ajil Jalal, Alexandros G. Dimakis, "Intermediate Layer Optimization for
Inverse Problems using Deep Generative Models", arXiv 2102.07364.

    latent, noises, features ─▶ Show ─▶ picture ─▶ operator ─▶ Loss ◀─ prepare ◀─ reconstruction
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.stylegan2 import Generator, latent_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jscc.export.models.lpips import Lpips

RECONSTRUCTION = "reconstruction"
LPIPS_WEIGHT = "lpips_weight"


class Moments(nn.Module):
    """Mean and deviation [D] of the latents before their activation, see `stylegan2.moments`."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))


class Show(nn.Module):
    """Latent, noise maps and features to a picture in [0,1], or to the features made of them.

    ``forward`` takes the Gaussian latent [B,2n,D], the noise maps from the first that a block from
    `block` on takes, and, unless `block` is 0, the features of the block below.

    Args:
        generator: The generator.
        moments: Of its latents.
        block: First block that is run.
        features: Whether to return what that block makes instead of the picture.
    """

    def __init__(
        self, generator: Generator, moments: Moments, block: int, *, features: bool = False
    ) -> None:
        super().__init__()
        self.generator = generator
        self.moments = moments
        self.block = block
        self.features = features

    def forward(self, *variables: Tensor) -> Tensor:
        picture, made = self.run(variables)
        return made[0] if self.features else (picture + 1) / 2

    def run(self, variables: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The picture, about [-1,1], and the features of all blocks from `block` on."""
        latent, *noises = variables
        features = noises.pop() if self.block else None
        unused = self.generator.stored_noises[: max(0, 2 * self.block - 1)]
        spread = latent_of(latent, self.moments.mean, self.moments.std)
        return self.generator.run(spread, [*unused, *noises], features, self.block)


class Through(nn.Module):
    """A codec as an operator on pictures in [-1,1]: encode, unit power, decode, no noise.

    Args:
        encode: Of the transmitter.
        decode: Of the receiver.
        sent: Names of what `encode` takes, ``image`` among them.
        heard: Names of what `decode` takes, ``received`` among them.
    """

    def __init__(
        self, encode: nn.Module, decode: nn.Module, sent: Sequence[str], heard: Sequence[str]
    ) -> None:
        super().__init__()
        self.encode = encode
        self.decode = decode
        self.sent = tuple(sent)
        self.heard = tuple(heard)

    def forward(self, picture: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        known = {**given, "image": (picture + 1) / 2}
        planes = self.encode(*(known[name] for name in self.sent))
        power = 2 * planes.square().mean(dim=(1, 2, 3), keepdim=True)  # of the complex symbols
        known["received"] = planes * torch.rsqrt(power + 1e-12)
        received: Tensor = self.decode(*(known[name] for name in self.heard))
        return received * 2 - 1


class Pool(nn.Module):
    """Average pooling as an operator on pictures."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, picture: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return functional.avg_pool2d(picture, self.factor)


class Same(nn.Module):
    """Leaves a picture as it is."""

    def forward(self, picture: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return picture


class Loss(nn.Module):
    """How far the reception of a picture is from what was received: the loss [B], twice.

    ``forward`` takes what `names` says: first what `show` takes, then the reconstruction in [0,1]
    and whatever `operator` asks for.

    Args:
        show: Makes the picture.
        operator: What a picture goes through before it is compared.
        prepare: What the reconstruction goes through.
        names: Of all inputs.
        lpips: Perceptual distance, its weight the input ``lpips_weight``; None for MSE alone.
    """

    def __init__(
        self,
        show: Show,
        operator: nn.Module,
        prepare: nn.Module,
        names: Sequence[str],
        lpips: Lpips | None,
    ) -> None:
        super().__init__()
        self.show = show
        self.operator = operator
        self.prepare = prepare
        self.names = tuple(names)
        self.lpips = lpips

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, inputs, strict=True))
        picture, _ = self.show.run(inputs[: self.names.index(RECONSTRUCTION)])
        wanted = self.prepare(given[RECONSTRUCTION] * 2 - 1, given)
        got = self.operator(picture, given)
        loss = (got - wanted).square().mean(dim=(1, 2, 3))
        if self.lpips is not None:
            loss = loss + given[LPIPS_WEIGHT] * self.lpips(got, wanted)
        return loss, loss
