"""Picture: images side by side with what was measured written under them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LEAST_PANEL = 320  # small images are enlarged by whole factors up to about this width
_MARGIN = 16
_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_PALE = (95, 99, 104)
_RULE = (218, 220, 224)
_TITLE_SIZE = 18
_TEXT_SIZE = 14


@dataclass(frozen=True)
class Panel:
    """One image with its title and the lines under it."""

    title: str
    pixels: Pixels
    lines: tuple[str, ...]


def side_by_side(panels: Sequence[Panel], *, footer: str) -> Pixels:
    """Lay `panels` out in a row over a line of text.

    Args:
        panels: At least one; their images have one shape.
        footer: What holds for all of them.

    Returns:
        uint8[height, width, 3].
    """
    height, width = panels[0].pixels.shape[:2]
    factor = max(1, round(_LEAST_PANEL / width))
    shown = (width * factor, height * factor)
    title, text = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_TEXT_SIZE)
    line = _TEXT_SIZE + 6
    lines = max(len(panel.lines) for panel in panels)
    column = max([shown[0], *(_width(panel, title, text) for panel in panels)])
    columns = len(panels) * (column + _MARGIN) + _MARGIN
    wanted = max(columns, round(text.getlength(footer)) + 2 * _MARGIN)
    top = _MARGIN + _TITLE_SIZE + 12
    below = top + shown[1] + 10
    bottom = below + lines * line + 8
    sheet = Image.new("RGB", (wanted, bottom + line + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, panel in enumerate(panels):
        left = _MARGIN + index * (column + _MARGIN)
        draw.text((left, _MARGIN), panel.title, fill=_INK, font=title)
        image = Image.fromarray(panel.pixels).resize(shown, Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        for number, words in enumerate(panel.lines):
            draw.text((left, below + number * line), words, fill=_INK, font=text)
    draw.line([(_MARGIN, bottom), (wanted - _MARGIN, bottom)], fill=_RULE)
    draw.text((_MARGIN, bottom + 8), footer, fill=_PALE, font=text)
    return np.array(sheet, dtype=np.uint8)


def _width(panel: Panel, title: Font, text: Font) -> int:
    """Pixels that the words of `panel` need."""
    lengths = [title.getlength(panel.title), *(text.getlength(line) for line in panel.lines)]
    return round(max(lengths)) + 1
