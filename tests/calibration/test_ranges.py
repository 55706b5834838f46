"""Ranges against numpy's own statistics and against the closed form of the clipping error."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import erf

from jscc.calibration.ranges import BINS, ESTIMATORS, LEVELS, Ranges

CELL = (7.0, None)
FLOATS = st.floats(-1e6, 1e6, width=32)


def seen(*arrays, features=None):
    ranges = Ranges(features)
    for array in arrays:
        ranges.add(np.asarray(array, np.float32), CELL)
    return ranges


def clip(ranges, estimator):
    return ranges.scale(estimator) * LEVELS


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=6))
def test_merging_bins_loses_no_count_and_moves_none(arrays):
    """Up to each edge the histogram has as many values as there are, but for those on the edge."""
    ranges = seen(*arrays)
    magnitudes = np.abs(np.concatenate(arrays).astype(np.float32).astype(np.float64))
    _, counts = ranges.magnitudes()
    assert ranges.counts.sum() == counts.sum() == magnitudes.size
    assert magnitudes.max() <= ranges.top
    edges = np.arange(1, BINS + 1) * (ranges.top / BINS)
    upto = np.cumsum(counts)
    assert np.all((magnitudes[:, None] < edges).sum(axis=0) <= upto)
    assert np.all(upto <= (magnitudes[:, None] <= edges).sum(axis=0))


def test_the_histogram_tells_negative_values_from_positive_ones():
    ranges = seen([-4.0, -3.9, 1.0])
    assert ranges.counts[:BINS].sum() == 2
    assert ranges.counts[BINS:].sum() == 1


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_minmax_is_exact(values):
    largest = float(np.abs(np.float32(values)).max())
    assume(largest > 1e-30)
    assert seen(values).scale("minmax") == largest / 127


@pytest.mark.parametrize("seed", range(4))
def test_percentile_is_numpy_s_within_a_bin(seed):
    values = normal(200_000, seed).astype(np.float32)
    ranges = seen(*np.split(values, 10))
    expected = np.percentile(np.abs(values), 99.99, method="inverted_cdf")
    assert 0 <= clip(ranges, "percentile") - expected <= ranges.top / BINS


def error_of_gaussian(limit):
    """Mean square error of N(0, 1), clipped at `limit` and rounded: arXiv:1810.05723, appendix."""
    clipped = (1 + limit**2) * (1 - erf(limit / math.sqrt(2)))
    clipped -= math.sqrt(2 / math.pi) * limit * math.exp(-(limit**2) / 2)
    return clipped + (limit / LEVELS) ** 2 / 12


def error_of_laplace(limit):
    """The same of Laplace(0, 1): arXiv:1810.05723, section 3."""
    return 2 * math.exp(-limit) + (limit / LEVELS) ** 2 / 12


@pytest.mark.parametrize("pieces", [1, 8])
@pytest.mark.parametrize(
    ("error_of", "draw"),
    [
        (error_of_gaussian, lambda rng, size: rng.normal(size=size)),
        (error_of_laplace, lambda rng, size: rng.laplace(size=size)),
    ],
    ids=["gaussian", "laplace"],
)
def test_mse_clips_as_well_as_the_closed_form(error_of, draw, pieces):
    values = draw(np.random.default_rng(3), 400_000)
    ranges = seen(*np.split(values, pieces))
    best = minimize_scalar(error_of, bounds=(1, 20), method="bounded").fun
    achieved = error_of(clip(ranges, "mse"))
    assert best <= achieved <= 1.03 * best
    # So that the bound says something: not to clip is worse by more.
    assert error_of(clip(ranges, "minmax")) > 1.1 * best


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, size: rng.normal(size=size) * rng.choice([0.1, 1.0], size),
        lambda rng, size: rng.lognormal(0, 1.5, size) * rng.choice([-1, 1], size),
        lambda rng, size: rng.standard_t(2, size),
        lambda rng, size: np.append(rng.normal(0, 0.3, 20 * size), 10.0),
    ],
    ids=["mixed", "log-normal", "student", "outlier"],
)
def test_mse_is_the_least_of_all_clips_on_the_values_themselves(draw):
    """Heavy tails too, where a step is hardly wider than a bin of the histogram."""
    values = draw(np.random.default_rng(1), 50_000)

    def error(limit):
        step = limit / LEVELS
        rounded = np.clip(np.round(values / step), -LEVELS, LEVELS) * step
        return np.mean((values - rounded) ** 2)

    largest = np.abs(values).max()
    best = min(error(share * largest) for share in np.geomspace(0.02, 1, 300))
    assert error(clip(seen(values), "mse")) <= 1.03 * best


def test_entropy_does_not_clip_what_is_uniform():
    values = np.random.default_rng(0).uniform(-3, 3, 300_000)
    assert clip(seen(values), "entropy") > 0.98 * 3


def test_entropy_clips_a_lone_outlier():
    assert clip(seen([*normal(300_000), 60.0]), "entropy") < 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_estimator_clips_beyond_the_largest(estimator):
    values = normal(5000).astype(np.float32)
    ranges = seen(values[:100], values)
    assert 0 < clip(ranges, estimator) <= np.abs(values).max() * (1 + 1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("power", [-100, -20, 0, 20, 100])
def test_a_scale_goes_with_the_unit(estimator, power):
    """Powers of two change no mantissa, so the same bins are hit."""
    values = normal(2000).astype(np.float32)
    scaled = seen(values * np.float32(2.0**power)).scale(estimator)
    assert scaled == pytest.approx(seen(values).scale(estimator) * 2.0**power, rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_tensor_of_zeros_has_some_positive_step(estimator):
    assert seen(np.zeros(5), np.zeros(3)).scale(estimator) > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-36, 1e-34])
def test_a_step_is_always_a_normal_float32(estimator, largest):
    """Engines divide by it; some of them flush smaller numbers to 0."""
    step = np.float32(seen([largest, largest / 2]).scale(estimator))
    assert step >= np.finfo(np.float32).tiny


def test_zeros_before_the_first_value_are_counted():
    ranges = seen(np.zeros(5), [2.0])
    assert ranges.counts.sum() == 6
    assert ranges.counts[BINS] == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_not_counted(bad):
    ranges = seen([1.0])
    with pytest.raises(ValueError, match="a value that is not finite"):
        ranges.add(np.array([0.5, bad], np.float32), CELL)
    assert (ranges.samples, ranges.counts.sum(), ranges.largest) == (1, 1, 1.0)


def test_the_largest_of_each_cell_is_kept_apart():
    ranges = Ranges()
    for snr_db, step, value in [(0.0, 999.0, -5.0), (0.0, 1.0, 2.0), (0.0, 999.0, 3.0)]:
        ranges.add(np.float32([value, 0.5]), (snr_db, step))
    assert ranges.cells == {(0.0, 999.0): 5.0, (0.0, 1.0): 2.0}
    assert (ranges.largest, ranges.samples) == (5.0, 3)


@pytest.mark.parametrize("axis", [1, -1])
def test_the_largest_of_each_feature_is_kept_apart(axis):
    first, second = normal((2, 5, 3, 5)).astype(np.float32), normal((1, 5, 4, 5), 1)
    second = second.astype(np.float32)
    ranges = seen(first, second, features=axis)
    rows = [np.moveaxis(np.abs(array), axis, 0).reshape(5, -1) for array in (first, second)]
    np.testing.assert_array_equal(ranges.peaks, np.concatenate(rows, axis=1).max(axis=1))


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match=r"estimator 'median', expected one of \('minmax', "):
        seen([1.0]).scale("median")


def test_nothing_seen_has_no_scale():
    with pytest.raises(ValueError, match="no values were seen"):
        Ranges().scale("minmax")


def test_entropy_does_not_clip_what_a_rectifier_leaves():
    """Half of all values are exactly 0; the others are those of a half-normal distribution."""
    values = np.maximum(np.random.default_rng(8).standard_normal(400_000), 0).astype(np.float32)
    ranges = Ranges()
    ranges.add(values, (0.0, None))
    clip = ranges.scale("entropy") * LEVELS
    assert clip > 3.0  # three deviations hold 99.7 % of the others
