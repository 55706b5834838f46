"""Offline: how much is received when all of it is there, against batches and processes.

Scenario Offline, as MLPerf names it. Every batch size is tried with every number of workers, each
in fresh processes with a receiver of their own, which begin together and go on until the last of
them has its figures. Throughput is the sum over the workers of images over seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jscc.benchmarks.cases import Case, Json, describe_bundle, heading
from jscc.benchmarks.countdown import Countdown
from jscc.benchmarks.energy import make_meter
from jscc.benchmarks.percentiles import figure, summary
from jscc.benchmarks.report import energy_line, markdown_table, provenance
from jscc.runtime import terminal
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UnavailableError
from jscc.runtime.machine import available_threads

SCENARIO = "offline"
KIND = "offline"
OPTIONS: tuple[str, ...] = ("batches", "worker_counts", "duration")

Place = tuple[int, int]  # images of a batch, workers


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes:
        batches: Images that are received together.
        worker_counts: Processes.
        duration_s: How long each is measured, at least.
    """

    batches: tuple[int, ...]
    worker_counts: tuple[int, ...]
    duration_s: float

    @property
    def places(self) -> list[Place]:
        """Every batch with every number of workers; first the one all others are held against."""
        grid = [(batch, workers) for workers in self.worker_counts for batch in self.batches]
        return [(1, 1), *(place for place in grid if place != (1, 1))]


@dataclass(frozen=True)
class _Worker:
    """A process and what it writes to stderr."""

    process: subprocess.Popen[str]
    errors: Any

    def ask(self, value: Mapping[str, Json]) -> None:
        """Send a line; one that has died is met by `answer`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def answer(self) -> Mapping[str, Any]:
        """The next line.

        Raises:
            UnavailableError: ``E_WORKER``, it died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            found: Mapping[str, Any] = json.loads(line)
            return found
        status = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
        raise UnavailableError(
            "E_WORKER",
            f"offline: got a worker with status {status} ({last}), expected it to go on. "
            "If memory ran out, try smaller --batches or --worker-counts.",
        )


def run(bundle: Bundle, case: Case, options: argparse.Namespace) -> dict[str, Json]:
    """``jscc bench BUNDLE --scenario offline``: measure it."""
    plan = Plan(options.batches, options.worker_counts, options.duration)
    return measure(bundle, case, plan)


def measure(bundle: Bundle, case: Case, plan: Plan) -> dict[str, Json]:
    """Measure `case` at every place of `plan`; without a number of threads, the cores are shared.

    Raises:
        UnavailableError: ``E_WORKER``, a process died.
    """
    if case.threads is None:  # the same at every place, so that places can be compared
        case = replace(case, threads=max(1, available_threads() // max(plan.worker_counts)))
    countdown = Countdown("points", len(plan.places))
    points: list[dict[str, Any]] = []
    record: Json = None
    for place in plan.places:
        point, record = _measure(bundle.path, case, place, plan.duration_s)
        points.append(point)
        countdown.advance()
    countdown.close()
    alone = points[0]["images_per_s"]
    for point in points:
        point["efficiency"] = point["images_per_s"] / (point["workers"] * alone)
    return {
        "bundle": describe_bundle(bundle),
        "case": {"scenario": SCENARIO, **asdict(case), **asdict(plan)},
        "points": points,
        "record": record,
        **provenance(),
    }


def report(document: Mapping[str, Any]) -> str:
    """What is printed of a measurement."""
    header, rows = _rows(document)
    how = f"{document['case']['duration_s']:g} s each"
    first = document["points"][0]["energy"]
    return "\n\n".join(
        (
            terminal.pairs(heading(document, how)),
            terminal.table([header, *rows], header=True),
            "efficiency: throughput ÷ (workers × that of one worker with batch 1)\n"
            "peak: the sum of the processes' peaks; pages that they share count in each",
            energy_line(first),
        )
    )


def table(result: Mapping[str, Any]) -> str:
    """The README's table: one line for each batch and number of workers."""
    header, rows = _rows(result)
    return markdown_table(header, rows)


def _rows(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    counted = any(point["energy"]["joules_per_image"] is not None for point in document["points"])
    header = ("workers", "batch", "images/s", "megapixels/s", "efficiency", "p50, ms a batch")
    rows = []
    for point in document["points"]:
        row = [str(point["workers"]), str(point["batch"]), figure(point["images_per_s"])]
        row += [figure(point["megapixels_per_s"]), f"{point['efficiency']:.2f}"]
        row += [figure(point["batch_ms"]["p50"])]
        peak, joules = point["peak_rss_mib"], point["energy"]["joules_per_image"]
        row += ["–" if peak is None else figure(peak)]
        if counted:
            row += ["–" if joules is None else figure(joules)]
        rows.append(tuple(row))
    return (*header, "peak, MiB", *(("J per image",) if counted else ())), rows


def _measure(
    path: Path, case: Case, place: Place, duration_s: float
) -> tuple[dict[str, Any], Json]:
    """The figures of one place, and the last record of one of its workers."""
    batch, workers = place
    request = {
        "bundle": str(path.resolve()),
        "case": asdict(case),
        "batch": batch,
        "duration_s": duration_s,
    }
    with _workers(workers) as crew:
        for worker in crew:
            worker.ask(request)
        _answers(crew)  # loaded and warm
        with make_meter(gpu=case.on_gpu) as meter:
            for worker in crew:
                worker.ask({"begin": True})
            done = _answers(crew)
        for worker in crew:
            worker.ask({"stop": True})
        peaks = [answer["peak_rss_mib"] for answer in _answers(crew)]
    rate = sum(batch * len(each["batches_ms"]) / each["seconds"] for each in done)
    times = [value for each in done for value in each["batches_ms"]]
    point: dict[str, Any] = {
        "batch": batch,
        "workers": workers,
        "images": batch * len(times),
        "seconds": round(max(each["seconds"] for each in done), 4),
        "images_per_s": rate,
        "megapixels_per_s": rate * case.megapixels,
        "batch_ms": summary(times),
        "peak_rss_mib": None if None in peaks else round(sum(peaks), 3),
        "energy": meter.per_image(rate * meter.seconds),
    }
    return point, done[0]["record"]


def _answers(crew: Sequence[_Worker]) -> list[Mapping[str, Any]]:
    return [worker.answer() for worker in crew]


@contextmanager
def _workers(count: int) -> Iterator[list[_Worker]]:
    """Processes that are gone afterwards, whatever happens."""
    crew: list[_Worker] = []
    try:
        for _ in range(count):
            errors = tempfile.TemporaryFile(  # noqa: SIM115  (closed below)
                "w+", encoding="utf-8", errors="replace"
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "jscc.benchmarks.offline_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            crew.append(_Worker(process, errors))
        yield crew
        for worker in crew:
            worker.process.wait()
    finally:
        for worker in crew:
            worker.process.kill()
            worker.process.communicate()
            worker.errors.close()
