"""Ranges: what calibration measures of a tensor, and the scale that each estimator makes of it.

Every observed tensor leaves a histogram of its values, its largest magnitude in each cell of the
grid (SNR, time step), and its largest magnitude in each feature. An estimator then picks where to
clip: what lies beyond is cut off, what lies below is rounded to one of 255 values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = npt.NDArray[np.float64]

BINS = 2048  # on either side of 0
LEVELS = 127  # steps on either side of 0 of a symmetric 8-bit integer
NOTHING = LEVELS * float(np.finfo(np.float32).tiny)  # up to it, a step would be no normal float32
PERCENTILE = 99.99
ESTIMATORS = ("minmax", "percentile", "entropy", "mse")
_CANDIDATES = 160  # clipping points that `mse` and `entropy` try
_LOWEST = 0.02  # of the largest magnitude: no estimator clips below

Cell = tuple[float, float | None]  # SNR in dB; time step, None outside loops


@dataclass
class Ranges:
    """Values of one tensor, seen over and over.

    Attributes:
        features: Axis whose largest magnitudes are kept apart, or None.
        counts: Values per bin of [-top, top], 2 * `BINS` bins.
        top: Edge of the histogram; it doubles when a larger value comes.
        cells: Largest magnitude by cell of the grid.
        peaks: Largest magnitude by feature.
        samples: How many arrays were added.
    """

    features: int | None = None
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))
    top: float = 0.0
    cells: dict[Cell, float] = field(default_factory=dict)
    peaks: npt.NDArray[np.float32] | None = None
    samples: int = 0

    def add(self, array: npt.NDArray[np.float32], cell: Cell) -> None:
        """Take the values of `array`, seen in `cell`.

        Raises:
            ValueError: One of them is not finite.
        """
        magnitudes = np.abs(array)
        largest = float(magnitudes.max(initial=0.0))
        if not math.isfinite(largest):
            raise ValueError("a value that is not finite")
        self.samples += 1
        self.cells[cell] = max(self.cells.get(cell, 0.0), largest)
        if self.features is not None:
            others = tuple(a for a in range(array.ndim) if a != self.features % array.ndim)
            peaks = magnitudes.max(axis=others)
            self.peaks = peaks if self.peaks is None else np.maximum(self.peaks, peaks)
        self._widen(largest)
        self.counts += _histogram(array, self.top)

    @property
    def largest(self) -> float:
        """Largest magnitude of all."""
        return max(self.cells.values(), default=0.0)

    def scale(self, estimator: str) -> float:
        """Step of the 8-bit integers, symmetric around 0, by one of `ESTIMATORS`.

        Raises:
            ValueError: No such estimator, or nothing was seen.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator {estimator!r}, expected one of {ESTIMATORS}")
        if not self.samples:
            raise ValueError("no values were seen")
        largest = self.largest
        if largest < NOTHING:
            return 1.0  # the tensor is 0 throughout, so that any step will do
        clip = _CLIPS[estimator](self, largest)
        return min(max(clip, NOTHING), largest) / LEVELS

    def magnitudes(self) -> tuple[Floats, Floats]:
        """Histogram of the magnitudes: centres of the bins and counts."""
        folded = self.counts[BINS:] + self.counts[:BINS][::-1]
        centres = (np.arange(BINS) + 0.5) * (self.top / BINS)
        return np.asarray(centres, np.float64), folded.astype(np.float64)

    def _widen(self, largest: float) -> None:
        """Make room for `largest`: bins are merged by pairs, so that no count is lost."""
        if self.top == 0.0:
            self.top = largest
            return
        while self.top < largest:
            left, right = self.counts[:BINS], self.counts[BINS:]
            counts = np.zeros_like(self.counts)
            counts[BINS // 2 : BINS] = left.reshape(-1, 2).sum(axis=1)
            counts[BINS : BINS + BINS // 2] = right.reshape(-1, 2).sum(axis=1)
            self.counts, self.top = counts, 2 * self.top


def _histogram(array: npt.NDArray[np.float32], top: float) -> npt.NDArray[np.int64]:
    if top == 0.0:
        counts = np.zeros(2 * BINS, np.int64)
        counts[BINS] = array.size
        return counts
    places = ((array.ravel().astype(np.float64) / top + 1.0) * BINS).astype(np.int32)
    np.clip(places, 0, 2 * BINS - 1, out=places)
    return np.bincount(places, minlength=2 * BINS)


def _minmax(_: Ranges, largest: float) -> float:
    """Nothing is clipped."""
    return largest


def _percentile(ranges: Ranges, _: float) -> float:
    """`PERCENTILE` % of the magnitudes stay inside."""
    centres, counts = ranges.magnitudes()
    share = np.cumsum(counts) / counts.sum()
    index = int(np.searchsorted(share, PERCENTILE / 100))
    return float(centres[min(index, BINS - 1)] + ranges.top / BINS / 2)


def _mse(ranges: Ranges, largest: float) -> float:
    """Least mean squared error of rounding and clipping together."""
    centres, counts = ranges.magnitudes()
    clips = largest * np.linspace(_LOWEST, 1.0, _CANDIDATES)
    steps = (clips / LEVELS)[:, None]
    rounded = np.minimum(np.round(centres[None] / steps), LEVELS) * steps
    errors = np.square(centres[None] - rounded)
    # Where a step is hardly wider than a bin, values are taken to lie evenly within a step.
    fine = (steps < 4 * ranges.top / BINS) & (centres[None] <= clips[:, None])
    errors = np.where(fine, np.square(steps) / 12, errors)
    return float(clips[int(np.argmin(errors @ counts))])


def _entropy(ranges: Ranges, largest: float) -> float:
    """Least Kullback-Leibler divergence between the magnitudes before and after.

    Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 29 to 38.
    """
    _, counts = ranges.magnitudes()
    # Zeros, of which a rectifier makes half of all values, are exact whatever the clipping point.
    counts[0] = min(counts[0], counts[1])
    width = ranges.top / BINS
    last = min(BINS, math.ceil(largest / width))
    first = min(last, LEVELS + 1)
    ends = np.unique(np.linspace(first, last, _CANDIDATES).astype(int))
    divergences = [_divergence(counts, int(end)) for end in ends]
    return float(ends[int(np.argmin(divergences))] * width)


def _divergence(counts: Floats, end: int) -> float:
    """How far the counts below bin `end`, in `LEVELS` + 1 levels, are from all of them."""
    reference = counts[:end].copy()
    inside = reference.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * (LEVELS + 1) // end
    used = inside > 0
    sums = np.bincount(level, weights=inside, minlength=LEVELS + 1)
    members = np.bincount(level, weights=used, minlength=LEVELS + 1)
    means = np.divide(sums, members, out=np.zeros_like(sums), where=members > 0)
    approximated = np.where(used, means[level], 0.0)
    p, q = reference / reference.sum(), approximated / max(approximated.sum(), 1.0)
    there = p > 0
    if np.any(q[there] == 0.0):
        q = q + 1e-9  # only the clipped values' own bin can be empty
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


_CLIPS: Mapping[str, Callable[[Ranges, float], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
