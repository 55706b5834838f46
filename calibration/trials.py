"""Trials: what a bundle of lower precision costs, on images that it was not calibrated with."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jscc.calibration.collect import receive
from jscc.calibration.lpips import LPIPS_MIN_SIDE, Lpips
from jscc.calibration.metrics import psnr_db
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.errors import ImageError
from jscc.runtime.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jscc.calibration.collect import Airing, Grid, Image
    from jscc.runtime.bundle import Bundle

# Two equal images have no PSNR; where a mean needs a number, this is it.
EQUAL_DB = 99.0


@dataclass(frozen=True)
class Cost:
    """Means over all receptions, each against what full precision makes of the same symbols.

    Attributes:
        psnr: Loss of PSNR against what was sent, in dB.
        lpips: Rise of LPIPS against what was sent; None without its weights.
        agreement_db: PSNR between the two received images.
        by_snr: `psnr` and `lpips` again, by SNR in dB.
    """

    psnr: float
    lpips: float | None
    agreement_db: float
    by_snr: dict[float, tuple[float, float | None]]


@dataclass(frozen=True)
class Budget:
    """How much may be lost; None for any amount.

    Attributes:
        psnr: Loss of PSNR, in dB.
        lpips: Rise of LPIPS.
        agreement: Least PSNR to full precision, in dB.
    """

    psnr: float | None = None
    lpips: float | None = None
    agreement: float | None = None

    def holds(self, cost: Cost) -> bool:
        """Whether `cost` is within it."""
        if self.psnr is not None and cost.psnr > self.psnr:
            return False
        if self.lpips is not None and (cost.lpips is None or cost.lpips > self.lpips):
            return False
        return self.agreement is None or cost.agreement_db >= self.agreement


BROKEN = Cost(math.inf, None, 0.0, {})  # no image came out at all


class Trials:
    """Receives the same symbols with one bundle after the other.

    Args:
        source: The bundle in full precision.
        airings: What is received.
        grid: How.
        lpips: The metric, if its weights are there.
        threads: Of the engine.
        progress: Told of each reception.
    """

    def __init__(
        self,
        source: Bundle,
        airings: Sequence[Airing],
        grid: Grid,
        *,
        lpips: Lpips | None,
        threads: int | None,
        progress: Callable[[str], None],
    ) -> None:
        self._airings = airings
        self._grid = grid
        self._lpips = lpips
        self._backend = OnnxRuntimeBackend(threads=threads)
        self._progress = progress
        receiver = Receiver(source, backend=self._backend, selftest=False)
        self._exact = [self._received(receiver, airing) for airing in airings]
        self._known = [
            self._figures(airing, image) for airing, image in zip(airings, self._exact, strict=True)
        ]

    @property
    def receptions(self) -> int:
        """Receptions of one trial."""
        return len(self._airings)

    def cost(self, bundle: Bundle) -> Cost:
        """What `bundle` costs; `BROKEN` where one of its images is none."""
        receiver = Receiver(bundle, backend=self._backend, selftest=False)
        losses: dict[float, list[tuple[float, float | None]]] = {}
        agreements = []
        for airing, exact, known in zip(self._airings, self._exact, self._known, strict=True):
            try:
                image = self._received(receiver, airing)
            except ImageError as error:
                if error.code != "E_DECODE_NONFINITE":
                    raise
                return BROKEN  # an overflow: this attempt is over, and fails any budget
            psnr, lpips = self._figures(airing, image)
            rise = None if lpips is None or known[1] is None else lpips - known[1]
            snr_db = airing.received.csi.snr_db
            losses.setdefault(snr_db, []).append((known[0] - psnr, rise))
            agreements.append(_bounded(psnr_db(exact, image)))
        everything = [loss for row in losses.values() for loss in row]
        psnr, lpips = _means(everything)
        by_snr = {snr_db: _means(row) for snr_db, row in sorted(losses.items())}
        return Cost(psnr, lpips, statistics.fmean(agreements), by_snr)

    def _received(self, receiver: Receiver, airing: Airing) -> Image:
        image = receive(receiver, airing, self._grid)
        self._progress("tried")
        return image

    def _figures(self, airing: Airing, image: Image) -> tuple[float, float | None]:
        """PSNR and LPIPS against what was sent."""
        lpips = None
        if self._lpips is not None and min(image.shape[:2]) >= LPIPS_MIN_SIDE:
            lpips = self._lpips(airing.image, image)
        return _bounded(psnr_db(airing.image, image)), lpips


def _bounded(decibels: float) -> float:
    return decibels if math.isfinite(decibels) else EQUAL_DB


def _means(rows: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    rises = [rise for _, rise in rows if rise is not None]
    lpips = statistics.fmean(rises) if len(rises) == len(rows) else None
    return statistics.fmean(loss for loss, _ in rows), lpips
