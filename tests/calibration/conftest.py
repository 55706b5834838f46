"""Fixtures of calibration: a bundle with layers, and what a transmitter sent of two pictures."""

import pytest

import tiny_convolutions
from jscc.calibration.collect import Grid, send_all
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.transmitter import Transmitter


@pytest.fixture(scope="session")
def looped(tmp_path_factory):
    """The bundle of `tiny_convolutions`; tests read it and never change it."""
    return tiny_convolutions.write_looped(tmp_path_factory.mktemp("looped") / "loop.jscc")


@pytest.fixture(scope="session")
def grid():
    """Two SNRs, three steps."""
    return Grid((0.0, 10.0), steps=3, seed=5)


@pytest.fixture(scope="session")
def airings(looped, grid):
    """Two pictures at both SNRs."""
    transmitter = Transmitter(looped, backend=OnnxRuntimeBackend(threads=1))
    return send_all(transmitter, tiny_convolutions.photos(2), grid)
