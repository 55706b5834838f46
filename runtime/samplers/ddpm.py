"""DDPM: ancestral sampling on respaced noise levels, posterior variance ("fixed small").

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eq. 6-7; respacing as in
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672, eq. 19.
"""

import math

from jscc.runtime.schedule import Schedule
from jscc.runtime.table import Row, Table


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    abars = [float(schedule.alphas_cumprod[t]) for t in timesteps]
    befores = [1.0, *abars[:-1]]
    table = [
        _row(t, abar, before) for t, abar, before in zip(timesteps, abars, befores, strict=True)
    ]
    return Table(tuple(reversed(table)))


def _row(t: int, abar: float, before: float) -> Row:
    """From noise level `abar` to the next cleaner one, `before`; 1 is clean."""
    beta = 1.0 - abar / before
    return Row(
        t,
        a=(1.0 - before) * math.sqrt(1.0 - beta) / (1.0 - abar),
        b=beta * math.sqrt(before) / (1.0 - abar),
        s=math.sqrt(beta * (1.0 - before) / (1.0 - abar)),
    )
