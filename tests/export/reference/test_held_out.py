"""Held-out tiles as pictures: those that no training sees, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from jscc.export.reference import held_out
from jscc.export.reference.tiles import read_tiles
from jscc.runtime.errors import DataError, UsageError


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


@pytest.mark.parametrize(
    ("option", "value"), [("--size", "257"), ("--size", "0"), ("--every", "0")]
)
def test_numbers_that_no_tile_has_are_refused(option, value, tmp_path):
    with pytest.raises(UsageError, match=f"got '{value}', expected 1 to"):
        held_out.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), option, value])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("begin", "wanted"),
    [(b"", "got no picture of at least"), (b"\xff", "expected a whole picture")],
)
def test_a_folder_without_whole_pictures_is_refused(begin, wanted, tmp_path):
    command = ["--out", str(tmp_path / "out"), "--data"]
    if begin:
        (tmp_path / "cut.jpg").write_bytes(begin)
    with pytest.raises(DataError, match=wanted):
        held_out.main([*command, str(tmp_path)])
    with pytest.raises(DataError, match="got no folder"):
        held_out.main([*command, str(tmp_path / "none")])
