"""All samplers, held to closed forms of diffusion on simple data.

Known data m: at level abar the latent is ``sqrt(abar) m + sqrt(1 - abar) n``; every sampler here
has to keep that mean and that variance at each of its levels, exactly. A stage's ``direction`` is
noise of the variance that belongs to the next level.

Gaussian data of variance v: the ideal network answers ``k x``, so the state stays Gaussian and its
scale can be followed as a number. The probability-flow ODE carries ``sqrt(abar v + 1 - abar)``.
"""

import importlib
import math

import numpy as np
import pytest

from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import Schedule, schedule_from
from jscc.runtime.table import names, table_for

STABLE_DIFFUSION = schedule_from(ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000))
DATA_VARIANCE = 0.6
# Where the last step is asked, of samplers that spend none on a level that is clean.
CLEANEST = {name: {2: 499, 7: 159} for name in ("lcm", "tcd")}


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
        mean = row.a * mean + (row.b + row.c + row.e) * data
        variance = row.a**2 * variance + row.s**2 + row.d**2 * (1 - row.alpha_bar_next)
        assert mean == pytest.approx(math.sqrt(abar), abs=1e-12)
        assert variance == pytest.approx(1 - abar, abs=1e-12)


@pytest.mark.parametrize("sampler", names())
def test_every_table_ends_at_the_clean_estimate(sampler):
    for steps in (1, 2, 7):
        row = table_for(STABLE_DIFFUSION, sampler, steps, 999).rows[-1]
        assert (row.a, row.b, row.c, row.e, row.s) == pytest.approx((0, 1, 0, 0, 0), abs=1e-12)
        assert row.t == (999 if steps == 1 else CLEANEST.get(sampler, {}).get(steps, 0))


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
    # The state and the answers before it are jointly Gaussian: covariance of (x, prev, prev2).
    covariance = np.diag([begin, 0.0, 0.0])
    for row, abar in zip(table.rows, abars, strict=False):
        factor = ideal(abar)
        step = np.array([[row.a + row.b * factor, row.c, row.e], [factor, 0, 0], [0, 1, 0]])
        covariance = step @ covariance @ step.T
        covariance[0, 0] += row.s**2
    return covariance[0, 0]


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("ddim", 0.04), ("dpmpp2m", 0.01), ("unipc", 0.01), ("ddpm", 0.08)]
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

    scale, before, earlier = exact(abars[0]), 0.0, 0.0
    for row, abar in zip(table.rows[:-1], abars, strict=False):
        clean = ideal(abar) * scale
        scale = row.a * scale + row.b * clean + row.c * before + row.e * earlier
        before, earlier = clean, before
    return abs(scale - exact(abars[-2]))


@pytest.mark.parametrize("steps", [129, 257, 513])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp2m", 2), ("unipc", 3)])
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


@pytest.mark.parametrize(
    ("sampler", "steps", "percent"),
    [
        ("dpmpp2m", 10, -7.7),
        ("dpmpp2m", 20, -3.0),
        ("dpmpp2m", 50, -1.0),
        ("unipc", 10, 0.5),
        ("unipc", 20, -0.05),
        ("unipc", 50, -0.13),
    ],
)
def test_few_steps_of_higher_order_do_not_overshoot(sampler, steps, percent):
    """The figures in the samplers' docstrings; 4 to 47 above without their limits."""
    error = variance_after(STABLE_DIFFUSION, sampler, steps) / DATA_VARIANCE - 1
    assert 100 * error == pytest.approx(percent, abs=0.06)
    first = variance_after(STABLE_DIFFUSION, "ddim", steps) / DATA_VARIANCE - 1
    assert abs(error) < abs(first) / 3


def unipc_of_the_paper(network, times, x):
    """UniP-2 and UniC-2 with B2, state by corrected state, in the solver's time."""
    alpha = 1 / np.sqrt(1 + np.exp(-2 * np.array(times)))
    sigma = alpha * np.exp(-np.array(times))
    answers = [network(x, 0)]
    for i in range(1, len(times)):
        h = times[i] - times[i - 1]
        b_of_h = math.expm1(-h)
        plain = sigma[i] / sigma[i - 1] * x - alpha[i] * b_of_h * answers[-1]
        ratios, changes = [], []
        if i > 1:
            ratios = [(times[i - 2] - times[i - 1]) / h]
            changes = [(answers[-2] - answers[-1]) / ratios[0]]
        predicted = plain - alpha[i] * b_of_h * sum(0.5 * change for change in changes)
        answer = network(predicted, i)
        ratios, changes = [*ratios, 1.0], [*changes, answer - answers[-1]]
        moments = [(b_of_h / -h - 1) / b_of_h, 2 * ((b_of_h / -h - 1) / -h - 0.5) / b_of_h]
        order = len(ratios)
        powers = np.array([[ratio**n for ratio in ratios] for n in range(order)])
        weights = np.linalg.solve(powers, moments[:order]) if order > 1 else [0.5]
        x = plain - alpha[i] * b_of_h * sum(map(float.__mul__, map(float, weights), changes))
        answers.append(answer)
    return answers[-1]


def test_unipc_is_the_predictor_and_the_corrector_of_the_paper():
    times = np.linspace(-2.0, 3.0, 9) + 0.08 * np.sin(np.arange(9))  # steps of unequal length
    schedule = Schedule(np.sort(1 / (1 + np.exp(-2 * times)))[::-1].copy())

    def network(x, i):
        return math.tanh(x) + 0.1 * math.cos(i)

    table = table_for(schedule, "unipc", 9, 8)
    x, before, earlier = 0.7, 0.0, 0.0
    for i, row in enumerate(table.rows):
        clean = network(x, i)
        x = row.a * x + row.b * clean + row.c * before + row.e * earlier
        before, earlier = clean, before
    assert x == pytest.approx(unipc_of_the_paper(network, list(times), 0.7), abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "levels"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_distilled_networks_are_asked_at_the_levels_they_were_distilled_at(sampler, steps, levels):
    """As the code of LCM: every 20th of 1000 levels, the S first of S equal parts."""
    table = table_for(STABLE_DIFFUSION, sampler, steps, 999)
    assert [row.t for row in table.rows] == levels


def test_more_steps_than_levels_distilled_at_are_spaced_anyhow():
    assert len(table_for(STABLE_DIFFUSION, "lcm", 60, 999).rows) == 60
    assert [row.t for row in table_for(STABLE_DIFFUSION, "lcm", 4, 59).rows] == [59, 44, 29, 14]


def test_trajectories_lie_between_ddim_and_consistency_sampling(monkeypatch):
    """Gamma 0 is DDIM's row, gamma 1 consistency sampling's (down to level 0 instead of clean)."""
    tcd = importlib.import_module("jscc.runtime.samplers.tcd")
    levels = (259, 499, 759, 999)
    monkeypatch.setattr(tcd, "GAMMA", 0.0)
    ddim = importlib.import_module("jscc.runtime.samplers.ddim").rows(STABLE_DIFFUSION, levels)
    for row, expected in zip(tcd.rows(STABLE_DIFFUSION, levels).rows, ddim.rows, strict=True):
        assert (row.t, row.a, row.b, row.s) == pytest.approx(
            (expected.t, expected.a, expected.b, 0)
        )
    monkeypatch.setattr(tcd, "GAMMA", 1.0)
    lcm = importlib.import_module("jscc.runtime.samplers.lcm").rows(STABLE_DIFFUSION, levels)
    for row, expected in zip(tcd.rows(STABLE_DIFFUSION, levels).rows, lcm.rows, strict=True):
        assert (row.b, row.s) == pytest.approx((expected.b, expected.s), abs=3e-2)
