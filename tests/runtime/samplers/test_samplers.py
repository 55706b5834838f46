"""All samplers, held to closed forms of diffusion on simple data.

Known data m: at level abar the latent is ``sqrt(abar) m + sqrt(1 - abar) n``; every sampler here
has to keep that mean and that variance at each of its levels, exactly. A stage's ``direction`` is
noise of the variance that belongs to the next level.

Gaussian data of variance v: the ideal network answers ``k x``, so the state stays Gaussian and its
scale can be followed as a number. The probability-flow ODE carries ``sqrt(abar v + 1 - abar)``.
"""

import math

import numpy as np
import pytest

from jscc.runtime.manifest import ScheduleSpec
from jscc.runtime.schedule import Schedule, schedule_from
from jscc.runtime.table import names, table_for

STABLE_DIFFUSION = schedule_from(ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000))
DATA_VARIANCE = 0.6


def fine_schedule(levels=1 << 18):
    """The levels of a cosine: smooth, and so fine that rounding of levels does not matter."""
    share = (np.arange(levels) + 0.5) / levels
    return Schedule(np.cos(0.05 + 1.4 * share) ** 2)


def abars_of(schedule, table):
    """What is left of the data where each row begins, and 1 in the end."""
    return [*(float(schedule.alphas_cumprod[row.t]) for row in table.rows), 1.0]


@pytest.mark.parametrize("last_level", [999, 599, 60])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50])
@pytest.mark.parametrize("sampler", names())
def test_known_data_keeps_its_mean_and_its_noise(sampler, steps, last_level):
    table = table_for(STABLE_DIFFUSION, sampler, steps, last_level)
    abars = abars_of(STABLE_DIFFUSION, table)
    mean, variance, data = math.sqrt(abars[0]), 1 - abars[0], 1.0
    for row, abar in zip(table.rows, abars[1:], strict=True):
        mean = row.a * mean + (row.b + row.c) * data
        variance = row.a**2 * variance + row.s**2 + row.d**2 * (1 - row.alpha_bar_next)
        assert mean == pytest.approx(math.sqrt(abar), abs=1e-12)
        assert variance == pytest.approx(1 - abar, abs=1e-12)


@pytest.mark.parametrize("sampler", names())
def test_every_table_ends_at_the_clean_estimate(sampler):
    for steps in (1, 2, 7):
        row = table_for(STABLE_DIFFUSION, sampler, steps, 999).rows[-1]
        assert (row.a, row.b, row.c, row.s) == pytest.approx((0, 1, 0, 0), abs=1e-12)
        assert row.t == (999 if steps == 1 else 0)


@pytest.mark.parametrize("sampler", names())
def test_rows_run_from_noisy_to_clean(sampler):
    levels = [row.t for row in table_for(STABLE_DIFFUSION, sampler, 20, 700).rows]
    assert 700 - 700 / 20 <= levels[0] <= 700  # DDNM rounds the length of a step down
    assert levels == sorted(levels, reverse=True)


def ideal(abar, variance=DATA_VARIANCE):
    """Factor k of the ideal network for Gaussian data: its answer to x is ``k x``."""
    return math.sqrt(abar) * variance / (abar * variance + 1 - abar)


def variance_after(schedule, sampler, steps):
    """Variance of the result for Gaussian data, exactly, by following x and the last answer."""
    table = table_for(schedule, sampler, steps, schedule.last)
    abars = abars_of(schedule, table)
    begin = abars[0] * DATA_VARIANCE + 1 - abars[0]
    # The state and the answer before it are jointly Gaussian: covariance of (x, clean_prev).
    covariance = np.array([[begin, 0.0], [0.0, 0.0]])
    for row, abar in zip(table.rows, abars, strict=False):
        factor = ideal(abar)
        step = np.array([[row.a + row.b * factor, row.c], [factor, 0.0]])
        covariance = step @ covariance @ step.T
        covariance[0, 0] += row.s**2
    return covariance[0, 0]


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("ddim", 0.04), ("dpmpp2m", 0.01), ("ddpm", 0.08)]
)
def test_gaussian_data_gets_its_variance(sampler, tolerance):
    assert variance_after(STABLE_DIFFUSION, sampler, 100) == pytest.approx(
        DATA_VARIANCE, rel=tolerance
    )


def error_after(sampler, steps, schedule):
    """Error of the scale before the last row, which every sampler has in common."""
    table = table_for(schedule, sampler, steps, schedule.last)
    abars = abars_of(schedule, table)

    def exact(abar):
        return math.sqrt(abar * DATA_VARIANCE + 1 - abar)

    scale, before = exact(abars[0]), 0.0
    for row, abar in zip(table.rows[:-1], abars, strict=False):
        clean = ideal(abar) * scale
        scale, before = row.a * scale + row.b * clean + row.c * before, clean
    return abs(scale - exact(abars[-2]))


@pytest.mark.parametrize("steps", [129, 257, 513])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp2m", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(sampler, order, steps):
    schedule = fine_schedule()
    ratio = error_after(sampler, steps, schedule) / error_after(sampler, 2 * steps - 1, schedule)
    assert math.log2(ratio) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("steps", [51, 101, 201])
def test_ancestral_sampling_converges_to_the_data_with_order_one(steps):
    """Its variance misses what the network does not know of the data, less with each step."""
    schedule = fine_schedule()
    # The last step, from the cleanest level to clean, has an error of its own that stays.
    floor = variance_after(schedule, "ddpm", 1 << 14)
    errors = [abs(variance_after(schedule, "ddpm", n) - floor) for n in (steps, 2 * steps - 1)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("steps", "percent"), [(10, 7.7), (20, 3.0), (50, 1.0)])
def test_few_second_order_steps_do_not_overshoot(steps, percent):
    """The figures in the sampler's docstring; 44, 18 and 4.5 above without its limit."""
    error = variance_after(STABLE_DIFFUSION, "dpmpp2m", steps) / DATA_VARIANCE - 1
    assert 100 * error == pytest.approx(-percent, abs=0.06)
    first = variance_after(STABLE_DIFFUSION, "ddim", steps) / DATA_VARIANCE - 1
    assert abs(error) < abs(first) / 3
