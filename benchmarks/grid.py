"""Grid: crops of what was sent and what was received, one row for each image and SNR."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from jscc.calibration.metrics import Image
from jscc.runtime.errors import UsageError

_MARGIN = 8
_TEXT = 13
_LINE = _TEXT + 5
_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_SIDES = (512, 384, 320, 256, 224, 192, 160, 128, 96, 64)


@dataclass(frozen=True)
class Cell:
    """One picture and the lines under it."""

    pixels: Image
    caption: tuple[str, ...]


@dataclass(frozen=True)
class GridRow:
    """Pictures of one image, side by side, and what they share."""

    title: str
    cells: tuple[Cell, ...]


def grid_png(rows: Sequence[GridRow], max_bytes: int) -> bytes:
    """PNG with the largest central crops that fit into `max_bytes`; pixels are never resampled.

    Raises:
        UsageError: ``E_GRID``, there are no rows, or not even crops of 64x64 fit.
    """
    size = 0
    for side in _SIDES if rows else ():
        data = _png(_draw(rows, side))
        if len(data) <= max_bytes:
            return data
        size = len(data)
    raise UsageError(
        "E_GRID",
        f"grid: got {len(rows)} rows and {size} bytes with the smallest crops, expected 1 row or "
        f"more and at most {max_bytes} bytes. Name fewer images, or images of the folder.",
    )


def central_crop(pixels: Image, side: int) -> Image:
    """At most `side` x `side` pixels from the middle."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _draw(rows: Sequence[GridRow], side: int) -> Pillow.Image:
    font = ImageFont.load_default(_TEXT)
    crops = [[central_crop(cell.pixels, side) for cell in row.cells] for row in rows]
    words = [line for row in rows for cell in row.cells for line in cell.caption]
    widths = [*(crop.shape[1] for row in crops for crop in row), *map(font.getlength, words)]
    column = math.ceil(max(widths)) + _MARGIN
    lines = 1 + max(len(cell.caption) for row in rows for cell in row.cells)
    heights = [max(crop.shape[0] for crop in row) + lines * _LINE + _MARGIN for row in crops]
    columns = max(len(row.cells) for row in rows)
    sheet = Pillow.new("RGB", (columns * column + _MARGIN, sum(heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, pictures, height in zip(rows, crops, heights, strict=True):
        draw.text((_MARGIN, top), row.title, fill=_INK, font=font)
        for index, (cell, crop) in enumerate(zip(row.cells, pictures, strict=True)):
            left = _MARGIN + index * column
            sheet.paste(Pillow.fromarray(crop), (left, top + _LINE))
            for number, line in enumerate(cell.caption):
                below = top + _LINE * (number + 1) + crop.shape[0] + 2
                draw.text((left, below), line, fill=_INK, font=font)
        top += height
    return sheet


def _png(sheet: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
