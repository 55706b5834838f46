"""Latency: what a user waits for, from symbols in host memory to a uint8 image in host memory.

Scenario SingleStream, as MLPerf names it: one image after another, the next when the last is
done; end to end and by stage, at the 50th, 90th and 99th percentile (nearest rank), with the
energy of an image where the machine can tell. Cold start and memory come from a process of their
own, see `jscc.benchmarks.cold_start`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jscc.benchmarks.cases import Case, Json, Setup, describe_bundle, heading, weights_of
from jscc.benchmarks.energy import make_meter
from jscc.benchmarks.percentiles import PERCENTILES, figure, summary
from jscc.benchmarks.report import energy_line, markdown_table, provenance
from jscc.runtime import terminal
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UnavailableError

SCENARIO = "single-stream"
KIND = "latency"
OPTIONS: tuple[str, ...] = ("runs",)
COLD_START_LIMIT_S = 900

_COLUMNS = ("p50", "p90", "p99", "mean", "min", "max")


@dataclass(frozen=True)
class Stream:
    """What came of receiving one image after another.

    Attributes:
        totals: Times end to end, in ms.
        stages: Times by stage, in ms.
        energy: Of an image, see `jscc.benchmarks.energy.Meter.per_image`.
        record: Of the last image.
    """

    totals: list[float]
    stages: Mapping[str, list[float]]
    energy: Mapping[str, Json]
    record: Mapping[str, Json]


def run(bundle: Bundle, case: Case, options: argparse.Namespace) -> dict[str, Json]:
    """``jscc bench BUNDLE``: measure it."""
    del options
    return measure(bundle, case)


def measure(bundle: Bundle, case: Case) -> dict[str, Json]:
    """Measure `case` and return the document that is stored, as JSON.

    Raises:
        UnavailableError: ``E_COLD_START``, the fresh process failed.
    """
    stream = _stream(bundle, case)
    cold = _cold_start(bundle.path, case)
    return {
        "bundle": describe_bundle(bundle),
        "case": {"scenario": SCENARIO, **asdict(case)},
        "cold_start_ms": {
            name.removesuffix("_ms"): value for name, value in cold.items() if name.endswith("_ms")
        },
        "energy": stream.energy,
        "latency_ms": {
            "end_to_end": summary(stream.totals),
            "stages": {name: summary(times) for name, times in stream.stages.items()},
        },
        "memory_mib": _memory(cold, weights_of(bundle.manifest) / 2**20),
        "record": stream.record,
        "samples_ms": [round(value, 4) for value in stream.totals],
        **provenance(),
    }


def report(document: Mapping[str, Any]) -> str:
    """What is printed of a measurement."""
    latency = document["latency_ms"]
    parts = {"end to end": latency["end_to_end"], **latency["stages"]}
    rows = [("ms", *_COLUMNS)]
    rows += [(name, *(f"{times[key]:.2f}" for key in _COLUMNS)) for name, times in parts.items()]
    cold = {name: f"{value:.1f} ms" for name, value in document["cold_start_ms"].items()}
    memory = {
        name: "unknown" if value is None else f"{value:.1f} MiB"
        for name, value in document["memory_mib"].items()
    }
    return "\n\n".join(
        (
            terminal.pairs(heading(document, f"{document['case']['runs']} runs")),
            terminal.table(rows, header=True),
            "Cold start\n" + terminal.pairs(cold),
            "Memory (resident, highest so far)\n" + terminal.pairs(memory),
            energy_line(document["energy"]),
        )
    )


def table(result: Mapping[str, Any]) -> str:
    """The README's table: what one image costs end to end, by stage, cold and in memory."""
    latency, cold, memory = (result[name] for name in ("latency_ms", "cold_start_ms", "memory_mib"))
    parts = {"end to end": latency["end_to_end"], **latency["stages"]}
    rows = [
        (name, *(figure(times[f"p{level}"]) for level in PERCENTILES))
        for name, times in parts.items()
    ]
    blank = [""] * (len(PERCENTILES) - 1)
    rows += [("cold start to the first image", figure(cold["total"]), *blank)]
    if memory["peak"] is not None:
        rows += [("peak memory, MiB", figure(memory["peak"]), *blank)]
    joules = result.get("energy", {}).get("joules_per_image")
    if joules is not None:
        rows += [("energy of an image, J", figure(joules), *blank)]
    height, width = result["case"]["size"]
    header = f"{height}×{width}, ms"
    return markdown_table((header, *(f"p{level}" for level in PERCENTILES)), rows)


def _memory(cold: Mapping[str, float | None], weights_mib: float) -> dict[str, Json]:
    """Resident memory after each part of the cold start, and what the peak has above weights."""
    found = {
        name.removesuffix("_rss_mib"): value
        for name, value in cold.items()
        if name.endswith("_rss_mib")
    }
    peak = found["peak"]
    above = None if peak is None else round(peak - weights_mib, 3)
    return {**found, "above_weights": above, "weights": round(weights_mib, 3)}


def _stream(bundle: Bundle, case: Case) -> Stream:
    """Receive one image after another."""
    setup = Setup(bundle, case)
    for number in range(case.warmup):
        setup.receive(number)
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    with make_meter(gpu=case.on_gpu) as meter:
        for number in range(case.warmup, case.warmup + case.runs):
            started = time.perf_counter()
            record = setup.receive(number)
            totals.append(1000 * (time.perf_counter() - started))
            for name, value in record.times_ms.items():
                stages.setdefault(name, []).append(value)
    stages.pop("total", None)
    return Stream(totals, stages, meter.per_image(case.runs), json.loads(record.to_json()))


def _cold_start(path: Path, case: Case) -> dict[str, float | None]:
    """Times and memory of a fresh process that receives one image."""
    request = {"bundle": str(path.resolve()), "case": asdict(case), "spawned": time.monotonic()}
    ran = subprocess.run(
        [sys.executable, "-m", "jscc.benchmarks.cold_start"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=COLD_START_LIMIT_S,
        check=False,
    )
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise UnavailableError(
            "E_COLD_START",
            f"cold start: got status {ran.returncode} ({last}), expected 0. "
            "See jscc doctor --bundle.",
        )
    figures: dict[str, float | None] = json.loads(ran.stdout)
    return figures
