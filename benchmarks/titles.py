"""Titles: what the figures of a quality measurement are called, and how they are printed."""

from collections.abc import Mapping, Sequence
from typing import Any

Figures = dict[str, float | None]

METRICS = ("psnr_db", "ms_ssim", "lpips")
PAIRS = ("dists",)
SETS = ("fd_alexnet", "fid")
TASK = "top1"
# In the order of the tables, with the digits that each has there.
TITLES: Mapping[str, tuple[str, int]] = {
    "psnr_db": ("PSNR, dB", 2),
    "ms_ssim": ("MS-SSIM", 4),
    "lpips": ("LPIPS", 4),
    "dists": ("DISTS", 4),
    "fd_alexnet": ("Fréchet distance, AlexNet", 1),
    "fid": ("FID", 1),
    TASK: ("top-1 agreement", 3),
}
HIGHER_IS_BETTER = ("psnr_db", "ms_ssim", TASK)


def metrics_of(means: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that a table shows: the usual ones, and what else was measured."""
    found = {name for mean in means for name in mean["received"]}
    return [name for name in TITLES if name in found or name in METRICS]


def cell(figures: Figures | None, metric: str) -> str:
    """A figure with the digits of its metric."""
    value = None if figures is None else figures.get(metric)
    return "–" if value is None else f"{value:.{TITLES[metric][1]}f}"
