"""Table: a sampler as numbers, one row per step.

    x' = a*x + b*clean + c*clean_prev + s*noise - g*grad

Every supported sampler is linear in the state, in the network's present and previous clean
estimate and in fresh noise, so the receiver runs any of them with one function,
`jscc.kernels.advance`. A sampler is one file in ``runtime/samplers``: file name = its name.
"""

import importlib
import pkgutil
from dataclasses import dataclass, replace

from jscc.runtime import samplers
from jscc.runtime.errors import UsageError
from jscc.runtime.schedule import Schedule


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        t: Noise level at which the network is asked.
        a: Factor of the state.
        b: Factor of the clean estimate.
        c: Factor of the clean estimate of the step before.
        s: Factor of fresh noise.
        g: Factor of the guide's gradient.
    """

    t: int
    a: float
    b: float
    c: float = 0.0
    s: float = 0.0
    g: float = 0.0


@dataclass(frozen=True)
class Table:
    """The rows of one run, first step first; the last one ends at the clean estimate."""

    rows: tuple[Row, ...]

    def guided(self, factor: float) -> "Table":
        """This table with the guide's `factor` in each row."""
        return Table(tuple(replace(row, g=factor) for row in self.rows))


def names() -> tuple[str, ...]:
    """The samplers at hand, found by listing ``runtime/samplers``."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(samplers.__path__)))


def table_for(schedule: Schedule, sampler: str, steps: int, last_level: int) -> Table:
    """The table that runs `sampler` in `steps` steps from `last_level` down to clean.

    Raises:
        UsageError: ``E_SAMPLER``, there is none of that name; ``E_STEPS``, see `timesteps`.
    """
    if sampler not in names():
        raise UsageError(
            "E_SAMPLER",
            f"sampler: got {sampler!r}, expected one of {', '.join(names())}. Pick one.",
        )
    module = importlib.import_module(f"{samplers.__name__}.{sampler}")
    table = module.rows(schedule, timesteps(schedule, steps, last_level))
    if not isinstance(table, Table):
        raise TypeError(f"{sampler}.rows: got {type(table).__name__}, expected Table.")
    return table


def timesteps(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` noise levels from 0 to `last_level`, ascending, equally spaced and rounded.

    Rounds half to even, as the official DiffJSCC sampler (``space_timesteps``). One step alone
    is taken from `last_level`; the official code has no such case.

    Raises:
        UsageError: ``E_STEPS``, fewer than one step or more than there are levels.
    """
    if not 1 <= steps <= last_level + 1:
        raise UsageError(
            "E_STEPS",
            f"steps: got {steps}, expected 1 to {last_level + 1}, the noise levels from 0 to "
            f"{last_level} of {schedule.last}. Ask for fewer steps or start at a higher level.",
        )
    if steps == 1:
        return (last_level,)
    return tuple(round(index * last_level / (steps - 1)) for index in range(steps))
