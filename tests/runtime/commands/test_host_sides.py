"""Side inputs from files: arrays stay, maps are padded like the picture, names are checked."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from jscc.runtime.commands.host_sides import HostSides, read_sides, side_file
from jscc.runtime.errors import ImageError, SymbolsError, UsageError
from jscc.runtime.ports import Port
from jscc.runtime.preprocess import geometry_of, pad, pad_map

MASK = Port("mask", "float32", ("batch", 1, "height", "width"))


@pytest.fixture(scope="module")
def manifest():
    """One whose condition asks for a mask, beside the context that its loop asks for."""
    made, _ = tiny_bundle.diffusion()
    stage = made.stages["condition"]
    stages = {**made.stages, "condition": replace(stage, inputs=(*stage.inputs, MASK))}
    return replace(made, stages=stages, side_inputs=("context", "mask"))


def drawn(folder, height=5, width=7):
    """A gray picture, and what it says."""
    plane = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(plane).save(folder / "mask.png")
    return folder / "mask.png", plane.astype(np.float32) / 255


def test_a_picture_is_a_map_padded_like_the_one_that_was_sent(manifest, tmp_path):
    path, plane = drawn(tmp_path)
    given = read_sides(manifest, None, [("mask", path)]).of(manifest, (5, 7))
    assert set(given) == {"mask"}
    assert given["mask"].shape == (1, 1, 8, 8)
    assert given["mask"].dtype == np.float32
    np.testing.assert_allclose(given["mask"][0, 0, :5, :7], plane, atol=1e-6)
    assert not given["mask"][0, 0, 5:].any()
    assert not given["mask"][0, 0, :, 7:].any()


def test_a_map_may_be_an_array_and_other_arrays_stay_as_they_are(manifest, tmp_path):
    path, plane = drawn(tmp_path)
    np.save(tmp_path / "plane.npy", plane)
    np.save(tmp_path / "whole.npy", np.ones((1, 1, 8, 8), np.float32))
    np.save(tmp_path / "context.npy", np.full((2, 5), 3, np.float32))
    files = [("mask", tmp_path / "plane.npy"), ("context", tmp_path / "context.npy")]
    given = read_sides(manifest, None, files).of(manifest, (5, 7))
    alike = read_sides(manifest, None, [("mask", path)]).of(manifest, (5, 7))
    np.testing.assert_array_equal(given["mask"], alike["mask"])
    np.testing.assert_array_equal(given["context"], np.full((2, 5), 3, np.float32))
    whole = read_sides(manifest, None, [("mask", tmp_path / "whole.npy")]).of(manifest, (5, 7))
    np.testing.assert_array_equal(whole["mask"], np.ones((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("size", [(5, 7), (12, 12), (16, 9)])
def test_maps_go_where_the_pixels_go(manifest, padding, size):
    contract = replace(manifest.image, padding=padding, multiple=8, short_edge=0)
    geometry = geometry_of(size, contract, contract.max_pixels)
    plane = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    pixels = pad(np.repeat(plane[..., None], 3, axis=2), geometry)
    np.testing.assert_array_equal(pad_map(plane.astype(np.float32), geometry), pixels[..., 0])


def test_a_map_is_enlarged_with_a_small_picture(manifest):
    contract = replace(manifest.image, short_edge=12, multiple=4)
    geometry = geometry_of((4, 6), contract, contract.max_pixels)
    plane = np.arange(24, dtype=np.float32).reshape(4, 6)
    enlarged = pad_map(plane, geometry)
    assert enlarged.shape == geometry.padded == (12, 20)
    np.testing.assert_array_equal(enlarged[:12, :18], plane.repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("context", "named", "shown"),
    [
        (True, ["mask"], "--context: got a file, expected a bundle with one side input; this one"),
        (False, ["masks"], "--side: got 'masks', expected each of context, mask once"),
        (False, ["mask", "mask"], "--side: got 'mask' twice, expected each of context, mask once"),
        (False, ["context"], r"--side context: got 'mask.png', expected a .npy file"),
    ],
)
def test_names_are_held_to_the_bundle(manifest, tmp_path, context, named, shown):
    path, _ = drawn(tmp_path)
    with pytest.raises(UsageError, match=shown):
        read_sides(manifest, path if context else None, [(name, path) for name in named])


def test_a_map_of_another_size_is_refused(manifest, tmp_path):
    path, _ = drawn(tmp_path)
    sides = read_sides(manifest, None, [("mask", path)])
    with pytest.raises(UsageError, match=r"got a map of 5x7 pixels, expected 7x5\. Scale it to"):
        sides.of(manifest, (7, 5))
    with pytest.raises(UsageError, match=r"expected the size of the picture to be known\. Give --"):
        sides.of(manifest, None)


def test_files_that_cannot_be_used(manifest, tmp_path):
    np.save(tmp_path / "bad.npy", np.full((5, 7), np.inf, np.float32))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(SymbolsError, match="got values that are not finite"):
        read_sides(manifest, None, [("mask", tmp_path / "bad.npy")])
    with pytest.raises(ImageError, match="got 10 bytes"):
        read_sides(manifest, None, [("mask", tmp_path / "bad.png")])


def test_nothing_is_given_where_nothing_is_named(manifest):
    assert read_sides(manifest, None, []) == HostSides()
    assert HostSides().of(manifest, (5, 7)) == {}


@pytest.mark.parametrize("text", ["mask", "mask=", "=mask.png", "Mask=a.png"])
def test_a_name_and_a_file_belong_together(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=FILE such as mask=mask"):
        side_file(text)


@pytest.mark.parametrize("command", ["receive", "simulate"])
def test_the_commands_take_a_name_as_well_as_a_context(
    jscc, link_bundle, context, photo, tmp_path, command
):
    records = []
    for number, option in enumerate((("--context", context), ("--side", f"context={context}"))):
        if command == "simulate":
            words = (photo, "--snr", 7, "-o", tmp_path / str(number))
        else:
            symbols = tmp_path / "sent.npz"
            if not number:
                assert jscc("send", link_bundle.path, photo, "-o", symbols).status == 0
            words = (symbols, "-o", tmp_path / f"{number}.png")
        ran = jscc(command, link_bundle.path, *words, *option, "--json")
        assert ran.status == 0, ran.err
        (image,) = ran.json["images"]
        image["record"].pop("times_ms")
        records.append(image["record"])
    assert records[0] == records[1]


def test_the_help_says_what_a_file_holds(jscc):
    words = " ".join(jscc("simulate", "--help").out.split())
    assert "--side NAME=FILE" in words
    assert "a gray picture (white is 1, what was received is kept)" in words
    assert "a mask in that of the padded picture" in words
