"""Picture: the images stand in the sheet unchanged, side by side, with room for the words."""

import numpy as np
import pytest

from jscc.runtime.picture import Panel, side_by_side


def find(sheet, image):
    """The left edge of every place where `image` stands in `sheet`."""
    height, width = image.shape[:2]
    found = []
    for left in range(sheet.shape[1] - width + 1):
        column = sheet[:, left]
        for top in np.flatnonzero((column == image[0, 0]).all(axis=1)):
            block = sheet[top : top + height, left : left + width]
            if block.shape == image.shape and (block == image).all():
                found.append(left)
    return found


def test_large_images_stand_side_by_side_pixel_for_pixel():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 400, 3)).astype(np.uint8) for _ in range(3)]
    sheet = side_by_side([Panel(f"n{i}", image, ()) for i, image in enumerate(images)], footer="")
    places = [find(sheet, image) for image in images]
    assert [len(place) for place in places] == [1, 1, 1]
    lefts = [place[0] for place in places]
    assert lefts == sorted(lefts)
    assert lefts[1] - lefts[0] >= 400


def test_small_images_are_enlarged_by_whole_factors():
    image = np.random.default_rng(0).integers(0, 256, (8, 64, 3)).astype(np.uint8)
    sheet = side_by_side([Panel("a", image, ())], footer="")
    assert len(find(sheet, image.repeat(5, axis=0).repeat(5, axis=1))) == 1


@pytest.mark.parametrize("words", ["a" * 200, "short"])
def test_no_words_are_cut_off(words):
    """The ink of the longest line ends before the right margin."""
    image = np.full((320, 320, 3), 255, np.uint8)
    sheet = side_by_side([Panel(words, image, (words,))], footer=words)
    dark = (sheet.min(axis=2) < 128).any(axis=0)
    assert dark.any()
    assert not dark[-8:].any()
