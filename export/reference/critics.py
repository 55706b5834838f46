"""Critics: the networks that judge pictures while a model is trained, and are then thrown away."""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

SLOPE: Final = 0.2
CONDITION_WIDTH: Final = 12
GROUP: Final = 4


def blur_pool(x: Tensor) -> Tensor:
    """Returns `x` at half the size after the filter (1,3,3,1)/8 along both axes.

    Richard Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv 1904.11486.
    """
    taps = torch.tensor([0.125, 0.375, 0.375, 0.125], device=x.device)
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
    # On a CPU this is eight times faster in float32 than in bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        blurred = functional.conv2d(x.float(), kernel, stride=2, padding=1, groups=x.shape[1])
    return blurred.to(x.dtype)


def spread(x: Tensor, group: int = GROUP) -> Tensor:
    """Appends a plane to `x` [B,C,h,w]: how much pictures of a group differ, one value for all.

    Tero Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and
    Variation", arXiv 1710.10196, section 3. Where `group` does not divide the batch, the whole
    batch is one group.
    """
    count = len(x)
    group = group if count % group == 0 else count
    grouped = x.float().view(group, count // group, *x.shape[1:])
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt()
    plane = deviation.mean(dim=(1, 2, 3)).repeat(group)
    plane = plane[:, None, None, None].expand(count, 1, *x.shape[2:])
    return torch.cat((x, plane.to(x.dtype)), dim=1)


class Scaled(nn.Module):
    """A convolution whose stored weights have unit variance at the start (equalised learning rate).

    Karras et al., arXiv 1710.10196, section 4.1.
    """

    def __init__(self, width_in: int, width: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = 1 / math.sqrt(width_in * kernel * kernel)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        return functional.conv2d(
            x, self.weight * self.scale, self.bias, stride=self.stride, padding=kernel // 2
        )


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE) * math.sqrt(2)


class _Halving(nn.Module):
    """Two 3x3 convolutions to half the size, added to a strided 1x1 of the blurred input."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first = Scaled(width_in, width_in, 3)
        self.second = Scaled(width_in, width, 3)
        self.skip = Scaled(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Blurring before the second convolution, at half the size, costs a quarter of it.
        inner = _activate(self.second(blur_pool(_activate(self.first(x)))))
        return (inner + self.skip(blur_pool(x))) / math.sqrt(2)  # type: ignore[no-any-return]


class ResidualCritic(nn.Module):
    """Logits [B] of pictures [B,3,S,S].

    The residual discriminator of Karras et al., arXiv 1912.04958, with fewer planes.

    Args:
        widths: Planes at full size, half of it, and so on down to 4x4.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = Scaled(3, widths[0], 1)
        self.blocks = nn.Sequential(*(_Halving(a, b) for a, b in itertools.pairwise(widths)))
        self.last = Scaled(widths[-1] + 1, widths[-1], 3)
        self.hidden = Scaled(widths[-1] * 16, widths[-1], 1)
        self.logit = Scaled(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(_activate(self.first(image)))
        x = _activate(self.last(spread(x)))
        x = _activate(self.hidden(x.flatten(1)[:, :, None, None]))
        return self.logit(x)[:, 0, 0, 0]  # type: ignore[no-any-return]


class PatchCritic(nn.Module):
    """Logits [B,1,h,w] of the patches of pictures [B,3,H,W], told what was sent.

    Fabian Mentzer et al., "High-Fidelity Generative Image Compression", arXiv 2006.09965, section
    3.2 and appendix A.1.

    Args:
        planes: Planes of the code.
        width: Planes after the first convolution; the paper has 64.
    """

    def __init__(self, planes: int, width: int) -> None:
        super().__init__()
        self.condition = nn.Conv2d(planes, CONDITION_WIDTH, 3, padding=1)
        widths = [3 + CONDITION_WIDTH, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for a, b, stride in zip(widths[:-1], widths[1:], (2, 2, 2, 1), strict=True):
            layers += [
                spectral_norm(nn.Conv2d(a, b, 4, stride=stride, padding=1)),
                nn.LeakyReLU(SLOPE),
            ]
        layers.append(spectral_norm(nn.Conv2d(widths[-1], 1, 4, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Judges `image`, of which `code` [B,planes,h,w] was sent; no gradient goes to the code."""
        condition = functional.leaky_relu(self.condition(code.detach()), SLOPE)
        condition = functional.interpolate(condition, size=image.shape[2:], mode="nearest")
        return self.layers(torch.cat((image, condition), dim=1))  # type: ignore[no-any-return]
