"""jscc receive: the image of the receiver itself, and all that has to be said about it."""

import json

import numpy as np
import pytest
from PIL import Image

from jscc.runtime.csi import Csi
from jscc.runtime.frame import Frame
from jscc.runtime.receiver import Receiver
from jscc.runtime.symbol_files import read_symbols, write_symbols

GAIN = 0.6 - 0.8j


def make_frame(number=0, *, h=1.0, **about):
    """A frame of 12x16 pixels for the tiny bundles, received at 7 dB."""
    rng = np.random.default_rng(number)
    sent, noise = (rng.standard_normal((2, 4, 4, 2)) @ [1, 1j] / 2**0.5 for _ in range(2))
    received = h * sent + 10 ** (-7 / 20) * noise
    return Frame(received.astype(np.complex64), number, **{"size": (12, 16), **about})


@pytest.fixture
def recording(tmp_path):
    """One frame with all that is known of it."""
    path = tmp_path / "r.sigmf-meta"
    write_symbols(path, [make_frame(h=GAIN, snr_db=7.0, gain=GAIN)], force=False)
    return path


def make_recording(path, *frames):
    write_symbols(path, frames, force=True)
    return path


def pixels(path):
    return np.asarray(Image.open(path))


def test_the_image_is_the_receiver_s(jscc, shared_bundles, codec, recording, tmp_path):
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png")
    assert ran.status == 0
    (frame,) = read_symbols(recording).frames
    receiver = Receiver(shared_bundles["codec"])
    expected, _ = receiver.receive(frame.symbols, Csi(7.0, frame.gain), seed=0, size=(12, 16))
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), expected)
    assert "12x16" in ran.out
    assert "7 dB" in ran.out


def test_the_record_says_what_ran(jscc, codec, shared_bundles, recording, tmp_path):
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", "--json", "--seed", 9)
    assert ran.err == ""
    assert ran.json["bundle"] == shared_bundles["codec"].sha256
    assert ran.json["hashed"] is True
    (image,) = ran.json["images"]
    assert image["gain"] == pytest.approx([0.6, -0.8])
    assert image["snr_source"] == "file"
    assert image["output"] == str(tmp_path / "x.png")
    assert image["record"]["seed"] == 9
    assert image["record"]["snr_db_used"] == 7.0
    assert image["record"]["providers"] == {"decode": "cpu"}


def test_options_of_the_loop_reach_it(jscc, link_bundle, recording, context, tmp_path):
    common = ("receive", link_bundle.path, recording, "--context", context, "--json")
    chosen = ("--sampler", "ddpm", "--steps", 3, "--start", "received", "--start-level", 0.5)
    ran = jscc(*common, "-o", tmp_path / "a.png", *chosen, "--guidance", 2, "--seed", 1)
    loop = ran.json["images"][0]["record"]["loops"]["denoise"]
    assert (loop["sampler"], loop["steps"], loop["start"]) == ("ddpm", 3, "received")
    assert loop["level"] == pytest.approx(499, abs=1)
    assert loop["guidance"] == 2
    ran = jscc(*common, "-o", tmp_path / "b.png", "--start", "noise")
    loop = ran.json["images"][0]["record"]["loops"]["denoise"]
    assert (loop["sampler"], loop["steps"], loop["start"]) == ("ddim", 4, "noise")


def test_the_side_input_is_needed_and_used(jscc, link_bundle, recording, context, tmp_path):
    images = []
    for scale in (1, 5):
        np.save(context, np.full((1, 2, 5), 0.1 * scale, np.float32))
        path = tmp_path / f"{scale}.png"
        assert (
            jscc("receive", link_bundle.path, recording, "--context", context, "-o", path).status
            == 0
        )
        images.append(pixels(path))
    assert (images[0] != images[1]).any()
    ran = jscc("receive", link_bundle.path, recording, "-o", tmp_path / "x.png")
    assert ran.status == 2
    assert "expected context" in ran.err


def test_a_side_input_that_nobody_wants(jscc, codec, recording, context, tmp_path):
    ran = jscc("receive", codec, recording, "--context", context, "-o", tmp_path / "x.png")
    assert ran.status == 2
    assert "expected a bundle with one side input; this one has none" in ran.err


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 2, 5), np.float64), "got dtype '<f8', expected little-endian float32"),
        (np.full((1, 2, 5), np.nan, np.float32), "got values that are not finite"),
    ],
)
def test_a_side_input_that_cannot_be_used(
    jscc, link_bundle, recording, context, tmp_path, array, words
):
    np.save(context, array)
    ran = jscc(
        "receive", link_bundle.path, recording, "--context", context, "-o", tmp_path / "x.png"
    )
    assert ran.status == 65
    assert words in ran.err


def test_the_command_line_wins_over_the_file(jscc, codec, recording, tmp_path):
    ran = jscc(
        *("receive", codec, recording, "-o", tmp_path / "x.png", "--json"),
        *("--snr", 6.5, "--gain", "1,0", "--size", "16x15"),
    )
    (image,) = ran.json["images"]
    assert image["snr_source"] == "option"
    assert image["gain"] == [1.0, 0.0]
    assert image["record"]["snr_db_declared"] == 6.5
    assert pixels(tmp_path / "x.png").shape == (16, 15, 3)


def test_without_an_snr_the_default_is_used_and_said(jscc, codec, tmp_path):
    path = make_recording(tmp_path / "r.sigmf-meta", make_frame())
    ran = jscc("receive", codec, path, "-o", tmp_path / "x.png", "--json")
    assert ran.json["images"][0]["snr_source"] == "default"
    assert "the bundle's default of 7 dB is used; give --snr DB" in ran.err
    ran = jscc("receive", codec, path, "-o", tmp_path / "y.png", "--strict")
    assert ran.status == 65
    assert "got no SNR, expected one. Give --snr DB. [E_SNR_MISSING]" in ran.err
    assert not (tmp_path / "y.png").exists()


def test_an_snr_out_of_range_is_clamped_and_said(jscc, codec, recording, tmp_path):
    arguments = ("receive", codec, recording, "--snr", 20)
    ran = jscc(*arguments, "-o", tmp_path / "x.png", "--json")
    assert ran.json["images"][0]["record"]["snr_clamped"] is True
    assert "SNR 20 dB is outside the trained range, 14 dB was used" in ran.err
    ran = jscc(*arguments, "-o", tmp_path / "y.png", "--strict")
    assert ran.status == 65
    assert "[E_CSI_RANGE]" in ran.err


def test_an_snr_that_lies_is_flagged(jscc, codec, tmp_path):
    rng = np.random.default_rng(0)
    symbols = (rng.standard_normal((2, 64, 64, 2)) @ [1, 1j]).astype(np.complex64)  # power 2: 0 dB
    path = make_recording(tmp_path / "r.sigmf-meta", Frame(symbols, 0, snr_db=12.0))
    ran = jscc("receive", codec, path, "-o", tmp_path / "x.png", "--json")
    assert ran.json["images"][0]["record"]["snr_suspect"] is True
    assert "SNR 12 dB was declared, the symbols speak for " in ran.err


def test_symbols_of_another_bundle_are_remarked_on(jscc, codec, tmp_path):
    path = make_recording(tmp_path / "r.sigmf-meta", make_frame(snr_db=7.0, bundle="c" * 64))
    ran = jscc("receive", codec, path, "-o", tmp_path / "x.png")
    assert ran.status == 0
    assert "got bundle cccccccccccccccc, expected" in ran.err
    ran = jscc("receive", codec, path, "-o", tmp_path / "y.png", "--strict")
    assert ran.status == 65
    assert "[E_SYM_BUNDLE]" in ran.err


def test_npy_gives_the_whole_padded_grid(jscc, codec, tmp_path):
    np.save(tmp_path / "r.npy", make_frame().symbols)
    ran = jscc("receive", codec, tmp_path / "r.npy", "-o", tmp_path / "x.png", "--snr", 7)
    assert ran.status == 0
    assert pixels(tmp_path / "x.png").shape == (16, 16, 3)


def test_flat_symbols_need_the_size(jscc, codec, tmp_path):
    np.save(tmp_path / "r.npy", make_frame().symbols.ravel())
    arguments = ("receive", codec, tmp_path / "r.npy", "-o", tmp_path / "x.png", "--snr", 7)
    ran = jscc(*arguments)
    assert ran.status == 65
    assert "[E_SYM_COUNT]" in ran.err
    assert jscc(*arguments, "--size", "12x16").status == 0
    assert pixels(tmp_path / "x.png").shape == (12, 16, 3)


@pytest.fixture
def three(tmp_path):
    """A recording of the frames 3, 4 and 8."""
    frames = [make_frame(number, h=GAIN, snr_db=7.0, gain=GAIN) for number in (3, 4, 8)]
    return make_recording(tmp_path / "three.sigmf-meta", *frames)


def test_several_frames_become_numbered_images(jscc, codec, three, tmp_path):
    ran = jscc("receive", codec, three, "-o", tmp_path / "x.png", "--json")
    assert [image["record"]["frame"] for image in ran.json["images"]] == [3, 4, 8]
    paths = [tmp_path / f"x-000{index}.png" for index in range(3)]
    assert [image["output"] for image in ran.json["images"]] == [str(path) for path in paths]
    assert all(pixels(path).shape == (12, 16, 3) for path in paths)


def test_one_frame_can_be_picked(jscc, codec, three, tmp_path):
    jscc("receive", codec, three, "-o", tmp_path / "all.png")
    assert jscc("receive", codec, three, "-o", tmp_path / "x.png", "--frame", 4).status == 0
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "all-0001.png"))
    ran = jscc("receive", codec, three, "-o", tmp_path / "y.png", "--frame", 5)
    assert ran.status == 2
    assert "--frame: got 5, expected one of 3, 4, 8" in ran.err


def test_one_existing_output_of_several_stops_all(jscc, codec, three, tmp_path):
    (tmp_path / "x-0002.png").write_text("precious")
    ran = jscc("receive", codec, three, "-o", tmp_path / "x.png")
    assert ran.status == 73
    assert "x-0002.png': got a file that exists" in ran.err
    assert not (tmp_path / "x-0000.png").exists()


def test_no_image_is_written_for_symbols_that_are_refused(jscc, codec, tmp_path):
    frame = make_frame(snr_db=7.0)
    frame.symbols[1, 2, 3] = np.nan
    path = make_recording(tmp_path / "r.sigmf-meta", frame)
    ran = jscc("receive", codec, path, "-o", tmp_path / "x.png", "--json")
    assert (ran.status, ran.out) == (65, "")
    assert "[E_SYM_NONFINITE]" in ran.err
    assert not (tmp_path / "x.png").exists()


def test_other_picture_formats_are_refused(jscc, codec, recording, tmp_path):
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.jpg")
    assert ran.status == 2
    assert "x.jpg', expected NAME.png" in ran.err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--steps", "0", "got '0', expected a whole number from 1 to 100000"),
        ("--steps", "1e3", "got '1e3', expected a whole number from 1 to 100000"),
        ("--seed", "-1", "expected"),
        ("--seed", str(2**63), f"expected a whole number from 0 to {2**63 - 1}"),
        ("--start-level", "1.5", "got '1.5', expected more than 0 and at most 1"),
        ("--guidance", "-1", "expected"),
        ("--size", "12", "got '12', expected HEIGHTxWIDTH such as 512x768"),
        ("--size", "0x4", "got '0x4', expected HEIGHTxWIDTH"),
        ("--start", "middle", "invalid choice: 'middle'"),
        ("--sampler", "nope", "got 'nope', expected one of ddim, ddnm, ddpm"),
        ("--frobnicate", "1", "unrecognized arguments"),
    ],
)
def test_options_that_make_no_sense(
    jscc, link_bundle, recording, context, tmp_path, option, value, words
):
    arguments = ("-o", tmp_path / "x.png", "--context", context, option, value)
    ran = jscc("receive", link_bundle.path, recording, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_options_of_a_loop_for_a_bundle_without_one(jscc, codec, recording, tmp_path):
    ran = jscc("receive", codec, recording, "-o", tmp_path / "x.png", "--steps", 3)
    assert ran.status == 2
    assert "this bundle has no loop" in ran.err


def test_stdout_holds_nothing_but_the_json(jscc, codec, three, tmp_path):
    """Whatever has to be remarked on: the clamp and the missing hash here."""
    tree = json.loads(three.read_text())
    del tree["global"]["core:sha512"]
    three.write_text(json.dumps(tree))
    ran = jscc("receive", codec, three, "-o", tmp_path / "x.png", "--json", "--snr", 99)
    assert len(ran.json["images"]) == 3
    assert ran.json["hashed"] is False
    assert ran.err.count("outside the trained range") == 3
