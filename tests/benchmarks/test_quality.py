"""The quality benchmark on tiny bundles: every figure recomputed by hand, and resumption."""

import argparse
import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from jscc.benchmarks import cli, quality
from jscc.benchmarks.link import Link
from jscc.benchmarks.partial import Partial
from jscc.benchmarks.sweep import KEY
from jscc.calibration.metrics import ms_ssim, psnr_db
from jscc.runtime.backends import openvino
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.channel import pass_through
from jscc.runtime.choices import Choices
from jscc.runtime.csi import Csi
from jscc.runtime.errors import OutputError, UnavailableError, UsageError
from jscc.runtime.manifest import TensorEntry
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The tiny diffusion receiver with the tiny codec's transmitter and a constant context."""
    codec, codec_files = tiny_bundle.codec()
    whole, files = tiny_bundle.diffusion()
    files["graphs/encode.onnx"] = codec_files["graphs/encode.onnx"]
    files["tensors/context.npy"] = tiny_bundle.npy(np.ones((1, 2, 5), np.float32))
    manifest = dataclasses.replace(
        whole,
        stages={**whole.stages, "encode": codec.stages["encode"]},
        tensors={
            **whole.tensors,
            "context": TensorEntry("tensors/context.npy", "float32", (1, 2, 5)),
        },
        side_inputs=(),
    )
    path = tmp_path_factory.mktemp("quality") / "whole.jscc"
    write_bundle(path, manifest, files)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A picture large enough for every metric, and one that is too small for MS-SSIM."""
    folder = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[:168, :176]
    waves = [np.sin(rows / (9 + c)) * np.cos(columns / 13) for c in range(3)]
    picture = (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "large.png")
    Image.fromarray(picture[:40, :56]).save(folder / "small.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def timeless(document):
    """A result without what the clock says."""
    for row in document["rows"]:
        del row["times_ms"]
    for mean in document["means"]:
        del mean["seconds"]
    return document


def measure(*arguments) -> int:
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    return quality.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def result(bundle, images, tmp_path, capsys):
    """The result file of a small measurement, and what was printed."""
    out = tmp_path / "out.json"
    arguments = (bundle, "--images", images, "--snr", "1,13", "--steps", "1,3", "--seeds", 2)
    assert measure(*arguments, "--json", out) == 0
    return json.loads(out.read_text()), capsys.readouterr().out


def test_there_is_a_row_for_everything(result):
    rows = result[0]["rows"]
    keys = {tuple(row[name] for name in KEY) for row in rows}
    assert len(rows) == len(keys) == 2 * 2 * 2 * 2
    assert {row["ran"] for row in rows} == {"ddim, 1 steps", "ddim, 3 steps"}


def test_a_row_is_what_the_api_gives(bundle, images, result):
    row = next(
        row
        for row in result[0]["rows"]
        if (row["image"], row["snr_db"], row["steps"], row["seed"]) == ("large.png", 13, 3, 1)
    )
    opened = Bundle.open(bundle)
    image = np.array(Image.open(images / "large.png"))
    csi = Csi(13.0)
    sent = Link(bundle, "awgn", None).transmit(image, "large.png", 13.0, 1)
    frame = zlib.crc32(b"large.png")
    assert sent.frame == frame
    symbols = Transmitter(opened).send(image, csi=csi)
    noise = np.random.default_rng([1, frame, 1_013_000])
    received = pass_through(symbols, csi, rng=noise)
    np.testing.assert_array_equal(sent.symbols, received)
    output, _ = Receiver(opened).receive(
        received, csi, seed=1, frame=frame, steps=3, size=image.shape[:2]
    )
    assert row["received"]["psnr_db"] == psnr_db(image, output)
    assert row["received"]["ms_ssim"] == ms_ssim(image, output)
    assert row["received"]["lpips"] is None
    assert row["cbr"] == symbols.size / image.size


def test_the_codec_alone_is_its_decode_stage(bundle, images):
    image = np.array(Image.open(images / "small.png"))
    link = Link(bundle, "awgn", None)
    received = link.transmit(image, "small.png", 7.0, 0)
    alone = link.codec(received)
    manifest, files = tiny_bundle.codec()
    path = bundle.with_name("codec.jscc")
    if not path.exists():
        write_bundle(path, manifest, files)
    expected, _ = Receiver(Bundle.open(path)).receive(
        received.symbols, received.csi, seed=0, size=image.shape[:2]
    )
    np.testing.assert_array_equal(alone, expected)
    assert Link(path, "awgn", None).codec(received) is None


def test_the_codec_meets_the_same_noise_whatever_the_steps(result):
    groups = {}
    for row in result[0]["rows"]:
        key = (row["image"], row["snr_db"], row["seed"])
        groups.setdefault(key, []).append((row["steps"], row["codec"], row["received"]))
    for (_, codec, received), (_, other_codec, other_received) in groups.values():
        assert codec == other_codec
        assert received != other_received


def test_seeds_and_snrs_draw_other_noise(bundle, images):
    image = np.array(Image.open(images / "small.png"))
    link = Link(bundle, "awgn", None)
    drawn = [
        link.transmit(image, name, snr_db, seed).symbols.tobytes()
        for name in ("a", "b")
        for snr_db in (1.0, 1.5)
        for seed in (0, 1)
    ]
    assert len(set(drawn)) == 8


def test_fading_is_known_to_the_receiver(bundle, images):
    image = np.array(Image.open(images / "small.png"))
    received = Link(bundle, "rayleigh", None).transmit(image, "small.png", 60.0, 0)
    plain = Link(bundle, "awgn", None).transmit(image, "small.png", 60.0, 0)
    assert abs(received.csi.gain) != 1
    np.testing.assert_allclose(received.symbols / received.csi.gain, plain.symbols, atol=0.02)


def test_means_are_over_images_and_seeds(result):
    document = result[0]
    mean = next(m for m in document["means"] if (m["steps"], m["snr_db"]) == (1, 13))
    rows = [row for row in document["rows"] if (row["steps"], row["snr_db"]) == (1, 13)]
    assert mean["rows"] == len(rows) == 4
    for side in ("codec", "received"):
        values = [row[side]["psnr_db"] for row in rows]
        assert mean[side]["psnr_db"] == pytest.approx(np.mean(values))
    # One image is too small for it: no mean over the others that would pass for all.
    assert mean["received"]["ms_ssim"] is None


def test_more_noise_is_worse(result):
    means = {(m["steps"], m["snr_db"]): m["codec"]["psnr_db"] for m in result[0]["means"]}
    assert means[1, 1] < means[1, 13]


def test_the_table_has_a_line_for_each_mean(result):
    document, printed = result
    lines = printed.strip().splitlines()
    assert lines[0].startswith("| receiver | SNR, dB | PSNR, dB, codec | PSNR, dB, received |")
    assert len(lines) == 2 + len(document["means"])
    assert quality.table(document).strip() == printed.strip()


def test_the_result_says_what_was_measured_and_no_folder(result, images):
    document = result[0]
    assert document["kind"] == "quality"
    assert document["names"] == ["large.png", "small.png"]
    assert document["bundles"][0]["name"] == "whole"
    assert str(images.parent) not in json.dumps(document)


def test_an_interrupted_measurement_goes_on(bundle, images, tmp_path, monkeypatch):
    arguments = (bundle, "--images", images, "--snr", "1,13", "--steps", "1,3")
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    measure(*arguments, "--json", whole)
    add, limit = Partial.add, 5

    def add_then_stop(self, row):
        if len(self.rows) == limit:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Partial, "add", add_then_stop)
    with pytest.raises(KeyboardInterrupt):
        measure(*arguments, "--json", cut)
    partial = tmp_path / "cut.json.partial"
    partial.write_text(partial.read_text() + '{"half a li')
    assert not cut.exists()
    monkeypatch.setattr(Partial, "add", add)
    measure(*arguments, "--json", cut)
    first, second = (json.loads(path.read_text()) for path in (whole, cut))
    assert timeless(first) == timeless(second)
    assert not partial.exists()


def test_side_inputs_reach_the_bundles_that_take_them(bundle, images, tmp_path):
    """The same context, once inside the bundle and once from a file, beside a codec alone."""
    manifest, files = tiny_bundle.diffusion()
    codec, codec_files = tiny_bundle.codec()
    files["graphs/encode.onnx"] = codec_files["graphs/encode.onnx"]
    stages = {**manifest.stages, "encode": codec.stages["encode"]}
    asking = tmp_path / "asking.jscc"
    write_bundle(asking, dataclasses.replace(manifest, stages=stages), files)
    np.save(tmp_path / "ones.npy", np.ones((1, 2, 5), np.float32))
    side = ("--side", f"context={tmp_path / 'ones.npy'}")
    common = ("--images", images, "--limit", 1, "--snr", "7", "--steps", 2)
    measure(bundle, *common, "--json", tmp_path / "inside.json")
    measure(asking, bundle, *common, *side, "--json", tmp_path / "given.json")
    inside, given = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("inside", "given"))
    assert "sides" not in inside
    assert list(given["sides"]) == ["context"]
    (expected,) = timeless(inside)["rows"]
    for number, row in enumerate(timeless(given)["rows"]):
        assert row == {**expected, "bundle": number}
    with pytest.raises(UsageError, match=r"--side: got 'context', expected none: nothing takes it"):
        measure(bundle, *common, *side, "--json", tmp_path / "none.json")


@pytest.mark.slow
def test_two_workers_make_the_rows_of_one(bundle, images, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    arguments = (bundle, "--images", images, "--snr", "1,13", "--steps", "1,3", "--threads", 1)
    measure(*arguments, "--json", one)
    measure(*arguments, "--json", two, "--workers", 2)
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert timeless(first) == timeless(second)
    assert len(second["rows"]) == 8


def test_rows_say_the_threads_of_the_engine(bundle, images, tmp_path):
    arguments = (bundle, "--images", images, "--limit", 1, "--snr", "7", "--threads", 1)
    measure(*arguments, "--json", tmp_path / "o.json")
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["rows"][0]["threads"] == document["means"][0]["threads"] == 1
    times = document["rows"][0]["times_ms"]["total"]
    assert document["means"][0]["seconds"] == pytest.approx(times / 1e3)


def test_bundles_take_the_options_that_they_have(bundle, images, tmp_path, capsys):
    codec = tmp_path / "codec.jscc"
    tiny_bundle.write_codec(codec)
    arguments = (codec, bundle, "--images", images, "--limit", 1, "--snr", "7", "--steps", "1,2")
    measure(*arguments, "--guidance", "0,3", "--json", tmp_path / "o.json")
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["bundles"][0]["settings"] == [{}]
    assert document["bundles"][1]["settings"] == [
        {"steps": steps, "guidance": weight} for steps in (1, 2) for weight in (0.0, 3.0)
    ]
    assert len(document["rows"]) == 1 + 4
    assert "| codec, codec | 7 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--set", "zeta=1", "--set: got 'zeta', expected one of none"),
        ("--guide", "cheap", "--guide: got 'cheap', expected one of none"),
        ("--set", "zeta", "--set: got 'zeta', expected NAME=VALUE"),
        ("--set", "zeta=", "--set: got 'zeta=', expected NAME=VALUE"),
        ("--set", "zeta=1,x", "--set: got '1,x', expected items between commas"),
    ],
)
def test_options_that_no_bundle_has_are_refused(bundle, images, tmp_path, option, value, message):
    arguments = (bundle, "--images", images, "--json", tmp_path / "o.json")
    with pytest.raises(UsageError, match=message):
        measure(*arguments, option, value)


def test_features_for_set_metrics_do_not_stay_in_the_result(result):
    assert all("features" not in row for row in result[0]["rows"])


def test_the_result_counts_parameters(result):
    # Kernels of 4x3x4x4 in encode, decode, condition and render, 4x4 in denoise; those of condition
    # and render are one.
    assert result[0]["bundles"][0]["parameters"] == {"transmitter": 192, "receiver": 400}


def test_rows_of_other_options_are_not_mixed(tmp_path):
    with Partial(tmp_path / "p", {"snrs_db": [1]}) as partial:
        partial.add({"psnr_db": 30.0})
    with pytest.raises(UsageError, match="'p': got rows of other options") as caught:
        Partial(tmp_path / "p", {"snrs_db": [4]})
    assert caught.value.code == "E_PARTIAL"
    with Partial(tmp_path / "p", {"snrs_db": [1]}) as partial:
        assert partial.rows == [{"psnr_db": 30.0}]


def test_the_grid_shows_what_was_measured(bundle, images, tmp_path):
    grid = tmp_path / "grid.png"
    arguments = (bundle, "--images", images, "--snr", "1,13", "--json", tmp_path / "o.json")
    measure(*arguments, "--grid", grid, "--grid-images", "large", "--grid-kb", 80)
    assert grid.stat().st_size <= 80_000
    sheet = np.array(Image.open(grid))
    image = np.array(Image.open(images / "large.png"))
    # The first crop of the sheet is the centre of what was sent, pixel for pixel.
    for side in (160, 128, 96, 64):
        top, left = (168 - side) // 2, (176 - side) // 2
        crop = image[top : top + side, left : left + side]
        places = range(sheet.shape[0] - side)
        if any(np.array_equal(sheet[row : row + side, 8 : 8 + side], crop) for row in places):
            return
    pytest.fail("no crop of the image is in the sheet")


@pytest.mark.parametrize(("name", "limit"), [("large", 1), ("nobody", 80)])
def test_a_grid_that_cannot_be_is_refused_after_the_result(bundle, images, tmp_path, name, limit):
    out = tmp_path / "o.json"
    arguments = (bundle, "--images", images, "--snr", "7", "--json", out)
    with pytest.raises(UsageError, match=r"grid: got \d rows and \d+ bytes") as caught:
        measure(*arguments, "--grid", tmp_path / "g", "--grid-images", name, "--grid-kb", limit)
    assert caught.value.code == "E_GRID"
    assert json.loads(out.read_text())["kind"] == "quality"


def test_a_codec_bundle_has_no_second_column(bundle, images, tmp_path):
    path = tmp_path / "codec.jscc"
    tiny_bundle.write_codec(path)
    out = tmp_path / "out.json"
    measure(path, "--images", images, "--limit", 1, "--snr", "7", "--json", out)
    document = json.loads(out.read_text())
    assert document["rows"][0]["codec"] is None
    assert document["rows"][0]["received"]["ms_ssim"] is not None
    assert "| – |" in quality.table(document)


def test_a_folder_without_images_is_refused(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"got no image in .*empty") as caught:
        measure(bundle, "--images", tmp_path / "empty", "--json", tmp_path / "o.json")
    assert caught.value.code == "E_IMAGES"


def test_lists_are_checked(bundle, images, tmp_path):
    with pytest.raises(UsageError, match=r"--steps: got '4,ten', expected .* 'ten'"):
        measure(bundle, "--images", images, "--steps", "4,ten", "--json", tmp_path / "o.json")
    with pytest.raises(UsageError, match="--snr: got '1;4', expected"):
        measure(bundle, "--images", images, "--snr", "1;4", "--json", tmp_path / "o.json")


def test_a_bad_destination_is_found_before_the_work(bundle, images, tmp_path):
    with pytest.raises(OutputError, match="got no folder"):
        measure(bundle, "--images", images, "--json", tmp_path / "missing" / "o.json")


def test_settings_reach_the_receiver(bundle, images):
    image = np.array(Image.open(images / "small.png"))
    link = Link(bundle, "awgn", None)
    received = link.transmit(image, "small.png", 7.0, 0)
    setting = Choices("ddpm", 5, "noise", None, 3.0)
    _, record = link.receive(received, setting)
    loop = record.loops["denoise"]
    assert (loop.sampler, loop.steps, loop.start, loop.guidance) == ("ddpm", 5, "noise", 3.0)


def test_an_engine_that_ran_nothing_is_not_measured_under_its_name(bundle, images, monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    image = np.array(Image.open(images / "small.png"))
    own = Link(bundle, "awgn", None, engine="openvino")
    received = own.transmit(image, "small.png", 7.0, 0)
    assert own.receive(received, Choices())[1].backend.startswith("openvino ")
    monkeypatch.setattr(openvino, "multiplies_integers", lambda graph: True)
    monkeypatch.setattr(openvino, "cuts_off_sums", lambda: True)
    other = Link(bundle, "awgn", None, engine="openvino")
    said = "engine 'openvino': got a reception without it \\(stage .* onnxruntime .*\\), expected"
    with pytest.raises(UnavailableError, match=said) as caught:
        other.receive(received, Choices())
    assert caught.value.code == "E_ENGINE_UNUSED"


def test_an_engine_whose_self_test_fails_is_not_measured_under_its_name(
    codec_bundle, images, monkeypatch
):
    pytest.importorskip("openvino", reason="openvino is not installed")
    image = np.array(Image.open(images / "small.png"))
    run = openvino.OpenVinoSession.run
    monkeypatch.setattr(
        openvino.OpenVinoSession,
        "run",
        lambda session, arrays: {name: 0 * a for name, a in run(session, arrays).items()},
    )
    link = Link(codec_bundle.path, "awgn", None, engine="openvino")
    received = link.transmit(image, "small.png", 7.0, 0)
    with pytest.raises(UnavailableError, match="engine 'openvino': got a reception without it"):
        link.receive(received, Choices())


def test_an_engine_without_its_device_is_refused_before_the_work(bundle, monkeypatch):
    def none():
        raise UnavailableError("E_CUDA", "device: got none, expected one. Take another engine.")

    monkeypatch.setattr("jscc.runtime.backends.tensorrt.find_place", none)
    with pytest.raises(UnavailableError, match="device: got none"):
        Link(bundle, "awgn", None, engine="tensorrt")


def test_weights_of_lpips_are_used(bundle, images, tmp_path):
    weights = Path(__file__).parents[3] / "shared" / "data" / "weights" / "lpips"
    if not weights.is_dir():
        pytest.skip("the trained LPIPS weights are not beside the repo")
    out = tmp_path / "out.json"
    measure(
        *(bundle, "--images", images, "--snr", "7", "--limit", 1),
        *("--lpips-weights", weights, "--json", out),
    )
    row = json.loads(out.read_text())["rows"][0]
    assert 0 < row["codec"]["lpips"] < 2
    assert row["codec"]["lpips"] != row["received"]["lpips"]


@pytest.mark.parametrize("suite", ["quality", "digital", "plot", "systems", "peers"])
def test_the_command_line_has_it(suite, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([suite, "--help"])
    assert f"jscc bench {suite}" in capsys.readouterr().out
