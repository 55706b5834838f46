"""Images: the files that are sent in a benchmark."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jscc.calibration.metrics import Image
from jscc.runtime.errors import UsageError
from jscc.runtime.image_files import decode_image

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff")


def read_image(file: Path) -> Image:
    """Decode an image file to uint8 RGB."""
    return decode_image(file.name, file.read_bytes()).pixels


def find_images(folder: Path, limit: int | None) -> tuple[Path, ...]:
    """The image files of `folder` by name, the first `limit` of them.

    Raises:
        UsageError: ``E_IMAGES``, there is none.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise UsageError(
            "E_IMAGES",
            f"--images: got no image in {str(folder)!r}, expected files that end in "
            f"{', '.join(SUFFIXES)}. Name the folder that holds them.",
        )
    return tuple(files[:limit])


def digest(files: Sequence[Path]) -> str:
    """One hash of all bytes of `files`."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def describe_images(files: Sequence[Path]) -> dict[str, object]:
    """What a result says of its images; no folder but the last part of its name."""
    return {"folder": files[0].resolve().parent.name, "sha256": digest(files)}
