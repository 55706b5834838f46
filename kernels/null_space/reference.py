"""Null space, the specification: an estimate corrected by what was measured, and one step from it.

A takes the mean of each block of S×S pixels of a colour; A⁺ repeats it, so A⁺A is that mean too.

    clean     = estimate - gap * (A⁺A estimate - target)           target = A⁺y
    outside   = fresh * noise + old * eps
    direction = outside + A⁺A (inside * noise - outside)           the second term if y is noisy
    x'        = a*x + b*clean + c*clean_prev + e*clean_prev2
                + s*noise - g*grad + d*direction                   as `jscc.kernels.advance`

in float32, each operation rounded once. A mean is the sum of its block from left to right, line by
line, divided by S². A term whose factor is zero is skipped, so it may be absent; without `d` there
is no direction.

Yinhuai Wang, Jiwen Yu, Jian Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion
Null-Space Model", arXiv:2212.00490 (DDNM: eq. 11-13; DDNM+: eq. 16-19 and appendix).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jscc.kernels.advance.reference import Coefficients, advance

Floats = npt.NDArray[np.float32]

_IMAGE_SPAN = 2.0  # noise is said of images in [0, 1]; the networks' images span [-1, 1]


@dataclass(frozen=True)
class Shares:
    """What a correction takes of what.

    Attributes:
        gap: Share of what was measured that replaces the estimate's.
        fresh: Factor of new noise outside of what A keeps.
        old: Factor of the noise that the network saw, there.
        inside: Factor of new noise in what A keeps.
        project_noise: Whether inside and outside differ.
    """

    gap: float
    fresh: float
    old: float
    inside: float = 0.0
    project_noise: bool = False


def ddnm_shares(alpha_bar_next: float, eta: float, sigma_y: float, scale: int) -> Shares:
    """The shares of DDNM, and of DDNM+ where y is noisy.

    Args:
        alpha_bar_next: What is left of the image where the step ends; 1 at the end.
        eta: Share of new noise (DDIM's eta), 0 to 1.
        sigma_y: Standard deviation of the noise in y, of images in [0, 1]; 0 for none.
        scale: Edge S of the blocks; 1 / S is A's singular value.
    """
    level = math.sqrt(max(1.0 - alpha_bar_next, 0.0))
    old = math.sqrt(max(1.0 - eta * eta, 0.0))
    reach = math.sqrt(alpha_bar_next) * sigma_y * _IMAGE_SPAN * scale
    if level > reach:
        gap, inside = 1.0, math.sqrt(level * level - reach * reach)
    else:
        gap = 1.0 if level == reach else level * old / reach
        inside = level * eta
    return Shares(gap, level * eta, level * old, inside, sigma_y > 0.0)


def null_space(
    x: Floats,
    estimate: Floats,
    eps: Floats | None,
    target: Floats,
    clean_prev: Floats | None,
    clean_prev2: Floats | None,
    noise: Floats | None,
    grad: Floats | None,
    row: Coefficients,
    shares: Shares,
    scale: int,
) -> tuple[Floats, Floats]:
    """Correct `estimate` and carry the state `x` over one step; arrays have one shape.

    Args:
        x: The state, float32[colors, height, width].
        estimate: Of the clean image.
        eps: The noise that the network saw.
        target: A⁺y.
        clean_prev: The corrected estimate of the step before.
        clean_prev2: The one before that.
        noise: This step's draw.
        grad: The guide's gradient.
        row: The factors of the step.
        shares: Of the correction.
        scale: Edge of the blocks that A averages; divides height and width.

    Returns:
        The state after the step and the corrected estimate.

    Raises:
        ValueError: `scale` does not divide height and width, or a term is absent although its
            factor is not zero.
    """
    height, width = estimate.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise ValueError(
            f"null_space: got {height}x{width} pixels (height x width), expected multiples of the "
            f"scale {scale}."
        )
    gap = _means(estimate, scale) - target
    clean = estimate - gap * np.float32(shares.gap)
    direction = _direction(eps, noise, shares, scale, x) if row.d else None
    after = advance(x, clean, clean_prev, clean_prev2, noise, grad, direction, row)
    return after, clean


def _direction(
    eps: Floats | None, noise: Floats | None, shares: Shares, scale: int, like: Floats
) -> Floats:
    outside = _sum(like, ("noise", shares.fresh, noise), ("eps", shares.old, eps))
    if not shares.project_noise:
        return outside
    inside = _sum(like, ("noise", shares.inside, noise))
    projected: Floats = outside + _means(inside - outside, scale)
    return projected


def _sum(like: Floats, *terms: tuple[str, float, Floats | None]) -> Floats:
    """The terms by their factors, from left to right; zero without any, shaped `like` that."""
    total: Floats | None = None
    for name, factor, term in terms:
        if np.float32(factor) == 0:
            continue
        if term is None:
            raise ValueError(f"null_space: got no {name}, expected one: its factor is {factor}.")
        product: Floats = term * np.float32(factor)
        total = product if total is None else total + product
    return np.zeros_like(like) if total is None else total


def _means(image: Floats, scale: int) -> Floats:
    """Each block's mean in place of its pixels."""
    blocks = [image[..., y::scale, x::scale] for y in range(scale) for x in range(scale)]
    total = np.zeros_like(blocks[0])
    for block in blocks:
        total += block
    total /= np.float32(scale * scale)
    return total.repeat(scale, axis=-2).repeat(scale, axis=-1)
