"""A row of a sampler's table, as the kernels' references read it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Factors of `jscc.kernels.advance`, none by default."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    e: float = 0.0
    s: float = 0.0
    g: float = 0.0
    d: float = 0.0


ROW = Row(a=0.9, b=0.3, c=-0.1, e=0.02, s=0.25, g=0.05, d=0.7)
