"""Series: curves out of result files of ``jscc bench quality`` and ``jscc bench digital``.

One series is what one way to send and receive reached, at every cbr and SNR that was measured.
Bundles whose names differ only in an ending like ``-96`` (for cbr 1/96) make one series.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from jscc.benchmarks.shared_images import restricted
from jscc.benchmarks.titles import Figures
from jscc.runtime.errors import DataError, UsageError

SYSTEM, CODEC, DIGITAL = "system", "codec", "digital"
ALONE = ", codec alone"
CBR_TOLERANCE = 0.05  # padding moves the cbr of single images

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """Mean figures at one cbr and SNR.

    Attributes:
        cbr: Complex symbols per source sample.
        snr_db: Of the channel.
        figures: By metric; None where one could not be computed.
        arrived: Share of the images that arrived at all.
        parameters: Trained numbers of the receiver, if it has any.
        seconds: From symbols to an image.
        threads: That the engine had; None for all.
    """

    cbr: float
    snr_db: float
    figures: Figures
    arrived: float = 1.0
    parameters: int | None = None
    seconds: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: What it is called.
        kind: `SYSTEM`, `CODEC` (a system's codec alone) or `DIGITAL`.
        points: In no order.
    """

    label: str
    kind: str
    points: tuple[Point, ...]

    def at(self, *, cbr: Fraction | None = None, snr_db: float | None = None) -> "Series":
        """The points at a cbr, or at an SNR."""
        kept = [
            point
            for point in self.points
            if (cbr is None or is_cbr(point.cbr, cbr))
            and (snr_db is None or abs(point.snr_db - snr_db) < 1e-9)
        ]
        return replace(self, points=tuple(kept))


def is_cbr(cbr: float, wanted: Fraction) -> bool:
    """Whether `cbr` is the one that is meant."""
    return abs(cbr / float(wanted) - 1) <= CBR_TOLERANCE


def ratio(cbr: float) -> Fraction:
    """The fraction that `cbr` is nearly: 1/96 where padding makes it 0.01043."""
    near = Fraction(1, max(1, round(1 / cbr)))
    return near if abs(float(near) / cbr - 1) < 0.01 else Fraction(cbr).limit_denominator(1000)


def read_result(path: Path) -> Result:
    """A result file.

    Raises:
        DataError: ``E_RESULT``, there is none, or it is something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise DataError(
            "E_RESULT", f"{path.name}: got {reason}, expected a result of jscc bench. Record it."
        ) from error
    if not isinstance(result, dict) or result.get("kind") not in _READERS:
        got = result.get("kind") if isinstance(result, dict) else type(result).__name__
        raise DataError(
            "E_RESULT",
            f"{path.name}: got kind {got!r}, expected {' or '.join(_READERS)}. "
            "Name results of jscc bench quality and jscc bench digital.",
        )
    return result


def series_of(results: Sequence[Result]) -> list[Series]:
    """All curves of `results`; a codec alone that is also there as a system appears once."""
    found: dict[tuple[str, str], list[Point]] = {}
    for result in results:
        for label, kind, point in _READERS[result["kind"]](result):
            found.setdefault((label, kind), []).append(point)
    return distinct([Series(label, kind, tuple(points)) for (label, kind), points in found.items()])


def distinct(series: Sequence[Series]) -> list[Series]:
    """`series` in the order of their kinds, without a codec alone that is there as a system too."""
    kept: list[Series] = []
    for each in sorted(series, key=lambda each: each.kind == CODEC):
        if each.kind != CODEC or not any(_same(each, other) for other in kept):
            kept.append(each)
    return sorted(kept, key=lambda each: (SYSTEM, CODEC, DIGITAL).index(each.kind))


def _quality(result: Result) -> Iterator[tuple[str, str, Point]]:
    for mean in result["means"]:
        bundle = result["bundles"][mean["bundle"]]
        label = label_of(result, mean)
        point = Point(
            mean["cbr"],
            mean["snr_db"],
            mean["received"],
            parameters=bundle.get("parameters", {}).get("receiver"),
            seconds=mean.get("seconds"),
            threads=mean.get("threads"),
        )
        yield label, SYSTEM, point
        if mean["codec"] is not None:
            alone = replace(point, figures=mean["codec"], parameters=None, seconds=None)
            yield alone_label(result, mean), CODEC, alone


def label_of(result: Result, mean: Mapping[str, Any]) -> str:
    """What a way to receive is called; one bundle's several settings by what they ran.

    By what they ran at the first SNR, as the weight of a guide may depend on it, and by knobs.
    """
    first: dict[object, Mapping[str, Any]] = {}
    for other in _of_bundle(result, mean):
        first.setdefault(_setting(other), other)
    if len(first) == 1:
        return _name(result, mean)
    described = result["bundles"][mean["bundle"]].get("settings", [])
    knobs: Mapping[str, float] = {}
    if "setting" in mean and len(described) > 1:
        knobs = described[mean["setting"]].get("settings", {})
    words = [_name(result, mean), first[_setting(mean)]["ran"]]
    words += [f"{name} {value:g}" for name, value in knobs.items()]
    return ", ".join(word for word in words if word)


def _setting(mean: Mapping[str, Any]) -> object:
    """Which setting of its bundle a mean was measured with."""
    return mean.get("setting", (mean["sampler"], mean["steps"], mean["ran"]))


def alone_label(result: Result, mean: Mapping[str, Any]) -> str:
    """What the codec of a bundle is called by itself."""
    return f"{_name(result, mean)}{ALONE}"


def _name(result: Result, mean: Mapping[str, Any]) -> str:
    """The bundle's name without an ending that only says one of its cbrs."""
    name = str(result["bundles"][mean["bundle"]]["name"])
    found = re.fullmatch(r"(.+)-([1-9][0-9]*)", name)
    cbrs = [other["cbr"] for other in _of_bundle(result, mean)]
    if found and any(is_cbr(cbr, Fraction(1, int(found[2]))) for cbr in cbrs):
        return found[1]
    return name


def _of_bundle(result: Result, mean: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [other for other in result["means"] if other["bundle"] == mean["bundle"]]


def _digital(result: Result) -> Iterator[tuple[str, str, Point]]:
    titles = {scheme["name"]: scheme["title"] for scheme in result["schemes"]}
    for mean in result["means"]:
        cbr = float(Fraction(mean["cbr"]))
        point = Point(cbr, mean["snr_db"], mean["received"], arrived=mean["decoded"])
        yield titles[mean["scheme"]], DIGITAL, point


_READERS: Mapping[str, Callable[[Result], Iterator[tuple[str, str, Point]]]] = {
    "quality": _quality,
    "digital": _digital,
}


def _same(codec: Series, other: Series) -> bool:
    """Whether `other` has every point of `codec`."""
    have = {_place(point) for point in other.points}
    return all(_place(point) in have for point in codec.points)


def _place(point: Point) -> tuple[object, ...]:
    psnr = point.figures.get("psnr_db")
    return ratio(point.cbr), point.snr_db, None if psnr is None else round(psnr, 3)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that `select` reads."""
    parser.add_argument("result", nargs="+", type=Path, help="results of jscc bench")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="call a series TEXT; repeat for others",
    )
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="NAME", help="a series; repeat"
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="means over the images that all results have (not for pictures)",
    )


def shown_names(results: Sequence[Result], args: argparse.Namespace) -> dict[str, str]:
    """The series that the options ask for, with what each is to be called.

    Raises:
        UsageError: ``E_SERIES``, there is none of that name.
    """
    names = [each.label for each in series_of(results)]
    labels = dict(_renaming(text) for text in args.label)
    for name in (*labels, *args.leave_out):
        if name not in names:
            raise UsageError(
                "E_SERIES",
                f"series: got {name!r}, expected one of {', '.join(map(repr, names))}. "
                "Correct the name.",
            )
    return {name: labels.get(name, name) for name in names if name not in args.leave_out}


def select(results: Sequence[Result], args: argparse.Namespace) -> list[Series]:
    """The curves that the options ask for, renamed.

    Raises:
        UsageError: As in `shown_names` and, of ``--common``, in `images_of_all`.
    """
    names = shown_names(results, args)
    series = series_of(restricted(results) if args.common else results)
    return [replace(each, label=names[each.label]) for each in series if each.label in names]


def _renaming(text: str) -> tuple[str, str]:
    name, sign, label = text.partition("=")
    if not (name and sign and label):
        raise UsageError("E_USAGE", f"--label: got {text!r}, expected NAME=TEXT. Correct it.")
    return name, label


def cbrs_of(series: Sequence[Series]) -> list[Fraction]:
    """Every cbr that was measured, the largest first; what padding moved is the same."""
    found = {ratio(point.cbr) for each in series for point in each.points}
    kept: list[Fraction] = []
    for cbr in sorted(found, reverse=True):
        if not any(is_cbr(float(cbr), other) for other in kept):
            kept.append(cbr)
    return kept
