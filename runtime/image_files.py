"""Image files: any common picture to uint8 RGB, upright; and back to PNG.

NOTE: Pillow is the only thing here that reads untrusted pixels. It gets bytes that were capped,
a closed list of formats, and a size that was checked before anything was decoded.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from jscc.runtime.errors import ImageError

Pixels = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 2**24
_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_FLAT = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        pixels: uint8[height, width, 3], RGB, upright.
        notices: What was changed on the way, for a human; empty for plain 8-bit RGB.
    """

    pixels: Pixels
    notices: tuple[str, ...]


def decode_image(name: str, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of an image file.

    Args:
        name: What to call the file in messages.
        data: The whole file.
        max_pixels: Largest height x width.

    Raises:
        ImageError: ``E_IMG_FORMAT``, no image of a supported format; ``E_IMG_SIZE``, more pixels
            than allowed, found before decoding; ``E_IMG_TRUNCATED``, the pixel data are
            incomplete or corrupt; ``E_IMG_MODE``, pixels that are not colours, such as floats.
    """
    with warnings.catch_warnings():
        # Damaged EXIF and odd palettes: the pixels decide, not Pillow's remarks about them.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _open(name, data, max_pixels) as image:
            return _decode(name, image, max_pixels)


def encode_png(pixels: Pixels) -> bytes:
    """The PNG file of uint8[height, width, 3] RGB `pixels`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _open(name: str, data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "E_IMG_FORMAT",
            f"image {name!r}: got {_looks_like(data)}, expected one of {', '.join(FORMATS)}. "
            "Convert the file first.",
        ) from error
    except Exception as error:  # Pillow's parsers raise most built-in types on corrupt headers
        raise _corrupt(name, error) from error
    if image.width * image.height > max_pixels:
        raise _too_large(name, f"{image.height}x{image.width} pixels", max_pixels)
    return image


def _decode(name: str, image: Image.Image, max_pixels: int) -> Picture:
    notices = []
    try:
        if getattr(image, "n_frames", 1) > 1:
            notices.append(f"image {name!r}: has several pictures, only the first is used")
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error), max_pixels) from error
    except Exception as error:
        raise _corrupt(name, error) from error
    upright, notice = _upright(name, image)
    flat, flattened = _to_rgb(name, upright)
    notices += [text for text in (notice, flattened) if text]
    return Picture(np.array(flat, dtype=np.uint8), tuple(notices))


def _upright(name: str, image: Image.Image) -> tuple[Image.Image, str]:
    """Turn the image as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image), ""
    except Exception as error:  # an orientation that cannot be read turns nothing
        return image, f"image {name!r}: EXIF is damaged ({error}), its orientation is ignored"


def _to_rgb(name: str, image: Image.Image) -> tuple[Image.Image, str]:
    """The image in 8-bit RGB, and what was lost if anything was."""
    if image.mode in _DEEP_GRAY:
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise _mode(name, f"{image.mode} values from {deep.min()} to {deep.max()}")
        gray = ((deep + 128) // 257).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB"), f"image {name!r}: 16 bits reduced to 8"
    if image.mode in _ALPHA or "transparency" in image.info:
        layered = image.convert("RGBA")
        lowest, _ = layered.getchannel("A").getextrema()
        if lowest == 255:
            return layered.convert("RGB"), ""
        white = Image.new("RGBA", layered.size, _WHITE)
        flat = Image.alpha_composite(white, layered).convert("RGB")
        return flat, f"image {name!r}: transparency flattened onto white"
    if image.mode in _FLAT:
        return image.convert("RGB"), ""
    raise _mode(name, f"mode {image.mode!r}")


def _looks_like(data: bytes) -> str:
    if not data:
        return "an empty file"
    return f"{len(data)} bytes that begin with {data[:8]!r}"


def _too_large(name: str, got: str, max_pixels: int) -> ImageError:
    return ImageError(
        "E_IMG_SIZE",
        f"image {name!r}: got {got}, expected at most {max_pixels} pixels. Scale it down first.",
    )


def _corrupt(name: str, error: Exception) -> ImageError:
    return ImageError(
        "E_IMG_TRUNCATED",
        f"image {name!r}: got damaged data ({error}), expected a whole image. Copy it again.",
    )


def _mode(name: str, got: str) -> ImageError:
    return ImageError(
        "E_IMG_MODE",
        f"image {name!r}: got {got}, expected 8- or 16-bit colours or grays. Convert it first.",
    )
