"""Spacing: published tables of noise levels, and what every spacing promises."""

import itertools

import numpy as np
import pytest

from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import Schedule, schedule_from
from jscc.runtime.spacing import SPACINGS, karras, trailing

STABLE_DIFFUSION = schedule_from(ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000))


def test_trailing_is_the_papers_table():
    """Lin et al., table 2: T = 1000, S = 10 takes 1000, 900, …, 100, counted from 1."""
    assert trailing(STABLE_DIFFUSION, 10, 999) == tuple(range(99, 1000, 100))
    assert trailing(STABLE_DIFFUSION, 3, 999) == (332, 666, 999)


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_karras_spaces_the_seventh_roots_equally(steps):
    """On levels so fine that rounding does not matter, eq. 5 of the paper holds."""
    sigmas = np.exp(np.linspace(np.log(0.03), np.log(80.0), 1 << 16))
    fine = Schedule(1.0 / (1.0 + sigmas**2))
    levels = list(karras(fine, steps, fine.last))
    roots = np.linspace(0.03 ** (1 / 7), 80.0 ** (1 / 7), steps)
    assert sigmas[levels] == pytest.approx(roots**7, rel=2e-4)


def test_karras_takes_the_nearest_levels_of_stable_diffusion():
    abars = STABLE_DIFFUSION.alphas_cumprod
    logs = 0.5 * np.log((1 - abars) / abars)
    levels = karras(STABLE_DIFFUSION, 10, 999)
    wanted = 7 * np.log(np.linspace(np.exp(logs[0] / 7), np.exp(logs[-1] / 7), 10))
    assert (levels[0], levels[-1]) == (0, 999)
    for level, log in zip(levels[1:-1], wanted[1:-1], strict=True):
        assert logs[level - 1] < log < logs[level + 1]


@pytest.mark.parametrize("last_level", [0, 1, 9, 60, 999])
@pytest.mark.parametrize("name", SPACINGS)
def test_levels_rise_and_end_at_the_last(name, last_level):
    for steps in {1, 2, 7, 50, last_level + 1}:
        if steps <= last_level + 1:
            levels = SPACINGS[name](STABLE_DIFFUSION, steps, last_level)
            assert len(levels) == steps
            assert levels[0] >= 0
            assert levels[-1] == last_level
            assert all(before < after for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("steps", [0, -1, 8])
@pytest.mark.parametrize("name", SPACINGS)
def test_steps_that_no_schedule_has(name, steps):
    with pytest.raises(UsageError, match=f"got {steps}, expected 1 to 7"):
        SPACINGS[name](STABLE_DIFFUSION, steps, 6)
