"""Preprocess against the official script's own pictures, and sizes that nothing may allocate."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jscc.runtime.errors import ImageError
from jscc.runtime.manifest import ImageContract
from jscc.runtime.preprocess import (
    check_image,
    enlarge,
    from_network,
    geometry_of,
    pad,
    restore,
    to_network,
)

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"
CONTRACT = ImageContract(
    multiple=64, short_edge=0, rounding="truncate", tile=0, overlap=0, max_pixels=1 << 24
)


def enlarging(short_edge):
    return dataclasses.replace(CONTRACT, short_edge=short_edge)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")
@pytest.mark.parametrize(("case", "edge"), [("upscale", 64), ("keep", 64), ("upscale2", 128)])
def test_pictures_of_the_official_script(case, edge):
    from safetensors.numpy import load_file

    vectors = load_file(GOLDEN / "preprocess.safetensors")
    image = vectors[f"{case}.input"]
    geometry = geometry_of(check_image(image), enlarging(edge), 1 << 24)
    resized = enlarge(image, geometry)
    assert np.array_equal(resized, vectors[f"{case}.resized"])
    padded = pad(resized, geometry)
    assert np.array_equal(padded, vectors[f"{case}.padded"])
    assert np.array_equal(restore(padded, geometry), vectors[f"{case}.restored"])


@pytest.mark.parametrize(
    ("size", "edge", "resized", "padded"),
    [
        ((64, 128), 0, (64, 128), (64, 128)),
        ((65, 1), 0, (65, 1), (128, 64)),
        ((45, 70), 64, (64, 100), (64, 128)),
        ((30, 31), 64, (64, 67), (64, 128)),
        ((100, 51), 512, (1004, 512), (1024, 512)),
        ((512, 700), 512, (512, 700), (512, 704)),
    ],
)
def test_sizes(size, edge, resized, padded):
    geometry = geometry_of(size, enlarging(edge), 1 << 24)
    assert (geometry.image, geometry.resized, geometry.padded) == (size, resized, padded)


@pytest.mark.parametrize("edge", range(1, 512, 7))
def test_a_short_edge_becomes_exactly_the_one_wanted(edge):
    resized = geometry_of((edge, edge + 30), enlarging(512), 1 << 28).resized
    assert resized[0] == 512


@pytest.mark.parametrize(
    ("size", "short_edge", "shown"),
    [
        ((0, 5), 0, "got 0x5"),
        ((5, -1), 0, "got 5x-1"),
        ((100_000, 100_000), 0, "got 100000x100000.*at most 1000000 pixels, here 100032x100032"),
        ((1, 100_000), 512, "got 1x100000"),
        ((1000, 1001), 0, "got 1000x1001.*here 1024x1024"),
    ],
)
def test_sizes_that_are_refused(size, short_edge, shown):
    with pytest.raises(ImageError, match=shown) as caught:
        geometry_of(size, enlarging(short_edge), 1_000_000)
    assert caught.value.code == "E_IMG_SIZE"


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.zeros((4, 4, 3), np.float32), r"got float32\[4,4,3\]"),
        (np.zeros((4, 4), np.uint8), r"got uint8\[4,4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8\[4,4,4\]"),
        (np.zeros((3, 4, 4), np.uint8), r"got uint8\[3,4,4\]"),
        ([[[1, 2, 3]]], "got list"),
    ],
)
def test_only_rgb_bytes_are_images(image, shown):
    with pytest.raises(ImageError, match=f"{shown}, expected uint8") as caught:
        check_image(image)
    assert caught.value.code == "E_IMG_TYPE"


def test_every_byte_survives_the_network_side():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    values = to_network(image)
    assert values.shape == (3, 16, 16)
    assert values.dtype == np.float32
    assert np.array_equal(values, image.astype(np.float64).transpose(2, 0, 1).astype("f4") / 255)
    assert np.array_equal(from_network(values, "nearest"), image)


@pytest.mark.parametrize(
    ("rounding", "levels"),
    [("truncate", [0, 0, 127, 254, 255]), ("nearest", [0, 1, 128, 255, 255])],
)
def test_rounding(rounding, levels):
    values = np.array([-0.5, 0.9, 127.9, 254.9, 300.0], np.float32) / np.float32(255)
    image = np.broadcast_to(values, (3, 1, 5))
    assert from_network(image, rounding)[0, :, 1].tolist() == levels


def test_layout_is_height_width_color():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert to_network(image)[2, 4, 6] == np.float32(image[4, 6, 2]) / np.float32(255)
    assert from_network(to_network(image), "nearest").flags["C_CONTIGUOUS"]
