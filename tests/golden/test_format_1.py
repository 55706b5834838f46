"""Bundles that format 1 was defined by open for ever, to the same contents.

They were written once by make_format_1.py. Where a change of the code makes one of these tests
fail, the code is wrong: bundles like these are on devices.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from jscc.runtime.bundle import Bundle
from jscc.runtime.manifest import SelftestCsi, serialise_manifest
from jscc.runtime.manifest_loops import LoopStep, SamplerSpec

FOLDER = Path(__file__).resolve().parent / "format-1"
CODEC = "bcffbb22be26535693b60e9e2a816dfbe365ee080e87ff767309b8427145c4b6"
LOOP = "cc595e806cccf3d88fc0704406c6c9b635c054a7cb56880278e389caab5a1082"


@pytest.fixture(scope="module")
def codec():
    return Bundle.open(FOLDER / "tiny.jscc")


@pytest.fixture(scope="module")
def loop():
    return Bundle.open(FOLDER / "tiny-loop.jscc")


def test_the_golden_bundles_are_those_that_were_written(codec, loop):
    assert (codec.sha256, loop.sha256) == (CODEC, LOOP)


def test_reading_loses_nothing(codec):
    """What is read, written again, gives the bytes that were read."""
    assert serialise_manifest(codec.manifest) == (codec.path / "manifest.json").read_bytes()


def test_a_folder_of_format_1_says_what_it_said(codec):
    manifest = codec.manifest
    assert manifest.format == 1
    assert manifest.program == ("decode",)
    assert (manifest.signal.planes, manifest.signal.stride) == (4, 4)
    assert manifest.signal.snr_db_range == (0.0, 14.0)
    assert (manifest.image.multiple, manifest.image.rounding) == (8, "nearest")
    assert str(manifest.stages["decode"].inputs[0]) == "float32[batch,4,height/4,width/4]"
    assert manifest.selftest.csi == SelftestCsi(7.0, (1.0, 0.0))
    assert manifest.parity["decode"]["reconstruction"].size == (8, 16)


def test_a_file_of_format_1_says_what_it_said(loop):
    manifest = loop.manifest
    assert manifest.program == ("decode", "condition", LoopStep("denoise"), "render")
    assert manifest.side_inputs == ("context",)
    denoise = manifest.loops["denoise"]
    assert (denoise.state, denoise.start, denoise.guide) == ("latent", "hint", "hint")
    assert denoise.sampler == SamplerSpec("ddim", 4, "received", 0.6, 0.0)
    assert (denoise.schedule.kind, denoise.schedule.timesteps) == ("scaled_linear", 1000)
    assert loop.external("denoise")["denoise.onnx.data"].nbytes == 64
    assert loop.tensor("bias").ravel()[-1] == np.float32(0.1)


def test_a_graph_of_format_1_decodes_its_golden_symbols(codec):
    symbols = codec.tensor("selftest_symbols")
    planes = np.concatenate([symbols.real, symbols.imag])[None]
    session = onnxruntime.InferenceSession(
        codec.graph("decode"), providers=["CPUExecutionProvider"]
    )
    snr_db = np.array([codec.manifest.selftest.csi.snr_db], np.float32)
    (out,) = session.run(None, {"received": planes, "snr_db": snr_db})
    expected = codec.tensor("selftest_image").transpose(2, 0, 1)
    assert np.abs(out[0] * 255 - expected).max() < 0.51
