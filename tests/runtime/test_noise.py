"""Noise: by address, not by call order."""

import numpy as np

from jscc.kernels.philox_normal.reference import philox_normal
from jscc.runtime.noise import PhiloxNoise


def test_an_address_always_has_the_same_numbers():
    noise = PhiloxNoise()
    first = noise.draw(1, 2, 3, (4, 5, 6))
    noise.draw(9, 9, 9, (100,))
    assert first.shape == (4, 5, 6)
    assert first.dtype == np.float32
    assert np.array_equal(noise.draw(1, 2, 3, (4, 5, 6)), first)
    assert np.array_equal(first.ravel(), philox_normal(1, 2, 3, 120))
