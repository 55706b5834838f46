"""Self-test: what counts as failed, and what it is called."""

from dataclasses import replace

import numpy as np
import pytest

from jscc.runtime.errors import BundleError, DataError, ImageError, UnavailableError
from jscc.runtime.ports import Port
from jscc.runtime.selftest import empty_sides, failure_of, psnr_db

KNOWN = np.full((4, 5, 3), 100, np.uint8)


def test_psnr():
    assert psnr_db(KNOWN, KNOWN) == np.inf
    assert psnr_db(KNOWN + np.uint8(1), KNOWN) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_db(np.zeros_like(KNOWN), np.full_like(KNOWN, 255)) == 0.0


def test_an_image_above_the_floor_passes():
    assert failure_of(lambda: KNOWN + np.uint8(1), KNOWN, 48.0, "cpu") is None


def test_an_image_below_the_floor_fails():
    failure = failure_of(lambda: KNOWN + np.uint8(10), KNOWN, 35.0, "ort 1 (cpu)")
    assert isinstance(failure, UnavailableError)
    assert failure.code == "E_SELFTEST"
    assert "on ort 1 (cpu): got an image 28.1 dB from the known one, expected 35 dB" in str(failure)


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (ImageError("E_DECODE_NONFINITE", "image 0: got NaN"), UnavailableError, "E_SELFTEST"),
        (DataError("E_PORT", "stage 'decode': got"), BundleError, "E_BUNDLE_INCONSISTENT"),
        (UnavailableError("E_RUN", "stage 'decode': got"), BundleError, "E_BUNDLE_INCONSISTENT"),
    ],
)
def test_errors_are_failures_too(raised, kind, code):
    def receive():
        raise raised

    failure = failure_of(receive, KNOWN, 35.0, "cpu")
    assert isinstance(failure, kind)
    assert failure.code == code
    assert raised.message in failure.message


def test_a_side_input_is_as_large_as_the_image_where_a_guide_is_made_for_a_tile(shared_bundles):
    """Both stages read the mask; the one whose ports are open says how large it is."""
    manifest = shared_bundles["diffusion"].manifest
    plain = manifest.stages["denoise"]
    mask = Port("mask", "float32", ("batch", 1, "height", "width"))
    stages = {
        **manifest.stages,
        "denoise": replace(plain, inputs=(*plain.inputs, mask)),
        "guided": replace(plain, inputs=(Port("mask", "float32", (1, 1, 32, 32)),)),
    }
    wanted = replace(manifest, stages=stages, side_inputs=("mask",))
    (empty,) = empty_sides(wanted, (64, 96)).items()
    assert (empty[0], empty[1].shape) == ("mask", (1, 1, 64, 96))
