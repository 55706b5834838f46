"""The commands with a bundle that has several rates and side values."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import rated_bundle
from jscc.runtime.sides import host_sides


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return rated_bundle.write_rated(tmp_path_factory.mktemp("rated") / "rated.jscc").path


@pytest.mark.parametrize("suffix", [".sigmf-meta", ".npz"])
@pytest.mark.parametrize("rate", [2, 8])
def test_symbols_and_side_values_go_from_file_to_file(jscc, rated, photo, tmp_path, rate, suffix):
    sent, received = tmp_path / f"sent{suffix}", tmp_path / f"received{suffix}"
    ran = jscc("send", rated, photo, "-o", sent, "--rate", rate, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["images"][0]["symbols"] == rate // 2 * 6 * 8
    assert jscc("channel", sent, "-o", received, "--snr", "9", "--seed", "5").status == 0
    picture = tmp_path / "out.png"
    asked = ["--snr", "9", "--size", "21x30"]
    ran = jscc("receive", rated, received, "-o", picture, *asked, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["images"][0]["record"]["rate"] == rate
    with Image.open(picture) as image:
        assert image.size == (30, 21)
    together = jscc("simulate", rated, photo, "--snr", "9", "--seed", "5", "--rate", rate, "--json")
    record = together.json["images"][0]["record"]
    assert (record["rate"], record["symbols"]) == (rate, rate // 2 * 6 * 8)
    assert record["power"] == pytest.approx(ran.json["images"][0]["record"]["power"], rel=1e-6)


def test_simulate_gives_what_send_channel_and_receive_give(jscc, rated, photo, tmp_path):
    sent, received = tmp_path / "sent.sigmf-meta", tmp_path / "received.sigmf-meta"
    jscc("send", rated, photo, "-o", sent)
    jscc("channel", sent, "-o", received, "--snr", "3", "--seed", "1")
    jscc("receive", rated, received, "-o", tmp_path / "a.png")
    ran = jscc("simulate", rated, photo, "--snr", "3", "--seed", "1", "-o", tmp_path / "out")
    assert ran.status == 0, ran.err
    one, other = (
        np.asarray(Image.open(path))
        for path in (tmp_path / "a.png", tmp_path / "out" / f"{photo.stem}-received.png")
    )
    np.testing.assert_array_equal(one, other)


def test_inspect_lists_the_rates(jscc, rated):
    ran = jscc("inspect", rated)
    assert "2 (cbr 1/48), 4 (cbr 1/24), 8 (cbr 1/12) planes" in ran.out
    assert "power (sent), mask (sent)" in ran.out
    assert jscc("inspect", rated, "--json").json["manifest"]["signal"]["rates"] == [2, 4, 8]


REFUSED = [
    (["--rate", "3"], 2, "rate: got 3, expected one of 2, 4, 8. Leave it out to send all 8 planes"),
    (["--rate", "0"], 2, "got '0', expected a whole number from 1 to 100000"),
    (["--rate", "1/48"], 2, "got '1/48', expected a whole number from 1 to 100000"),
]


@pytest.mark.parametrize("command", ["send", "simulate"])
@pytest.mark.parametrize(("options", "status", "words"), REFUSED)
def test_rates_that_make_no_sense(jscc, rated, photo, tmp_path, command, options, status, words):
    more = ["-o", tmp_path / "s.npz"] if command == "send" else ["--snr", "7"]
    ran = jscc(command, rated, photo, *more, *options)
    assert (ran.status, ran.out) == (status, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "s.npz").exists()


def test_a_rate_for_a_bundle_without_a_choice(jscc, codec, photo, tmp_path):
    ran = jscc("send", codec, photo, "-o", tmp_path / "s.npy", "--rate", "2")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "rate: got 2, expected none, this bundle has one rate only" in ran.err


def test_a_file_that_cannot_carry_them_is_refused_before_any_work(jscc, rated, photo, tmp_path):
    ran = jscc("send", rated, tmp_path / "none.png", "-o", tmp_path / "s.npy")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "expected NAME.sigmf-meta or NAME.npz: this bundle's receiver is given more" in ran.err


CHANGES = [
    (lambda side: None, "side: got none, expected mask, power. Give these and no others."),
    (lambda side: {**side, "mask": [1, 0]}, "side 'mask': got float32[2], expected float32[1,8]"),
    (lambda side: {**side, "more": [1]}, "side: got mask, more, power, expected mask, power."),
    (lambda side: {**side, "power": ["x"]}, 'jscc:side/power/0: got "x", expected a finite number'),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_side_values_of_a_file_are_held_to_the_bundle(jscc, rated, photo, tmp_path, change, words):
    meta = tmp_path / "s.sigmf-meta"
    jscc("send", rated, photo, "-o", meta)
    document = json.loads(meta.read_text())
    annotation = document["annotations"][0]
    side = change(annotation.pop("jscc:side"))
    if side is not None:
        annotation["jscc:side"] = side
    meta.write_text(json.dumps(document))
    ran = jscc("receive", rated, meta, "-o", tmp_path / "out.png", "--snr", "7")
    assert ran.status in (2, 65)
    assert re.search(re.escape(words), ran.err)
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_side_values_for_a_bundle_that_takes_none(jscc, rated, codec, photo, tmp_path):
    meta = tmp_path / "s.sigmf-meta"
    jscc("send", rated, photo, "-o", meta, "--rate", "4")
    ran = jscc("receive", codec, meta, "-o", tmp_path / "out.png", "--snr", "7")
    assert ran.status == 2
    assert "side: got mask, power, expected none" in ran.err


def test_context_is_no_way_to_give_them(jscc, rated, photo, tmp_path, context):
    ran = jscc("simulate", rated, photo, "--snr", "7", "--context", context)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "expected a bundle with one side input; this one has none" in ran.err


def test_the_codec_alone_is_given_what_the_transmitter_sent(jscc, photo, tmp_path):
    """The host's own side input comes from its file and goes to the stage behind the codec."""
    bundle = rated_bundle.write_longer(tmp_path / "longer.jscc")
    assert host_sides(bundle.manifest) == ("tint",)
    np.save(tmp_path / "tint.npy", np.full((1, 3, 1, 1), 0.9, np.float32))
    asked = ["--snr", "7", "--rate", "4", "--context", tmp_path / "tint.npy", "--json"]
    ran = jscc("simulate", bundle.path, photo, *asked)
    assert ran.status == 0, ran.err
    psnr = ran.json["images"][0]["psnr_db"]
    assert psnr["codec"] != psnr["received"]
