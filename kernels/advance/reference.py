"""Advance, the specification: one row of a sampler's table applied to the state.

    x' = a*x + b*clean + c*clean_prev + e*clean_prev2 + s*noise - g*grad + d*direction

in float32: coefficients rounded to float32 first, each product and each sum rounded once, terms
added from left to right. A term whose coefficient is zero is skipped, so it may be absent.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Coefficients(Protocol):
    """The factors of one step."""

    @property
    def a(self) -> float:
        """Factor of the state."""

    @property
    def b(self) -> float:
        """Factor of the clean estimate."""

    @property
    def c(self) -> float:
        """Factor of the clean estimate of the step before."""

    @property
    def e(self) -> float:
        """Factor of the clean estimate two steps before."""

    @property
    def s(self) -> float:
        """Factor of fresh noise."""

    @property
    def g(self) -> float:
        """Factor of the guide's gradient."""

    @property
    def d(self) -> float:
        """Factor of the direction that the stage gives."""


def advance(
    x: Floats,
    clean: Floats | None,
    clean_prev: Floats | None,
    clean_prev2: Floats | None,
    noise: Floats | None,
    grad: Floats | None,
    direction: Floats | None,
    row: Coefficients,
) -> Floats:
    """Carry the state `x` over one step; arrays have one shape.

    Raises:
        ValueError: A term is absent although its coefficient is not zero.
    """
    terms = (
        ("x", row.a, x),
        ("clean", row.b, clean),
        ("clean_prev", row.c, clean_prev),
        ("clean_prev2", row.e, clean_prev2),
        ("noise", row.s, noise),
        ("grad", -row.g, grad),
        ("direction", row.d, direction),
    )
    total = np.zeros_like(x, np.float32)
    fresh = True
    for name, coefficient, term in terms:
        factor = np.float32(coefficient)
        if factor == 0:
            continue
        if term is None:
            raise ValueError(f"advance: got no {name}, expected one: its factor is {coefficient}.")
        if fresh:
            np.multiply(term, factor, out=total)
            fresh = False
        else:
            total += term * factor
    return total
