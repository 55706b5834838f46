"""Rows of pictures made again from results: the measured pixels, or a refusal."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from jscc.benchmarks import cli
from jscc.benchmarks.link import Link
from jscc.runtime.bundle import write_bundle
from jscc.runtime.choices import Choices
from jscc.runtime.errors import DataError, UsageError
from jscc.runtime.manifest import TensorEntry

CBR = "2/48"  # the tiny codec: two symbols for 4x4 pixels of three colours


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Images, a folder of two bundles and what was measured with them."""
    folder = tmp_path_factory.mktemp("panels")
    rows, columns = np.mgrid[:64, :80]
    waves = [np.sin(rows / (9 + c)) * np.cos(columns / 13) for c in range(3)]
    picture = (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    (folder / "images").mkdir()
    Image.fromarray(picture).save(folder / "images" / "wave.png")
    Image.fromarray(picture[::-1]).save(folder / "images" / "other.png")
    (folder / "bundles").mkdir()
    codec, codec_files = tiny_bundle.codec()
    whole, files = tiny_bundle.diffusion()
    files["graphs/encode.onnx"] = codec_files["graphs/encode.onnx"]
    files["tensors/context.npy"] = tiny_bundle.npy(np.ones((1, 2, 5), np.float32))
    context = TensorEntry("tensors/context.npy", "float32", (1, 2, 5))
    manifest = dataclasses.replace(
        whole,
        stages={**whole.stages, "encode": codec.stages["encode"]},
        tensors={**whole.tensors, "context": context},
        side_inputs=(),
    )
    write_bundle(folder / "bundles" / "whole.jscc", manifest, files)
    write_bundle(folder / "bundles" / "codec.jscc", codec, codec_files)
    bundles = [str(folder / "bundles" / f"{name}.jscc") for name in ("whole", "codec")]
    words = ["--images", str(folder / "images"), "--snr", "4,20", "--steps", "1,3"]
    cli.main(["quality", *bundles, *words, "--json", str(folder / "r.json")])
    return folder


def grid(scene, *words, result=None) -> np.ndarray:
    out = scene / "grid.png"
    paths = (str(result or scene / "r.json"), "--kind", "grid", "-o", str(out), "--cbr", CBR)
    folders = ("--images", str(scene / "images"), "--bundles", str(scene / "bundles"))
    assert cli.main(["plot", *paths, *folders, *words]) == 0
    return np.array(Image.open(out))


def holds(sheet, picture) -> bool:
    """Whether `picture` is somewhere in `sheet`, pixel for pixel."""
    height, width = picture.shape[:2]
    corner = (sheet == picture[0, 0]).all(axis=2)
    return any(
        np.array_equal(sheet[row : row + height, column : column + width], picture)
        for row, column in np.argwhere(corner)
    )


def test_a_grid_holds_the_pictures_that_were_measured(scene):
    sheet = grid(scene, "--names", "wave", "--snr", "20")
    image = np.array(Image.open(scene / "images" / "wave.png"))
    link = Link(scene / "bundles" / "whole.jscc", "awgn", None)
    arrived = link.transmit(image, "wave.png", 20.0, 0)
    assert holds(sheet, image)
    assert holds(sheet, link.codec(arrived))
    for steps in (1, 3):
        assert holds(sheet, link.receive(arrived, Choices(steps=steps))[0])


def test_series_of_a_grid_are_chosen(scene):
    wide = grid(scene, "--snr", "4")
    narrow = grid(scene, "--snr", "4", "--leave-out", "whole, ddim, 1 steps")
    named = grid(scene, "--snr", "4", "--leave-out", "whole, ddim, 1 steps", "--label", "codec=AF")
    assert narrow.shape[1] < wide.shape[1]
    assert named.shape == narrow.shape
    assert not np.array_equal(named, narrow)


def test_a_bundle_that_was_not_measured_is_refused(scene, tmp_path):
    shutil.copytree(scene / "bundles" / "codec.jscc", tmp_path / "codec.jscc")
    shutil.copytree(scene / "bundles" / "codec.jscc", tmp_path / "whole.jscc")
    with pytest.raises(DataError, match=r"bundle 'whole\.jscc': got .*…, expected .*…, which"):
        grid(scene, "--snr", "4", "--bundles", str(tmp_path))


def test_pictures_that_differ_from_their_figures_are_refused(scene, tmp_path):
    result = json.loads((scene / "r.json").read_text())
    for row in result["rows"]:
        row["received"]["psnr_db"] += 0.5
    (tmp_path / "r.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"'\w+\.png' at 4 dB: got .* dB, expected the recorded"):
        grid(scene, "--snr", "4", result=tmp_path / "r.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--names", "nobody"), "--names: got 'nobody', expected images of --images"),
        (("--snr", "5"), "plot: got no picture at cbr 1/24 and SNR 5 dB"),
        (("--cbr", "1/5"), "plot: got no picture at cbr 1/5"),
    ],
)
def test_pictures_that_nobody_measured_are_refused(scene, words, message):
    with pytest.raises(UsageError, match=message) as caught:
        grid(scene, *words)
    assert caught.value.code == "E_PLOT"


def test_a_grid_needs_the_bundles(scene):
    words = ("--images", str(scene / "images"), "--snr", "4", "--cbr", CBR)
    with pytest.raises(UsageError, match="plot: got no --bundles"):
        cli.main(
            ["plot", str(scene / "r.json"), "--kind", "grid", "-o", str(scene / "g.png"), *words]
        )


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("av") and importlib.util.find_spec("sionna")),
    reason="PyAV or Sionna is not installed; pip install 'jscc-edge[digital]'",
)
def test_baselines_stand_beside_them(scene):
    path = scene / "d.json"
    words = ("--images", str(scene / "images"), "--snr", "4,20", "--cbr", CBR)
    cli.main(["digital", *words, "--json", str(path)])
    sheet = grid(scene, "--names", "wave", "--snr", "4,20", result=path)
    image = np.array(Image.open(scene / "images" / "wave.png"))
    assert holds(sheet, np.full_like(image, 128))  # what was lost at 4 dB
    from jscc.benchmarks.digital.hevc import Still, restore

    row = next(
        row
        for row in json.loads(path.read_text())["rows"]
        if (row["scheme"], row["image"], row["snr_db"]) == ("hevc-ldpc", "wave.png", 20)
    )
    assert row["decoded"]
    assert holds(sheet, restore(Still(image).within(row["budget_bytes"])))
