"""Our SigMF: read back exactly, valid for the format's own validator, strict about the rest."""

import hashlib
import json
import re

import numpy as np
import pytest

from jscc.runtime import sigmf
from jscc.runtime.errors import SymbolsError
from jscc.runtime.frame import Frame


def make_frame(number=0, shape=(3, 2, 5), **about):
    rng = np.random.default_rng(number)
    parts = rng.standard_normal((2, *shape))
    return Frame((parts[0] + 1j * parts[1]).astype(np.complex64), number, **about)


FULL = {"size": (30, 70), "snr_db": 7.25, "gain": 0.6 - 0.8j, "bundle": "5a" * 32}


def document(frames=None, **header):
    """A valid document with `header` fields over it; a value of None removes the field."""
    meta, _ = sigmf.serialise(frames or [make_frame(**FULL)], recorder="test")
    tree = json.loads(meta)
    for key, value in header.items():
        name = f"core:{key}"
        tree["global"].pop(name, None)
        if value is not None:
            tree["global"][name] = value
    return tree


def as_bytes(data):
    return np.frombuffer(data, np.uint8)


def read(meta, data):
    parsed = sigmf.parse("x.sigmf-meta", json.loads(meta))
    return sigmf.assemble("x.sigmf-data", parsed, as_bytes(data))


@pytest.mark.parametrize(
    "frames",
    [
        [make_frame()],
        [make_frame(**FULL)],
        [make_frame(0, (1, 1, 1)), make_frame(7, (2, 3, 4), **FULL), make_frame(9, (11,))],
    ],
)
def test_what_is_written_is_read_back(frames):
    meta, data = sigmf.serialise(frames, recorder="test")
    found = read(meta, data)
    assert len(found) == len(frames)
    for ours, original in zip(found, frames, strict=True):
        np.testing.assert_array_equal(ours.symbols, original.symbols)
        assert ours.symbols.dtype == np.complex64
        for name in ("number", "size", "snr_db", "gain", "bundle"):
            assert getattr(ours, name) == getattr(original, name)


def test_the_format_s_own_validator_accepts_what_is_written(tmp_path):
    validate = pytest.importorskip("sigmf.validate")
    sigmffile = pytest.importorskip("sigmf.sigmffile")
    frames = [make_frame(0, **FULL), make_frame(1, **FULL)]
    meta, data = sigmf.serialise(frames, recorder="jscc-edge test")
    validate.validate(json.loads(meta))
    (tmp_path / "x.sigmf-meta").write_bytes(meta)
    (tmp_path / "x.sigmf-data").write_bytes(data)
    recording = sigmffile.fromfile(str(tmp_path / "x.sigmf-meta"))
    recording.validate()
    samples = recording.read_samples()
    np.testing.assert_array_equal(samples, np.concatenate([f.symbols.ravel() for f in frames]))
    assert [item["jscc:snr_db"] for item in recording.get_annotations()] == [7.25, 7.25]


def test_the_samples_are_interleaved_little_endian_floats_in_grid_order():
    frame = make_frame()
    _, data = sigmf.serialise([frame], recorder="test")
    values = np.frombuffer(data, "<f4")
    np.testing.assert_array_equal(values[0::2], frame.symbols.real.ravel())
    np.testing.assert_array_equal(values[1::2], frame.symbols.imag.ravel())


@pytest.mark.parametrize(
    ("datatype", "dtype", "scale"),
    [
        ("cf32_le", "<f4", 1),
        ("cf32_be", ">f4", 1),
        ("cf64_le", "<f8", 1),
        ("cf64_be", ">f8", 1),
        ("ci16_le", "<i2", 32768),
        ("ci16_be", ">i2", 32768),
    ],
)
def test_declared_datatypes_are_converted(datatype, dtype, scale):
    wanted = np.array([0.5 - 0.25j, -1.0 + 0.125j, 0.75j], np.complex64)
    data = (wanted.view(np.float32) * scale).astype(dtype).tobytes()
    tree = document([Frame(wanted, 0)], datatype=datatype, sha512=hashlib.sha512(data).hexdigest())
    (frame,) = sigmf.assemble("x", sigmf.parse("x", tree), as_bytes(data))
    np.testing.assert_array_equal(frame.symbols, wanted)


def test_a_foreign_recording_has_one_frame_for_each_capture_segment():
    data = np.arange(20, dtype="<f4").tobytes()
    tree = {
        "global": {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:hw": "a radio"},
        "captures": [{"core:sample_start": 0}, {"core:sample_start": 4}],
        "annotations": [{"core:sample_start": 0, "core:sample_count": 3, "core:label": "burst"}],
    }
    frames = sigmf.assemble("x", sigmf.parse("x", tree), as_bytes(data))
    assert [frame.symbols.shape for frame in frames] == [(4,), (6,)]
    assert [frame.number for frame in frames] == [0, 1]
    assert frames[0].snr_db is None
    assert frames[0].gain is None


def test_no_capture_segments_mean_one_frame():
    tree = document()
    tree["captures"], tree["annotations"] = [], []
    data = np.arange(6, dtype="<f4").tobytes()
    parsed = sigmf.parse("x", {**tree, "global": document(sha512=None)["global"]})
    assert [f.symbols.shape for f in sigmf.assemble("x", parsed, as_bytes(data))] == [(3,)]


def test_samples_between_frames_are_left_out():
    data = np.arange(40, dtype="<f4").tobytes()
    tree = document([make_frame(0, (1, 2, 3)), make_frame(1, (1, 2, 3))], sha512=None)
    tree["annotations"][0]["core:sample_start"] = 2
    tree["annotations"][1]["core:sample_start"] = 10
    frames = sigmf.assemble("x", sigmf.parse("x", tree), as_bytes(data))
    assert [frame.symbols.ravel()[0].real for frame in frames] == [4.0, 20.0]


HEADERS = [
    ("datatype", None, "E_SYM_DTYPE", "got nothing, expected one of cf32_le"),
    ("version", None, "E_SIGMF_VERSION", "got nothing, expected 1.x.y"),
    ("version", "2.0.0", "E_SIGMF_VERSION", 'got "2.0.0", expected 1.x.y'),
    ("version", 1, "E_SIGMF_META", "got 1, expected a string"),
    ("sha512", "beef", "E_SIGMF_HASH", 'got "beef", expected 128 hex digits'),
    ("offset", 5, "E_SIGMF_LAYOUT", "core:offset: got 5, expected 0"),
    ("trailing_bytes", 4, "E_SIGMF_LAYOUT", "core:trailing_bytes: got 4, expected 0"),
    ("metadata_only", True, "E_SIGMF_EMPTY", "got no samples, expected at least one frame"),
    (
        "extensions",
        [{"name": "cyclo", "version": "1.0.0", "optional": False}],
        "E_SIGMF_EXTENSION",
        'extensions/0: got "cyclo", expected only extensions that are optional',
    ),
    (
        "extensions",
        [{"name": "jscc", "version": "2.0.0", "optional": True}],
        "E_SIGMF_EXTENSION",
        'got "2.0.0", expected jscc 1.0.0',
    ),
    ("extensions", {"a": 1}, "E_SIGMF_META", "got an object of 1, expected a list"),
]


@pytest.mark.parametrize(("key", "value", "code", "words"), HEADERS)
def test_headers_that_are_refused(key, value, code, words):
    with pytest.raises(SymbolsError, match=re.escape(words)) as caught:
        sigmf.parse("x.sigmf-meta", document(**{key: value}))
    assert caught.value.code == code


FIELDS = [
    ("jscc:planes", 5, "E_SYM_COUNT", 'got "30 samples", expected planes/2 x rows x columns'),
    ("jscc:planes", 7, "E_SYM_COUNT", "of 7x2x5, planes even"),
    ("jscc:rows", 3, "E_SYM_COUNT", "of 6x3x5, planes even"),
    ("jscc:rows", None, "E_SIGMF_META", "jscc:rows: got nothing, expected an integer from 1"),
    ("jscc:height", -1, "E_SIGMF_META", "jscc:height: got -1, expected an integer from 1"),
    ("jscc:height", True, "E_SIGMF_META", "jscc:height: got true, expected an integer from 1"),
    ("jscc:width", 1e5, "E_SIGMF_META", "jscc:width: got 100000.0, expected an integer"),
    ("jscc:frame", 10**19, "E_SIGMF_META", "jscc:frame: got an integer of 64 bits, expected"),
    ("jscc:snr_db", "7", "E_SIGMF_META", 'jscc:snr_db: got "7", expected a finite number'),
    ("jscc:snr_db", True, "E_SIGMF_META", "jscc:snr_db: got true, expected a finite number"),
    ("jscc:gain", [1], "E_SIGMF_META", "jscc:gain: got a list of 1, expected [real, imaginary]"),
    ("jscc:gain", [1, "0"], "E_SIGMF_META", 'jscc:gain/1: got "0", expected a finite number'),
    ("jscc:bundle", 7, "E_SIGMF_META", "jscc:bundle: got 7, expected a string"),
    ("core:sample_start", None, "E_SIGMF_META", "sample_start: got nothing, expected an integer"),
    ("core:sample_count", 0, "E_SIGMF_META", "sample_count: got 0, expected an integer from 1"),
    ("core:sample_start", -5, "E_SIGMF_META", "sample_start: got -5, expected an integer from 0"),
]


@pytest.mark.parametrize(("key", "value", "code", "words"), FIELDS)
def test_annotations_that_are_refused(key, value, code, words):
    tree = document()
    tree["annotations"][0].pop(key)
    if value is not None:
        tree["annotations"][0][key] = value
    with pytest.raises(SymbolsError, match=re.escape(words)) as caught:
        sigmf.parse("x.sigmf-meta", tree)
    assert caught.value.code == code
    assert "/annotations/0" in caught.value.message


@pytest.mark.parametrize("tree", [None, [], 3, "x", {}, {"global": {}}, {"global": []}])
def test_documents_of_another_shape_are_refused(tree):
    with pytest.raises(SymbolsError, match=r"got .*, expected "):
        sigmf.parse("x.sigmf-meta", tree)


def test_frames_that_overlap_are_refused():
    tree = document([make_frame(0), make_frame(1)])
    tree["annotations"][1]["core:sample_start"] = 29
    with pytest.raises(SymbolsError, match=r"a frame at sample 29 after one at 0"):
        sigmf.parse("x", tree)


def test_too_many_frames_are_refused():
    tree = document([Frame(np.ones(1, np.complex64), 0)] * (sigmf.MAX_FRAMES + 1))
    with pytest.raises(SymbolsError, match="got 4097, expected at most 4096 frames"):
        sigmf.parse("x", tree)


def test_every_bit_of_the_samples_is_hashed():
    meta, data = sigmf.serialise([make_frame(0, (1, 1, 2))], recorder="test")
    parsed = sigmf.parse("x", json.loads(meta))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SymbolsError, match=r"got sha512 [0-9a-f]{16}…, expected"):
            sigmf.assemble("x", parsed, as_bytes(flipped))


def test_a_value_too_large_for_float32_is_left_to_the_receiver():
    data = np.array([1e300, 0.0], "<f8").tobytes()
    tree = document([make_frame(0, (1,))], datatype="cf64_le", sha512=None)
    (frame,) = sigmf.assemble("x", sigmf.parse("x", tree), as_bytes(data))
    assert np.isinf(frame.symbols.real).all()
