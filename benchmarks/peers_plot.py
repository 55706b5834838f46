"""Peers plot: how long one step takes in each engine of a run, ours apart from the others."""

from collections.abc import Mapping
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jscc.benchmarks.peer_engines import FORMS
from jscc.benchmarks.peers_table import label, names, quality, seconds
from jscc.benchmarks.plots import COLOURS, STYLE, saved

_BAR = 0.3  # inches


def plot_peers(result: Mapping[str, Any], form: str) -> bytes:
    """A bar for each engine, the slowest on top, with the SNR of the noise that it found.

    Args:
        result: Of ``jscc bench peers``, with the forms of ours that it compares.
        form: One of `jscc.benchmarks.plots.FORMATS`.
    """
    order = sorted(names(result), key=lambda name: seconds(result, name))
    values = [seconds(result, name) for name in order]
    notes = [quality(result, name, "noise_snr_db") for name in order]
    ours = set(FORMS.values())
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6.6, 1.0 + _BAR * len(order)))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        bars = axes.barh(
            [label(name) for name in order],
            values,
            color=[COLOURS[0] if name in ours else COLOURS[1] for name in order],
        )
        axes.bar_label(
            bars, [note if note == "equal" else f"{note} dB" for note in notes], padding=4
        )
        axes.set(xlabel="s per step; beside the bars, SNR of the noise to ours fp32")
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        return saved(figure, form)
