"""Csi: what one side knows of the radio channel that an image goes through."""

import math
from dataclasses import dataclass

import numpy as np

from jscc.runtime.errors import CsiError

_LEAST_GAIN = 1e-12
_MOST_DB = 1000.0  # where powers are computed, so that they stay finite


@dataclass(frozen=True)
class Csi:
    """Channel state of one image.

    Attributes:
        snr_db: Power of a unit-power symbol over the complex noise power, in dB, before fading.
        gain: Complex factor h of the symbols, one for the whole image (block fading).
    """

    snr_db: float
    gain: complex = 1.0 + 0.0j

    def __post_init__(self) -> None:
        """Refuse what nothing can be computed from.

        Raises:
            CsiError: ``E_CSI``, the SNR is missing or not finite, or the gain is zero, absurdly
                small or large, or not finite.
        """
        if not _is_finite(self.snr_db):
            raise CsiError(
                "E_CSI",
                f"csi.snr_db: got {self.snr_db}, expected a finite number of dB. "
                "Measure the SNR, or declare the one that the link was planned for.",
            )
        gain = self.gain
        if not _LEAST_GAIN <= _magnitude(gain) <= 1.0 / _LEAST_GAIN:
            raise CsiError(
                "E_CSI",
                f"csi.gain: got {gain}, expected a complex number of magnitude {_LEAST_GAIN:g} to "
                f"{1.0 / _LEAST_GAIN:g}. Estimate the gain again; without fading it is 1.",
            )

    @property
    def noise_power(self) -> float:
        """Complex noise power for symbols of unit power."""
        return float(10.0 ** (-min(max(self.snr_db, -_MOST_DB), _MOST_DB) / 10.0))

    @property
    def gain_power(self) -> float:
        """Squared magnitude of the gain."""
        return float(self.gain.real**2 + self.gain.imag**2)


def _is_finite(value: object) -> bool:
    """Whether `value` is a finite number: callers that mypy does not watch pass anything."""
    return isinstance(value, float | int | np.floating) and math.isfinite(value)


def _magnitude(value: object) -> float:
    """Magnitude of a complex number, NaN of anything else."""
    if isinstance(value, complex | float | int | np.complexfloating | np.floating):
        return math.hypot(value.real, value.imag)
    return math.nan
