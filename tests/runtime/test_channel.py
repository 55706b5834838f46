"""Channel: powers and gains as the formulas say, from the given generator only."""

import numpy as np
import pytest

from jscc.runtime.channel import Awgn, Rayleigh, pass_through
from jscc.runtime.csi import Csi

COUNT = 200_000


def unit_symbols(seed=0, shape=(COUNT,)):
    real, imaginary = np.random.default_rng(seed).standard_normal((2, *shape)) / 2**0.5
    return (real + 1j * imaginary).astype(np.complex64)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0])
def test_awgn_adds_noise_of_the_declared_power(snr_db):
    symbols = unit_symbols()
    received, csi = Awgn().transmit(symbols, snr_db, rng=np.random.default_rng(1))
    noise = received.astype(np.complex128) - symbols
    power = 10 ** (-snr_db / 10)
    assert csi == Csi(snr_db)
    assert received.dtype == np.complex64
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(power, rel=0.02)
    assert noise.real.var() == pytest.approx(power / 2, rel=0.02)
    assert abs(np.mean(noise.real * noise.imag)) < 0.01 * power


def test_rayleigh_has_one_gain_per_image_of_unit_mean_power():
    rng = np.random.default_rng(2)
    channel = Rayleigh()
    gains = np.array([channel.draw(10.0, rng=rng).gain for _ in range(20_000)])
    assert np.mean(np.abs(gains) ** 2) == pytest.approx(1.0, rel=0.03)
    assert np.mean(np.abs(gains) ** 2 < 0.1) == pytest.approx(1 - np.exp(-0.1), rel=0.1)
    assert abs(np.mean(gains**2)) < 0.03  # circular


def test_rayleigh_scales_every_symbol_by_that_gain():
    symbols = unit_symbols(3, (2, 3, 4))
    received, csi = Rayleigh().transmit(symbols, 300.0, rng=np.random.default_rng(4))
    assert received.shape == symbols.shape
    assert received == pytest.approx(symbols * csi.gain, rel=1e-6)
    assert abs(csi.gain - 1) > 0.01


def test_a_known_state_is_passed_through_like_a_drawn_one():
    symbols = unit_symbols(5, (7,))
    rng = np.random.default_rng(6)
    csi = Rayleigh().draw(5.0, rng=rng)
    received = pass_through(symbols, csi, rng=rng)
    again, same = Rayleigh().transmit(symbols, 5.0, rng=np.random.default_rng(6))
    assert same == csi
    assert np.array_equal(received, again)


def test_the_same_generator_gives_the_same_channel():
    symbols = unit_symbols(7, (9,))
    runs = [Awgn().transmit(symbols, 3.0, rng=np.random.default_rng(8))[0] for _ in range(2)]
    assert np.array_equal(*runs)
