"""Scenario plots: time by stage, throughput, and latency against the rate of arrivals; as SVG."""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jscc.benchmarks.percentiles import PERCENTILES, figure
from jscc.benchmarks.plots import COLOURS, MARKERS, STYLE, add_legend, plain, plain_numbers, saved

Result = Mapping[str, Any]

_WIDE = 20.0  # beyond this ratio of largest to smallest an axis is logarithmic
_SIZE = (5.2, 3.65)  # inches
_BAR = 0.26  # of the distance between two stages


def plot_stages(result: Result) -> bytes:
    """Bars of the percentiles, end to end and by stage, of a ``latency`` result."""
    latency = result["latency_ms"]
    parts = {"end to end": latency["end_to_end"], **latency["stages"]}

    def draw(axes: Axes) -> None:
        for index, level in enumerate(PERCENTILES):
            widths = [float(times[f"p{level}"]) for times in parts.values()]
            places = [place + (index - 1) * _BAR for place in range(len(parts))]
            bars = axes.barh(places, widths, 0.9 * _BAR, color=COLOURS[index], label=f"p{level}")
            axes.bar_label(bars, [figure(width) for width in widths], padding=3, fontsize=8)
        axes.set_yticks(range(len(parts)), [plain(name) for name in parts])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.set_xlabel("ms (lower is better)")

    return _drawn(draw, len(PERCENTILES), height=1.1 + 0.55 * len(parts))


def plot_throughput(result: Result, across: str) -> bytes:
    """Images per second over ``batch`` or ``workers`` of an ``offline`` result."""
    other = "workers" if across == "batch" else "batch"
    points = sorted(result["points"], key=lambda point: (point[other], point[across]))
    curves: dict[int, list[Any]] = {}
    for point in points:
        curves.setdefault(int(point[other]), []).append(point)
    ticks = sorted({int(point[across]) for point in points})

    def draw(axes: Axes) -> None:
        for index, (value, own) in enumerate(curves.items()):
            label = f"batch {value}" if other == "batch" else _workers(value)
            axes.plot(
                [point[across] for point in own],
                [float(point["images_per_s"]) for point in own],
                label=label,
                **_look(index),
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images of a batch" if across == "batch" else "workers")
        axes.set_ylabel("images/s (higher is better)")

    return _drawn(draw, len(curves))


def plot_rates(result: Result) -> bytes:
    """Percentiles of latency over the rate of arrivals of a ``server`` result, and the bound."""
    points = sorted(result["points"], key=lambda point: float(point["rate"]))
    bound = result["case"]["bound_ms"]
    levels = {
        f"p{level}": [float(p["latency_ms"][f"p{level}"]) for p in points] for level in (99, 90, 50)
    }

    def draw(axes: Axes) -> None:
        for index, (name, heights) in enumerate(levels.items()):
            axes.plot([float(p["rate"]) for p in points], heights, label=name, **_look(index))
        if bound is not None:
            label = f"bound on p99, {bound:g} ms"
            axes.axhline(float(bound), color="#000000", linestyle="--", linewidth=1.2, label=label)
        heights = [value for own in levels.values() for value in own]
        heights += [] if bound is None else [float(bound)]
        if max(heights) > _WIDE * min(heights) > 0:
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("images/s that arrive")
        axes.set_ylabel("latency, ms (lower is better)")

    return _drawn(draw, len(levels) + 1)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _drawn(draw: Callable[[Axes], None], labels: int, height: float = _SIZE[1]) -> bytes:
    """A figure of one panel with its legend below."""
    with style.context(["default", STYLE]):
        sheet = Figure(figsize=(_SIZE[0], height))
        FigureCanvasAgg(sheet)
        axes = sheet.subplots()
        draw(axes)
        add_legend(sheet, axes, min(labels, 4))
        return saved(sheet, "svg")
