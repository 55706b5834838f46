"""Noise: where the receiver's sampler takes its randomness from.

The default is counted, not drawn: `jscc.kernels.philox_normal` of (seed, frame, step). The same
image received again with the same seed comes out the same, on any device and whatever else runs.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jscc.kernels.philox_normal.reference import philox_normal

Floats = npt.NDArray[np.float32]


class NoiseSource(Protocol):
    """Standard normals by address."""

    def draw(self, seed: int, frame: int, step: int, shape: tuple[int, ...]) -> Floats:
        """Normals of one image: a pure function, called from several threads at once.

        Args:
            seed: Chosen by the caller, 0 to 2**64 - 1.
            frame: Number of the image, 0 to 2**64 - 1.
            step: 0 for the loop's start, k for what is added after its k-th step (from 1);
                loops after the first one count on from ``2**32``, ``2 * 2**32``, ...
            shape: Of one image's latent, without a batch axis.
        """


@dataclass(frozen=True)
class PhiloxNoise:
    """The default source."""

    def draw(self, seed: int, frame: int, step: int, shape: tuple[int, ...]) -> Floats:
        """See `NoiseSource`."""
        return philox_normal(seed, frame, step, int(np.prod(shape))).reshape(shape)
