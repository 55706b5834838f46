"""Frame: the symbols of one image with what is known about them, as files carry it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.complex64]


@dataclass(frozen=True)
class Frame:
    """The symbols of one image.

    Attributes:
        symbols: complex64[planes/2, rows, columns], or complex64[count] where the grid is not
            known.
        number: Which image of the transmission this is; part of the key of the receiver's noise.
        size: Height and width of the image that was sent, in pixels; None if not known.
        snr_db: Signal-to-noise ratio of the radio channel in dB; None if not known.
        gain: Complex gain of the radio channel; None if not known.
        bundle: sha256 of the bundle that made the symbols, in hex; None if not known.
        side: What the receiver is given beside the symbols, by name: float32[count] each.
    """

    symbols: Symbols
    number: int
    size: tuple[int, int] | None = None
    snr_db: float | None = None
    gain: complex | None = None
    bundle: str | None = None
    side: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
