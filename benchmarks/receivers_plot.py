"""Receivers plot: LPIPS over the seconds of an image, one point for each receiver of a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jscc.benchmarks.plots import COLOURS, MARKERS, STYLE, add_legend, plain_numbers, saved
from jscc.benchmarks.titles import TITLES
from jscc.runtime.errors import DataError, UsageError

_LEGEND_COLUMNS = 2
_PLOT_INCHES, _ROW_INCHES = 3.6, 0.22


def read_receivers(path: Path) -> Mapping[str, Any]:
    """A result of ``jscc bench receivers``.

    Raises:
        DataError: ``E_RESULT``, the file is none.
    """
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            "E_RESULT", f"{path.name}: got {error}, expected a result. Record it again."
        ) from error
    if not isinstance(result, dict) or result.get("kind") != "receivers":
        raise DataError(
            "E_RESULT",
            f"{path.name}: got another kind of file, expected a result of jscc bench receivers. "
            "Name one.",
        )
    return result


def plot_receivers(results: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Points from the slowest to the fastest; further to the left and further down is better.

    Raises:
        UsageError: ``E_PLOT``, no result of ``jscc bench receivers`` with LPIPS is there.
    """
    points = [
        each
        for result in results
        if result.get("kind") == "receivers"
        for each in result["contestants"]
        if each["lpips"] is not None
    ]
    points.sort(key=lambda each: each["wall_s"]["median"], reverse=True)
    if not points:
        raise UsageError(
            "E_PLOT",
            "results: got none with LPIPS of receivers, expected those of jscc bench receivers "
            "--images DIR --lpips-weights DIR. Record one.",
        )
    with style.context(["default", STYLE]):
        rows = -(-len(points) // _LEGEND_COLUMNS)
        figure = Figure(figsize=(6.6, _PLOT_INCHES + _ROW_INCHES * rows))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, each in enumerate(points):
            axes.plot(
                each["wall_s"]["median"],
                each["lpips"],
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                label=each["name"],
            )
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set(xlabel="s per image", ylabel=TITLES["lpips"][0])
        axes.margins(0.06)
        add_legend(figure, axes, _LEGEND_COLUMNS)
        return saved(figure, form)
