"""TCD: strategic stochastic sampling, for networks distilled to any point of a trajectory.

Zheng et al., "Trajectory Consistency Distillation: Improved Latent Consistency Distillation by
Semi-Linear Consistency Function with Trajectory Mapping", arXiv:2402.19159, algorithm 4. A step
goes down without noise to (1 - gamma) of the next level, and back up to that by adding noise.
"""

import math

from jscc.runtime.samplers.lcm import timesteps
from jscc.runtime.schedule import Schedule
from jscc.runtime.table import Row, Table

GAMMA = 0.3  # the paper's choice between DDIM's path (0) and consistency sampling (1)

__all__ = ["rows", "timesteps"]  # the levels are LCM's


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    table = []
    for before, t in zip((None, *timesteps), timesteps, strict=False):
        table.append(_row(schedule, t, before))
    return Table(tuple(reversed(table)))


def _row(schedule: Schedule, t: int, before: int | None) -> Row:
    """From level `t` to the next cleaner one; None is clean."""
    if before is None:
        return Row(t, a=0.0, b=1.0)
    below = math.floor((1.0 - GAMMA) * before)
    abar, low, after = (float(schedule.alphas_cumprod[level]) for level in (t, below, before))
    kept = math.sqrt((1.0 - low) / (1.0 - abar))  # share of the noise that stays
    up = math.sqrt(after / low)
    return Row(
        t,
        a=up * kept,
        b=up * (math.sqrt(low) - kept * math.sqrt(abar)),
        s=math.sqrt(1.0 - after / low),
    )
