"""Articles: what the HTML report shows of each recorded result: where from, plots, table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from jscc.benchmarks.markup import Html, element, escape, join, scrolled_table
from jscc.benchmarks.plots import plot_snr, plot_time
from jscc.benchmarks.readme_tables import table_of
from jscc.benchmarks.receivers_plot import plot_receivers
from jscc.benchmarks.report import board, energy_line, instructions
from jscc.benchmarks.scenario_plots import plot_rates, plot_stages, plot_throughput
from jscc.benchmarks.series import Point, Series, cbrs_of, distinct, ratio, series_of
from jscc.benchmarks.titles import TITLES

Result = Mapping[str, Any]

CURVES = ("psnr_db", "ms_ssim", "lpips")
ACROSS_TIME = "lpips"
_COMPILED = ("kernels", "engines")  # kinds of results without anything drawn


@dataclass(frozen=True)
class Source:
    """A recorded result and the name of its file."""

    name: str
    result: Result


@dataclass(frozen=True)
class Plot:
    """A figure: the file that matplotlib wrote, and what it shows."""

    svg: bytes
    caption: str


Place = Callable[[Plot], Html]  # puts a plot on the page


def article(source: Source, place: Place) -> Html:
    """All of one result."""
    result = source.result
    plots = [place(plot) for plot in _PLOTS.get(result["kind"], _none)(result)]
    table = scrolled_table(table_of(result, source.name)(result), f"figures of {source.name}")
    notes = [element("p", note, class_="soft") for note in _notes(result)]
    return element(
        "article",
        element("h3", _subject(result) or source.name),
        _provenance(source),
        *([element("div", *plots, class_="plots")] if plots else []),
        table,
        *notes,
    )


def comparison(sources: Sequence[Source], place: Place) -> Html:
    """Curves of several results on the same images in common plots."""
    plots = [place(plot) for plot in _against_snr(together(sources))]
    names = ", ".join(source.name for source in sources)
    return element(
        "article",
        element("h3", f"Together: {_images(sources[0].result)}"),
        element("p", f"Results on the same images and channel: {names}.", class_="soft"),
        element("div", *plots, class_="plots"),
    )


def same_images(sources: Sequence[Source]) -> list[list[Source]]:
    """Results of quality in groups that may be compared, of two and more."""
    groups: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        images = source.result.get("images", {}).get("sha256")
        if images is not None:
            key = str(images), str(source.result.get("channel"))
            groups.setdefault(key, []).append(source)
    return [group for group in groups.values() if len(group) > 1]


def together(sources: Sequence[Source]) -> list[Series]:
    """The curves of several results; of one name with other figures, each with its file's."""
    found: dict[tuple[str, str], list[tuple[str, Series]]] = {}
    for source in sources:
        for each in series_of([source.result]):
            found.setdefault((each.label, each.kind), []).append((source.name, each))
    series: list[Series] = []
    for own in found.values():
        points = {_measured(point): point for _, each in own for point in each.points}
        if len(points) == len({key[:2] for key in points}):
            series.append(replace(own[0][1], points=tuple(points.values())))
        else:
            series += [replace(e, label=f"{e.label} ({Path(name).stem})") for name, e in own]
    return distinct(series)


def _measured(point: Point) -> tuple[Fraction, float, float | None]:
    """Where a point was measured, and what came out."""
    psnr = point.figures.get("psnr_db")
    return ratio(point.cbr), point.snr_db, None if psnr is None else round(psnr, 2)


def _none(result: Result) -> Iterator[Plot]:
    del result
    yield from ()


def _latency(result: Result) -> Iterator[Plot]:
    yield Plot(plot_stages(result), "Latency by stage: 50th, 90th and 99th percentile.")


def _offline(result: Result) -> Iterator[Plot]:
    for across, what in (("batch", "batch size"), ("workers", "number of workers")):
        if len({point[across] for point in result["points"]}) > 1:
            yield Plot(plot_throughput(result, across), f"Throughput against {what}.")


def _server(result: Result) -> Iterator[Plot]:
    bound = " and the bound" if result["case"]["bound_ms"] is not None else ""
    yield Plot(plot_rates(result), f"Latency against the rate of arrivals{bound}.")


def _quality(result: Result) -> Iterator[Plot]:
    series = series_of([result])
    yield from _against_snr(series)
    for cbr in cbrs_of(series):
        there = [
            point
            for each in series
            for point in each.at(cbr=cbr).points
            if point.seconds is not None and point.figures.get(ACROSS_TIME) is not None
        ]
        if there:
            caption = f"Time against {TITLES[ACROSS_TIME][0]} at cbr {cbr}, at each SNR."
            yield Plot(plot_time(series, ACROSS_TIME, cbr, "svg"), caption)


def _against_snr(series: Sequence[Series]) -> Iterator[Plot]:
    for cbr in cbrs_of(series):
        points = [point for each in series for point in each.at(cbr=cbr).points]
        for metric in CURVES:
            if any(point.figures.get(metric) is not None for point in points):
                caption = f"{TITLES[metric][0]} against SNR at cbr {cbr}."
                yield Plot(plot_snr(series, [metric], cbr, "svg"), caption)


def _receivers(result: Result) -> Iterator[Plot]:
    if any(each["lpips"] is not None for each in result["contestants"]):
        yield Plot(plot_receivers([result], "svg"), "LPIPS over the time of an image.")


_PLOTS: Mapping[str, Callable[[Result], Iterator[Plot]]] = {
    "latency": _latency,
    "offline": _offline,
    "server": _server,
    "quality": _quality,
    "digital": _quality,
    "receivers": _receivers,
}


def _subject(result: Result) -> str:
    """What was measured, in a few words."""
    bundle = result.get("bundle")
    if isinstance(bundle, dict):
        names = f"{bundle['name']}, {bundle['system']}, {bundle['precision']}"
        size = result.get("case", {}).get("size")
        return f"{names}, {size[0]}×{size[1]}" if size else names
    if "bundles" in result:
        names = ", ".join(dict.fromkeys(str(each["name"]) for each in result["bundles"]))
        return f"{names}: {_images(result)}"
    if "schemes" in result:
        return f"{', '.join(each['title'] for each in result['schemes'])}: {_images(result)}"
    case = result.get("case", {})
    if "stage" in case:
        shape = f"{case['height']}×{case['width']}, batch {case['batch']}"
        return f"{case['stage']}, {case['scale']} size, {case['precision']}, {shape}"
    return ""


def _images(result: Result) -> str:
    """Which images went over which channel."""
    folder = result.get("images", {}).get("folder", "images")
    count = len(result.get("names", ()))
    return f"{folder}{f', {count} images' if count else ''}, {result.get('channel', 'channel')}"


def _notes(result: Result) -> Iterator[str]:
    """What the table leaves out."""
    if result["kind"] == "latency" and "energy" in result:
        yield energy_line(result["energy"])
    if result["kind"] == "offline":
        yield "Efficiency: throughput ÷ (workers × that of one worker with batch 1)."
        yield energy_line(result["points"][0]["energy"])
    if result["kind"] == "server" and result["case"]["bound_ms"] is not None:
        rate, bound = result["highest_rate"], result["case"]["bound_ms"]
        found = "none" if rate is None else f"{rate:.3g} images/s"
        yield f"Highest rate tried that holds p99 ≤ {bound:g} ms: {found}."


def _provenance(source: Source) -> Html:
    """Where a result comes from."""
    result = source.result
    machine, versions = result["machine"], result["versions"]
    memory = machine.get("memory_mib")
    count = result.get("threads") or machine["threads"]
    threads = f"{count} thread{'s' if count != 1 else ''}"
    words = [machine["cpu"] + instructions(machine), machine.get("architecture"), threads]
    words += [None if memory is None else f"{memory / 1024:.1f} GiB", machine.get("system")]
    lines = {
        "file": element("code", source.name),
        "machine": ", ".join(str(word) for word in words if word) + board(machine),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "commit": element("code", str(result["commit"])),
    }
    if result["kind"] not in _COMPILED:
        lines["seed"] = _seed(result)
    pairs = [join((element("dt", name), element("dd", text))) for name, text in lines.items()]
    return element("dl", *pairs)


def _seed(result: Result) -> str:
    """What the random numbers were drawn with."""
    case = result.get("case", {})
    if "seed" in case:
        return str(case["seed"])
    if "seed" in result:
        return str(result["seed"])
    if "seeds" in result:
        return "0" if result["seeds"] == 1 else f"0 to {int(result['seeds']) - 1}"
    found = {
        name: result[f"{name}_seed"] for name in ("inputs", "weights") if f"{name}_seed" in result
    }
    return escape(", ".join(f"{seed} ({name})" for name, seed in found.items()) or "unknown")
