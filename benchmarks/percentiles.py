"""Percentiles: how times are summed up, the same for every measurement."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 90, 99)
Times = Sequence[float] | npt.NDArray[np.float64]


def summary(times_ms: Times) -> dict[str, float]:
    """Percentiles (nearest rank), mean and extremes of times in ms."""
    values = np.asarray(times_ms)
    figures = {f"p{level}": percentile(values, level) for level in PERCENTILES}
    figures |= {"mean": float(values.mean()), "min": float(values.min())}
    figures |= {"max": float(values.max())}
    return {name: round(value, 4) for name, value in figures.items()}


def percentile(times: Times, level: float) -> float:
    """The smallest of `times` that at least `level` percent of them do not exceed."""
    return float(np.percentile(np.asarray(times), level, method="inverted_cdf"))


def figure(value: float) -> str:
    """A time or a rate for a table: a tenth below 100, whole above, three digits below 1."""
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
