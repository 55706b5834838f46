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

import numpy as np
import numpy.typing as npt

from jscc.kernels.advance.reference import advance
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
from jscc.runtime.noise import NoiseSource
from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import OWN
from jscc.runtime.table import Row, Table, table_for

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """What the stage is asked at one step; one item per image.

    Attributes:
        state: Where the loop is.
        timestep: Noise level, float32[batch].
        alpha_bar: What is left of the clean image at that level, float32[batch].
        alpha_bar_next: The same where the step will end; 1 at the clean image.
        noise: This step's draw, like `state`; None where the sampler draws none.
        guided: Whether the guide's gradient is wanted.
    """

    state: Floats
    timestep: Floats
    alpha_bar: Floats
    alpha_bar_next: Floats
    noise: Floats | None
    guided: bool


@dataclass(frozen=True)
class Answer:
    """What the stage says; all like the state.

    Attributes:
        clean: Estimate of the clean state.
        grad: Gradient of the guide's loss, where it was wanted.
        direction: What else the way on is made of, where the stage says so.
    """

    clean: Floats
    grad: Floats | None = None
    direction: Floats | None = None


Denoise = Callable[[Question], Answer]


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
    denoise: Denoise,
    *,
    shape: tuple[int, ...],
    start: Floats | None,
    guide: Floats | None,
    noise: NoiseSource,
    seed: int,
    frame: int,
) -> Floats:
    """Run the loop and return its last state, the clean one.

    Args:
        plan: What to do.
        denoise: The stage.
        shape: Of the state, images first.
        start: Tensor of a ``received`` start, of this shape.
        guide: Tensor that the guide pulls to, of this shape; None where the stage has a guide.
        noise: Where noise comes from; image i draws as number ``frame + i``.
        seed: Passed on to `noise`.
        frame: Number of the first image.
    """
    inner = shape[1:]

    def draw(image: int, number: int) -> Floats:
        return noise.draw(seed, frame + image, plan.first_draw + number, inner)

    state = np.empty(shape, np.float32)
    for image, path in zip(range(shape[0]), plan.paths, strict=True):
        fresh = draw(image, 0) if path.noise else None
        begin = None if start is None else start[image]
        state[image] = _mix(begin, path.signal, fresh, path.noise, inner)
    scale = 1.0 if plan.guide is not None else 0.5 / math.prod(inner)
    tables = [path.table.guided(scale * path.guidance, plan.guide_every) for path in plan.paths]
    before: tuple[Floats | None, Floats | None] = (None, None)
    for step in range(len(tables[0].rows)):
        rows = [table.rows[step] for table in tables]
        drawn, answer = None, None
        if any(row.s or row.d for row in rows):
            drawn = np.stack([draw(image, step + 1) for image in range(shape[0])])
        if rows[0].t is not None:
            answer = denoise(_question(state, rows, drawn, guided=plan.guide is not None))
        state = _advance(state, rows, answer, before, drawn, guide)
        before = before if answer is None else (answer.clean, before[0])
    return state


def _question(
    state: Floats, rows: Sequence[Row], drawn: Floats | None, *, guided: bool
) -> Question:
    return Question(
        state=state,
        timestep=np.array([row.t for row in rows], np.float32),
        alpha_bar=np.array([row.alpha_bar for row in rows], np.float32),
        alpha_bar_next=np.array([row.alpha_bar_next for row in rows], np.float32),
        noise=drawn,
        guided=guided and any(row.g for row in rows),
    )


def _advance(
    state: Floats,
    rows: Sequence[Row],
    answer: Answer | None,
    before: tuple[Floats | None, Floats | None],
    drawn: Floats | None,
    guide: Floats | None,
) -> Floats:
    """The state after one step, each image by its own row."""
    after = np.empty_like(state)
    for image, row in enumerate(rows):
        clean = _item(None if answer is None else answer.clean, image)
        grad = _item(None if answer is None else answer.grad, image)
        if grad is None and row.g and guide is not None and clean is not None:
            grad = clean - guide[image]
        direction = _item(None if answer is None else answer.direction, image)
        after[image] = advance(
            state[image],
            clean,
            _item(before[0], image),
            _item(before[1], image),
            _item(drawn, image),
            grad,
            direction,
            row,
        )
    return after


def _item(arrays: Floats | None, image: int) -> Floats | None:
    return None if arrays is None else arrays[image]


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


def _mix(
    start: Floats | None, signal: float, drawn: Floats | None, noise: float, shape: tuple[int, ...]
) -> Floats:
    """``signal * start + noise * drawn``, without the terms whose factor is zero."""
    state = np.zeros(shape, np.float32)
    if signal and start is not None:
        state += start * np.float32(signal)
    if noise and drawn is not None:
        state += drawn * np.float32(noise)
    return state
