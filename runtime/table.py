"""Table: a sampler as numbers, one row per step.

    x' = a*x + b*clean + c*clean_prev + e*clean_prev2 + s*noise - g*grad + d*direction

Every supported sampler is linear in the state, in the network's present and last two clean
estimates, in fresh noise and in what else the stage says of the way on, so the receiver runs any of
them with one function, `jscc.kernels.advance`. A sampler is one file in ``runtime/samplers``: file
name = its name.
"""

import importlib
import math
import pkgutil
from dataclasses import dataclass, replace
from types import ModuleType

from jscc.runtime import samplers
from jscc.runtime.errors import UsageError
from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import Spacing, linspace, spacing_named


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        t: Noise level at which the network is asked; None if it is not: `c` then weighs its last
            answer.
        a: Factor of the state.
        b: Factor of the clean estimate.
        c: Factor of the clean estimate of the step before.
        e: Factor of the clean estimate two steps before.
        s: Factor of fresh noise.
        g: Factor of the guide's gradient; other than 0 on guided steps only.
        d: Factor of the direction that the stage returns.
        alpha_bar: What is left of the clean image at the level of this step, see `Schedule`.
        alpha_bar_next: The same where the step ends; 1 at the clean image.
    """

    t: int | None
    a: float
    b: float
    c: float = 0.0
    e: float = 0.0
    s: float = 0.0
    g: float = 0.0
    d: float = 0.0
    alpha_bar: float = 1.0
    alpha_bar_next: float = 1.0


@dataclass(frozen=True)
class Table:
    """The rows of one run, first step first; the last one ends at the clean estimate."""

    rows: tuple[Row, ...]

    @property
    def evaluations(self) -> int:
        """How often the network is asked."""
        return sum(row.t is not None for row in self.rows)

    @property
    def first_level(self) -> int:
        """Noise level of the first row."""
        level = self.rows[0].t
        assert level is not None  # no sampler begins without asking the network
        return level

    def guided(self, factor: float, every: int = 1) -> "Table":
        """This table with the guide's `factor` in each row that asks the network.

        Args:
            factor: Of the gradient.
            every: In one of so many rows only, the first of them.
        """
        asked, rows = 0, []
        for row in self.rows:
            guided = row.t is not None and asked % every == 0
            rows.append(replace(row, g=factor) if guided else row)
            asked += row.t is not None
        return Table(tuple(rows))

    def travelled(self, length: int, repeat: int) -> "Table":
        """This table with stretches of it run several times over ("time travel").

        Having come down `length` noise levels, go back up by adding noise to the last clean
        estimate and come down again; `repeat` times in all, then go on to the next stretch. As
        DDNM (Wang et al., arXiv:2212.00490, algorithm 2) with the levels of RePaint (Lugmayr et
        al., arXiv:2201.09865). One draw goes all the way up.

        The first row after going up has no step before it: what it takes of estimates before goes
        to its own (`c` and `e` to `b`), which makes a multi-step sampler first order there; the
        second, in the stretch or behind it, has one (`e` to `c`).

        Args:
            length: Rows of a stretch.
            repeat: How often each is run; 1 leaves the table as it is.
        """
        if repeat == 1:
            return self
        last, rows, single = len(self.rows) - 1, [], False
        for index, row in enumerate(self.rows):
            rows.append(_second(row) if single else row)
            single = False
            done = index + 1  # rows run, and the number of the level that is reached
            if done <= last and (last - done) % length == 0 and done >= length:
                again = _again(self.rows[done - length : done])
                rows += again * (repeat - 1)
                single = length == 1
        return Table(tuple(rows))


def _again(stretch: tuple[Row, ...]) -> list[Row]:
    """One way back up over `stretch` and down again."""
    first, *rest = stretch
    if rest:
        rest[0] = _second(rest[0])
    left = first.alpha_bar
    below = stretch[-1].alpha_bar_next
    up = Row(
        t=None,
        a=0.0,
        b=0.0,
        c=math.sqrt(left),
        s=math.sqrt(1.0 - left),
        alpha_bar=below,
        alpha_bar_next=left,
    )
    return [up, replace(first, b=first.b + first.c + first.e, c=0.0, e=0.0), *rest]


def _second(row: Row) -> Row:
    """`row` where only one step lies before it at other levels."""
    return replace(row, c=row.c + row.e, e=0.0)


def names() -> tuple[str, ...]:
    """The samplers at hand, found by listing ``runtime/samplers``."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(samplers.__path__)))


def table_for(
    schedule: Schedule,
    sampler: str,
    steps: int,
    last_level: int,
    travel: tuple[int, int] = (1, 1),
    spacing: str | None = None,
    levels: tuple[int, ...] | None = None,
) -> Table:
    """The table that runs `sampler` in `steps` steps from `last_level` down to clean.

    Args:
        schedule: Noise levels.
        sampler: Its name.
        steps: Rows of the table before `travel`.
        last_level: The noisiest level that it may ask the network at.
        travel: Length and repetitions of `Table.travelled`.
        spacing: One of `jscc.runtime.spacing.SPACINGS`; None for the sampler's own.
        levels: The noise levels themselves, `steps` of them, ascending, instead of a spacing.

    Raises:
        UsageError: ``E_SAMPLER`` or ``E_SPACING``, there is none of that name; ``E_STEPS``, see
            `jscc.runtime.spacing.check_steps`.
    """
    if sampler not in names():
        raise UsageError(
            "E_SAMPLER",
            f"sampler: got {sampler!r}, expected one of {', '.join(names())}. Pick one.",
        )
    module = importlib.import_module(f"{samplers.__name__}.{sampler}")
    if levels is None:
        levels = _spacing(module, spacing)(schedule, steps, last_level)
    table = module.rows(schedule, levels)
    if not isinstance(table, Table):
        raise TypeError(f"{sampler}.rows: got {type(table).__name__}, expected Table.")
    return _levelled(table, schedule).travelled(*travel)


def _spacing(module: ModuleType, name: str | None) -> Spacing:
    """How noise levels are chosen: as `name` says, else as the sampler's file does, if it does."""
    if name is not None:
        return spacing_named(name)
    own: Spacing = getattr(module, "timesteps", linspace)
    return own


def _levelled(table: Table, schedule: Schedule) -> Table:
    """`table` with what is left of the clean image at both ends of each row."""
    left = [float(schedule.alphas_cumprod[row.t]) for row in table.rows]
    ends = [*left[1:], 1.0]
    return Table(
        tuple(
            replace(row, alpha_bar=begin, alpha_bar_next=end)
            for row, begin, end in zip(table.rows, left, ends, strict=True)
        )
    )
