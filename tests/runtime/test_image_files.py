"""Image files: every common picture becomes upright 8-bit RGB; everything else one typed error."""

import contextlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jscc.runtime.errors import ImageError
from jscc.runtime.image_files import decode_image, encode_png

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decode(data, **options):
    return decode_image("x", data, **options)


def png_claiming(height, width):
    """A PNG of a few bytes that claims any size."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_give_the_very_pixels(kind):
    picture = decode(encode(Image.fromarray(PIXELS), kind))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.notices == ()
    assert picture.pixels.flags.c_contiguous


def test_png_round_trip():
    np.testing.assert_array_equal(decode(encode_png(PIXELS)).pixels, PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(kind):
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    picture = decode(encode(Image.fromarray(smooth.copy()), kind, quality=95))
    assert np.abs(picture.pixels.astype(int) - smooth).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LAB"])
def test_other_colours_become_rgb(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.merge("LAB", (image, image, image))
    picture = decode(encode(image, "TIFF"))
    assert picture.pixels.shape == PIXELS.shape
    assert picture.notices == ()


def test_sixteen_bits_are_rounded_to_eight_with_a_notice():
    deep = np.array([[0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    picture = decode(encode(Image.fromarray(deep)))
    assert picture.pixels[0, :, 0].tolist() == [0, 0, 1, 100, 101, 255]
    assert picture.notices == ("image 'x': 16 bits reduced to 8",)


def test_opaque_alpha_is_dropped_silently():
    rgba = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    picture = decode(encode(Image.fromarray(rgba)))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.notices == ()


def test_transparency_is_flattened_onto_white_with_a_notice():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    picture = decode(encode(Image.fromarray(rgba)))
    assert picture.pixels[0, 0].tolist() == [10, 20, 30]
    assert (picture.pixels[1] == 255).all()
    assert picture.notices == ("image 'x': transparency flattened onto white",)


def test_a_transparent_palette_colour_is_flattened_too():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([1, 2, 3, 4, 5, 6])
    picture = decode(encode(image, transparency=1))
    assert picture.pixels[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_exif_orientation_is_applied(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encode(Image.fromarray(PIXELS), exif=exif.tobytes()))
    np.testing.assert_array_equal(picture.pixels, turn(PIXELS))


def test_damaged_exif_turns_nothing():
    picture = decode(encode(Image.fromarray(PIXELS), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_of_an_animation_the_first_picture_is_used():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    picture = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (picture.pixels == 10).all()
    assert picture.notices == ("image 'x': has several pictures, only the first is used",)


def test_float_pixels_are_refused():
    image = Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(ImageError, match="got mode 'F', expected 8- or 16-bit") as caught:
        decode(encode(image, "TIFF"))
    assert caught.value.code == "E_IMG_MODE"


def test_integers_beyond_sixteen_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(ImageError, match="got I values from 0 to 70000"):
        decode(encode(image, "TIFF"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "got an empty file, expected one of PNG"),
        (b"<html><body>404", re.escape("got 15 bytes that begin with b'<html><b'")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "expected one of PNG"),
    ],
)
def test_other_formats_are_refused(data, words):
    with pytest.raises(ImageError, match=words) as caught:
        decode(data)
    assert caught.value.code == "E_IMG_FORMAT"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.98))
def test_every_truncation_is_refused_or_gives_an_image_of_its_size(kind, share):
    data = encode(Image.fromarray(PIXELS), kind)
    try:
        picture = decode(data[: int(share * len(data))])
    except ImageError as error:
        assert error.code in ("E_IMG_FORMAT", "E_IMG_TRUNCATED")  # noqa: PT017
    else:
        assert picture.pixels.shape == PIXELS.shape


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF"]))
def test_any_corruption_is_a_typed_error_or_an_image(data, kind):
    content = bytearray(encode(Image.fromarray(PIXELS), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode(bytes(content), max_pixels=10**5).pixels.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(10**5, 10**5), (2**31 - 1, 1), (4097, 4096)])
def test_bombs_are_refused_by_their_header(height, width):
    with pytest.raises(ImageError, match="expected at most 16777216 pixels") as caught:
        decode(png_claiming(height, width))
    assert caught.value.code == "E_IMG_SIZE"


def test_the_limit_is_in_pixels_of_the_image():
    data = encode(Image.fromarray(PIXELS))
    assert decode(data, max_pixels=54).pixels.shape == PIXELS.shape
    with pytest.raises(ImageError, match="got 6x9 pixels, expected at most 53 pixels"):
        decode(data, max_pixels=53)
