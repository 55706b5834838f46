"""Admission: what a radio may deliver, and what is refused with a reason."""

import numpy as np
import pytest

from jscc.runtime.admission import admit, shape_symbols
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CsiError, SymbolsError
from jscc.runtime.manifest import Signal

SIGNAL = Signal(
    planes=4, stride=16, packing="halves", power="unit_per_image", snr_db_range=(0.0, 14.0),
    snr_db_default=7.0, csi_inputs=("snr_db", "gain"), transmitter_csi=True,
    equalisation="zero_forcing", power_range=(0.05, 20.0),
)  # fmt: skip
SHAPE = (2, 30, 40)


def sent(seed=0):
    real, imaginary = np.random.default_rng(seed).standard_normal((2, *SHAPE)) / 2**0.5
    symbols = real + 1j * imaginary
    return symbols / np.sqrt(np.mean(np.abs(symbols) ** 2))


def heard(csi, seed=1, power=1.0):
    noise = np.random.default_rng(seed).standard_normal((2, *SHAPE)) * (csi.noise_power / 2) ** 0.5
    return ((sent() * csi.gain + noise[0] + 1j * noise[1]) * power**0.5).astype(np.complex64)


def take(symbols, csi, *, erased=None, strict_snr=False):
    return admit(symbols, erased, csi, SIGNAL, strict_snr=strict_snr, where="symbols")


def test_planes_are_the_real_parts_then_the_imaginary():
    symbols = sent().astype(np.complex64)
    planes = take(symbols, Csi(14.0)).planes
    assert planes.dtype == np.float32
    assert planes.shape == (4, 30, 40)
    assert np.array_equal(planes[:2], symbols.real)
    assert np.array_equal(planes[2:], symbols.imag)


def test_zero_forcing_divides_by_the_gain():
    csi = Csi(14.0, 0.3 - 0.4j)
    planes = take((sent() * csi.gain).astype(np.complex64), csi).planes
    assert np.abs(planes[:2] + 1j * planes[2:] - sent()).max() < 1e-6


def test_honest_symbols_raise_no_suspicion():
    for snr_db in (0.0, 7.0, 14.0):
        for gain in (1.0, 0.3j, 1.5 - 1j):
            admitted = take(heard(Csi(snr_db, gain)), Csi(snr_db, gain))
            assert not admitted.suspect
            assert not admitted.clamped
            assert admitted.snr_db == snr_db


def test_a_deep_fade_is_not_an_empty_frame():
    """Received power 0.04 at |h| = 0.05: below the range for a unit gain, right for this one."""
    csi = Csi(14.0, 0.05j)
    admitted = take(heard(csi), csi)
    assert admitted.power == pytest.approx(0.0025 + 10**-1.4, rel=0.2)
    assert admitted.equalised_snr_db == pytest.approx(14 + 20 * np.log10(0.05))


def test_an_snr_that_lies_is_noticed():
    admitted = take(heard(Csi(0.0)), Csi(14.0))
    assert admitted.suspect
    assert admitted.snr_db_measured == pytest.approx(0.0, abs=0.5)
    modest = take(heard(Csi(13.0)), Csi(14.0))
    assert not modest.suspect


def test_a_small_gap_is_no_lie_however_many_symbols_show_it():
    csi = Csi(12.5)
    parts = np.random.default_rng(2).standard_normal((4, 2, 400, 400)) / 2**0.5
    symbols = parts[0] + 1j * parts[1] + csi.noise_power**0.5 * (parts[2] + 1j * parts[3])
    admitted = take(symbols.astype(np.complex64), Csi(14.0))
    assert admitted.snr_db_measured == pytest.approx(12.5, abs=0.5)
    assert not admitted.suspect


def test_chance_is_no_lie_where_symbols_are_few():
    """Sixteen symbols at 14 dB often have less power than the signal alone should."""
    csi, measured = Csi(14.0), []
    for seed in range(200):
        parts = np.random.default_rng(seed).standard_normal((4, 2, 2, 4))
        symbols = parts[0] + 1j * parts[1]
        symbols /= np.sqrt(np.mean(np.abs(symbols) ** 2))
        symbols += (csi.noise_power / 2) ** 0.5 * (parts[2] + 1j * parts[3])
        admitted = take(symbols.astype(np.complex64), csi)
        assert not admitted.suspect
        measured.append(admitted.snr_db_measured)
    assert None in measured


def test_an_snr_out_of_range_is_clamped_and_said():
    for declared, used in ((20.0, 14.0), (-6.0, 0.0)):
        admitted = take(heard(Csi(declared)), Csi(declared))
        assert admitted.clamped
        assert admitted.snr_db == used
        assert admitted.csi.snr_db == declared


def test_a_strict_receiver_refuses_that_snr():
    with pytest.raises(CsiError, match="got an SNR of 20 dB, expected 0 to 14 dB") as caught:
        take(heard(Csi(20.0)), Csi(20.0), strict_snr=True)
    assert caught.value.code == "E_CSI_RANGE"


def test_erased_symbols_count_as_zero_and_not_for_the_power():
    erased = np.zeros(SHAPE, bool)
    erased[:, :20] = True
    symbols = heard(Csi(14.0))
    symbols[erased] = np.nan
    admitted = take(symbols, Csi(14.0), erased=erased)
    assert admitted.missing == 1600
    assert admitted.power == pytest.approx(1.04, rel=0.1)
    assert not admitted.planes[:, :20].any()
    assert admitted.planes[:, 20:].all()


def test_an_image_of_which_nothing_arrived_is_refused():
    with pytest.raises(SymbolsError, match="got a mean power of 0, expected") as caught:
        take(heard(Csi(7.0)), Csi(7.0), erased=np.ones(SHAPE, bool))
    assert caught.value.code == "E_SYM_POWER"


@pytest.mark.parametrize("dtype", ["complex128", "float32", ">c8", "int16", "O"])
def test_only_native_complex64_is_taken(dtype):
    with pytest.raises(SymbolsError, match="expected complex64 in this machine's") as caught:
        shape_symbols(np.zeros(SHAPE, dtype), SHAPE, flat=False, where="symbols")
    assert caught.value.code == "E_SYM_DTYPE"


def test_flat_symbols_are_shaped_where_that_is_allowed():
    symbols = heard(Csi(7.0))
    flat = shape_symbols(symbols.ravel(), SHAPE, flat=True, where="symbols")
    assert np.array_equal(flat, symbols)
    with pytest.raises(SymbolsError, match=r"got complex64\[2400\], 2400 in all, expected"):
        shape_symbols(symbols.ravel(), SHAPE, flat=False, where="symbols")
