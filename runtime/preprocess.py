"""Preprocess: images of any size to and from the padded grid that a system works on.

    image ─ enlarge (bicubic) ─ pad (zeros or reflection), bottom and right ─▶ grid
    grid ─ crop ─ shrink (Lanczos) ─▶ image

The receiver needs nothing but the sent image's height and width to do the second line.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from jscc.kernels.to_uint8.reference import flags_of, to_uint8
from jscc.runtime.errors import ImageError
from jscc.runtime.manifest import ImageContract
from jscc.runtime.ports import describe

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.uint32]
Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Geometry:
    """What becomes of an image's size, each (height, width) in pixels.

    Attributes:
        image: As given.
        resized: After enlarging.
        padded: After padding: what is transmitted.
        padding: ``zeros`` or ``reflect``.
    """

    image: Size
    resized: Size
    padded: Size
    padding: str = "zeros"


def geometry_of(size: Size, contract: ImageContract, max_pixels: int) -> Geometry:
    """The geometry of an image of `size`, by numbers alone: nothing is allocated.

    Raises:
        ImageError: ``E_IMG_SIZE``, an edge below 1, or more than `max_pixels` pixels.
    """
    height, width = size
    if height < 1 or width < 1:
        raise _refuse_size(size, "edges of 1 pixel or more")
    resized = (height, width)
    short = min(height, width)
    if short < contract.short_edge:
        factor = contract.short_edge / short
        resized = (math.ceil(height * factor), math.ceil(width * factor))
    multiple = contract.multiple
    padded = (-(-resized[0] // multiple) * multiple, -(-resized[1] // multiple) * multiple)
    if max(height * width, padded[0] * padded[1]) > max_pixels:
        raise _refuse_size(size, f"at most {max_pixels} pixels, here {padded[0]}x{padded[1]}")
    return Geometry((height, width), resized, padded, contract.padding)


def check_image(image: Pixels) -> Size:
    """The (height, width) of an image to send.

    Raises:
        ImageError: ``E_IMG_TYPE``, not uint8[height, width, 3].
    """
    got = describe(image)
    if not got.startswith("uint8[") or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            "E_IMG_TYPE", f"image: got {got}, expected uint8[height,width,3], RGB. Convert it."
        )
    return image.shape[0], image.shape[1]


def enlarge(image: Pixels, geometry: Geometry) -> Pixels:
    """Enlarge `image` to ``geometry.resized``, bicubic."""
    return _resize(image, geometry.resized, Image.Resampling.BICUBIC)


def pad(image: Pixels, geometry: Geometry) -> Pixels:
    """Pad `image` at the bottom and at the right to ``geometry.padded``.

    Where the padding is wider than the image, its reflection is reflected again.
    """
    rows, columns = geometry.padded
    if geometry.padding == "reflect":
        below, beside = rows - image.shape[0], columns - image.shape[1]
        return np.pad(image, ((0, below), (0, beside), (0, 0)), mode="reflect")
    padded = np.zeros((rows, columns, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def pad_map(plane: Floats, geometry: Geometry) -> Floats:
    """A map with one number per pixel, enlarged (nearest) and padded as its image is."""
    rows, columns = geometry.resized
    if plane.shape != geometry.resized:
        across = np.arange(rows) * plane.shape[0] // rows
        plane = plane[across][:, np.arange(columns) * plane.shape[1] // columns]
    below, beside = geometry.padded[0] - rows, geometry.padded[1] - columns
    mode: Literal["reflect", "constant"] = (
        "reflect" if geometry.padding == "reflect" else "constant"
    )
    return np.pad(plane, ((0, below), (0, beside)), mode=mode)


def to_network(padded: Pixels) -> Floats:
    """uint8[height, width, 3] to float32[3, height, width] in [0, 1]."""
    scaled = padded.astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def from_network(image: Floats, rounding: str) -> Pixels:
    """float32[3, height, width], clipped to [0, 1], to uint8[height, width, 3].

    Args:
        image: Finite.
        rounding: ``truncate`` or ``nearest``, whichever the weights were measured with.
    """
    return to_uint8(image, rounding)


def drawn(image: Floats, rounding: str) -> tuple[Pixels, Flags]:
    """What networks draw as pixels, with the flags that tell whether it is an image.

    Args:
        image: float32[3, height, width].
        rounding: See `from_network`.

    Returns:
        uint8[height, width, 3], of anything where a value is not finite; and uint32[2], see
        `jscc.kernels.to_uint8.reference.flags_of`.
    """
    flags = flags_of(image)
    if flags[0]:
        return np.zeros((*image.shape[1:], 3), np.uint8), flags
    return from_network(image, rounding), flags


def check_drawn(flags: Flags, number: int) -> None:
    """Hold the flags of image `number` to those of an image.

    Raises:
        ImageError: ``E_DECODE_NONFINITE``.
    """
    broken, varied = map(bool, flags)
    if broken or not varied:
        got = "values that are not finite" if broken else "one colour only"
        raise ImageError(
            "E_DECODE_NONFINITE",
            f"image {number}: got {got} from finite symbols, expected an image. "
            "Try a bundle of higher precision or another provider.",
        )


def restore(padded: Pixels, geometry: Geometry) -> Pixels:
    """Crop the padding away and return to the given image's size, Lanczos."""
    cropped = padded[: geometry.resized[0], : geometry.resized[1]]
    return _resize(cropped, geometry.image, Image.Resampling.LANCZOS)


def _resize(image: Pixels, size: Size, how: Image.Resampling) -> Pixels:
    if (image.shape[0], image.shape[1]) == size:
        return np.ascontiguousarray(image)
    source = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(source.resize((size[1], size[0]), how))


def _refuse_size(size: Size, expected: str) -> ImageError:
    return ImageError(
        "E_IMG_SIZE",
        f"image: got {size[0]}x{size[1]} (height x width), expected {expected}. "
        "Cut or shrink the image, or raise max_pixels.",
    )
