"""The Frechet distance against its closed forms and against a matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from jscc.benchmarks.frechet import PATCH, frechet_distance, from_text, patches_of, to_text
from jscc.runtime.errors import DataError


def samples(mean, covariance, count: int, seed: int = 0) -> np.ndarray:
    """Samples whose mean and covariance are exactly these."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    factor = np.linalg.cholesky(raw.T @ raw / (count - 1))
    white = np.linalg.solve(factor, raw.T).T
    return white @ scipy.linalg.sqrtm(np.asarray(covariance)).real + mean


def covariance(size: int, seed: int) -> np.ndarray:
    mix = np.random.default_rng(seed).normal(size=(size, 2 * size))
    return mix @ mix.T / size


@pytest.mark.parametrize("count", [40, 5000])
def test_of_independent_gaussians_is_a_sum_of_squares(count):
    deviations, others = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.1])
    first = samples([0, 1, -2], np.diag(deviations**2), count)
    second = samples([1, 1, 1], np.diag(others**2), count, seed=1)
    expected = 1 + 9 + np.sum((deviations - others) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_of_correlated_gaussians_is_that_of_a_matrix_square_root():
    one, two = covariance(12, 1), covariance(12, 2)
    first, second = samples(np.zeros(12), one, 300), samples(np.ones(12), two, 200, seed=1)
    root = scipy.linalg.sqrtm(one @ two).real
    expected = 12 + np.trace(one + two - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features_are_exact():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(9, 30)), rng.normal(size=(14, 30)) + 0.5
    one, two = (np.cov(each, rowvar=False) for each in (first, second))
    half = scipy.linalg.sqrtm(one + 1e-12 * np.eye(30)).real
    values = scipy.linalg.eigvalsh(half @ two @ half)
    mixed = np.sum(np.sqrt(np.maximum(values, 0)))
    gap = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)
    expected = gap + np.trace(one) + np.trace(two) - 2 * mixed
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_of_a_set_to_itself_is_zero_in_any_order():
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_it_is_symmetric():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20, 5)), 3 * rng.normal(size=(30, 5))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


@pytest.mark.parametrize("shape", [(1, 5), (4, 6)])
def test_sets_that_cannot_be_compared_are_refused(shape):
    with pytest.raises(DataError, match=rf"got features \[{shape[0]}, {shape[1]}\]") as caught:
        frechet_distance(np.zeros((4, 5), np.float32), np.zeros(shape, np.float32))
    assert caught.value.code == "E_FRECHET"


@pytest.mark.parametrize(
    ("size", "count"), [((512, 768), 6), ((255, 900), 0), ((256, 256), 1), ((700, 300), 2)]
)
def test_patches_lie_side_by_side(size, count):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    patches = patches_of(image)
    assert [patch.shape for patch in patches] == [(PATCH, PATCH, 3)] * count
    if count == 6:
        np.testing.assert_array_equal(patches[5], image[256:512, 512:768])


def test_kodak_has_the_papers_number_of_patches():
    sizes = [(512, 768)] * 18 + [(768, 512)] * 6
    assert sum(len(patches_of(np.zeros((*size, 3), np.uint8))) for size in sizes) == 144


def test_features_go_through_text_unchanged():
    features = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_array_equal(from_text(to_text(features), 7), features)
