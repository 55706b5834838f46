"""To uint8 against plain arithmetic, the exported colour fix, and its CUDA source bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_kernels import guarded
from jscc.export.systems.diffjscc import Render
from jscc.kernels.to_uint8.reference import (
    REACHES,
    ROUNDINGS,
    blur,
    fix_colors,
    flags_of,
    to_uint8,
)


def image_of(shape, seed=0):
    """Values around [0, 1], beyond both ends too."""
    rng = np.random.default_rng(seed)
    return (rng.random(shape) * 1.5 - 0.25).astype(np.float32)


@pytest.mark.parametrize("level", range(256))
def test_bytes_come_back(level):
    image = np.full((3, 1, 1), np.float32(level) / np.float32(255), np.float32)
    assert to_uint8(image, "nearest").tolist() == [[[level] * 3]]


def test_halves_go_to_the_even_byte():
    """Of the values half-way between bytes, those that are so in float32 after scaling too."""
    halves = (np.arange(255, dtype=np.float32) + np.float32(0.5)) / np.float32(255)
    exact = halves * np.float32(255) == np.arange(255, dtype=np.float32) + np.float32(0.5)
    assert exact.sum() > 100
    pixels = to_uint8(np.tile(halves[exact], (3, 1, 1)), "nearest")
    assert not (pixels % 2).any()


def test_colours_lie_side_by_side_and_values_are_clamped():
    image = np.array([-1.0, 0.999, 7.0], np.float32).reshape(3, 1, 1)
    assert to_uint8(image, "truncate").tolist() == [[[0, 254, 255]]]
    assert to_uint8(image, "nearest").tolist() == [[[0, 255, 255]]]


def test_roundings_are_named():
    with pytest.raises(ValueError, match=r"to_uint8: got 'floor', expected truncate or nearest"):
        to_uint8(image_of((3, 2, 2)), "floor")


def test_a_blur_spreads_a_point_and_keeps_what_is_even():
    point = np.zeros((1, 9, 9), np.float32)
    point[0, 4, 4] = 16
    expected = np.zeros((9, 9))
    expected[np.ix_([2, 4, 6], [2, 4, 6])] = np.outer([1, 2, 1], [1, 2, 1])
    assert np.array_equal(blur(point, 2)[0], expected)
    assert np.array_equal(blur(np.ones((3, 5, 7), np.float32), 4), np.ones((3, 5, 7)))


@pytest.mark.parametrize("size", [(40, 70), (9, 5)])
def test_colours_are_fixed_as_by_the_exported_renderer(size):
    """The graph's module blurs both images; their difference is enough."""
    image, other = image_of((3, *size), 1), image_of((3, *size), 2)
    renderer = Render(torch.nn.Identity())
    expected = renderer(torch.from_numpy(image)[None], torch.from_numpy(other)[None])[0].numpy()
    assert np.abs(fix_colors(image, other) - expected).max() < 2e-6


def blurred(host, image, minus, reach, threads=1):
    result = np.full_like(image, np.nan)
    names = ("blurred", "image", "minus", "reach", "planes", "height", "width")
    values = dict(zip(names, (result, image, minus, reach, *image.shape), strict=True))
    host.start("to_uint8", values, entry="blur", threads=threads)
    return result


def pixels_of(host, image, correction, reach, rounding, threads=1, flags=None):
    pixels = np.full((*image.shape[1:], 3), 77, np.uint8)
    values = {
        "pixels": pixels,
        "flags": flags,
        "image": image,
        "correction": correction,
        "reach": reach,
        "nearest": rounding == "nearest",
        "height": image.shape[1],
        "width": image.shape[2],
    }
    host.start("to_uint8", values, threads=threads)
    return pixels


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=100, deadline=None)
@given(size=sizes, reach=st.sampled_from(REACHES), seed=st.integers(0, 99), less=st.booleans())
def test_the_source_blurs_to_the_same_bits(host, size, reach, seed, less):
    image = image_of((3, *size), seed)
    minus = image_of((3, *size), seed + 1) if less else None
    expected = blur(image if minus is None else image - minus, reach)
    assert np.array_equal(blurred(host, image, minus, reach), expected)


@settings(max_examples=100, deadline=None)
@given(size=sizes, rounding=st.sampled_from(ROUNDINGS), seed=st.integers(0, 99))
def test_the_source_makes_the_same_pixels(host, size, rounding, seed):
    image = image_of((3, *size), seed)
    assert np.array_equal(pixels_of(host, image, None, 0, rounding), to_uint8(image, rounding))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_float_between_two_bytes_becomes_the_same_pixel(host, rounding):
    """All floats around the first bytes, where both roundings turn over."""
    bits = np.arange(0x3B000000, 0x3C800000, 37, dtype=np.uint32)
    values = bits.view(np.float32)
    image = np.stack([values, 1 - values, values + np.float32(0.5)])[:, None]
    assert np.array_equal(pixels_of(host, image, None, 0, rounding), to_uint8(image, rounding))


@pytest.mark.parametrize("threads", [1, 7, 256])
@pytest.mark.parametrize("size", [(33, 65), (5, 3)])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_whole_colour_fix_is_the_same_bits(host, size, threads, rounding):
    """Four blurs, the first of the difference, and the last one fused into the tail."""
    image, other = image_of((3, *size), 1), image_of((3, *size), 2)
    low = blurred(host, other, image, REACHES[0], threads)
    for reach in REACHES[1:-1]:
        low = blurred(host, low, None, reach, threads)
    pixels = pixels_of(host, image, low, REACHES[-1], rounding, threads)
    assert np.array_equal(pixels, to_uint8(fix_colors(image, other), rounding))


FAULTS = {
    "an image": ({}, [0, 1]),
    "not a number": ({(1, 2, 3): np.nan}, [1, 1]),
    "infinite": ({(2, 4, 6): -np.inf}, [1, 1]),
    "the first value not a number": ({(0, 0, 0): np.nan}, [1, 1]),
    "the largest number": ({(2, 4, 6): np.finfo(np.float32).max}, [0, 1]),
}


@pytest.mark.parametrize("threads", [1, 256])
@pytest.mark.parametrize("fault", FAULTS)
def test_flags_tell_what_is_no_image(host, fault, threads):
    values, expected = FAULTS[fault]
    image = image_of((3, 5, 7))
    for place, value in values.items():
        image[place] = value
    flags = np.zeros(2, np.uint32)
    pixels = pixels_of(host, image, None, 0, "nearest", threads, flags)
    assert flags.tolist() == flags_of(image).tolist() == expected
    finite = np.isfinite(image)
    shown = to_uint8(np.where(finite, image, 0), "nearest").transpose(2, 0, 1)[finite]
    assert np.array_equal(pixels.transpose(2, 0, 1)[finite], shown)


@pytest.mark.parametrize("colour", [0.25, 0.0, -3.0, np.inf])
def test_one_colour_is_told_from_an_image(host, colour):
    """Whatever colours it is clamped to; zeros of both signs are one colour."""
    image = np.full((3, 5, 7), colour, np.float32)
    image[1] *= 1 if colour else -1
    flags = np.zeros(2, np.uint32)
    pixels_of(host, image, None, 0, "nearest", 7, flags)
    assert flags.tolist() == flags_of(image).tolist() == [np.isinf(colour), 0]
    image[2, 4, 6] = 0.5
    pixels_of(host, image, None, 0, "nearest", 7, flags)
    assert flags.tolist() == flags_of(image).tolist() == [np.isinf(colour), 1]


def test_flags_are_those_of_the_fixed_colours(host):
    """An image and a correction that leave one colour, and one that leaves none."""
    image, low = np.zeros((3, 33, 37), np.float32), np.full((3, 33, 37), 0.5, np.float32)
    flags = np.zeros(2, np.uint32)
    pixels_of(host, image, low, 4, "nearest", 7, flags)
    assert flags.tolist() == flags_of(image + blur(low, 4)).tolist() == [0, 0]
    low[2, 32, 36] = np.nan
    pixels_of(host, image, low, 4, "nearest", 7, flags)
    assert flags.tolist() == flags_of(image + blur(low, 4)).tolist() == [1, 1]


@pytest.mark.parametrize("reach", REACHES)
def test_nothing_is_read_or_written_behind_the_end(host, reach):
    image, low = guarded(image_of((3, 33, 37), 1)), guarded(image_of((3, 33, 37), 2))
    result, pixels = guarded(np.zeros_like(image)), guarded(np.zeros((33, 37, 3), np.uint8))
    sizes = {"reach": reach, "height": 33, "width": 37}
    values = {"blurred": result, "image": image, "minus": low, "planes": 3, **sizes}
    host.start("to_uint8", values, entry="blur")
    assert np.array_equal(result, blur(image - low, reach))
    flags = guarded(np.zeros(2, np.uint32))
    values = {"pixels": pixels, "flags": flags, "image": image, "correction": low, "nearest": 1}
    values |= sizes
    host.start("to_uint8", values)
    assert np.array_equal(pixels, to_uint8(image + blur(low, reach), "nearest"))
