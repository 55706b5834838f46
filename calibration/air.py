"""Air: images sent over a simulated radio channel, so that everybody meets the same noise.

Everything random is drawn from (seed, image name, SNR), so every bundle, sampler and number of
steps meets the same channel, and adding images changes nothing for the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jscc.runtime.channel import Rayleigh
from jscc.runtime.csi import Csi
from jscc.runtime.ports import Array

Symbols = npt.NDArray[np.complex64]

CHANNELS = ("awgn", "rayleigh")


@dataclass(frozen=True)
class Received:
    """What arrived on the air, and beside it.

    Attributes:
        symbols: As many as were sent.
        csi: What the receiver is told.
        size: Height and width of the image that was sent, in pixels.
        seed: Seed of this transmission.
        frame: Number that the image's name gives it.
        side: Side inputs that the transmitter makes; they reach the receiver without errors.
    """

    symbols: Symbols
    csi: Csi
    size: tuple[int, int]
    seed: int
    frame: int
    side: Mapping[str, Array] = field(default_factory=dict)

    @property
    def side_bytes(self) -> int:
        """Bytes of the side inputs; the cbr does not count them."""
        return sum(array.nbytes for array in self.side.values())


def frame_of(name: str) -> int:
    """The number that an image's name gives it."""
    return zlib.crc32(name.encode())


def meet_channel(
    channel: str, name: str, snr_db: float, seed: int
) -> tuple[Csi, np.random.Generator]:
    """The state that a channel of `CHANNELS` is in, and the generator that its noise comes from."""
    rng = np.random.default_rng([seed, frame_of(name), round(1000 * (snr_db + 1000))])
    csi = Rayleigh().draw(snr_db, rng=rng) if channel == "rayleigh" else Csi(snr_db)
    return csi, rng
