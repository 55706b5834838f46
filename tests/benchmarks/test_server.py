"""Server: images are served in turn, nobody is served before arriving, and rates are as asked."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from jscc.__main__ import main
from jscc.benchmarks import server
from jscc.benchmarks.cases import Case
from jscc.benchmarks.queueing import completion_times
from jscc.benchmarks.server import FRACTIONS, Plan, Served, measure, report, serve, table
from jscc.runtime.errors import UsageError

CASE = Case((12, 16), 6, 1, 0, None, 1, 1, ("cpu",))


@pytest.mark.parametrize("workers", [1, 2])
def test_live_serving_is_never_faster_than_the_arithmetic(workers):
    """First come, first served; by the same rule, what really took so long ends no earlier."""
    arrivals = np.cumsum(np.random.default_rng(0).standard_exponential(40)) / 400
    busy, most = [], []

    def receive(number):
        busy.append(number)
        most.append(len(busy))
        time.sleep(0.002)
        busy.remove(number)

    served = serve(receive, arrivals, workers)
    assert (served.begun >= arrivals).all()
    assert (np.diff(served.begun) >= 0).all() or workers > 1
    ideal = completion_times(arrivals, served.services, workers)
    assert (served.done >= ideal - 1e-6).all()
    assert max(most) <= workers


def test_a_latency_begins_at_the_arrival_and_a_service_when_it_is_begun():
    served = Served(np.array([0.0, 1.0]), np.array([0.5, 3.0]), np.array([2.5, 3.25]))
    assert served.latencies_ms.tolist() == [2500, 2250]
    assert served.services.tolist() == [2, 0.25]


def test_workers_are_threads():
    barrier = threading.Barrier(2, timeout=120)
    serve(lambda number: barrier.wait(), np.zeros(2), 2)  # would break if one waited for the other


def test_an_image_that_fails_ends_the_measurement():
    received = []

    def receive(number):
        received.append(number)
        if number == 1:
            raise UsageError("E_TEST", "x: got 1, expected 2. Do it.")

    with pytest.raises(UsageError, match="x: got 1"):
        serve(receive, np.zeros(5), 1)


@pytest.fixture(scope="module")
def document(shared_bundles):
    return measure(shared_bundles["diffusion"], CASE, Plan((400.0, 100.0), 2, 0.1, 60_000.0))


def test_every_rate_has_its_images(document):
    assert [point["rate"] for point in document["points"]] == [400, 100]
    assert [point["images"] for point in document["points"]] == [40, 10]  # as long as was asked
    assert document["single_stream_rate"] is None
    json.dumps(document, allow_nan=False)


def test_latency_is_waiting_and_service(document):
    for point in document["points"]:
        whole, wait, service = (point[k] for k in ("latency_ms", "queue_ms", "service_ms"))
        assert whole["mean"] == pytest.approx(wait["mean"] + service["mean"], abs=0.01)
        assert wait["min"] >= 0
        assert point["lag_ms"]["min"] >= -0.01
        assert point["load"] == pytest.approx(point["rate"] * service["mean"] / 2000, rel=1e-3)


def test_a_bound_is_held_where_the_queue_does_not_grow(document):
    """Nobody waits a minute here, so that the machine's load alone decides."""
    assert [point["holds"] for point in document["points"]] == [
        point["load"] < 1 for point in document["points"]
    ]


@pytest.mark.parametrize(
    ("services_s", "holds", "highest"),
    [((0.004, 0.004), [True, True], 400), ((0.025, 0.004), [False, True], 100),
     ((0.004, 0.025), [True, False], None), ((0.025, 0.025), [False, False], None)],
)  # fmt: skip
def test_the_highest_rate_is_below_the_first_that_does_not_hold(
    shared_bundles, monkeypatch, services_s, holds, highest
):
    takes = dict(zip((400.0, 100.0), services_s, strict=True))

    def served(receive, arrivals, workers):
        if not len(arrivals):
            return None
        services = np.full(len(arrivals), takes[400.0 if len(arrivals) == 40 else 100.0])
        done = completion_times(arrivals, services, workers)
        return Served(arrivals, done - services, done)

    monkeypatch.setattr(server, "serve", served)
    plan = Plan((400.0, 100.0), 2, 0.1, 60_000.0)
    found = measure(shared_bundles["diffusion"], replace(CASE, runs=1, warmup=0), plan)
    assert [point["load"] for point in found["points"]] == pytest.approx(
        [rate * takes[rate] / 2 for rate in (400.0, 100.0)]
    )
    assert [point["holds"] for point in found["points"]] == holds
    assert found["highest_rate"] == highest


def test_a_bound_that_all_hold_is_held_at_the_highest_rate(document):
    held = {**document, "highest_rate": 400.0}
    held["points"] = [{**point, "holds": True} for point in document["points"]]
    assert "highest rate tried that holds p99 ≤ 60000 ms: 400 images/s" in report(held)
    assert "2 threads that share one receiver" in report(held)
    assert "p99 of fewer than 100 images is the slowest" in report(held)
    assert table(held).count("| yes |") == 2


def test_a_bound_that_none_holds_is_said(document):
    hard = {**document, "case": {**document["case"], "bound_ms": 1e-3}, "highest_rate": None}
    hard["points"] = [{**point, "holds": False} for point in document["points"]]
    assert "no rate tried holds p99 ≤ 0.001 ms" in report(hard)
    assert table(hard).count("| no |") == 2


def test_by_default_rates_are_fractions_of_single_stream(shared_bundles):
    found = measure(shared_bundles["diffusion"], CASE, Plan(None, 1, 0.01, None))
    alone = found["single_stream_rate"]
    assert [point["rate"] / alone for point in found["points"]] == pytest.approx(list(FRACTIONS))
    assert all(point["images"] >= CASE.runs for point in found["points"])
    assert all(point["holds"] is None for point in found["points"])
    assert found["highest_rate"] is None
    assert "p99 ≤" not in table(found)


def test_the_command(shared_bundles, tmp_path, capsys):
    output = tmp_path / "s.json"
    words = ["bench", str(shared_bundles["codec"].path), "--scenario", "server", "--size", "16x24"]
    words += ["--rates", "500", "--runs", "5", "--duration", "0.01", "--bound-ms", "1e5"]
    assert main([*words, "--worker-counts", "1,2", "--json", str(output)]) == 0
    captured = capsys.readouterr()
    assert "server, 16x24, 1 thread, 0.01 s at each rate" in captured.out
    stored = json.loads(output.read_text())
    assert (stored["kind"], stored["case"]["workers"]) == ("server", 1)
    assert main([*words, "--batches", "2"]) == 2
    assert "--batches: got it with --scenario server, expected offline" in capsys.readouterr().err
    assert main([*words, "--rates", "0"]) == 2
    assert "got '0', expected more than 0" in capsys.readouterr().err
