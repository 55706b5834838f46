"""Philox normal against facts from outside: Random123's vectors, SciPy's quantile, statistics."""

import math

import numpy as np
import pytest
from scipy import stats

from jscc.kernels.philox_normal.reference import (
    minus_log,
    normal_quantile,
    philox_normal,
    philox_words,
    uniform,
)

MASK = (1 << 64) - 1


def philox4x64(counter, key, rounds=10):
    """Philox4x64 in plain integers, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (second >> 64) ^ c1 ^ k0,
            second & MASK,
            (first >> 64) ^ c3 ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


# Random123, tests/kat_vectors, "philox4x64 10": counter, key, words.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (MASK,) * 4,
        (MASK,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_the_integers_above_are_philox(counter, key, words):
    assert philox4x64(counter, key) == words


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_numpy_has_the_same_philox(counter, key, words):
    number = sum(word << (64 * place) for place, word in enumerate(counter)) - 1
    before = [(number >> (64 * place)) & MASK for place in range(4)]
    bits = np.random.Philox(
        counter=np.array(before, np.uint64), key=np.array(key, np.uint64)
    ).random_raw(4)
    assert tuple(int(word) for word in bits) == words


@pytest.mark.parametrize(
    ("seed", "frame", "step"), [(0, 0, 0), (1, 2, 3), (MASK, MASK, MASK), (7, 0, 1 << 32)]
)
def test_words_are_counted_as_specified(seed, frame, step):
    words = philox_words(seed, frame, step, 11)
    expected = [
        word for block in range(3) for word in philox4x64((1 + block, step, 0, 0), (seed, frame))
    ]
    assert [int(word) for word in words] == expected[:11]


# The specification, frozen: (seed, frame, step) -> bits of the first 8 numbers as float32.
FIRST = {
    (0, 0, 0): "c011668d bf338a3a bf9c078b 3e26104d 3bc37487 bf17083c 3fce5da0 400cbed1",
    (1, 2, 3): "bf8bd4c1 bf41312e bf287b89 3f7b66be 3eb1082c bf8d273c 3dc68c1b bec7ece5",
    (MASK, MASK, MASK): "3ec7d1ad bf1620f0 bfcaa83f bf99075c bf3639a3 3d37a0ab bfc760b1 bf4ca761",
}


@pytest.mark.parametrize(("key", "bits"), FIRST.items())
def test_the_first_numbers_never_change(key, bits):
    numbers = philox_normal(*key, 8)
    assert numbers.astype(">f4").tobytes().hex(" ", 4) == bits


def test_the_quantile_is_scipys():
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [rng.random(200_000), 2.0 ** -rng.uniform(1, 53, 20_000), [2.0**-53, 0.075, 0.925, 0.5]]
    )
    expected = stats.norm.ppf(p)
    gap = np.abs(normal_quantile(p) - expected)
    assert (gap / np.maximum(np.abs(expected), 1.0)).max() < 1.5e-15


def test_the_quantile_is_odd_about_one_half():
    k = np.random.default_rng(1).integers(0, 1 << 52, 10_000, dtype=np.uint64)
    p, mirrored = ((2 * n.astype(np.float64) + 1) * 2.0**-53 for n in (k, (1 << 52) - 1 - k))
    assert np.array_equal(p + mirrored, np.ones(len(p)))
    assert np.array_equal(normal_quantile(p), -normal_quantile(mirrored))


def test_extreme_words_stay_inside():
    words = np.array([0, 0xFFF, MASK, MASK - 0xFFF, 1 << 63, (1 << 63) - 1], np.uint64)
    p = uniform(words)
    assert p[0] == p[1] == 2.0**-53
    assert p[2] == p[3] == 1.0 - 2.0**-53
    z = normal_quantile(p)
    assert z[0] == -z[2] == pytest.approx(-8.209536151601387, rel=1e-15)
    assert z[4] == -z[5] > 0.0


@pytest.mark.parametrize("exponent", [-1000, -53, -10, -4, -2])
def test_minus_log_is_within_one_unit_in_the_last_place(exponent):
    x = np.random.default_rng(2).uniform(0.5, 1.0, 5_000) * 2.0**exponent
    expected = np.array([-math.log(value) for value in x])
    assert np.all(np.abs(minus_log(x) - expected) <= 1.01 * np.spacing(np.abs(expected)))


def test_a_million_numbers_are_standard_normal():
    z = philox_normal(2026, 5, 1, 1_000_000).astype(np.float64)
    # Standard errors: 1e-3 times 1, sqrt 2, sqrt 6 and sqrt 24.
    assert abs(z.mean()) < 4e-3
    assert abs(z.var() - 1) < 4e-3 * math.sqrt(2)
    assert abs(stats.skew(z)) < 4e-3 * math.sqrt(6)
    assert abs(stats.kurtosis(z)) < 4e-3 * math.sqrt(24)
    assert stats.kstest(z[:200_000], "norm").pvalue > 1e-3
    assert np.unique(z).size > 0.9 * z.size


def test_every_part_of_the_address_makes_other_numbers():
    count = 20_000
    base = philox_normal(1, 1, 1, count)
    for address in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 0), (0, 1, 1), (1, 0, 1)):
        other = philox_normal(*address, count)
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / math.sqrt(count)
        assert not np.intersect1d(base[:2000], other[:2000]).size > 2


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 32767, 32768, 32769])
def test_shorter_blocks_are_the_beginning_of_longer_ones(count):
    longer = philox_normal(3, 4, 5, 40_000)
    assert np.array_equal(philox_normal(3, 4, 5, count), longer[:count])


@pytest.mark.parametrize(
    ("address", "shown"),
    [((-1, 0, 0), "seed=-1"), ((0, 1 << 64, 0), f"frame={1 << 64}"), ((0, 0, -2), "step=-2")],
)
def test_keys_are_64_bits(address, shown):
    with pytest.raises(ValueError, match=f"got {shown}, expected 0 to"):
        philox_normal(*address, 1)
