"""Measure: the rows of a quality measurement, image by image, and their means."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscc.benchmarks.judge import Instruments, Judge, Texts, Wanted, set_distance
from jscc.benchmarks.link import Link
from jscc.benchmarks.partial import Row
from jscc.benchmarks.sweep import KEY, Case, Sweep
from jscc.benchmarks.titles import SETS, Figures
from jscc.benchmarks.workers import Work
from jscc.calibration.air import Received
from jscc.calibration.images import read_image
from jscc.calibration.metrics import Image
from jscc.runtime.choices import Choices
from jscc.runtime.engine_names import DEFAULT
from jscc.runtime.record import Record

FEATURES = "features"  # of a row while the measurement runs; the result has the distances instead
SIDES = ("codec", "received")


@dataclass(frozen=True)
class Job:
    """Rows that share a bundle, an image and an SNR."""

    bundle: int
    image: Path
    snr_db: float
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Recipe:
    """What a process needs to measure.

    Attributes:
        sweep: What is measured.
        wanted: Which figures.
        threads: Of the engine; None for all.
        engine: Of the receiver.
    """

    sweep: Sweep
    wanted: Wanted
    threads: int | None
    engine: str = DEFAULT

    def open(self) -> Work:
        """Load the metrics; bundles are loaded when their first job comes."""
        return _Bench(self).rows

    def jobs(self, done: set[tuple[Any, ...]]) -> list[Job]:
        """What is left to do."""
        return [
            Job(bundle, file, snr_db, missing)
            for bundle, file, snr_db, cases in self.sweep.cases()
            if (missing := tuple(case for case in cases if case.key not in done))
        ]


class _Bench:
    """Keeps the last bundle and the last image, which most jobs share with their neighbours."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._instruments = Instruments(recipe.wanted)
        self._link: tuple[int, Link] | None = None
        self._sent: tuple[Path, Image, Judge] | None = None

    def rows(self, job: Job) -> Iterator[Row]:
        """Measure; what is sent once is sent once for all ways to receive it."""
        link = self._linked(job.bundle)
        image, judge = self._judged(job.image)
        sent: tuple[object, ...] = ()
        for case in job.cases:
            rate, name, snr_db, seed = case.sent
            if case.sent != sent:
                sent = case.sent
                arrived = link.transmit(image, name, snr_db, seed, rate)
                codec = link.codec(arrived)
                alone = None if codec is None else judge(codec)
                shared = {} if codec is None else {SIDES[0]: judge.features(codec)}
            output, record = link.receive(arrived, case.choices)
            yield {
                **dict(zip(KEY, case.key, strict=True)),
                **_facts(image, arrived, case.choices, record),
                "threads": self._recipe.threads,
                SIDES[0]: alone,
                SIDES[1]: judge(output),
                FEATURES: {**shared, SIDES[1]: judge.features(output)},
            }

    def _linked(self, bundle: int) -> Link:
        if self._link is None or self._link[0] != bundle:
            self._link = None  # two large bundles may not fit side by side
            sweep = self._recipe.sweep
            variant = sweep.variants[bundle]
            threads, engine = self._recipe.threads, self._recipe.engine
            self._link = bundle, Link(variant.path, sweep.channel, threads, variant.sides, engine)
        return self._link[1]

    def _judged(self, file: Path) -> tuple[Image, Judge]:
        if self._sent is None or self._sent[0] != file:
            image = read_image(file)
            self._sent = file, image, Judge(image, self._instruments)
        return self._sent[1:]


def _facts(image: Image, arrived: Received, choices: Choices, record: Record) -> dict[str, Any]:
    """What a row says beside its figures."""
    return {
        "sampler": choices.sampler,
        "steps": choices.steps,
        "height": image.shape[0],
        "width": image.shape[1],
        "cbr": arrived.symbols.size / image.size,
        "side_bytes": arrived.side_bytes,
        "ran": ran(record),
        "snr_clamped": record.snr_clamped,
        "times_ms": dict(record.times_ms),
    }


def ran(record: Record) -> str:
    """What the receiver's loops and descents did, in a few words; empty without any."""
    parts = []
    for loop in record.loops.values():
        parts += [loop.sampler, f"{loop.steps} steps"]
        parts += [] if loop.spacing is None else [loop.spacing]
        if loop.guide is not None:
            every = "" if loop.guide_every == 1 else f" every {loop.guide_every}"
            parts.append(f"{loop.guide}{every} × {loop.guidance:g}")
        if loop.travel != (1, 1):
            parts.append(f"travel {loop.travel[0]} × {loop.travel[1]}")
    parts += [f"{descent.steps} gradients" for descent in record.descents.values()]
    return ", ".join(parts)


GROUP = ("bundle", "setting", "rate", "snr_db")


def means(rows: Sequence[Row], sent: Mapping[str, Texts]) -> list[Row]:
    """Mean figures over images and seeds, in the order in which their first rows stand.

    Args:
        rows: With their features.
        sent: What the images that were sent leave behind for the set metrics, by image.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [
        {
            **dict(zip(GROUP, key, strict=True)),
            "sampler": group[0]["sampler"],
            "steps": group[0]["steps"],
            "ran": group[0]["ran"],
            "rows": len(group),
            "cbr": statistics.fmean(row["cbr"] for row in group),
            "seconds": statistics.fmean(row["times_ms"]["total"] for row in group) / 1e3,
            "threads": group[0]["threads"],
            **{side: mean_figures(group, side, sent) for side in SIDES},
        }
        for key, group in groups.items()
    ]


def mean_figures(group: Sequence[Row], side: str, sent: Mapping[str, Texts]) -> Figures | None:
    """Mean of each metric and distance of each set; None for a metric that a row lacks."""
    whole: list[Figures] = [row[side] for row in group if row[side] is not None]
    if len(whole) < len(group):
        return None
    result: Figures = {}
    for name in whole[0]:
        values = [value for each in whole if (value := each[name]) is not None]
        result[name] = statistics.fmean(values) if len(values) == len(whole) else None
    received = [row[FEATURES][side] for row in group]
    originals = [sent[name] for name in sorted({row["image"] for row in group} & set(sent))]
    for metric in SETS:
        if any(metric in texts for texts in originals):
            result[metric] = set_distance(originals, received, metric)
    return result


def sent_features(files: Sequence[Path], wanted: Wanted) -> dict[str, Texts]:
    """What the images that were sent leave behind for the set metrics, by image."""
    if not any(name in SETS for name in wanted.also):
        return {}
    instruments = Instruments(wanted)
    return {file.name: instruments.features(read_image(file)) for file in files}


def without_features(rows: Sequence[Row]) -> list[Row]:
    """The rows as a result has them."""
    return [{name: value for name, value in row.items() if name != FEATURES} for row in rows]
