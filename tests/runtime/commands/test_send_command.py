"""jscc send: what lands in the file is what the transmitter makes of the upright RGB picture."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.csi import Csi
from jscc.runtime.symbol_files import read_symbols
from jscc.runtime.transmitter import Transmitter


@pytest.mark.parametrize("name", ["s.sigmf-meta", "s.npy"])
def test_the_file_holds_what_the_transmitter_sends(jscc, codec, photo, tmp_path, name):
    ran = jscc("send", codec, photo, "-o", tmp_path / name)
    assert ran.status == 0
    (frame,) = read_symbols(tmp_path / name).frames
    bundle = Bundle.open(codec)
    expected = Transmitter(bundle).send(np.asarray(Image.open(photo)), csi=Csi(7.0))
    np.testing.assert_array_equal(frame.symbols, expected)
    assert np.mean(np.abs(frame.symbols) ** 2) == pytest.approx(1.0, rel=1e-5)
    if name.endswith("meta"):
        assert frame.size == (21, 30)
        assert frame.bundle == bundle.sha256
        assert frame.snr_db is None  # no channel yet


def test_the_result_as_json(jscc, codec, photo, tmp_path):
    ran = jscc("send", codec, photo, "-o", tmp_path / "s.npy", "--json")
    (image,) = ran.json["images"]
    assert image["size"] == [21, 30]
    assert image["symbols"] == 2 * 6 * 8
    assert image["cbr"] == pytest.approx(96 / (3 * 21 * 30))
    assert ran.json["output"] == str(tmp_path / "s.npy")


def test_several_images_become_frames(jscc, codec, photo, second_photo, tmp_path):
    ran = jscc("send", codec, photo, second_photo, "-o", tmp_path / "s.sigmf-meta")
    assert ran.status == 0
    assert "photo.png" in ran.out
    frames = read_symbols(tmp_path / "s.sigmf-meta").frames
    assert [frame.size for frame in frames] == [(21, 30), (40, 16)]
    assert [frame.number for frame in frames] == [0, 1]


def test_several_sizes_do_not_fit_in_npy(jscc, codec, photo, second_photo, tmp_path):
    ran = jscc("send", codec, photo, second_photo, "-o", tmp_path / "s.npy")
    assert ran.status == 65
    assert "got images of 2 sizes, expected one for .npy. Write .sigmf-meta instead" in ran.err
    assert not (tmp_path / "s.npy").exists()


def test_a_bundle_without_a_transmitter(jscc, shared_bundles, photo, tmp_path):
    ran = jscc("send", shared_bundles["diffusion"].path, photo, "-o", tmp_path / "s.npy")
    assert ran.status == 65
    assert "got no 'encode' stage" in ran.err


def test_notices_about_the_picture_go_to_stderr(jscc, codec, tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    ran = jscc("send", codec, path, "-o", tmp_path / "s.npy", "--json")
    assert ran.status == 0
    assert "transparency flattened onto white" in ran.err
    assert ran.json["images"][0]["size"] == [16, 16]


@pytest.fixture
def fading_bundle(tmp_path):
    """A codec whose transmitter declares that it is told the gain."""
    manifest, files = tiny_bundle.codec()
    signal = replace(manifest.signal, csi_inputs=("snr_db", "gain"), transmitter_csi=True)
    manifest = replace(manifest, signal=signal)
    return write_bundle(tmp_path / "fading.jscc", manifest, files).path


def test_a_transmitter_that_has_to_know_the_gain(jscc, fading_bundle, photo, tmp_path):
    arguments = ("send", fading_bundle, photo, "-o", tmp_path / "s.npy", "--snr", 20)
    ran = jscc(*arguments)
    assert ran.status == 65
    assert "--gain: got nothing, expected the channel's gain" in ran.err
    ran = jscc(*arguments, "--gain", "0.6,-0.8")
    assert ran.status == 0
    assert ran.err == ("jscc send: SNR 20 dB is outside the trained range, 14 dB is used\n")


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda path: None, 65, "got nothing, expected a regular file"),
        (lambda path: path.mkdir(), 65, "got a directory, expected a regular file"),
        (lambda path: os.mkfifo(path), 65, "got a FIFO, expected a regular file"),
        (lambda path: path.write_text("hello"), 65, "got 5 bytes that begin with b'hello'"),
        (lambda path: path.write_bytes(b""), 65, "got an empty file"),
    ],
)
def test_what_is_no_image(jscc, codec, tmp_path, make, status, words):
    make(tmp_path / "a.png")
    ran = jscc("send", codec, tmp_path / "a.png", "-o", tmp_path / "s.npy")
    assert (ran.status, ran.out) == (status, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "s.npy").exists()


def test_a_picture_behind_a_link_is_read(jscc, codec, photo, tmp_path):
    (tmp_path / "link.png").symlink_to(photo)
    assert jscc("send", codec, tmp_path / "link.png", "-o", tmp_path / "s.npy").status == 0


def test_the_output_is_refused_before_any_work(jscc, photo, tmp_path):
    """Even the bundle is not opened: its absence is not what is complained about."""
    (tmp_path / "s.npy").write_text("precious")
    ran = jscc("send", tmp_path / "none", photo, "-o", tmp_path / "s.npy")
    assert ran.status == 73
    assert "expected a free name" in ran.err
    ran = jscc("send", tmp_path / "none", photo, "-o", tmp_path / "s.wav")
    assert ran.status == 2
    assert "expected NAME.sigmf-meta, NAME.npz or NAME.npy" in ran.err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--snr", "nan", "got 'nan', expected a finite number"),
        ("--snr", "seven", "got 'seven', expected a number"),
        ("--snr", "5000", "got '5000', expected -1000 to 1000 dB"),
        ("--gain", "1", "got '1', expected RE,IM such as 0.6,-0.8"),
        ("--gain", "0,0", "got '0,0', expected a gain other than 0"),
        ("--gain", "inf,0", "got 'inf', expected a finite number"),
        ("--threads", "0", "got '0', expected a whole number from 1 to 100000"),
        ("--provider", "NopeEP", "got 'NopeEP', expected names of cpu"),
    ],
)
def test_options_that_make_no_sense(jscc, codec, photo, tmp_path, option, value, words):
    ran = jscc("send", codec, photo, "-o", tmp_path / "s.npy", option, value)
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1
