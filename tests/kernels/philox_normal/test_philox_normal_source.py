"""Philox normal's CUDA source, compiled for the host, against the reference: bit for bit."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_kernels import guarded
from jscc.kernels.philox_normal.reference import normal_quantile, philox_normal, uniform

KEYS = st.integers(0, 2**64 - 1)
QUANTILES = """
JSCC_KERNEL quantiles(double *z, const jscc::u64 *words, jscc::u64 count) {
    for (jscc::u64 i = jscc::first_index(); i < count; i += jscc::index_stride()) {
        z[i] = jscc::normal_quantile(jscc::uniform(words[i]));
    }
}
"""


def drawn(host, seed, frame, step, count, *, threads=1, skip=0):
    """What the compiled kernel writes, `skip` floats behind an aligned address."""
    memory = np.full(count + skip + 2, np.nan, np.float32)
    normals = memory[skip : skip + count]
    values = {"normals": normals, "seed": seed, "frame": frame, "step": step, "count": count}
    host.start("philox_normal", values, threads=threads)
    assert np.isnan(memory[:skip]).all()
    assert np.isnan(memory[skip + count :]).all()
    return normals


def test_nothing_is_written_behind_the_end(host):
    for count in (1, 2, 3, 4, 5, 1023):
        normals = guarded(np.empty(count, np.float32))
        values = dict(zip(("seed", "frame", "step", "count"), (1, 2, 3, count), strict=True))
        host.start("philox_normal", {"normals": normals, **values})
        assert np.array_equal(normals, philox_normal(1, 2, 3, count))


@settings(max_examples=200, deadline=None)
@given(seed=KEYS, frame=KEYS, step=KEYS, count=st.integers(0, 70), skip=st.integers(0, 3))
def test_any_address_gives_the_same_bits(host, seed, frame, step, count, skip):
    got = drawn(host, seed, frame, step, count, skip=skip)
    assert np.array_equal(got, philox_normal(seed, frame, step, count))


@pytest.mark.parametrize("threads", [1, 7, 256, 20_000])
def test_any_grid_gives_the_same_bits(host, threads):
    got = drawn(host, 2026, 11, 3, 60_001, threads=threads)
    assert np.array_equal(got, philox_normal(2026, 11, 3, 60_001))


def words():
    """Both tails to their ends, where no test could wait for a draw, and all between."""
    rng = np.random.default_rng(4)
    anywhere = rng.integers(0, 2**64, 300_000, dtype=np.uint64)
    low = rng.integers(0, 2**64, 100_000, dtype=np.uint64) >> rng.integers(
        0, 52, 100_000, dtype=np.uint64
    )
    ends = np.array([0, 0xFFF, 0x1000, 1 << 63, (1 << 63) - 1, 2**64 - 1], np.uint64)
    edges = (np.array([0.075, 0.925]) * 2**52).astype(np.uint64)[:, None] + np.arange(9)[None]
    return np.concatenate([anywhere, low, ~low, ends, (edges.astype(np.uint64) << 12).ravel()])


def test_the_quantile_is_the_same_double_everywhere(host):
    word = words()
    got = np.empty(len(word))
    library = host.library("philox_normal", QUANTILES)
    function = library.quantiles
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    function(got.ctypes.data, word.ctypes.data, len(word))
    expected = normal_quantile(uniform(word))
    assert (np.abs(expected) > 6.7).sum() > 1000  # the far tail begins there
    assert np.array_equal(got, expected)
