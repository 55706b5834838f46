"""The digital baselines as a measurement: the cliff, grey where nothing arrived, resumption."""

import argparse
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="PyAV is not installed; pip install 'jscc-edge[digital]'")
pytest.importorskip("sionna", reason="Sionna is not installed; pip install 'jscc-edge[digital]'")

from jscc.benchmarks.digital import hevc, suite
from jscc.benchmarks.digital.budget import ideal_bytes
from jscc.benchmarks.digital.schemes import Sender
from jscc.benchmarks.digital.tables import SCHEMES, table
from jscc.benchmarks.link import Link
from jscc.benchmarks.partial import Partial
from jscc.calibration.air import meet_channel
from jscc.calibration.metrics import ms_ssim, psnr_db
from jscc.runtime.errors import UsageError

CBR = Fraction(1, 48)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[:168, :176]
    waves = [np.sin(rows / (9 + c)) * np.cos(columns / 13) for c in range(3)]
    picture = (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "one.png")
    Image.fromarray(picture[::-1]).save(folder / "two.png")
    return folder


def measure(images, out, *arguments) -> dict:
    parser = argparse.ArgumentParser()
    suite.add_arguments(parser)
    words = ("--images", images, "--cbr", "1/48", "--json", out, *arguments)
    assert suite.run(parser.parse_args([str(word) for word in words])) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def result(images, tmp_path_factory):
    return measure(images, tmp_path_factory.mktemp("out") / "d.json", "--snr", "4,20")


def rows_of(result, **wanted):
    return [row for row in result["rows"] if all(row[k] == v for k, v in wanted.items())]


def test_the_cliff_shows(result):
    below = rows_of(result, scheme="hevc-ldpc", snr_db=4)
    above = rows_of(result, scheme="hevc-ldpc", snr_db=20)
    assert [row["decoded"] for row in below] == [False, False]
    assert [row["decoded"] for row in above] == [True, True]
    for lost, found in zip(below, above, strict=True):
        assert lost["bytes"] == found["bytes"]
        assert lost["received"]["psnr_db"] < found["received"]["psnr_db"] - 10


def test_what_is_lost_is_grey(images, result):
    image = np.array(Image.open(images / "one.png"))
    grey = np.full_like(image, 128)
    row = rows_of(result, scheme="hevc-ldpc", snr_db=4, image="one.png")[0]
    assert row["received"]["psnr_db"] == psnr_db(image, grey)
    assert row["received"]["ms_ssim"] == ms_ssim(image, grey)


def test_what_arrives_is_what_was_coded(images, result):
    image = np.array(Image.open(images / "one.png"))
    row = rows_of(result, scheme="hevc-ldpc", snr_db=20, image="one.png")[0]
    assert row["symbols"] == 168 * 176 * 3 // 48
    assert row["budget_bytes"] == row["symbols"] * 4 * 2 // 3 // 8
    coded = hevc.Still(image).within(row["budget_bytes"])
    assert (len(coded.data), coded.qp, coded.scale) == (row["bytes"], row["qp"], row["scale"])
    assert row["received"]["psnr_db"] == psnr_db(image, hevc.restore(coded))


def test_ideal_capacity_has_no_cliff(result):
    low, high = (rows_of(result, scheme="hevc-capacity", snr_db=snr_db)[0] for snr_db in (4, 20))
    assert low["decoded"]
    assert high["decoded"]
    assert low["bytes"] <= low["budget_bytes"] < high["budget_bytes"]
    assert low["received"]["psnr_db"] < high["received"]["psnr_db"]


def test_the_bound_is_above_the_code(result):
    # At 20 dB 16-QAM at rate 2/3 leaves 2.67 of 6.66 bits.
    code, bound = (rows_of(result, scheme=scheme, snr_db=20)[0] for scheme in SCHEMES)
    assert code["budget_bytes"] / bound["budget_bytes"] == pytest.approx(8 / 3 / 6.658, rel=0.01)


def test_the_table_says_how_many_arrived(result):
    lines = table(result).splitlines()
    assert lines[0].startswith("| scheme | cbr | SNR, dB | arrived, % | PSNR, dB |")
    assert lines[2].startswith("| HEVC-intra + LDPC 2/3 + 16-QAM | 1/48 | 4 | 0 |")
    assert lines[3].startswith("| HEVC-intra + LDPC 2/3 + 16-QAM | 1/48 | 20 | 100 |")
    assert len(lines) == 2 + 4


def test_the_result_says_how_it_was_coded(result, images):
    assert result["kind"] == "digital"
    assert (result["coder"]["preset"], result["coder"]["ldpc_iterations"]) == ("slow", 20)
    assert {"av", "x265"} <= set(result["coder"])
    assert str(images.parent) not in json.dumps(result)


def test_every_link_meets_the_same_channel(images, shared_bundles):
    image = np.array(Image.open(images / "one.png"))
    link = Link(shared_bundles["codec"].path, "rayleigh", None)
    csi, _ = meet_channel("rayleigh", "one.png", 9.0, 3)
    assert link.transmit(image, "one.png", 9.0, 3).csi == csi
    sent = Sender(image, "rayleigh").send("hevc-capacity", CBR, "one.png", 9.0, 3)
    assert sent.budget == ideal_bytes(168 * 176 * 3 // 48, csi)


def test_a_channel_that_carries_nothing_loses_the_image(images):
    image = np.array(Image.open(images / "one.png"))
    sender = Sender(image, "awgn")
    sent = sender.send("hevc-capacity", CBR, "one.png", -30.0, 0)
    assert (sent.coded, sent.decoded) == (None, False)
    assert np.all(sender.show(sent.arrived) == 128)


def test_an_interrupted_baseline_goes_on(images, tmp_path, monkeypatch):
    whole = measure(images, tmp_path / "whole.json", "--snr", "4", "--scheme", "hevc-ldpc")
    add = Partial.add

    def add_then_stop(self, row):
        if self.rows:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Partial, "add", add_then_stop)
    with pytest.raises(KeyboardInterrupt):
        measure(images, tmp_path / "cut.json", "--snr", "4", "--scheme", "hevc-ldpc")
    monkeypatch.setattr(Partial, "add", add)
    cut = measure(images, tmp_path / "cut.json", "--snr", "4", "--scheme", "hevc-ldpc")
    assert cut == whole


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--scheme", "bpg", "--scheme: got 'bpg', expected some of hevc-ldpc, hevc-capacity"),
        ("--cbr", "1/0", "--cbr: got '1/0', expected items .* a ratio such as 1/96"),
        ("--cbr", "-1/4", "--cbr: got '-1/4', expected items .* a ratio above 0"),
    ],
)
def test_options_of_the_baselines_are_checked(images, tmp_path, option, value, message):
    with pytest.raises(UsageError, match=message):
        measure(images, tmp_path / "d.json", f"{option}={value}")
