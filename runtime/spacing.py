"""Spacing: at which of the noise levels that a network knows a sampler asks it."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from jscc.runtime.errors import UsageError
from jscc.runtime.schedule import Schedule

RHO = 7.0  # of `karras`, the paper's

Spacing = Callable[[Schedule, int, int], tuple[int, ...]]


def linspace(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` noise levels from 0 to `last_level`, ascending, equally spaced and rounded.

    Rounds half to even, as ``space_timesteps`` of Nichol and Dhariwal's improved-diffusion does
    through Python's ``round``. One step alone is taken from `last_level`.

    Raises:
        UsageError: ``E_STEPS``, fewer than one step or more than there are levels.
    """
    check_steps(schedule, steps, last_level)
    if steps == 1:
        return (last_level,)
    return tuple(round(index * last_level / (steps - 1)) for index in range(steps))


def trailing(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` noise levels, ascending, equally spaced, the last one `last_level`, none of them 0.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891,
    table 2. No step is spent at a level that is clean already.

    Raises:
        UsageError: As in `linspace`.
    """
    check_steps(schedule, steps, last_level)
    length = (last_level + 1) / steps
    return tuple(round(length * (index + 1)) - 1 for index in range(steps))


def karras(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
    """`steps` noise levels from 0 to `last_level`, ascending, closer together where it is clean.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv:2206.00364, eq. 5 with rho 7: the seventh roots of noise over signal are equally spaced.
    Each is taken at the level whose logarithm is nearest; no level is taken twice.

    Raises:
        UsageError: As in `linspace`.
    """
    check_steps(schedule, steps, last_level)
    if steps == 1:
        return (last_level,)
    abars = schedule.alphas_cumprod[: last_level + 1]
    sigmas = np.sqrt((1.0 - abars) / abars)
    roots = np.linspace(sigmas[0] ** (1 / RHO), sigmas[-1] ** (1 / RHO), steps)
    places = np.interp(RHO * np.log(roots), np.log(sigmas), np.arange(last_level + 1.0))
    levels = [round(float(place)) for place in places]
    for index in range(1, steps):
        levels[index] = max(levels[index], levels[index - 1] + 1)
    for index in range(steps):
        levels[index] = min(levels[index], last_level - (steps - 1 - index))
    return tuple(levels)


OWN = "bundle"  # the levels that a bundle brings, where it has some that fit

SPACINGS: Mapping[str, Spacing] = {"linspace": linspace, "trailing": trailing, "karras": karras}


def spacing_named(name: str) -> Spacing:
    """The spacing of that name, or the levels that `name` lists, such as ``999,500,0``.

    Raises:
        UsageError: ``E_SPACING``, there is none.
    """
    if re.fullmatch(r"\d{1,4}(,\d{1,4})*", name):
        return _listed(tuple(sorted(int(level) for level in name.split(","))))
    if name not in SPACINGS:
        raise UsageError(
            "E_SPACING",
            f"spacing: got {name!r}, expected one of {', '.join(SPACINGS)}, or noise levels by "
            "commas. Pick one.",
        )
    return SPACINGS[name]


def _listed(levels: tuple[int, ...]) -> Spacing:
    """These levels and no others."""

    def spacing(schedule: Schedule, steps: int, last_level: int) -> tuple[int, ...]:
        check_steps(schedule, steps, last_level)
        if len(set(levels)) != steps or len(levels) != steps or levels[-1] > last_level:
            raise UsageError(
                "E_SPACING",
                f"spacing: got levels {levels}, expected {steps} different ones from 0 to "
                f"{last_level}, one for each step. Correct them or the number of steps.",
            )
        return levels

    return spacing


def check_steps(schedule: Schedule, steps: int, last_level: int) -> None:
    """Refuse a number of steps that the levels up to `last_level` do not have.

    Raises:
        UsageError: ``E_STEPS``, fewer than one step or more than there are levels.
    """
    if not 1 <= steps <= last_level + 1:
        raise UsageError(
            "E_STEPS",
            f"steps: got {steps}, expected 1 to {last_level + 1}, the noise levels from 0 to "
            f"{last_level} of {schedule.last}. Ask for fewer steps or start at a higher level.",
        )
