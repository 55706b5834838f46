"""Latency: what a user waits for, from symbols in host memory to a uint8 image in host memory.

Scenario SingleStream, as MLPerf names it: one image after another, the next when the last is
done; end to end and by stage, at the 50th, 90th and 99th percentile (nearest rank). Cold start
and memory come from a process of their own, see `jscc.benchmarks.cold_start`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jscc.benchmarks.probe import make_sides, make_symbols
from jscc.benchmarks.report import markdown_table, provenance
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UnavailableError
from jscc.runtime.manifest import Manifest
from jscc.runtime.receiver import Receiver

Json = object

SCENARIO = "single-stream"
PERCENTILES = (50, 90, 99)
COLD_START_LIMIT_S = 900


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        size: Height and width of the image in pixels.
        runs: Measured images.
        warmup: Images before them that do not count.
        seed: Of the symbols and of the receiver's noise.
        sampler: None for the bundle's.
        steps: None for the bundle's.
        threads: None for all that are available.
        providers: Where to run.
    """

    size: tuple[int, int]
    runs: int
    warmup: int
    seed: int
    sampler: str | None
    steps: int | None
    threads: int | None
    providers: tuple[str, ...]


def measure(bundle: Bundle, case: Case) -> dict[str, Json]:
    """Measure `case` and return the document that is stored, as JSON.

    Raises:
        UnavailableError: ``E_COLD_START``, the fresh process failed.
    """
    totals, stages, record = _stream(bundle, case)
    cold = _cold_start(bundle.path, case)
    return {
        "bundle": describe_bundle(bundle),
        "case": {"scenario": SCENARIO, **asdict(case)},
        "cold_start_ms": {
            name.removesuffix("_ms"): value for name, value in cold.items() if name.endswith("_ms")
        },
        "latency_ms": {
            "end_to_end": summary(totals),
            "stages": {name: summary(times) for name, times in stages.items()},
        },
        "memory_mib": _memory(cold, weights_of(bundle.manifest) / 2**20),
        "record": record,
        "samples_ms": [round(value, 4) for value in totals],
        **provenance(),
    }


def table(result: Mapping[str, Any]) -> str:
    """The README's table: what one image costs end to end, by stage, cold and in memory."""
    latency, cold, memory = (result[name] for name in ("latency_ms", "cold_start_ms", "memory_mib"))
    parts = {"end to end": latency["end_to_end"], **latency["stages"]}
    rows = [
        (name, *(_figure(times[f"p{level}"]) for level in PERCENTILES))
        for name, times in parts.items()
    ]
    blank = [""] * (len(PERCENTILES) - 1)
    rows += [("cold start to the first image", _figure(cold["total"]), *blank)]
    if memory["peak"] is not None:
        rows += [("peak memory, MiB", _figure(memory["peak"]), *blank)]
    height, width = result["case"]["size"]
    header = f"{height}×{width}, ms"
    return markdown_table((header, *(f"p{level}" for level in PERCENTILES)), rows)


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def describe_bundle(bundle: Bundle) -> dict[str, Json]:
    """What a result says of the bundle that was measured."""
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    return {
        "name": bundle.path.name,
        "precision": manifest.precision,
        "sha256": bundle.sha256,
        "size_mib": round(size / 2**20, 3),
        "system": manifest.system,
        "variant": manifest.variant,
    }


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


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    """Percentiles (nearest rank), mean and extremes of times in ms."""
    values = np.asarray(times_ms)
    figures = {
        f"p{level}": float(np.percentile(values, level, method="inverted_cdf"))
        for level in PERCENTILES
    }
    figures |= {"mean": float(values.mean()), "min": float(values.min())}
    figures |= {"max": float(values.max())}
    return {name: round(value, 4) for name, value in figures.items()}


def weights_of(manifest: Manifest) -> int:
    """Bytes of the graphs and constants that the receiver's program needs."""
    graphs = {manifest.stages[name].graph for name in manifest.receiver_stages}
    needed = graphs | {f"{graph}.data" for graph in graphs}
    needed |= {entry.file for entry in manifest.tensors.values()}
    return sum(entry.size for name, entry in manifest.files.items() if name in needed)


def _stream(
    bundle: Bundle, case: Case
) -> tuple[list[float], Mapping[str, list[float]], Mapping[str, Json]]:
    """Times end to end and by stage, and the last image's record."""
    backend = OnnxRuntimeBackend(providers=case.providers, threads=case.threads)
    receiver = Receiver(bundle, backend=backend)
    symbols = make_symbols(bundle.manifest, case.size, seed=case.seed)
    side = make_sides(bundle.manifest, case.size)
    csi = Csi(bundle.manifest.signal.snr_db_default)
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    document: dict[str, Json] = {}
    for number in range(case.warmup + case.runs):
        started = time.perf_counter()
        _, record = receiver.receive(
            symbols,
            csi,
            seed=case.seed,
            frame=number,
            sampler=case.sampler,
            steps=case.steps,
            size=case.size,
            side=side,
        )
        elapsed = 1000 * (time.perf_counter() - started)
        document = json.loads(record.to_json())
        if number >= case.warmup:
            totals.append(elapsed)
            for name, value in record.times_ms.items():
                stages.setdefault(name, []).append(value)
    stages.pop("total", None)
    return totals, stages, document


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
