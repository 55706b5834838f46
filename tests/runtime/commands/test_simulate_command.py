"""jscc simulate: the same numbers as send, channel and receive one after the other."""

import os

import numpy as np
import pytest
from PIL import Image

from jscc.runtime.selftest import psnr_db


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("channel", ["awgn", "rayleigh"])
def test_it_equals_the_three_commands(jscc, link_bundle, photo, context, tmp_path, channel):
    bundle = link_bundle.path
    sampling = ("--seed", 3, "--context", context, "--steps", 2)
    ran = jscc(
        *("simulate", bundle, photo, "-o", tmp_path / "sim", "--json"),
        *("--snr", 5, "--channel", channel, *sampling),
    )
    assert ran.status == 0
    jscc("send", bundle, photo, "-o", tmp_path / "s.sigmf-meta", "--snr", 5)
    air = ("--snr", 5, "--channel", channel, "--seed", 3)
    jscc("channel", tmp_path / "s.sigmf-meta", "-o", tmp_path / "r.sigmf-meta", *air)
    jscc("receive", bundle, tmp_path / "r.sigmf-meta", "-o", tmp_path / "x.png", *sampling)
    received = pixels(tmp_path / "sim" / "photo-received.png")
    np.testing.assert_array_equal(received, pixels(tmp_path / "x.png"))
    (image,) = ran.json["images"]
    assert image["psnr_db"]["received"] == pytest.approx(psnr_db(received, pixels(photo)))
    assert image["cbr"] == pytest.approx(96 / (3 * 21 * 30))
    assert image["channel"] == channel
    assert (image["gain"] == [1.0, 0.0]) == (channel == "awgn")


def test_the_codec_alone_is_the_program_up_to_its_image(
    jscc, link_bundle, codec, photo, context, tmp_path
):
    """Both tiny bundles have one codec, so the codec's bundle gives the reference."""
    common = (photo, "--snr", 5, "--seed", 3, "--json")
    ran = jscc("simulate", link_bundle.path, *common, "--context", context)
    alone = jscc("simulate", codec, *common)
    expected = alone.json["images"][0]["psnr_db"]
    assert expected["codec"] is None
    assert ran.json["images"][0]["psnr_db"]["codec"] == pytest.approx(expected["received"])
    assert ran.json["outputs"] == []


def test_the_pictures(jscc, link_bundle, codec, photo, context, tmp_path):
    """Original, codec alone and received, enlarged by whole factors, in this order."""
    jscc(
        "simulate",
        link_bundle.path,
        photo,
        "-o",
        tmp_path / "sim",
        "--snr",
        5,
        "--context",
        context,
    )
    jscc("simulate", codec, photo, "-o", tmp_path / "codec", "--snr", 5)
    sheet = pixels(tmp_path / "sim" / "photo-compare.png")
    shown = [
        pixels(photo),
        pixels(tmp_path / "codec" / "photo-received.png"),
        pixels(tmp_path / "sim" / "photo-received.png"),
    ]
    factor = round(320 / 30)
    top, left = 16 + 2 * 20, 16  # the margin and a title of two lines' height
    for image in shown:
        large = image.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = large.shape[:2]
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], large)
        left += width + 16
    narrower = pixels(tmp_path / "codec" / "photo-compare.png")
    assert narrower.shape[1] < sheet.shape[1]


def test_the_table(jscc, link_bundle, photo, second_photo, context):
    ran = jscc("simulate", link_bundle.path, photo, second_photo, "--snr", 5, "--context", context)
    lines = ran.out.splitlines()
    assert lines[0].split() == [
        *("image", "size", "cbr", "SNR", "gain", "codec", "received", "steps", "ms"),
    ]
    assert [line.split()[1] for line in lines[2:]] == ["21x30", "40x16"]


def test_images_of_one_name_get_numbers(jscc, codec, photo, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "photo.png"
    twin.write_bytes(photo.read_bytes())
    jscc("simulate", codec, photo, twin, "--snr", 5, "-o", tmp_path / "sim")
    assert sorted(os.listdir(tmp_path / "sim")) == [
        "0000-photo-compare.png",
        "0000-photo-received.png",
        "0001-photo-compare.png",
        "0001-photo-received.png",
    ]


def test_frames_of_one_call_get_noise_of_their_own(jscc, codec, photo, tmp_path):
    ran = jscc("simulate", codec, photo, photo, "--snr", 5, "--json")
    powers = [image["record"]["power"] for image in ran.json["images"]]
    assert powers[0] != powers[1]


def test_outputs_are_refused_before_any_work(jscc, codec, photo, tmp_path):
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "photo-compare.png").write_text("precious")
    arguments = ("simulate", codec, photo, "--snr", 5, "-o")
    ran = jscc(*arguments, tmp_path / "sim")
    assert ran.status == 73
    assert os.listdir(tmp_path / "sim") == ["photo-compare.png"]
    assert jscc(*arguments, tmp_path / "sim", "--force").status == 0
    ran = jscc(*arguments, photo)
    assert ran.status == 73
    assert "expected a folder or a free name" in ran.err
    ran = jscc(*arguments, tmp_path / "no" / "where")
    assert ran.status == 73
    assert "[E_OUTPUT_FOLDER]" in ran.err
