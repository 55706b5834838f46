"""DDNM: the way on is given by the stage, as a guide of the null space makes it.

Wang, Yu, Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
arXiv:2212.00490, with the levels of its code: multiples of the step's length, the last one 0. The
stage corrects its clean estimate and returns, as ``direction``, noise old and new in the shares
that its knobs ask for (DDIM's eta; DDNM+'s noise of what was received); the row draws the new one.
"""

import math

from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import check_steps
from jscc.runtime.table import Row, Table


def timesteps(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` noise levels, ascending: 0 and multiples of a whole number below `last_level`.

    One step alone is taken from `last_level`; the official code has no such case.

    Raises:
        UsageError: ``E_STEPS``, fewer than one step or more than there are levels.
    """
    check_steps(schedule, steps, last_level)
    if steps == 1:
        return (last_level,)
    length = (last_level + 1) // steps
    return tuple(length * index for index in range(steps))


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    befores = [1.0, *(float(schedule.alphas_cumprod[t]) for t in timesteps[:-1])]
    table = [
        Row(t, a=0.0, b=math.sqrt(before), d=1.0)
        for t, before in zip(timesteps, befores, strict=True)
    ]
    return Table(tuple(reversed(table)))
