"""Queueing: the arithmetic of one queue in front of several servers, without any clock.

Images arrive at random, wait in the order of their arrival for the first server that is free, and
are served. Given when they arrive and how long each takes, it is certain when each is done.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.percentiles import percentile

Times = npt.NDArray[np.float64]

BOUND_PERCENTILE = 99


def poisson_arrivals(rate: float, count: int, rng: np.random.Generator) -> Times:
    """When images of a Poisson process arrive, in seconds from its begin.

    Generators of one seed give the same pattern at every rate, closer together or farther apart.

    Args:
        rate: Images per second, on average.
        count: Images.
        rng: Draws the gaps.
    """
    return np.cumsum(rng.standard_exponential(count)) / rate


def completion_times(arrivals: Times, services: Times, servers: int) -> Times:
    """When each image is done: first come, first served, by the server that is free first.

    Args:
        arrivals: When each image arrives, in ascending order.
        services: How long each takes.
        servers: That work side by side.

    Returns:
        As `arrivals`, in the same unit.
    """
    free = [-np.inf] * servers
    done = np.empty(len(arrivals))
    for index, (arrival, service) in enumerate(
        zip(arrivals.tolist(), services.tolist(), strict=True)
    ):
        finish = max(arrival, free[0]) + service
        heapq.heapreplace(free, finish)
        done[index] = finish
    return done


def holds(latencies_ms: Sequence[float] | Times, bound_ms: float) -> bool:
    """Whether the 99th percentile (nearest rank) is within `bound_ms`."""
    return percentile(latencies_ms, BOUND_PERCENTILE) <= bound_ms


def highest_rate(points: Sequence[Mapping[str, Any]]) -> float | None:
    """The highest rate tried up to which all hold the bound, or None."""
    highest = None
    for point in sorted(points, key=lambda point: float(point["rate"])):
        if not point["holds"]:
            break
        highest = float(point["rate"])
    return highest
