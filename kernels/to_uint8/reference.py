"""To uint8, the specification: the last of what a network draws becomes pixels.

    value = image + low(other - image)                 colours fixed: low frequencies from `other`
    pixel = round(clamp(value, 0, 1) * 255)            truncated or to the nearest, half to even

in float32, each operation rounded once. Beside the pixels two flags tell whether the values are an
image at all: whether one is not finite, and whether one differs from the first.

low is five times the binomial kernel (1 2 1)ᵀ(1 2 1) / 16, dilated 1, 2, 4, 8 and 16, edges
repeated: the rest of an à-trous wavelet decomposition. What each blur removed adds up to the image
minus low, and low is linear, so one low is enough where the wavelet colour fix that came with
Jianyi Wang, Zongsheng Yue, Shangchen Zhou, Kelvin C. K. Chan, Chen Change Loy, "Exploiting
Diffusion Prior for Real-World Image Super-Resolution", arXiv:2305.07015, takes two.

A blur sums (left + 2 middle) + right in each of three rows, then the rows in the same way, upper
first.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.uint32]

REACHES: Final = (1, 2, 4, 8, 16)  # dilations of the blurs
ROUNDINGS: Final = ("truncate", "nearest")


def to_uint8(image: Floats, rounding: str) -> Pixels:
    """float32[3, height, width], clipped to [0, 1], to uint8[height, width, 3].

    Args:
        image: Finite.
        rounding: One of `ROUNDINGS`.

    Raises:
        ValueError: Another rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"to_uint8: got {rounding!r}, expected {' or '.join(ROUNDINGS)}.")
    scaled = np.clip(image, 0.0, 1.0) * np.float32(255.0)
    if rounding == "nearest":
        np.rint(scaled, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))


def flags_of(image: Floats) -> Flags:
    """uint32[2] of what becomes pixels: 1 where a value is not finite, 1 where one differs.

    Args:
        image: float32[3, height, width]; its values are compared with the first, so that one which
            is no number differs.
    """
    broken = not np.isfinite(image).all()
    varied = bool((image != image.flat[0]).any())
    return np.array([broken, varied], np.uint32)


def fix_colors(image: Floats, other: Floats) -> Floats:
    """`image` with the low frequencies of `other`; both float32[3, height, width]."""
    low: Floats = other - image
    for reach in REACHES:
        low = blur(low, reach)
    fixed: Floats = image + low
    return fixed


def blur(image: Floats, reach: int) -> Floats:
    """`image` under the binomial 3×3 kernel dilated by `reach`; float32[..., height, width]."""
    blurred = image
    for axis in (-1, -2):
        blurred = _binomial(blurred, reach, axis)
    return blurred * np.float32(1 / 16)


def _binomial(image: Floats, reach: int, axis: int) -> Floats:
    """Weighed 1 2 1 along `axis`, `reach` elements apart."""
    indices = np.arange(image.shape[axis])
    before = np.take(image, np.maximum(indices - reach, 0), axis)
    after = np.take(image, np.minimum(indices + reach, len(indices) - 1), axis)
    total: Floats = (before + image * np.float32(2)) + after
    return total
