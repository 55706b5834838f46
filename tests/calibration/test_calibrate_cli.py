"""jscc calibrate: a bundle that opens, a report beside it, and one line for every refusal."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tiny_convolutions
from alexnet_weights import random_weights
from jscc.__main__ import main
from jscc.calibration.cli import parse_budget
from jscc.calibration.lpips import LPIPS_FILES
from jscc.calibration.options import middle, split_images, usual_snrs
from jscc.calibration.trials import Budget
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UsageError
from jscc.runtime.receiver import Receiver


@dataclass(frozen=True)
class Ran:
    """What a call left behind."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def bundle(self):
        return Bundle.open(self.folder / "out.jscc")


def call(folder, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["calibrate", *map(str, arguments)])
    return Ran(status, out.getvalue(), err.getvalue(), folder)


def calibrate(source, images, folder, *more):
    common = ("--snr", "0,10", "--steps", 2, "--threads", 1)
    output = folder / "out.jscc"
    return call(folder, source.path, "--images", images, "-o", output, *common, *more)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, pixels in tiny_convolutions.photos(4).items():
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module", params=["int8", "fp16"])
def ran(request, looped, images, tmp_path_factory):
    """One calibration of each precision."""
    folder = tmp_path_factory.mktemp(request.param)
    return calibrate(
        looped, images, folder, "--precision", request.param, "--budget", "psnr=0.5,agreement=20"
    )


def test_the_bundle_opens_and_passes_its_self_test(ran, request):
    assert ran.status == 0, ran.err
    assert ran.bundle.manifest.precision == request.node.callspec.params["ran"]
    Receiver(ran.bundle, selftest=True)


def test_the_bundle_the_report_and_its_plot_are_all_that_is_left(ran):
    assert {path.name for path in ran.folder.iterdir()} == {
        "out.jscc",
        "out.calibration.md",
        "out.calibration.svg",
    }


def test_the_manifest_says_how_it_was_made(ran):
    record = ran.bundle.manifest.calibration
    assert record["measured_receptions"] == 3 * 2
    assert record["tried_receptions"] == 1 * 2
    assert record["evaluations"]["denoise"] == 3 * 2 * 2
    assert record["budget"] == {"psnr": 0.5, "agreement": 20.0}
    assert record["crop"] == 256
    assert len(record["images"]) == 64
    json.dumps(record, allow_nan=False)


def test_the_report_names_layers_and_reasons(ran, request):
    report = (ran.folder / "out.calibration.md").read_text()
    assert "(out.calibration.svg)" in report
    if request.node.callspec.params["ran"] == "int8":
        assert "- last: makes a graph output: decode/last, denoise/exit" in report
        assert "- embedding, or another product with single vectors: denoise/time_embed" in report
    for key in ran.bundle.manifest.calibration["returned"]:
        assert f"| {key} | " in report
    ElementTree.fromstring((ran.folder / "out.calibration.svg").read_bytes())


def test_the_summary_tells_size_and_cost(ran):
    cost = ran.bundle.manifest.calibration["cost"]
    assert f"costs {cost['psnr']:.3f} dB PSNR" in ran.out
    assert "measured on 6 receptions, tried on 2" in ran.out
    assert ran.err.count("wrote") == 1


def test_it_can_be_one_file_and_replace_another(looped, images, tmp_path):
    options = ("--precision", "fp16", "--single-file")
    assert calibrate(looped, images, tmp_path, *options).status == 0
    again = calibrate(looped, images, tmp_path, *options)
    assert (again.status, again.out) == (73, "")
    assert "out.calibration.md': got " in again.err
    assert again.err.endswith("[E_OUTPUT_EXISTS]\n")
    assert calibrate(looped, images, tmp_path, *options, "--force").status == 0
    assert (tmp_path / "out.jscc").is_file()


def test_lpips_is_measured_where_its_weights_are(looped, images, tmp_path):
    weights = random_weights()
    for index, name in enumerate(LPIPS_FILES):
        part = {k: v for k, v in weights.items() if k.startswith("alex") == bool(index)}
        save_file(part, tmp_path / name)
    ran = calibrate(
        *(looped, images, tmp_path, "--precision", "fp16"),
        *("--lpips-weights", tmp_path, "--budget", "lpips=1"),
    )
    assert ran.status == 0, ran.err
    assert abs(ran.bundle.manifest.calibration["cost"]["lpips"]) < 1
    assert " LPIPS;" in ran.out


def refused(ran, said, code, status):
    """One line that says `said`, ends in `code`, and nothing written."""
    assert (ran.status, ran.out) == (status, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("jscc calibrate: ")
    assert said in line
    assert line.endswith(f"[{code}]")
    assert list(ran.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said", "code", "status"),
    [
        (["--budget", "psnr=much"], "--budget: got 'psnr=much', expected", "E_CALIBRATE", 2),
        (["--budget", "ssim=1"], "--budget: got 'ssim=1', expected psnr=", "E_CALIBRATE", 2),
        (["--budget", "psnr=1,psnr=2"], "--budget: got 'psnr=2', expected", "E_CALIBRATE", 2),
        (["--budget", "lpips=0.01"], "got lpips= without the metric's", "E_CALIBRATE", 2),
        (["--budget", "agreement=200"], "got a budget that no layer's", "E_BUDGET", 65),
        (["--stages", "decode,denoiser"], "--stages: got 'denoiser', expec", "E_CALIBRATE", 2),
        (["--limit", "2"], "--images: got 2, expected 3 or more", "E_IMAGES", 2),
        (["--snr", "0,loud"], "got '0,loud', expected numbers of dB", "E_USAGE", 2),
        (["--smooth", "1.5"], "got '1.5', expected 0 to 1", "E_USAGE", 2),
        (["--keep", "("], "got '(' (", "E_USAGE", 2),
        (["--ranges", "median"], "'median' (choose from", "E_USAGE", 2),
        (["--crop", "0"], "'0'", "E_USAGE", 2),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    looped, images, tmp_path, options, said, code, status
):
    refused(calibrate(looped, images, tmp_path, *options), said, code, status)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "lpips=0.01"], "got lpips= without the metric's"),
        (["--limit", "2"], "--images: got 2, expected 3 or more"),
        (["--precision", "fp16", "--ranges", "mse"], "--ranges: got it with precision fp16"),
        (["--precision", "fp16", "--smooth", "0.5"], "--smooth: got it with precision fp16"),
        (["--precision", "fp8", "--reduce-range"], "--reduce-range: got it with precision fp8"),
    ],
)
def test_what_no_bundle_can_be_calibrated_by_shows_before_there_is_one(
    images, tmp_path, options, said
):
    def check(*more):
        command = (tmp_path / "later.jscc", "--images", images, "-o", tmp_path / "out/x.jscc")
        return call(tmp_path, *command, "--check", *more)

    (tmp_path / "out").mkdir()
    ran = check(*options)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    ran = check()
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out/x.jscc").write_bytes(b"")
    assert "[E_EXISTS]" in check().err


def test_a_folder_without_images_is_named(looped, tmp_path, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    ran = calibrate(looped, empty, tmp_path)
    refused(ran, f"--images: got no image in '{empty}'", "E_IMAGES", 2)


def test_a_bundle_of_lower_precision_is_refused(ran, images, tmp_path):
    precision = ran.bundle.manifest.precision
    again = calibrate(ran.bundle, images, tmp_path)
    refused(again, f"bundle: got precision '{precision}', expected 'fp32'", "E_CALIBRATE", 2)


def test_an_output_folder_that_is_not_there_is_named(looped, images, tmp_path):
    output = tmp_path / "missing" / "out.jscc"
    ran = call(tmp_path, looped.path, "--images", images, "-o", output)
    refused(ran, f"got no folder '{tmp_path / 'missing'}'", "E_OUTPUT_FOLDER", 73)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("psnr=0.1", Budget(psnr=0.1)),
        ("psnr=.5, lpips=5e-3", Budget(psnr=0.5, lpips=0.005)),
        ("agreement=40,psnr=-1", Budget(psnr=-1.0, agreement=40.0)),
    ],
)
def test_a_budget_is_read(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "psnr", "psnr=", "psnr=nan", "psnr=inf", "psnr=0.1,"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="--budget: got '.*', expected psnr=DB, lpips=X"):
        parse_budget(text)


def test_each_image_is_either_measured_or_tried(tmp_path):
    for name, pixels in tiny_convolutions.photos(8).items():
        Image.fromarray(pixels).save(tmp_path / name)
    files = sorted(tmp_path.iterdir())
    split = split_images(files, 256)
    assert list(split.measured) == [f"{number}.png" for number in (0, 1, 3, 4, 6, 7)]
    assert list(split.tried) == ["2.png", "5.png"]
    np.testing.assert_array_equal(split.tried["5.png"], tiny_convolutions.photos(8)["5.png"])


@pytest.mark.parametrize(("height", "width"), [(10, 7), (4, 9), (3, 3), (5, 4)])
def test_the_middle_leaves_as_much_on_either_side(height, width):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    cut = middle(image, 4)
    assert cut.shape == (min(4, height), min(4, width), 3)
    top, left = max(0, height - 4) // 2, max(0, width - 4) // 2
    np.testing.assert_array_equal(cut[0, 0], image[top, left])


def test_the_usual_snrs_span_what_was_trained(looped):
    """The tiny bundle says 0 to 14 dB."""
    assert usual_snrs(looped.manifest) == (0.0, 3.5, 7.0, 10.5, 14.0)
