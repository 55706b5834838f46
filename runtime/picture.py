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
_LEAST_TEXT = 14


@dataclass(frozen=True)
class Panel:
    """One image with its title and the lines under it."""

    title: str
    pixels: Pixels
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Style:
    """Letters, and pixels from one line to the next."""

    title: Font
    text: Font
    line: int


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
    style = _style_for(shown[0])
    column = max([shown[0], *(_width(panel, style) for panel in panels)])
    footed = round(style.text.getlength(footer)) + 2 * _MARGIN
    total = max(len(panels) * (column + _MARGIN) + _MARGIN, footed)
    top = _MARGIN + 2 * style.line
    below = top + shown[1] + style.line // 2
    bottom = below + max(len(panel.lines) for panel in panels) * style.line + style.line // 2
    sheet = Image.new("RGB", (total, bottom + 2 * style.line), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, panel in enumerate(panels):
        left = _MARGIN + index * (column + _MARGIN)
        draw.text((left, _MARGIN), panel.title, fill=_INK, font=style.title)
        image = Image.fromarray(panel.pixels).resize(shown, Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        for number, words in enumerate(panel.lines):
            place = (left, below + number * style.line)
            draw.text(place, words, fill=_INK, font=style.text)
    draw.line([(_MARGIN, bottom), (total - _MARGIN, bottom)], fill=_RULE)
    place = (_MARGIN, bottom + style.line // 2)
    draw.text(place, footer, fill=_PALE, font=style.text)
    return np.array(sheet, dtype=np.uint8)


def _style_for(width: int) -> _Style:
    """Letters that stay readable when a sheet of panels `width` pixels wide is shown smaller."""
    size = max(_LEAST_TEXT, round(width / 36))
    title = round(1.3 * size)
    return _Style(ImageFont.load_default(title), ImageFont.load_default(size), round(1.4 * size))


def _width(panel: Panel, style: _Style) -> int:
    """Pixels that the words of `panel` need."""
    lengths = [style.title.getlength(panel.title)]
    lengths += [style.text.getlength(line) for line in panel.lines]
    return round(max(lengths)) + 1
