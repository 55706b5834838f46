"""DPM-Solver++ 2M: second order from the clean estimates of this step and the one before.

Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
arXiv:2211.01095, algorithm 2. The first step has no predecessor and the last one ends at the clean
estimate; both are first order.

NOTE: one departure. Levels spaced equally in t make the steps before the cleanest level long in the
solver's time, several times their predecessors; extrapolating that far overshoots. No step looks
further ahead than its predecessor looked back. Error of the variance of Gaussian data (0.6) on
Stable Diffusion's schedule in 10 / 20 / 50 steps: +44 / +18 / +4.5 % without, -7.7 / -3.0 / -1.0 %
with the limit; DDIM -29 / -16 / -6.7 %. The order stays 2: neighbouring steps become alike.
"""

import math

from jscc.runtime.schedule import Schedule
from jscc.runtime.table import Row, Table


def rows(schedule: Schedule, timesteps: tuple[int, ...]) -> Table:
    """One row per noise level of `timesteps` (ascending), the noisiest first."""
    falling = timesteps[::-1]
    abars = [float(schedule.alphas_cumprod[t]) for t in falling]
    table = []
    before: float | None = None
    for t, abar, after in zip(falling, abars, abars[1:], strict=False):
        step = _half_log_snr(after) - _half_log_snr(abar)
        kept = math.sqrt((1.0 - after) / (1.0 - abar))
        gain = -math.sqrt(after) * math.expm1(-step)
        extra = 0.0 if before is None else 0.5 * min(step / before, 1.0)
        table.append(Row(t, a=kept, b=gain * (1.0 + extra), c=-gain * extra))
        before = step
    table.append(Row(falling[-1], a=0.0, b=1.0))
    return Table(tuple(table))


def _half_log_snr(abar: float) -> float:
    """The solver's time: log of signal over noise amplitude."""
    return 0.5 * (math.log(abar) - math.log1p(-abar))
