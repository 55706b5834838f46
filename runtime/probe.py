"""Probe: symbols to receive where only time and memory count, the same for every measurement."""

import numpy as np
import numpy.typing as npt

from jscc.runtime.manifest import Manifest
from jscc.runtime.ports import Array
from jscc.runtime.preprocess import geometry_of
from jscc.runtime.selftest import empty_sides


def make_symbols(
    manifest: Manifest, size: tuple[int, int], *, seed: int
) -> npt.NDArray[np.complex64]:
    """Noise with the grid, power and statistics of an image of `size` at the default SNR.

    Args:
        manifest: Of the bundle that receives.
        size: Height and width of the image in pixels.
        seed: Of the noise.

    Returns:
        complex64[planes/2, rows, columns].
    """
    signal = manifest.signal
    height, width = _padded(manifest, size)
    shape = (signal.planes // 2, height // signal.stride, width // signal.stride)
    power = 1.0 + 10.0 ** (-signal.snr_db_default / 10)
    parts = np.random.default_rng(seed).standard_normal((2, *shape)) * (power / 2) ** 0.5
    return np.asarray(parts[0] + 1j * parts[1], dtype=np.complex64)


def make_sides(manifest: Manifest, size: tuple[int, int]) -> dict[str, Array]:
    """Zeros for the side inputs that go with `make_symbols`."""
    return empty_sides(manifest, _padded(manifest, size))


def _padded(manifest: Manifest, size: tuple[int, int]) -> tuple[int, int]:
    return geometry_of(size, manifest.image, manifest.image.max_pixels).padded
