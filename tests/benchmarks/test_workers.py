"""Workers: every row once, errors as they were, nothing lost on interruption."""

import os
import signal
import time
from dataclasses import dataclass

import pytest

from jscc.benchmarks.workers import run_jobs
from jscc.runtime.errors import BundleError, UnavailableError

pytestmark = pytest.mark.slow  # processes have to begin


@dataclass(frozen=True)
class Counting:
    """Makes as many rows as the job says; some jobs go wrong."""

    broken: bool = False

    def open(self):
        if self.broken:
            raise BundleError("E_TEST", "bundle: got 1, expected 2. Do it.")
        return self.rows

    def rows(self, job):
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        for number in range(int(job)):
            time.sleep(0.01)
            yield {
                "job": job,
                "number": number,
                "threads": os.environ.get("OPENBLAS_NUM_THREADS"),
                "process": os.getpid(),
            }


def collect(jobs, workers, recipe=None) -> list:
    rows: list = []
    run_jobs(recipe or Counting(), jobs, workers, rows.append)
    return rows


def test_several_workers_make_every_row_once():
    jobs = [3, 0, 5, 2, 4]
    rows = collect(jobs, 2)
    made = sorted((row["job"], row["number"]) for row in rows)
    assert made == sorted((job, number) for job in jobs for number in range(job))
    assert {row["threads"] for row in rows} == {"1"}
    assert os.getpid() not in {row["process"] for row in rows}


def test_one_worker_is_this_process():
    rows = collect([2, 2], 1)
    assert {row["process"] for row in rows} == {os.getpid()}
    assert collect([], 1) == collect([], 4) == []


def test_an_error_comes_back_as_it_was():
    with pytest.raises(BundleError, match="bundle: got 1, expected 2") as caught:
        collect([1, 1, 1], 2, Counting(broken=True))
    assert (caught.value.code, caught.value.exit_status) == ("E_TEST", 65)


def test_a_process_that_dies_is_reported():
    with pytest.raises(UnavailableError, match="--workers: got a process that died") as caught:
        collect(["die", 1, 1], 2)
    assert caught.value.code == "E_WORKER"


def test_an_interruption_keeps_what_was_finished():
    rows: list = []

    def add(row):
        rows.append(row)
        if len(rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    # A process that was started in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(Counting(), [400, 401, 402, 403], 2, add)
    finally:
        signal.signal(signal.SIGINT, before)
    # Each worker stops after the row in work, and no job is begun any more.
    assert 3 <= len(rows) < 400
    for job in {row["job"] for row in rows}:
        numbers = [row["number"] for row in rows if row["job"] == job]
        assert numbers == list(range(len(numbers)))
