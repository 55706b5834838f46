"""Held-out tiles as pictures: those that no training sees, pixel by pixel."""

import numpy as np
from PIL import Image

from jscc.export.reference import held_out
from jscc.export.reference.tiles import read_tiles


def test_the_pictures_are_the_middles_of_the_tiles_that_are_held_out(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for seed in range(40):
        pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{seed}.png")
    held_out.main(["--data", str(data), "--out", str(out), "--size", "64"])
    tiles = read_tiles(data)
    pictures = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(pictures) == len(tiles.held_out) > 0
    for picture, tile in zip(pictures, tiles.held_out, strict=True):
        assert np.array_equal(picture, tile[:, 96:160, 96:160].permute(1, 2, 0).numpy())
    trained = {tile.numpy().tobytes() for tile in tiles.train}
    assert not any(tile.numpy().tobytes() in trained for tile in tiles.held_out)
