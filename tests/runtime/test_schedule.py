"""Schedule: the published formulas, and refusal of what cannot be divided by."""

import dataclasses

import numpy as np
import pytest

from jscc.runtime.errors import BundleError
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import Schedule, schedule_from

STABLE_DIFFUSION = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)


def test_stable_diffusion_ends_at_its_known_level():
    """The last level is 0.004660, as published with the weights."""
    schedule = schedule_from(STABLE_DIFFUSION)
    assert schedule.last == 999
    assert schedule.alphas_cumprod[999] == pytest.approx(0.004660, abs=5e-7)
    assert schedule.alphas_cumprod[0] == pytest.approx(1 - 0.00085, rel=1e-12)


def test_linear_betas_are_equally_spaced():
    abar = schedule_from(ScheduleSpec("linear", 1e-4, 0.02, 1000)).alphas_cumprod
    betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    assert np.diff(betas) == pytest.approx(np.full(999, 0.0199 / 999), rel=1e-6)
    assert betas[[0, -1]] == pytest.approx([1e-4, 0.02], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"kind": "cosine"}, "got kind 'cosine', expected linear or scaled_linear"),
        ({"first": 0.0}, "got abar from 1 to"),
        ({"last": 1.0}, "got abar from 0.99915 to 0 in 1000 levels"),
    ],
)
def test_schedules_that_cannot_be_used(change, shown):
    with pytest.raises(BundleError, match=shown) as caught:
        schedule_from(dataclasses.replace(STABLE_DIFFUSION, **change))
    assert caught.value.code == "E_SCHEDULE"


@pytest.mark.parametrize(
    "abar", [[0.9, 0.9], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, -0.1], [0.9, np.nan], []]
)
def test_levels_have_to_fall_inside_zero_and_one(abar):
    with pytest.raises(BundleError, match="expected numbers that fall strictly inside"):
        Schedule(np.array(abar, np.float64))


def test_levels_are_float64():
    with pytest.raises(BundleError, match="2 levels of float32"):
        Schedule(np.array([0.9, 0.5], np.float32))


@pytest.mark.parametrize("snr_db", [-30.0, -3.0, 0.0, 7.0, 14.0, 29.0])
def test_level_of_snr_is_the_first_at_least_as_noisy(snr_db):
    schedule = schedule_from(STABLE_DIFFUSION)
    abar = schedule.alphas_cumprod
    level = schedule.level_of_snr(snr_db)
    ratios = 10 * np.log10(abar / (1 - abar))
    assert ratios[level] <= snr_db or level == schedule.last
    assert level == 0 or ratios[level - 1] > snr_db


def test_a_level_exactly_as_noisy_is_the_one():
    assert Schedule(np.array([0.8, 0.5, 0.2])).level_of_snr(0.0) == 1


@pytest.mark.parametrize(("snr_db", "level"), [(-1e9, 999), (1e9, 0), (400.0, 0)])
def test_level_of_absurd_snrs(snr_db, level):
    assert schedule_from(STABLE_DIFFUSION).level_of_snr(snr_db) == level
