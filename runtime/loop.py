"""Loop: a stage asked once per noise level, its answers carried along by a sampler's table.

    x = start;  for each row:  clean = stage(x, t);  x = a*x + b*clean + c*clean_prev + s*noise
                                                         - g*(clean - guide)

What a run does is decided before anything is computed (`plan_loop`), for each image of a batch by
itself: images received together may start at different levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jscc.kernels.advance.reference import advance
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import Loop
from jscc.runtime.noise import NoiseSource
from jscc.runtime.schedule import Schedule
from jscc.runtime.table import Table, table_for

Floats = npt.NDArray[np.float32]
Denoise = Callable[[Floats, Floats], Floats]  # state, timesteps -> clean estimate

STARTS = ("noise", "received")


@dataclass(frozen=True)
class Choices:
    """What a caller asks of the loops; None for what the bundle says."""

    sampler: str | None = None
    steps: int | None = None
    start: str | None = None
    start_level: float | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Path:
    """One image's way through the schedule.

    Attributes:
        level: Noise level of the start.
        signal: Factor of the start tensor in the start; 0 from noise.
        noise: Factor of the noise in the start.
        table: Rows of the steps.
    """

    level: int
    signal: float
    noise: float
    table: Table


@dataclass(frozen=True)
class LoopPlan:
    """What one run of a loop will do.

    Attributes:
        sampler: Its name.
        steps: Rows of every path's table.
        start: ``noise`` or ``received``.
        start_tensor: Named tensor of a ``received`` start.
        guidance: Weight of the guide, 0 for none.
        guide_tensor: Named tensor that the guide pulls to.
        first_draw: Number of the start's noise, see `NoiseSource`.
        paths: One per image.
    """

    sampler: str
    steps: int
    start: str
    start_tensor: str | None
    guidance: float
    guide_tensor: str | None
    first_draw: int
    paths: tuple[Path, ...]


def plan_loop(
    loop: Loop, schedule: Schedule, choices: Choices, snrs_db: Sequence[float], number: int
) -> LoopPlan:
    """Decide what a run does.

    Args:
        loop: What the bundle says.
        schedule: Its noise levels.
        choices: What the caller asks.
        snrs_db: SNR of each image's symbols after equalisation.
        number: Of the loop in the program, from 0.

    Raises:
        UsageError: ``E_SAMPLER``, ``E_STEPS``, ``E_START`` or ``E_GUIDANCE``.
    """
    default = loop.sampler
    sampler = choices.sampler if choices.sampler is not None else default.name
    steps = choices.steps if choices.steps is not None else default.steps
    start = _start(loop, choices)
    share = choices.start_level if choices.start_level is not None else default.start_level
    paths = []
    for snr_db in snrs_db:
        level = schedule.last
        if start == "received":
            level = _level(schedule, share, steps, snr_db)
        paths.append(_path(schedule, sampler, steps, start, level))
    return LoopPlan(
        sampler=sampler,
        steps=steps,
        start=start,
        start_tensor=loop.start,
        guidance=_guidance(loop, choices),
        guide_tensor=loop.guide,
        first_draw=number << 32,
        paths=tuple(paths),
    )


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
        guide: Tensor that the guide pulls to, of this shape.
        noise: Where noise comes from; image i draws as number ``frame + i``.
        seed: Passed on to `noise`.
        frame: Number of the first image.
    """
    images = range(shape[0])
    inner = shape[1:]
    state = np.empty(shape, np.float32)
    for image, path in zip(images, plan.paths, strict=True):
        drawn = noise.draw(seed, frame + image, plan.first_draw, inner) if path.noise else None
        begin = None if start is None else start[image]
        state[image] = _mix(begin, path.signal, drawn, path.noise, inner)
    factor = 0.5 * plan.guidance / math.prod(inner)
    tables = [path.table.guided(factor) for path in plan.paths]
    before: Floats | None = None
    for step in range(plan.steps):
        rows = [table.rows[step] for table in tables]
        clean = denoise(state, np.array([row.t for row in rows], np.float32))
        after = np.empty_like(state)
        for image, row in zip(images, rows, strict=True):
            draw = plan.first_draw + step + 1
            after[image] = advance(
                state[image],
                clean[image],
                None if before is None else before[image],
                noise.draw(seed, frame + image, draw, inner) if row.s else None,
                clean[image] - guide[image] if row.g and guide is not None else None,
                row,
            )
        state, before = after, clean
    return state


def _start(loop: Loop, choices: Choices) -> str:
    start = choices.start if choices.start is not None else loop.sampler.start
    if start not in STARTS:
        raise UsageError(
            "E_START", f"start: got {start!r}, expected one of {', '.join(STARTS)}. Pick one."
        )
    if start == "received" and loop.start is None:
        raise UsageError(
            "E_START", "start: got 'received', expected 'noise': this bundle has no other start."
        )
    level = choices.start_level
    if level is not None and start != "received":
        raise UsageError(
            "E_START",
            f"start_level: got {level} with start {start!r}, expected start 'received'. "
            "Ask for that start, or leave the level out.",
        )
    if level is not None and not 0.0 < level <= 1.0:
        raise UsageError(
            "E_START", f"start_level: got {level}, expected more than 0 and at most 1. Correct it."
        )
    return start


def _guidance(loop: Loop, choices: Choices) -> float:
    guidance = choices.guidance if choices.guidance is not None else loop.sampler.guidance
    if not (math.isfinite(guidance) and guidance >= 0.0):
        raise UsageError(
            "E_GUIDANCE", f"guidance: got {guidance}, expected a number from 0 up. Correct it."
        )
    if guidance and loop.guide is None:
        raise UsageError(
            "E_GUIDANCE", f"guidance: got {guidance}, expected 0: this bundle has no guide."
        )
    return guidance


def _level(schedule: Schedule, share: float | None, steps: int, snr_db: float) -> int:
    """Where a ``received`` start begins: at a share of the schedule, or where the SNR says."""
    if share is not None:
        return round(share * schedule.last)
    return min(max(schedule.level_of_snr(snr_db), steps - 1), schedule.last)


def _path(schedule: Schedule, sampler: str, steps: int, start: str, level: int) -> Path:
    table = table_for(schedule, sampler, steps, level)
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
