"""Images whose size is no multiple: what is put beside them, and that a bundle says which."""

import dataclasses

import numpy as np
import pytest

from jscc.runtime.manifest import ImageContract
from jscc.runtime.preprocess import geometry_of, pad, restore

REFLECTING = ImageContract(
    multiple=4,
    short_edge=0,
    rounding="truncate",
    tile=0,
    overlap=0,
    max_pixels=1 << 20,
    padding="reflect",
)


def padded(image, contract):
    geometry = geometry_of(image.shape[:2], contract, contract.max_pixels)
    return pad(image, geometry), geometry


def test_reflection_does_not_repeat_the_edge():
    row = np.array([1, 2, 3, 4, 5, 6], np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=2).repeat(4, axis=0)
    result, geometry = padded(image, REFLECTING)
    assert result[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 5, 4]
    assert result.shape == (4, 8, 3)
    assert np.array_equal(restore(result, geometry), image)


def test_an_image_narrower_than_its_padding():
    wide = dataclasses.replace(REFLECTING, multiple=8)
    image = np.array([[[7, 8, 9]], [[1, 2, 3]]], np.uint8)
    result, _ = padded(image, wide)
    assert result[:, 0, 0].tolist() == [7, 1, 7, 1, 7, 1, 7, 1]
    assert (result == result[:, :1]).all()


def test_both_edges_at_once():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    result, _ = padded(image, REFLECTING)
    assert np.array_equal(result, np.pad(image, ((0, 3), (0, 2), (0, 0)), mode="reflect"))


@pytest.mark.parametrize("size", [(8, 12), (4, 4)])
def test_nothing_is_padded_where_nothing_is_missing(size):
    image = np.full((*size, 3), 9, np.uint8)
    assert np.array_equal(padded(image, REFLECTING)[0], image)


def test_zeros_are_the_default():
    contract = dataclasses.replace(REFLECTING, padding="zeros")
    result, _ = padded(np.full((3, 4, 3), 9, np.uint8), contract)
    assert (result[3] == 0).all()
