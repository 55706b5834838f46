"""Workers: the rows of a long measurement, made by one process or by several.

Which process makes a row does not show in it. An interruption lets every worker finish its row, and
what was finished is kept.
"""

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any, Protocol

from jscc.benchmarks.partial import Row
from jscc.runtime.errors import UnavailableError

Work = Callable[[Any], Iterator[Row]]
# What the libraries of linear algebra read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_POLL_S = 0.2


class Recipe(Protocol):
    """What a process needs to begin; it goes there by pickle."""

    def open(self) -> Work:
        """Load what is needed; the result makes the rows of one job."""


def run_jobs(
    recipe: Recipe, jobs: Sequence[object], workers: int, add: Callable[[Row], None]
) -> None:
    """Give every row of `jobs` to `add`; with several workers, in any order.

    Args:
        recipe: What makes rows.
        jobs: Pieces of work, such that neighbours share what is costly to load.
        workers: Processes; 1 works in this one.
        add: Called in this process.

    Raises:
        UnavailableError: ``E_WORKER``, a process died.
    """
    if workers == 1 or len(jobs) < 2:
        if jobs:
            work = recipe.open()
            for job in jobs:
                for row in work(job):
                    add(row)
        return
    context = multiprocessing.get_context("spawn")
    rows: Queue[Row] = context.Queue()
    stop = context.Event()
    with (
        _single_threaded(),
        ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=context,
            initializer=_begin,
            initargs=(recipe, rows, stop),
        ) as pool,
    ):
        futures: list[Future[int]] = []
        try:
            futures.extend(pool.submit(_do, job) for job in jobs)
            _collect(futures, rows, add)
        except BrokenProcessPool as error:
            pool.shutdown()  # first, for it is still telling that to each job
            raise UnavailableError(
                "E_WORKER",
                "--workers: got a process that died, expected it to go on; most often memory ran "
                "out. Run again with fewer: finished rows are kept.",
            ) from error
        finally:
            # An error or an interruption: nothing new is begun, rows in work are finished.
            stop.set()
            wait([future for future in futures if not future.cancel()])
            _drain(rows, add)


def _collect(
    futures: Sequence[Future[int]], rows: "Queue[Row]", add: Callable[[Row], None]
) -> None:
    """Pass rows on until all jobs are done; raise what a job raises."""
    told = 0
    pending = list(futures)
    expected = 0
    while pending or told < expected:
        try:
            add(rows.get(timeout=_POLL_S))
            told += 1
        except queue.Empty:
            pass
        finished = [future for future in pending if future.done()]
        pending = [future for future in pending if not future.done()]
        for future in finished:
            expected += future.result()


def _drain(rows: "Queue[Row]", add: Callable[[Row], None]) -> None:
    """Pass on what was finished meanwhile."""
    while True:
        try:
            add(rows.get(timeout=_POLL_S))
        except queue.Empty:
            return


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let processes that begin meanwhile use one thread each for linear algebra."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Here:
    """What this process was begun with."""

    recipe: Recipe
    rows: "Queue[Row]"
    stop: Event
    work: Work | None = None


def _begin(recipe: Recipe, rows: "Queue[Row]", stop: Event) -> None:
    # The interruption of the keyboard reaches every process; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Here.recipe, _Here.rows, _Here.stop = recipe, rows, stop


def _do(job: object) -> int:
    """Make the rows of `job` and say how many they are."""
    count = 0
    if _Here.stop.is_set():
        return count
    if _Here.work is None:  # here, because an error of an initialiser would be lost
        _Here.work = _Here.recipe.open()
    for row in _Here.work(job):
        _Here.rows.put(row)
        count += 1
        if _Here.stop.is_set():
            break
    return count
