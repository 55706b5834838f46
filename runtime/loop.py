"""Loop: a stage asked once per noise level, its answers carried along by a sampler's table.

    x = start;  for each row:  clean, grad, direction = stage(x, t, ...)
                               x = a*x + b*clean + c*clean_prev + e*clean_prev2
                                   + s*noise - g*grad + d*direction

What a run does is decided before anything is computed (`plan_loop`), for each image of a batch by
itself: images received together may start at different levels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic

import numpy as np
import numpy.typing as npt

from jscc.runtime.arithmetic import Arithmetic, Mix, T, Terms
from jscc.runtime.choices import (
    Choices,
    chosen_guidance,
    chosen_guide,
    chosen_guide_every,
    chosen_settings,
    chosen_start,
    chosen_travel,
    guidance_weights,
)
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import Loop
from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import OWN
from jscc.runtime.table import Row, Table, table_for

_LEVELS = ("t", "alpha_bar", "alpha_bar_next")  # of a row, what a stage is told


@dataclass(frozen=True)
class Question(Generic[T]):
    """What the stage is asked at one step; one item per image.

    Attributes:
        state: Where the loop is.
        timestep: Noise level, float32[batch].
        alpha_bar: What is left of the clean image at that level, float32[batch].
        alpha_bar_next: The same where the step will end; 1 at the clean image.
        draw: Gives this step's noise, like `state`; None where the sampler draws none.
        guided: Whether the guide's gradient is wanted.
    """

    state: T
    timestep: T
    alpha_bar: T
    alpha_bar_next: T
    draw: Callable[[], T] | None
    guided: bool


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What the stage says; all like the state.

    Attributes:
        clean: Estimate of the clean state.
        grad: Gradient of the guide's loss, where it was wanted.
        direction: What else the way on is made of, where the stage says so.
    """

    clean: T
    grad: T | None = None
    direction: T | None = None


Denoise = Callable[[Question[T]], Answer[T]]


@dataclass(frozen=True)
class Path:
    """One image's way through the schedule.

    Attributes:
        level: Noise level of the start.
        signal: Factor of the start tensor in the start; 0 from noise.
        noise: Factor of the noise in the start.
        table: Rows of the steps.
        guidance: Weight of the guide, 0 for none.
    """

    level: int
    signal: float
    noise: float
    table: Table
    guidance: float = 0.0


@dataclass(frozen=True)
class LoopPlan:
    """What one run of a loop will do.

    Attributes:
        sampler: Its name.
        steps: Steps that were asked for; with `travel` the tables have more rows.
        start: ``noise`` or ``received``.
        start_tensor: Named tensor of a ``received`` start.
        guide_tensor: Named tensor that the guide pulls to.
        guide: What gives the gradient on guided steps, or None.
        guide_stage: The stage that does.
        guide_every: Of so many steps one is guided.
        travel: Length of a stretch in steps and how often each is run.
        settings: Knobs by the name of the port that they are fed to.
        spacing: Of the noise levels; `jscc.runtime.spacing.OWN` for those that the bundle brings,
            None for the sampler's own.
        first_draw: Number of the start's noise, see `NoiseSource`.
        paths: One per image.
    """

    sampler: str
    steps: int
    start: str
    start_tensor: str | None
    guide_tensor: str | None
    guide: str | None
    guide_stage: str | None
    guide_every: int
    travel: tuple[int, int]
    settings: Mapping[str, float]
    spacing: str | None
    first_draw: int
    paths: tuple[Path, ...]


def plan_loop(
    loop: Loop,
    schedule: Schedule,
    choices: Choices,
    snrs_db: Sequence[float],
    number: int,
    *,
    directed: bool = False,
) -> LoopPlan:
    """Decide what a run does.

    Args:
        loop: What the bundle says.
        schedule: Its noise levels.
        choices: What the caller asks.
        snrs_db: SNR of each image's symbols after equalisation.
        number: Of the loop in the program, from 0.
        directed: Whether the loop's stage returns ``direction``, which some samplers need.

    Raises:
        UsageError: ``E_SAMPLER``, ``E_STEPS``, ``E_SPACING``, ``E_START``, ``E_GUIDANCE``,
            ``E_GUIDE``, ``E_TRAVEL`` or ``E_SETTING``.
    """
    default = loop.sampler
    sampler = choices.sampler if choices.sampler is not None else default.name
    steps = choices.steps if choices.steps is not None else default.steps
    start = chosen_start(loop, choices)
    share = choices.start_level if choices.start_level is not None else default.start_level
    travel = chosen_travel(loop, choices)
    paths, own = [], False
    for snr_db in snrs_db:
        level = schedule.last
        if start == "received":
            level = _level(schedule, share, steps, snr_db)
        levels = _own_levels(loop, choices, steps, level)
        own |= levels is not None
        table = table_for(schedule, sampler, steps, level, travel, choices.spacing, levels)
        paths.append(_path(schedule, table, start))
    if not directed and any(row.d for path in paths for row in path.table.rows):
        raise UsageError(
            "E_SAMPLER",
            f"sampler: got {sampler!r}, expected one whose steps need no direction: this bundle's "
            "network returns none. Pick another.",
        )
    weights = guidance_weights(default, choices, snrs_db)
    guide = chosen_guide(loop, choices, weights)
    weights = chosen_guidance(loop, choices, guide, weights)
    return LoopPlan(
        sampler=sampler,
        steps=steps,
        start=start,
        start_tensor=loop.start,
        guide_tensor=loop.guide,
        guide=guide,
        guide_stage=None if guide is None else loop.guides[guide],
        guide_every=chosen_guide_every(loop, choices),
        travel=travel,
        settings=chosen_settings(loop, choices),
        spacing=OWN if own else choices.spacing,
        first_draw=number << 32,
        paths=tuple(
            replace(path, guidance=weight) for path, weight in zip(paths, weights, strict=True)
        ),
    )


def _own_levels(
    loop: Loop, choices: Choices, steps: int, last_level: int
) -> tuple[int, ...] | None:
    """The bundle's own noise levels for such a loop; None where it has none or others are asked.

    They were found with the bundle's own sampler, so another gets them where it asks for them only.

    Raises:
        UsageError: ``E_SPACING``, the caller asks for them and there are none.
    """
    fitting = [
        levels
        for levels in loop.sampler.levels
        if len(levels) == steps and levels[-1] == last_level
    ]
    if choices.spacing == OWN and not fitting:
        known = ", ".join(f"{len(each)} from {each[-1]}" for each in loop.sampler.levels)
        raise UsageError(
            "E_SPACING",
            f"spacing: got {OWN!r} with {steps} steps from level {last_level}, expected steps that "
            f"the bundle has levels for ({known or 'none'}). Ask for another spacing.",
        )
    asked = choices.spacing == OWN
    usual = choices.spacing is None and choices.sampler in (None, loop.sampler.name)
    return fitting[0] if fitting and (asked or usual) else None


def run_loop(
    plan: LoopPlan,
    denoise: Denoise[T],
    arithmetic: Arithmetic[T],
    *,
    shape: tuple[int, ...],
    start: T | None,
    guide: T | None,
) -> T:
    """Run the loop and return its last state, the clean one.

    Args:
        plan: What to do.
        denoise: The stage.
        arithmetic: Carries the state along, and draws its noise.
        shape: Of the state, images first.
        start: Tensor of a ``received`` start, of this shape.
        guide: Tensor that the guide pulls to, of this shape; None where the stage has a guide.
    """
    mixes = [Mix(path.signal, path.noise) for path in plan.paths]
    state = arithmetic.start(shape, start, mixes, plan.first_draw)
    scale = 1.0 if plan.guide is not None else 0.5 / math.prod(shape[1:])
    tables = [path.table.guided(scale * path.guidance, plan.guide_every) for path in plan.paths]
    steps = list(zip(*(table.rows for table in tables), strict=True))
    levels = arithmetic.take(_levels(steps))
    before: tuple[T | None, T | None] = (None, None)
    for step, rows in enumerate(steps):
        number, answer = plan.first_draw + step + 1, None
        if rows[0].t is not None:
            told = arithmetic.item(levels, step)
            draw = partial(arithmetic.noise, shape, number)
            question = Question(
                state=state,
                timestep=arithmetic.item(told, 0),
                alpha_bar=arithmetic.item(told, 1),
                alpha_bar_next=arithmetic.item(told, 2),
                draw=draw if any(row.s or row.d for row in rows) else None,
                guided=plan.guide is not None and any(row.g for row in rows),
            )
            answer = denoise(question)
        state = arithmetic.advance(state, rows, _terms(answer, before, guide), number)
        before = before if answer is None else (answer.clean, before[0])
    return state


def _levels(steps: Sequence[Sequence[Row]]) -> npt.NDArray[np.float32]:
    """What a stage is told of each step's noise levels, float32[steps, 3, images]."""
    levels = [
        [[getattr(row, name) or 0.0 for row in rows] for name in _LEVELS]  # a step may ask nothing
        for rows in steps
    ]
    return np.array(levels, np.float32)


def _terms(
    answer: Answer[T] | None, before: tuple[T | None, T | None], guide: T | None
) -> Terms[T]:
    if answer is None:
        return Terms(None, *before, target=guide)
    return Terms(answer.clean, *before, answer.grad, answer.direction, guide)


def _level(schedule: Schedule, share: float | None, steps: int, snr_db: float) -> int:
    """Where a ``received`` start begins: at a share of the schedule, or where the SNR says."""
    if share is not None:
        return round(share * schedule.last)
    return min(max(schedule.level_of_snr(snr_db), steps - 1), schedule.last)


def _path(schedule: Schedule, table: Table, start: str) -> Path:
    level = table.first_level if start == "received" else schedule.last
    if start == "noise":
        return Path(level, 0.0, 1.0, table)
    abar = float(schedule.alphas_cumprod[level])
    return Path(level, math.sqrt(abar), math.sqrt(1.0 - abar), table)
