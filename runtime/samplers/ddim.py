"""DDIM: deterministic steps (eta 0).

Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, eq. 12 with sigma 0.
"""

import math

from jscc.runtime.schedule import Schedule
from jscc.runtime.table import Row, Table


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    abars = [float(schedule.alphas_cumprod[t]) for t in timesteps]
    befores = [1.0, *abars[:-1]]
    table = []
    for t, abar, before in zip(timesteps, abars, befores, strict=True):
        kept = math.sqrt((1.0 - before) / (1.0 - abar))  # share of the noise that stays
        table.append(Row(t, a=kept, b=math.sqrt(before) - kept * math.sqrt(abar)))
    return Table(tuple(reversed(table)))
