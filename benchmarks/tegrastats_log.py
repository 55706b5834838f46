"""tegrastats log: power, energy, memory, clocks and heat of a Jetson while the log was recorded.

Each line stands for one interval, so the energy of a rail is its mean power times the number of
lines times the interval. Of the rails, those that together are the whole module are summed up.
Lines that are none of the program's, or that name other rails than most, are left out and told;
those of them that the program printed meanwhile count in the time, not in the power.
"""

import argparse
import os
import statistics
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from jscc.benchmarks.cases import Json
from jscc.benchmarks.report import write_result
from jscc.benchmarks.scenarios import above_zero
from jscc.benchmarks.tegrastats import INTERVAL_MS, Sample, is_printed, parse_line, whole
from jscc.runtime.errors import DataError
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import notice, pairs, say, table
from jscc.runtime.trust import Asset, open_regular

KIND = "tegrastats"
_RECORD = f"Record one: tegrastats --interval {INTERVAL_MS} --logfile LOG"
LOG = Asset(DataError, "E_TEGRASTATS", _RECORD)
_LONGEST = 1 << 14  # characters of a line
_MOST_SETS = 16  # of rails; there is one in a good log
_NAMED = 5  # line numbers that are told
_DATE_S = 1  # dates have whole seconds, so that this is how far off the time between two can be
_JITTER_S = 2 * _DATE_S
_FARTHEST = 0.05  # share of that time up to which it is taken
_EPOCH = datetime(1970, 1, 1)


@dataclass
class Spread:
    """Numbers that are seen once: how many, their sum and extremes."""

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, value: float) -> None:
        """One more."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    @property
    def mean(self) -> float:
        """Of all."""
        return self.total / self.count


@dataclass
class Tally:
    """All lines that name the same rails.

    Attributes:
        numbers: Of the lines.
        stamps: Their time, in seconds; fewer than lines where some have none.
        ram_mib: In use.
        ram_total_mib: There.
        parts: By field of `Sample` and name.
    """

    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    stamps: "array[int]" = field(default_factory=lambda: array("q"))
    ram_mib: Spread = field(default_factory=Spread)
    ram_total_mib: int = 0
    parts: dict[str, dict[str, Spread]] = field(default_factory=dict)

    def add(self, number: int, sample: Sample) -> None:
        """Count one more line."""
        self.numbers.append(number)
        if sample.at is not None:
            self.stamps.append(int((sample.at - _EPOCH).total_seconds()))
        self.ram_mib.add(sample.ram_mib[0])
        self.ram_total_mib = sample.ram_mib[1]
        for name in ("watts", "mhz", "load", "celsius"):
            spreads = self.parts.setdefault(name, {})
            for part, value in getattr(sample, name).items():
                spreads.setdefault(part, Spread()).add(value)


@dataclass
class Gaps:
    """Lines that are left out.

    Attributes:
        printed: Numbers of those that tegrastats printed.
        strange: Of the others.
    """

    printed: "array[int]" = field(default_factory=lambda: array("q"))
    strange: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class Time:
    """How long a log is.

    Attributes:
        interval_s: Between two lines.
        source: Where that is from.
        intervals: How many.
        uncertainty: Share of the time that it may be off by; None where nothing tells.
    """

    interval_s: float
    source: str
    intervals: int
    uncertainty: float | None

    @property
    def seconds(self) -> float:
        """In all."""
        return self.interval_s * self.intervals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench tegrastats``."""
    parser.add_argument("log", type=Path, metavar="LOG", help="of tegrastats --logfile LOG")
    parser.add_argument(
        "--interval",
        type=above_zero,
        metavar="MS",
        help="what tegrastats was told (default: by the dates of the lines, or "
        f"{INTERVAL_MS} where they have none)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> int:
    """``jscc bench tegrastats``: read a log, print what it says."""
    if args.json is not None:
        check_destination(args.json, force=args.force)
    document = summarise(args.log, args.interval)
    if args.json is not None:
        write_result(args.json, KIND, document)
        notice(f"jscc bench tegrastats: wrote {args.json}")
    say(report(document))
    return 0


def summarise(path: Path, interval_ms: float | None = None) -> dict[str, Json]:
    """What a log says, as JSON; powers in W, energies in J.

    Args:
        path: The log.
        interval_ms: Between two lines; by default from their dates, else `INTERVAL_MS`.

    Raises:
        DataError: ``E_TEGRASTATS_LINES``, no line is tegrastats'; ``E_TEGRASTATS_INTERVAL``,
            their dates jump or are too near to tell the interval; others as in `open_regular`.
    """
    best, left_out = _read(path)
    time = _time(path.name, best, left_out, interval_ms)
    numbers = sorted([*left_out.printed, *left_out.strange])
    return {
        "log": path.name,
        "lines": len(best.numbers),
        "skipped": {"count": len(numbers), "first": numbers[:_NAMED]},
        "interval_s": time.interval_s,
        "interval_from": time.source,
        "seconds": time.seconds,
        "uncertainty": time.uncertainty,
        **_figures(best, time.seconds),
    }


def report(document: Mapping[str, Any]) -> str:
    """What is printed of `summarise`."""
    skipped = document["skipped"]
    numbers = ", ".join(map(str, skipped["first"])) + "…" * (skipped["count"] > _NAMED)
    total = document["lines"] + skipped["count"]
    off = f" ± {document['uncertainty']:.1%}" if document["uncertainty"] else ""
    lines = {
        "log": f"{document['log']}, {document['lines']} samples, {document['seconds']:.1f} s{off}",
        "interval": f"{document['interval_s']:.3f} s, {document['interval_from']}",
        "left out": f"{skipped['count']} of {total} lines: {numbers}" if numbers else "no line",
        "memory": f"{document['ram_mib']['most']:g} of {document['ram_mib']['total']} MiB at most",
        "hottest": _hottest(document["celsius"]),
    }
    sections = [pairs(lines), *_tables(document)]
    module = document["module"]
    if module is None:
        sections.append("energy: no line names a rail; run tegrastats on the board itself, as root")
    else:
        sections.append(
            f"energy: {module['joules']:.4g} J{off}, {module['watts']:.3g} W "
            f"({' + '.join(module['rails'])}, whoever used it)"
        )
    return "\n\n".join(sections)


def _read(path: Path) -> tuple[Tally, Gaps]:
    """The lines that name the rails that most name, and those that are left out.

    Raises:
        DataError: ``E_TEGRASTATS_LINES``; others as in `open_regular`.
    """
    tallies: dict[tuple[str, ...], Tally] = {}
    left_out = Gaps()
    for number, line in _lines(path):
        sample = parse_line(line)
        rails = tuple(sample.watts) if sample else ()
        if sample is None or (rails not in tallies and len(tallies) == _MOST_SETS):
            (left_out.printed if is_printed(line) else left_out.strange).append(number)
        else:
            tallies.setdefault(rails, Tally()).add(number, sample)
    if not tallies:
        count = len(left_out.printed) + len(left_out.strange)
        raise LOG.refuse(
            "LINES", path.name, f"{count} lines without 'RAM 0/0MB'", "lines of tegrastats"
        )
    best = max(tallies.values(), key=lambda tally: len(tally.numbers))
    for tally in tallies.values():
        if tally is not best:
            left_out.printed.extend(tally.numbers)
    return best, left_out


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a log with their numbers; only the beginning of one that is too long."""
    with (
        open_regular(path, asset=LOG) as descriptor,
        os.fdopen(os.dup(descriptor), encoding="utf-8", errors="replace") as file,
    ):
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            yield number, line
            while line and not line.endswith("\n"):
                line = file.readline(_LONGEST)


def _time(where: str, tally: Tally, left_out: Gaps, given_ms: float | None) -> Time:
    """How long the lines of `tally` took, with those that are left out among them."""
    printed = len(tally.numbers) + _among(left_out.printed, tally)
    stamps, count = tally.stamps, len(tally.numbers)
    dated = len(stamps) == count > 1
    if given_ms is None and not dated:
        source = "tegrastats' own; --interval says another"
        return Time(INTERVAL_MS / 1e3, source, printed, None)
    span = stamps[-1] - stamps[0] if dated else 0
    if given_ms is None:
        _check_dates(where, tally, span)
        return Time(span / (printed - 1), "by the lines' dates", printed, _DATE_S / span)
    interval_s = given_ms / 1e3
    # A damaged line stood for an interval where the dates leave room for one.
    most = printed + _among(left_out.strange, tally)
    intervals = min(max(printed, round(span / interval_s) + 1), most)
    return Time(interval_s, "as given", intervals, 0.0)


def _among(numbers: Iterable[int], tally: Tally) -> int:
    """How many lie between the first and the last line of `tally`."""
    return sum(tally.numbers[0] < number < tally.numbers[-1] for number in numbers)


def _check_dates(where: str, tally: Tally, span: int) -> None:
    """Hold dates to a time without jumps that is long enough for whole seconds."""
    steps = [after - before for before, after in pairwise(tally.stamps)]
    usual = statistics.median(steps)
    for number, step in zip(tally.numbers[1:], steps, strict=True):
        if not 0 <= step <= _JITTER_S + 3 * usual:
            raise _unknown(where, f"{step} s before line {number}", f"about {usual:g} s")
    if span * _FARTHEST < _DATE_S:
        lines = f"{len(tally.numbers)} lines in {span} s, give or take {_DATE_S} s"
        raise _unknown(where, lines, f"{_DATE_S / _FARTHEST:g} s or more, or their interval")


def _unknown(where: str, got: str, expected: str) -> DataError:
    return DataError(
        "E_TEGRASTATS_INTERVAL",
        f"{where}: got {got}, expected {expected}. Say --interval MS, or cut the log.",
    )


def _figures(tally: Tally, seconds: float) -> dict[str, Json]:
    """Power, energy, memory, clocks and temperatures."""
    watts, mhz, load, celsius = (
        tally.parts.get(name, {}) for name in ("watts", "mhz", "load", "celsius")
    )
    rails = {
        name: {"watts": spread.mean, "most": spread.most, "joules": spread.mean * seconds}
        for name, spread in watts.items()
    }
    module = whole(watts)
    total = sum(watts[name].mean for name in module)
    return {
        "rails": rails,
        "module": {"rails": list(module), "watts": total, "joules": total * seconds}
        if module
        else None,
        "ram_mib": {"most": tally.ram_mib.most, "total": tally.ram_total_mib},
        "mhz": {
            name: {"least": spread.least, "mean": spread.mean, "most": spread.most}
            for name, spread in mhz.items()
        },
        "load_percent": {name: spread.mean for name, spread in load.items()},
        "celsius": {name: spread.most for name, spread in celsius.items()},
    }


def _tables(document: Mapping[str, Any]) -> Iterator[str]:
    """The rails, and the clocks."""
    rails = [
        (name, f"{rail['watts']:.3f}", f"{rail['most']:.3f}", f"{rail['joules']:.1f}")
        for name, rail in document["rails"].items()
    ]
    if rails:
        yield table([("rail", "mean W", "most W", "J"), *rails], header=True)
    mhz, load = document["mhz"], document["load_percent"]
    parts = [
        (name, *_clock(mhz.get(name)), f"{load[name]:.0f} %" if name in load else "–")
        for name in dict.fromkeys([*mhz, *load])
    ]
    if parts:
        heads = ("part", "least MHz", "mean MHz", "most MHz", "mean load")
        yield table([heads, *parts], header=True)


def _clock(mhz: Mapping[str, float] | None) -> list[str]:
    return [f"{mhz[key]:.0f}" if mhz else "–" for key in ("least", "mean", "most")]


def _hottest(celsius: Mapping[str, float]) -> str:
    if not celsius:
        return "no sensor"
    name = max(celsius, key=lambda each: celsius[each])
    return f"{name}, {celsius[name]:g} °C"
