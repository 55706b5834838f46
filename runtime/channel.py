"""Channel: simulated radio channels, for experiments and tests.

Symbols have unit mean power; noise is complex, circular and of power ``10**(-snr_db / 10)`` per
symbol, half of it in each real dimension.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jscc.runtime.csi import Csi

Symbols = npt.NDArray[np.complex64]


class Channel(Protocol):
    """What becomes of the symbols of one image."""

    def transmit(
        self, symbols: Symbols, snr_db: float, *, rng: np.random.Generator
    ) -> tuple[Symbols, Csi]:
        """The symbols as received, of the same shape, and what the receiver knows."""


@dataclass(frozen=True)
class Awgn:
    """Additive white Gaussian noise."""

    def transmit(
        self, symbols: Symbols, snr_db: float, *, rng: np.random.Generator
    ) -> tuple[Symbols, Csi]:
        """``symbols + noise``; the gain is 1."""
        csi = Csi(snr_db)
        return _receive(symbols, csi, rng), csi


@dataclass(frozen=True)
class Rayleigh:
    """Flat block fading, known to the receiver: one gain h ~ CN(0, 1) per image, then noise."""

    def transmit(
        self, symbols: Symbols, snr_db: float, *, rng: np.random.Generator
    ) -> tuple[Symbols, Csi]:
        """``h * symbols + noise``."""
        csi = self.draw(snr_db, rng=rng)
        return _receive(symbols, csi, rng), csi

    def draw(self, snr_db: float, *, rng: np.random.Generator) -> Csi:
        """The state that the channel is in, for transmitters that are told it."""
        real, imaginary = rng.standard_normal(2)
        return Csi(snr_db, complex(real, imaginary) / 2**0.5)


def pass_through(symbols: Symbols, csi: Csi, *, rng: np.random.Generator) -> Symbols:
    """The symbols as received over a channel in state `csi`."""
    return _receive(symbols, csi, rng)


def _receive(symbols: Symbols, csi: Csi, rng: np.random.Generator) -> Symbols:
    spread = (csi.noise_power / 2.0) ** 0.5  # per real dimension
    noise = rng.standard_normal((2, *symbols.shape))
    received = symbols * complex(csi.gain) + spread * (noise[0] + 1j * noise[1])
    return np.asarray(received, np.complex64)
