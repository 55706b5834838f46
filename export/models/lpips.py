"""LPIPS v0.1 on AlexNet features, under every name that its published weights have.

Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang, "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924, equation 1. The features
are named as in torchvision's AlexNet (``features.{i}``), the heads ``alex.lin{d}.model.1``; see
`canonical` for the other names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
# index in the features, planes in, planes out, kernel, stride, padding, pooled before
LAYERS: Final = (
    (0, 3, 64, 11, 4, 2, False),
    (3, 64, 192, 5, 1, 2, True),
    (6, 192, 384, 3, 1, 1, True),
    (8, 384, 256, 3, 1, 1, False),
    (10, 256, 256, 3, 1, 1, False),
)
EPSILON: Final = 1e-10
SMALLEST: Final = 32  # pixels; of smaller pictures the last layer has nothing to see
LARGEST: Final = 256  # pixels; larger pictures are averaged down to it, as in ILO (2102.07364)


class _Head(nn.Module):
    """The weights of one layer's planes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, error: Tensor) -> Tensor:
        return self.model(error).mean(dim=(1, 2, 3))  # type: ignore[no-any-return]


class Lpips(nn.Module):
    """Distance [B] of two pictures [B,3,H,W] in [-1,1], differentiable by both."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(planes_in, planes, size, stride, padding)
                for index, planes_in, planes, size, stride, padding, _ in LAYERS
            }
        )
        self.alex = nn.ModuleDict(
            {f"lin{depth}": _Head(layer[2]) for depth, layer in enumerate(LAYERS)}
        )

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        total = image.new_zeros(image.shape[0])
        pairs = zip(self._taps(image), self._taps(reference), strict=True)
        for (got, want), head in zip(pairs, self.alex.values(), strict=True):
            total = total + head((got - want).square())
        return total

    def _taps(self, image: Tensor) -> list[Tensor]:
        """The five layers' features, every position's of unit length."""
        factor = image.shape[-1] // LARGEST
        x = functional.avg_pool2d(image, factor) if factor > 1 else image
        pairs = enumerate(zip(SHIFT, SCALE, strict=True))
        x = torch.cat([(x[:, i : i + 1] - shift) / scale for i, (shift, scale) in pairs], dim=1)
        taps = []
        for (*_, pooled), layer in zip(LAYERS, self.features.values(), strict=True):
            x = functional.max_pool2d(x, 3, 2) if pooled else x
            x = functional.relu(layer(x))
            length = (x.square().sum(dim=1, keepdim=True) + EPSILON**2).sqrt()
            taps.append(x / (length + EPSILON))
        return taps


# Of torchvision's AlexNet the classifier; of the package ``lpips`` its input scaling and the heads
# that it stores a second time.
UNUSED: Final = re.compile(r"(classifier|scaling_layer|lins)\.")


def canonical(name: str) -> str | None:
    """The names in the authors' own files and in torchvision's, to this module's.

    ``lin{d}.model.1`` is a head in the authors' ``alex.pth`` and in the package ``lpips``;
    ``net.slice{s}.{i}`` is ``features.{i}`` in the latter.
    """
    if UNUSED.match(name):
        return None
    if re.match(r"lin\d\.", name):
        return f"alex.{name}"
    return re.sub(r"^net\.slice\d\.", "features.", name)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """An empty configuration where the weights are LPIPS's on AlexNet, or None."""
    wanted = {"features.0.weight", "features.10.weight", "alex.lin0.model.1.weight"}
    # Heads and features may be two files, so that either alone is not enough.
    return {} if wanted <= set(shapes) else None
