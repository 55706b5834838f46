"""Csi: numbers that something can be computed from."""

import math

import numpy as np
import pytest

from jscc.runtime.csi import Csi
from jscc.runtime.errors import CsiError


def test_powers_follow_from_the_decibels():
    csi = Csi(7.0, 0.6 - 0.8j)
    assert csi.noise_power == pytest.approx(10**-0.7)
    assert csi.gain_power == pytest.approx(1.0)


def test_there_is_no_fading_by_default():
    assert Csi(3).gain == 1.0


@pytest.mark.parametrize("snr_db", [1e308, -1e308])
def test_absurd_snrs_have_finite_powers(snr_db):
    assert math.isfinite(Csi(snr_db).noise_power)


def test_numpy_scalars_are_numbers():
    assert Csi(np.float32(7), np.complex64(1 + 1j)).gain_power == pytest.approx(2.0)


@pytest.mark.parametrize("snr_db", [math.nan, math.inf, -math.inf, None, "7", np.float32(np.nan)])
def test_an_snr_is_a_finite_number(snr_db):
    with pytest.raises(CsiError, match=f"csi.snr_db: got {snr_db}, expected a finite") as caught:
        Csi(snr_db)
    assert caught.value.code == "E_CSI"


@pytest.mark.parametrize("gain", [0, 0j, complex("nan"), complex("inf"), 1e-13, 1e13j, None, "1"])
def test_a_gain_is_finite_and_not_zero(gain):
    with pytest.raises(CsiError, match=r"csi.gain: got .*, expected a complex number of") as caught:
        Csi(7.0, gain)
    assert caught.value.code == "E_CSI"
