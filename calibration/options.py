"""Options: what both commands of calibration ask of images and channel."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.calibration.calibrate import Images
from jscc.calibration.images import read_image
from jscc.runtime.commands.options import positive, seed
from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jscc.calibration.metrics import Image
    from jscc.runtime.manifest import Manifest
    from jscc.runtime.terminal import Parser

EVERY = 3  # of so many images one is held back
_POINTS = 5  # of the trained SNR range


def add_receptions(parser: Parser, *, limit: int) -> None:
    """The images, how they are sent, and with how many threads they are received.

    Args:
        parser: Of the command.
        limit: Images that are used by default.
    """
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"{EVERY} or more that no network was trained on; every third is held back to try on",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=limit,
        metavar="N",
        help=f"images to use (default {limit})",
    )
    parser.add_argument(
        "--crop",
        type=positive,
        default=256,
        metavar="PX",
        help="use the middle of larger images, which bounds memory (default 256)",
    )
    parser.add_argument(
        "--snr",
        type=numbers_db,
        metavar="DB,…",
        help=f"default: {_POINTS} points of the range that the bundle was trained on",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all available")
    parser.add_argument("--single-file", action="store_true", help="write one file, not a folder")


def numbers_db(text: str) -> tuple[float, ...]:
    """Several SNRs by commas.

    Raises:
        argparse.ArgumentTypeError: One is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(is_number, parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers of dB by commas")
    return tuple(dict.fromkeys(float(part) for part in parts))


def is_number(text: str) -> bool:
    """Whether it is a finite decimal number."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None


def usual_snrs(manifest: Manifest) -> tuple[float, ...]:
    """Points spread evenly over the SNRs that the bundle was trained on."""
    first, last = manifest.signal.snr_db_range
    if first == last:
        return (first,)
    return tuple(first + (last - first) * i / (_POINTS - 1) for i in range(_POINTS))


def split_images(files: Sequence[Path], crop: int) -> Images:
    """The middles of images, those to measure and those to try.

    Raises:
        UsageError: ``E_IMAGES``, there are too few.
    """
    if len(files) < EVERY:
        raise UsageError(
            "E_IMAGES",
            f"--images: got {len(files)}, expected {EVERY} or more: of {EVERY} images one is tried "
            "on, the others are measured. Add some.",
        )
    measured: dict[str, Image] = {}
    tried: dict[str, Image] = {}
    for index, file in enumerate(files):
        group = tried if index % EVERY == EVERY - 1 else measured
        group[file.name] = middle(read_image(file), crop)
    return Images(measured, tried)


def middle(image: Image, crop: int) -> Image:
    """The middle of `image`, at most `crop` pixels on each side."""
    height, width = image.shape[:2]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return image[top : top + crop, left : left + crop]
