"""LCM: multistep consistency sampling, for networks distilled to answer with the clean image.

Song et al., "Consistency Models", arXiv:2303.01469, algorithm 1, with the levels of Luo et al.,
"Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
arXiv:2310.04378: every step takes the network's answer as clean and adds fresh noise to it, down to
the next level.

NOTE: one departure. The paper's network mixes in ``c_skip`` of the state itself, which at the
levels that it is asked at is 7e-6 and less (sigma_data 0.5, timesteps times 10); here it is 0.
"""

import math

from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import trailing
from jscc.runtime.table import Row, Table

TRAINED = 50  # levels that such a network was distilled at, equally spaced


def timesteps(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` of the levels that such networks are distilled at, ascending, as LCM's code does.

    Where there are not so many up to `last_level`, levels as `jscc.runtime.spacing.trailing`.

    Raises:
        UsageError: ``E_STEPS``, fewer than one step or more than there are levels.
    """
    length = max(1, (schedule.last + 1) // TRAINED)
    grid = range(length - 1, last_level + 1, length)
    if not 1 <= steps <= len(grid):
        return trailing(schedule, steps, last_level)
    falling = grid[::-1]
    return tuple(sorted(falling[index * len(grid) // steps] for index in range(steps)))


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    befores = [1.0, *(float(schedule.alphas_cumprod[t]) for t in timesteps[:-1])]
    table = [
        Row(t, a=0.0, b=math.sqrt(before), s=math.sqrt(1.0 - before))
        for t, before in zip(timesteps, befores, strict=True)
    ]
    return Table(tuple(reversed(table)))
