"""Plots: metric against SNR, cbr or time, and the plane of perception and distortion.

Colours are those of Masataka Okabe and Kei Ito, which stay apart for colour-blind readers; markers
and dashes tell the curves apart without any colour. The same figures give the same bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jscc.benchmarks.series import CODEC, DIGITAL, SYSTEM, Point, Series, ratio
from jscc.benchmarks.titles import HIGHER_IS_BETTER, TITLES
from jscc.runtime.errors import UsageError

FORMATS = ("svg", "png")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B4513", "#5D3FD3")
BASELINES = ("#000000", "#7F7F7F")
MARKERS = "osD^vPX*<>"
DASHES = {SYSTEM: "-", CODEC: "--", DIGITAL: ":"}
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "grid.color": "#DDDDDD",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.dpi": 120,
    "svg.fonttype": "path",
    "svg.hashsalt": "jscc",
}
_PANEL = (5.2, 3.4)  # inches
_LEGEND_LINE = 0.25
_LEGEND_COLUMNS = 2
_SMALLEST_LEGEND = 5.0  # points
_LONGEST_NAME = 90  # letters


@dataclass(frozen=True)
class Place:
    """Where a plot is cut out of everything that was measured: at a cbr, or at an SNR."""

    cbr: Fraction | None = None
    snr_db: float | None = None

    def __str__(self) -> str:
        return f"cbr {self.cbr}" if self.cbr is not None else f"SNR {self.snr_db:g} dB"

    def cut(self, series: Sequence[Series], metrics: Sequence[str]) -> list[Series]:
        """The points there that have every one of `metrics`, of the series that have any.

        Raises:
            UsageError: ``E_PLOT``, there are none.
        """
        there = []
        for each in (each.at(cbr=self.cbr, snr_db=self.snr_db) for each in series):
            full = tuple(
                point
                for point in each.points
                if all(point.figures.get(name) is not None for name in metrics)
            )
            if full:
                there.append(Series(each.label, each.kind, full))
        if not there:
            points = [point for each in series for point in each.points]
            cbrs = ", ".join(str(cbr) for cbr in sorted({ratio(p.cbr) for p in points}))
            snrs = ", ".join(f"{snr_db:g}" for snr_db in sorted({p.snr_db for p in points}))
            raise UsageError(
                "E_PLOT",
                f"plot: got no {' and '.join(metrics)} at {self}, expected some of cbr {cbrs} and "
                f"SNR {snrs} dB. Choose what was measured.",
            )
        return there


def plot_snr(series: Sequence[Series], metrics: Sequence[str], cbr: Fraction, form: str) -> bytes:
    """One panel a metric: the metric against SNR at `cbr`."""
    place = Place(cbr=cbr)
    with style.context(["default", STYLE]):
        drawing = _Drawing(place.cut(series, metrics), len(metrics))
        for axes, metric in zip(drawing.panels, metrics, strict=True):
            drawing.curves(axes, metric, "snr_db")
            axes.set_xlabel(f"SNR, dB   ({place})")
        return drawing.written(form)


def plot_cbr(series: Sequence[Series], metrics: Sequence[str], snr_db: float, form: str) -> bytes:
    """One panel a metric: the metric against cbr at `snr_db`."""
    place = Place(snr_db=snr_db)
    with style.context(["default", STYLE]):
        there = place.cut(series, metrics)
        drawing = _Drawing(there, len(metrics))
        ticks = sorted({ratio(point.cbr) for each in there for point in each.points})
        for axes, metric in zip(drawing.panels, metrics, strict=True):
            drawing.curves(axes, metric, "cbr")
            axes.set_xscale("log")
            axes.set_xticks([float(tick) for tick in ticks], [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel(f"cbr   ({place})")
        return drawing.written(form)


def plot_plane(series: Sequence[Series], metrics: Sequence[str], cbr: Fraction, form: str) -> bytes:
    """The second metric over the first at `cbr`; each curve goes through its SNRs.

    SNRs at which images are lost are left out: their means say how many, not how good.

    Raises:
        UsageError: ``E_PLOT``, there is nothing there, or not two metrics are given.
    """
    if len(metrics) != 2:
        raise UsageError(
            "E_PLOT",
            f"--metric: got {', '.join(metrics)}, expected two for the plane, such as "
            "psnr_db,lpips. Give both.",
        )
    place = Place(cbr=cbr)
    whole = [
        replace(each, points=tuple(point for point in each.points if point.arrived == 1))
        for each in series
    ]
    with style.context(["default", STYLE]):
        drawing = _Drawing(place.cut(whole, metrics), 1, wide=1.5)
        (axes,) = drawing.panels
        drawing.curves(axes, metrics[1], metrics[0])
        drawing.mark_snrs(axes, metrics)
        axes.set_xlabel(f"{title(metrics[0])}   ({place})")
        return drawing.written(form)


def plot_time(series: Sequence[Series], metric: str, cbr: Fraction, form: str) -> bytes:
    """The metric over the seconds that an image took at `cbr`, each curve through its SNRs.

    Raises:
        UsageError: ``E_PLOT``, nothing with a known time is there.
    """
    place = Place(cbr=cbr)
    timed = [
        replace(each, points=tuple(point for point in each.points if point.seconds is not None))
        for each in series
    ]
    with style.context(["default", STYLE]):
        drawing = _Drawing(place.cut(timed, [metric]), 1)
        (axes,) = drawing.panels
        drawing.curves(axes, metric, "seconds")
        drawing.mark_snrs(axes, ("seconds", metric))
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.5, high * 1.5)  # so that noise of a few percent looks like it
        axes.set_xlabel(f"s per image   ({place})")
        return drawing.written(form)


class _Drawing:
    """Panels side by side that share their curves' looks and one legend below."""

    def __init__(self, series: Sequence[Series], panels: int, *, wide: float = 1.0) -> None:
        self._series = series
        self._lines = -(-len(series) // _LEGEND_COLUMNS)
        size = (_PANEL[0] * panels * wide, _PANEL[1] * wide + _LEGEND_LINE * self._lines)
        self._figure = Figure(figsize=size)
        FigureCanvasAgg(self._figure)
        self.panels: list[Axes] = list(self._figure.subplots(1, panels, squeeze=False)[0])
        self._looks = looks(series)

    def curves(self, axes: Axes, metric: str, across: str) -> None:
        """Every series: `metric` over `across`, in the order of the SNRs or of the cbrs."""
        for each, look in zip(self._series, self._looks, strict=True):
            key = "cbr" if across == "cbr" else "snr_db"
            points = sorted(each.points, key=lambda point: value(point, key))
            places = [value(point, across) for point in points]
            heights = [value(point, metric) for point in points]
            axes.plot(places, heights, label=plain(each.label), **look)
        axes.set_ylabel(title(metric))

    def mark_snrs(self, axes: Axes, metrics: Sequence[str]) -> None:
        """Write the first and the last SNR beside each curve, both at once where it is a point."""
        for each, look in zip(self._series, self._looks, strict=True):
            points = sorted(each.points, key=lambda point: point.snr_db)
            places: dict[tuple[float, float], list[str]] = {}
            for point in (points[0], points[-1]):
                place = (value(point, metrics[0]), value(point, metrics[1]))
                places.setdefault(place, []).append(f"{point.snr_db:g}")
            for place, snrs_db in places.items():
                axes.annotate(
                    f"{'–'.join(dict.fromkeys(snrs_db))} dB",
                    place,
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=8,
                    color=look["color"],
                )

    def written(self, form: str) -> bytes:
        """The file."""
        add_legend(self._figure, self.panels[0], _LEGEND_COLUMNS)
        return saved(self._figure, form)


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Name the curves of `axes` below, in fewer columns or smaller letters where names are long."""
    handles, names = axes.get_legend_handles_labels()
    labels = [shorten(str(name), _LONGEST_NAME) for name in names]
    planned = -(-len(labels) // columns)
    size: float | None = None
    while True:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=size
        )
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        width = legend.get_window_extent(renderer).width
        share = figure.bbox.width / width
        if share >= 1 or size is not None:
            break
        legend.remove()
        if columns > 1:
            columns -= 1
        else:
            size = max(_SMALLEST_LEGEND, 0.95 * share * STYLE["legend.fontsize"])
    more = -(-len(labels) // columns) - planned
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * more)


def saved(figure: Figure, form: str) -> bytes:
    """The file of `figure`, without the hour at which it was made."""
    buffer = io.BytesIO()
    silent = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, metadata=silent)
    return buffer.getvalue()


def shorten(text: str, longest: int) -> str:
    """`text`, or its begin where it is longer."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def plain(text: str) -> str:
    """`text` such that no part of it is read as a formula."""
    return text.replace("$", r"\$")


def plain_numbers(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out; for a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def looks(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Colour, marker and dashes of each series; digital ones are black and grey."""
    found: list[dict[str, Any]] = []
    digital = 0
    for index, each in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        if each.kind == DIGITAL:
            colour = BASELINES[digital % len(BASELINES)]
            digital += 1
        marker = MARKERS[index % len(MARKERS)]
        found.append({"color": colour, "marker": marker, "linestyle": DASHES[each.kind]})
    return found


def value(point: Point, name: str) -> float:
    """A coordinate or a metric of `point`."""
    if name in ("cbr", "snr_db", "seconds"):
        return float(getattr(point, name))
    figure = point.figures[name]
    assert figure is not None  # `Place.cut` has left such points out
    return figure


def title(metric: str) -> str:
    """What stands at an axis."""
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    return f"{TITLES[metric][0]} ({better} is better)"
