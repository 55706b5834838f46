"""Server: latency when images arrive at random, at one rate after another.

Scenario Server, as MLPerf names it: arrivals are a Poisson process, images wait in one queue, and
what counts is the time from an image's arrival to its last pixel, waiting included, at the 99th
percentile. Workers are threads that share one receiver, which is made for that: its weights are in
memory once. The arithmetic of the queue is in `jscc.benchmarks.queueing`.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jscc.benchmarks.cases import Case, Json, Setup, describe_bundle, heading
from jscc.benchmarks.countdown import Countdown
from jscc.benchmarks.percentiles import figure, summary
from jscc.benchmarks.queueing import (
    Times,
    completion_times,
    highest_rate,
    holds,
    poisson_arrivals,
)
from jscc.benchmarks.report import markdown_table, provenance
from jscc.runtime import terminal
from jscc.runtime.bundle import Bundle
from jscc.runtime.machine import peak_rss_mib
from jscc.runtime.record import Record

SCENARIO = "server"
KIND = "server"
OPTIONS: tuple[str, ...] = ("runs", "rates", "worker_counts", "duration", "bound_ms")
FRACTIONS = (0.3, 0.5, 0.7, 0.9)  # of the rate of SingleStream
FEW = 100  # with fewer images the 99th percentile is the slowest of them


@dataclass(frozen=True)
class Plan:
    """What is offered.

    Attributes:
        rates: Images per second; None for `FRACTIONS` of what one image after another reaches.
        workers: Threads that receive.
        duration_s: How long images arrive at each rate, at least.
        bound_ms: What the 99th percentile has to hold; None for nothing.
    """

    rates: tuple[float, ...] | None
    workers: int
    duration_s: float
    bound_ms: float | None


@dataclass(frozen=True)
class Served:
    """When images arrived, were begun and were done, in seconds from the begin."""

    arrived: Times
    begun: Times
    done: Times

    @property
    def latencies_ms(self) -> Times:
        """From the arrival that was planned, so that a late generator hides nothing."""
        return 1000 * (self.done - self.arrived)

    @property
    def services(self) -> Times:
        """How long each image took once it was begun, in seconds."""
        return self.done - self.begun


def run(bundle: Bundle, case: Case, options: argparse.Namespace) -> dict[str, Json]:
    """``jscc bench BUNDLE --scenario server``: measure it."""
    workers = options.worker_counts[0]
    plan = Plan(options.rates, workers, options.duration, options.bound_ms)
    return measure(bundle, case, plan)


def measure(bundle: Bundle, case: Case, plan: Plan) -> dict[str, Json]:
    """Measure `case` at every rate of `plan`, with at least ``case.runs`` images at each."""
    setup = Setup(bundle, case)
    record = setup.receive(0)
    warm = np.zeros(case.warmup * plan.workers)
    serve(setup.receive, warm, plan.workers)
    alone = None if plan.rates is not None else _single_stream(setup, case.runs)
    rates = plan.rates or tuple(fraction * float(alone or 0) for fraction in FRACTIONS)
    countdown = Countdown("rates", len(rates))
    points = []
    for rate in rates:
        points.append(_point(setup, case, plan, rate))
        countdown.advance()
    countdown.close()
    return {
        "bundle": describe_bundle(bundle),
        "case": {"scenario": SCENARIO, **asdict(case), **asdict(plan)},
        "single_stream_rate": alone,
        "points": points,
        "highest_rate": None if plan.bound_ms is None else highest_rate(points),
        "peak_rss_mib": peak_rss_mib(),
        "record": json.loads(record.to_json()),
        **provenance(),
    }


def report(document: Mapping[str, Any]) -> str:
    """What is printed of a measurement."""
    header, rows = _rows(document)
    case = document["case"]
    plural = "s that share one receiver" if case["workers"] > 1 else ""
    how = f"{case['workers']} thread{plural}, {case['duration_s']:g} s at each rate"
    parts = [
        terminal.pairs(heading(document, how)),
        terminal.table([header, *rows], header=True),
    ]
    notes = [_verdict(document)] if case["bound_ms"] is not None else []
    if document["single_stream_rate"] is not None:
        notes.append(f"one image after another: {figure(document['single_stream_rate'])} images/s")
    if any(point["images"] < FEW for point in document["points"]):
        notes.append(f"p99 of fewer than {FEW} images is the slowest: raise --runs to be sure")
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def table(result: Mapping[str, Any]) -> str:
    """The README's table: one line for each rate."""
    header, rows = _rows(result)
    return markdown_table(header, rows)


def serve(receive: Callable[[int], object], arrivals: Times, workers: int) -> Served:
    """Receive image i at its arrival or when its turn comes after that; in real time.

    Args:
        receive: Receives the image of a number; called by several threads at once.
        arrivals: When each arrives, in seconds from now, in ascending order.
        workers: Threads.
    """
    begun, done = np.empty(len(arrivals)), np.empty(len(arrivals))
    began = time.perf_counter()

    def work(number: int) -> None:
        begun[number] = time.perf_counter() - began
        receive(number)
        done[number] = time.perf_counter() - began

    pool = ThreadPoolExecutor(workers)
    try:
        futures = []
        for number, arrival in enumerate(arrivals.tolist()):
            time.sleep(max(0.0, arrival - (time.perf_counter() - began)))
            futures.append(pool.submit(work, number))
        for future in futures:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return Served(arrivals, begun, done)


def _single_stream(setup: Setup, runs: int) -> float:
    """Images per second, one after another."""
    started = time.perf_counter()
    for number in range(runs):
        setup.receive(number)
    return runs / (time.perf_counter() - started)


def _point(setup: Setup, case: Case, plan: Plan, rate: float) -> dict[str, Json]:
    """The figures at one rate."""
    count = max(case.runs, math.ceil(rate * plan.duration_s))
    arrivals = poisson_arrivals(rate, count, np.random.default_rng(case.seed))

    def receive(number: int) -> Record:
        return setup.receive(number)

    served = serve(receive, arrivals, plan.workers)
    latencies, services = served.latencies_ms, served.services
    ideal = completion_times(arrivals, services, plan.workers)
    bound = plan.bound_ms
    load = rate * float(services.mean()) / plan.workers
    return {
        "rate": rate,
        "images": count,
        "achieved_rate": count / float(served.done.max()),
        "latency_ms": summary(latencies),
        "queue_ms": summary(1000 * (served.begun - arrivals)),
        "service_ms": summary(1000 * services),
        # Of the time of all workers, were the rate to go on for ever; above 1 the queue grows.
        "load": load,
        # Later than a perfect queue of the same images: what threads and their switching cost.
        "lag_ms": summary(1000 * (served.done - ideal)),
        "holds": None if bound is None else load < 1 and holds(latencies, bound),
    }


def _rows(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    bound = document["case"]["bound_ms"]
    header = ("images/s", "achieved", "images", "load", "p50, ms", "p90, ms", "p99, ms")
    rows = []
    for point in document["points"]:
        latency = point["latency_ms"]
        row = [figure(point["rate"]), figure(point["achieved_rate"]), str(point["images"])]
        row += [f"{point['load']:.2f}"]
        row += [figure(latency[name]) for name in ("p50", "p90", "p99")]
        row += [figure(point["queue_ms"]["mean"])]
        if bound is not None:
            row += ["yes" if point["holds"] else "no"]
        rows.append(tuple(row))
    last = () if bound is None else (f"p99 ≤ {bound:g} ms",)
    return (*header, "mean wait, ms", *last), rows


def _verdict(document: Mapping[str, Any]) -> str:
    bound, rate = document["case"]["bound_ms"], document["highest_rate"]
    if rate is None:
        return f"no rate tried holds p99 ≤ {bound:g} ms"
    return f"highest rate tried that holds p99 ≤ {bound:g} ms: {figure(rate)} images/s"
