"""Unpack against exact complex division, and its CUDA source against the reference."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_kernels import guarded
from jscc.kernels.unpack.reference import unpack

GAINS = [0.5 + 0j, -0.25 + 2j, 2 - 0.25j, 1j, 0.6 + 0.6j, -0.3 - 1.7j, 1 + 0j, 1e-12 + 1e-13j]
parts = st.floats(2**-6, 8, width=32) | st.floats(-8, -(2**-6), width=32)


def symbols_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, *shape)).astype(np.float32)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def test_real_parts_come_first():
    symbols = symbols_of((4, 3, 5))
    planes = unpack(symbols)
    assert planes.dtype == np.float32
    assert planes.shape == (8, 3, 5)
    assert np.array_equal(planes[:4], symbols.real)
    assert np.array_equal(planes[4:], symbols.imag)


@pytest.mark.parametrize("gain", GAINS)
def test_the_quotient_is_within_rounding_of_the_exact_one(gain):
    symbols = symbols_of((50,))
    gain = np.complex64(gain)
    planes = unpack(symbols, complex(gain))
    re, im = Fraction(float(gain.real)), Fraction(float(gain.imag))
    power = re * re + im * im
    for index, symbol in enumerate(symbols):
        a, b = Fraction(float(symbol.real)), Fraction(float(symbol.imag))
        exact = (a * re + b * im) / power, (b * re - a * im) / power
        size = float(abs(complex(*map(float, exact))))
        for got, wanted in zip(planes[[index, 50 + index]], exact, strict=True):
            assert abs(float(got) - float(wanted)) < 4 * 2**-24 * size


def test_a_gain_undone_is_no_gain():
    symbols = symbols_of((3, 4))
    faded = (symbols * np.complex64(0.5j)).astype(np.complex64)
    assert np.array_equal(unpack(faded, 0.5j), unpack(symbols))


def test_what_never_arrived_is_zero():
    symbols = symbols_of((2, 3))
    erased = np.zeros((2, 3), bool)
    erased[1, 2] = True
    symbols[1, 2] = np.nan
    planes = unpack(symbols, 0.5 - 2j, erased)
    assert planes[1, 2] == planes[3, 2] == 0.0
    assert np.isfinite(planes).all()
    erased[1, 2], symbols[1, 2] = False, 0
    assert np.array_equal(planes, unpack(symbols, 0.5 - 2j, erased))


def test_quotients_that_overflow_are_seen_without_a_warning():
    assert not np.isfinite(unpack(symbols_of((2,)), 1e-44 + 0j)).any()
    assert np.isnan(unpack(symbols_of((2,)), 0j)).any()


def compiled(host, symbols, gain, erased, threads=1):
    planes = np.full(2 * symbols.size, np.nan, np.float32)
    given = np.complex64(1 if gain is None else gain)
    values = {
        "planes": planes,
        "symbols": symbols,
        "erased": None if erased is None else erased.view(np.uint8),
        "gain_re": float(given.real),
        "gain_im": float(given.imag),
        "divide": gain is not None,
        "count": symbols.size,
    }
    host.start("unpack", values, threads=threads)
    return planes.reshape(2 * symbols.shape[0], *symbols.shape[1:])


def same_bits(got, wanted):
    return np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@settings(max_examples=300, deadline=None)
@given(
    re=parts | st.just(0.0),
    im=parts,
    swapped=st.booleans(),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
    erasing=st.booleans(),
)
def test_the_source_gives_the_same_bits(host, re, im, swapped, count, seed, erasing):
    gain = complex(im, re) if swapped else complex(re, im)
    symbols = symbols_of((count,), seed)
    erased = np.random.default_rng(seed).random(count) < 0.3 if erasing else None
    assert same_bits(compiled(host, symbols, gain, erased), unpack(symbols, gain, erased))


@pytest.mark.parametrize("gain", [None, *GAINS])
@pytest.mark.parametrize("threads", [1, 5, 256])
def test_any_grid_gives_the_same_bits(host, gain, threads):
    symbols = symbols_of((4, 7, 9))
    assert same_bits(compiled(host, symbols, gain, None, threads), unpack(symbols, gain))


def test_nothing_is_read_or_written_behind_the_end(host):
    symbols, erased = symbols_of((257,)), np.arange(257) % 3 == 0
    planes = guarded(np.zeros(514, np.float32))
    values = {"gain_re": 0.0, "gain_im": 1.0, "divide": 1, "count": 257}
    arrays = {"symbols": guarded(symbols), "erased": guarded(erased.view(np.uint8))}
    host.start("unpack", {"planes": planes, **arrays, **values})
    assert same_bits(planes, unpack(symbols, 1j, erased))
