"""Effort: a guard against input that keeps a program busy, on however slow a machine.

What a reader refuses it refuses by a look at a header or a count; without that look each of the
attacks that are tested under this guard costs minutes, or never ends. So the bound is far above
what a slow machine takes and far below what the attack wants. How fast the readers are, benchmarks
tell.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

BOUND_S = 20.0


@contextmanager
def little_effort(what: str = "") -> Iterator[None]:
    """Fail where the body takes more than `BOUND_S` seconds of this process's CPU time."""
    begun = time.process_time()
    yield
    spent = time.process_time() - begun
    assert spent < BOUND_S, f"{what or 'it'} took {spent:.0f} s of CPU time"
