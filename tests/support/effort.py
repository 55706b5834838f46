"""Effort: a guard against input that keeps a program busy, on however slow a machine.

What a reader refuses it refuses by a look at a header or a count; without that look each of the
attacks that are tested under this guard costs minutes, or never ends. So the bound is far above
what a slow machine takes and far below what the attack wants. How fast the readers are, benchmarks
tell.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

BOUND_S = 20.0


@contextmanager
def little_effort(what: str = "") -> Iterator[None]:
    """Fail once the body has taken `BOUND_S` seconds of this process's CPU time."""
    said = f"{what or 'it'} took {BOUND_S:.0f} s of CPU time"
    stopped = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        stopped.append(number)
        raise AssertionError(said)

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, BOUND_S)
    try:
        yield
        assert not stopped, said  # the body may have caught it
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
