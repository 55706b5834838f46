"""Null space: what a measurement says replaces that part of a clean estimate, noise included.

Yinhuai Wang, Jiwen Yu, Jian Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion
Null-Space Model", arXiv:2212.00490 (DDNM: eq. 11-13; DDNM+: eq. 16-19 and appendix), in the form
of its SVD implementation. A linear A keeps part of an image; with its pseudo-inverse A⁺,

    clean = estimate - lambda * (A⁺A estimate - target),  target = A⁺y

takes what A keeps from what was received and leaves the rest, the null space, to the estimate.

NOTE: the authors' two implementations depart from that, and `compat` reproduces them for those who
compare with published results.
    "ddnm-simplified": its sigma is sqrt(1 - abar²) with abar where its root belongs, and gamma
        weighs noise that is already scaled, so noise is too weak even where nothing is noisy.
    "ddnm-svd": with a noisy y, old and new noise are taken for coordinates in the singular basis
        V and come out as V n instead of V Vᵀ n. New noise does not care; the old one is turned.
"""

import math
import re
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

GREY: Final = (1 / 3, 1 / 3, 1 / 3)
COMPAT: Final = ("none", "ddnm-simplified", "ddnm-svd")
LARGEST_SCALE: Final = 64
# Settings say noise in images of [0, 1]; the networks' images span [-1, 1].
IMAGE_SPAN: Final = 2.0
TINY: Final = 1e-12

_POOL: Final = re.compile(r"avgpool:([0-9]{1,3})")
_COLOR: Final = re.compile(r"color(?::([0-9.]+),([0-9.]+),([0-9.]+))?")


@dataclass(frozen=True)
class Operator:
    """A, a linear map that keeps part of an image; and A⁺, its pseudo-inverse.

    The parts of a composition act on different things (positions, colours) and are orthogonal
    projections up to a factor, so their order does not matter and A⁺A is one too. For that a mask
    counts a block of an average pooling as known only where all its pixels are.

    Attributes:
        scale: Edge of the blocks that are averaged; 1 keeps every pixel.
        weights: How red, green and blue are weighed to one plane; None keeps them.
        masked: Whether only the pixels that a mask names are kept.
    """

    scale: int = 1
    weights: tuple[float, float, float] | None = None
    masked: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``identity``, or a composition of parts joined by ``+``.

        Parts: ``avgpool:S`` (means of blocks of S×S), ``color`` (the mean of the colours) or
        ``color:R,G,B`` (weights), ``mask``.

        Raises:
            ValueError: Another part, or one twice.
        """
        scale, weights, masked = 1, None, False
        parts = [] if text == "identity" else text.split("+")
        names = [part.partition(":")[0] for part in parts]
        for part in parts:
            pool, color = _POOL.fullmatch(part), _COLOR.fullmatch(part)
            if pool is not None and 2 <= int(pool[1]) <= LARGEST_SCALE:
                scale = int(pool[1])
            elif color is not None and (weights := _weights(color)) is not None:
                continue
            elif part == "mask":
                masked = True
            else:
                raise ValueError(_refusal(part))
        if len(set(names)) < len(names):
            raise ValueError(_refusal(text))
        return cls(scale, weights, masked)

    @property
    def singular_value(self) -> float:
        """The one singular value of A that is not 0."""
        return (1.0 if self.weights is None else math.hypot(*self.weights)) / self.scale

    def apply(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """A: [B, 3, h, w] to [B, 3 or 1, h/scale, w/scale].

        Args:
            image: What to measure.
            mask: [B, 1, h, w], 1 where a pixel is known, 0 where not; None where `masked` is false.
        """
        if self.weights is not None:
            red, green, blue = self.weights
            image = red * image[:, :1] + green * image[:, 1:2] + blue * image[:, 2:]
        if self.scale > 1:
            image = functional.avg_pool2d(image, self.scale)
        return image if mask is None else image * self._known(mask)

    def invert(self, measured: Tensor, mask: Tensor | None = None) -> Tensor:
        """A⁺: [B, 3 or 1, h/scale, w/scale] to [B, 3, h, w]; `mask` as for `apply`."""
        image = measured if mask is None else measured * self._known(mask)
        if self.scale > 1:
            image = functional.interpolate(image, scale_factor=float(self.scale), mode="nearest")
        if self.weights is not None:
            square = math.fsum(weight * weight for weight in self.weights)
            image = torch.cat([image * (weight / square) for weight in self.weights], dim=1)
        return image

    def project(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """A⁺A: the part of `image` that A keeps."""
        if self.scale == 1 and self.weights is None and mask is None:
            return image
        return self.invert(self.apply(image, mask), mask)

    def _known(self, mask: Tensor) -> Tensor:
        """1 for the blocks all of whose pixels are known."""
        return mask if self.scale == 1 else -functional.max_pool2d(-mask, self.scale)


class SingularBasis:
    """V of an operator of one part: the reflection that LAPACK finds for a single row.

    Its first column is -v, v the row's direction; it is I - (e + v)(e + v)ᵀ / (1 + v_0) with e the
    first unit vector. It acts on blocks of positions, or on the colours of each.

    Args:
        operator: An average pooling or a weighing of the colours, nothing else.

    Raises:
        ValueError: Another operator; which basis its implementation took is not published.
    """

    def __init__(self, operator: Operator) -> None:
        if operator.masked or (operator.scale > 1) == (operator.weights is not None):
            raise ValueError(
                f"compat ddnm-svd: got {operator}, expected avgpool:S or color alone. "
                "Leave compat out."
            )
        self.scale = operator.scale
        if operator.weights is None:
            row = (1 / operator.scale,) * operator.scale**2
        else:
            length = math.hypot(*operator.weights)
            row = tuple(weight / length for weight in operator.weights)
        self.normal = (1 + row[0], *row[1:])

    def split(self, image: Tensor) -> Tensor:
        """Coordinates [B, n, .., h', w'] of an image: its blocks' pixels, or its colours."""
        if self.scale == 1:
            return image
        blocks = functional.pixel_unshuffle(image, self.scale)
        return torch.unflatten(blocks, 1, (3, self.scale**2)).transpose(1, 2)

    def turn(self, coordinates: Tensor) -> Tensor:
        """V times coordinates, as an image [B, 3, h, w]."""
        normal = torch.tensor(self.normal, dtype=coordinates.dtype, device=coordinates.device)
        normal = normal.view(-1, *(1,) * (coordinates.dim() - 2))
        along = (coordinates * normal).sum(dim=1, keepdim=True) / self.normal[0]
        turned = coordinates - normal * along
        if self.scale == 1:
            return turned
        return functional.pixel_shuffle(turned.transpose(1, 2).flatten(1, 2), self.scale)


class NullSpace(nn.Module):
    """Corrects a clean estimate and mixes the noise of the next level.

    Args:
        operator: What of the image was measured.
        compat: One of `COMPAT`.

    Raises:
        ValueError: `compat` does not go with `operator`.
    """

    def __init__(self, operator: Operator, compat: str) -> None:
        super().__init__()
        self.operator = operator
        self.simplified = compat == "ddnm-simplified"
        self.basis = SingularBasis(operator) if compat == "ddnm-svd" else None

    def forward(
        self,
        estimate: Tensor,
        eps: Tensor,
        target: Tensor,
        mask: Tensor | None,
        alpha_bar_next: Tensor,
        noise: Tensor,
        eta: Tensor,
        sigma_y: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Guide one step.

        Args:
            estimate: Of the clean image, [B, 3, h, w], clean images span [-1, 1].
            eps: The noise that the network saw, like `estimate`.
            target: A⁺y, like `estimate`.
            mask: [B, 1, h, w] or None, see `Operator.apply`.
            alpha_bar_next: [B], what is left of the image where the step ends; 1 at the end.
            noise: This step's draw, like `estimate`.
            eta: [B], share of new noise (DDIM's eta), 0 to 1.
            sigma_y: [B], standard deviation of the noise in y, of images in [0, 1]; 0 for none.

        Returns:
            The corrected estimate, and what is added to ``sqrt(alpha_bar_next)`` times it.
        """
        left, eta, sigma = (
            value.view(-1, 1, 1, 1) for value in (alpha_bar_next, eta, sigma_y * IMAGE_SPAN)
        )
        old = (1 - eta * eta).clamp(min=0).sqrt()
        mixed = eta * noise + old * eps
        if self.simplified:
            share, weight = _simplified(left, sigma)
            direction = weight * (1 - left).clamp(min=0).sqrt() * mixed
        else:
            level = (1 - left).clamp(min=0).sqrt()
            reach = left.sqrt() * sigma / self.operator.singular_value
            share = torch.where(level >= reach, 1.0, level * old / reach.clamp(min=TINY))
            fresh = (level * level - reach * reach).clamp(min=0).sqrt()
            fresh = torch.where(level > reach, fresh, level * eta)
            direction = level * mixed
            noisy = self._noisy(direction, fresh * noise, mask)
            direction = torch.where(sigma > 0, noisy, direction)
        gap = self.operator.project(estimate, mask) - target
        return estimate - share * gap, direction

    def _noisy(self, outside: Tensor, inside: Tensor, mask: Tensor | None) -> Tensor:
        """Noise that is `inside` where A looks and `outside` where it does not."""
        if self.basis is None:
            return outside + self.operator.project(inside - outside, mask)
        first = self.basis.split(inside)[:, :1]
        return self.basis.turn(torch.cat([first, self.basis.split(outside)[:, 1:]], dim=1))


def _simplified(left: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """lambda and gamma of the simplified implementation."""
    level = (1 - left * left).clamp(min=0).sqrt()
    reach = left * sigma
    share = torch.where(level >= reach, 1.0, level / reach.clamp(min=TINY))
    weight = (level * level - reach * reach).clamp(min=0).sqrt()
    return share, weight


def _weights(found: re.Match[str]) -> tuple[float, float, float] | None:
    """The weights of ``color``; None where they are no numbers or all zero."""
    if found[1] is None:
        return GREY
    try:
        red, green, blue = (float(text) for text in found.groups())
    except ValueError:
        return None
    return (red, green, blue) if red + green + blue > 0 else None


def _refusal(got: str) -> str:
    return (
        f"operator: got {got!r}, expected identity, or parts of avgpool:S (2 to {LARGEST_SCALE}), "
        "color, color:R,G,B and mask, each once, joined by +. Correct it."
    )
