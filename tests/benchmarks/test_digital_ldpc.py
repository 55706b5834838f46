"""LDPC and 16-QAM: unit power, exact far above the threshold, lost far below it, and its place."""

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("sionna", reason="Sionna is not installed; pip install 'jscc-edge[digital]'")

from jscc.benchmarks.digital.budget import Codeword, coded_bytes, codewords, symbols_of
from jscc.benchmarks.digital.ldpc import Modem
from jscc.runtime.channel import pass_through
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError


def arrive(symbols: int, snr_db: float, gain: complex = 1.0, seed: int = 0) -> bool:
    rng = np.random.default_rng(seed)
    modem, csi = Modem(codewords(symbols)), Csi(snr_db, gain)
    message = rng.bytes(coded_bytes(symbols))
    return modem.arrives(message, pass_through(modem.send(message), csi, rng=rng), csi)


@pytest.mark.parametrize("symbols", [12, 101, 384, 1537])
def test_far_above_the_threshold_everything_arrives(symbols):
    assert arrive(symbols, 20.0)


@pytest.mark.parametrize("symbols", [101, 384, 1537])
def test_far_below_the_threshold_nothing_does(symbols):
    assert not arrive(symbols, 4.0)


def test_fading_moves_the_threshold():
    assert arrive(384, 14.0, gain=0.9j)
    assert not arrive(384, 14.0, gain=0.3 - 0.1j)


@pytest.mark.parametrize("message", [b"", bytes(100), b"\xff" * 100])
def test_mean_power_is_one_whatever_is_sent(message):
    symbols = Modem(codewords(384)).send(message)
    assert symbols.dtype == np.complex64
    assert symbols.shape == (384,)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.12)
    assert len(np.unique(np.round(symbols, 5))) == 16


def test_the_message_is_on_the_air():
    modem = Modem(codewords(384))
    assert not np.array_equal(modem.send(b"one"), modem.send(b"two"))


def test_another_message_does_not_arrive():
    modem, csi = Modem(codewords(384)), Csi(20.0)
    received = pass_through(modem.send(b"one"), csi, rng=np.random.default_rng(0))
    assert modem.arrives(b"one", received, csi)
    assert not modem.arrives(b"two", received, csi)


def test_longer_messages_are_refused():
    with pytest.raises(UsageError, match="message: got 129 bytes, expected at most 128") as caught:
        Modem(codewords(384)).send(bytes(129))
    assert caught.value.code == "E_MESSAGE"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("snr_db", "low", "high"),
    # Of 64 codewords, 0.92, 0.44 and 0 were lost in a measurement elsewhere; three standard
    # deviations of that and this one to each side.
    [(8.5, 0.7, 1.0), (8.75, 0.1, 0.8), (9.5, 0.0, 0.0)],
)
def test_the_cliff_is_where_it_was_measured(snr_db, low, high):
    rng = np.random.default_rng(1)
    modem, csi = Modem((Codeword(4096, 6144),)), Csi(snr_db)
    lost = 0
    for _ in range(24):
        message = rng.bytes(512)
        lost += not modem.arrives(message, pass_through(modem.send(message), csi, rng=rng), csi)
    assert low <= lost / 24 <= high


@pytest.mark.slow
def test_a_kodak_image_falls_off_the_cliff():
    symbols = symbols_of(Fraction(1, 96), (512, 768))
    assert not arrive(symbols, 8.0)
    assert arrive(symbols, 9.75)
