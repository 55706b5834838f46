"""Tiles: the square training pictures, and which of them are never trained on."""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jscc.runtime.errors import DataError
from jscc.runtime.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

TILE: Final = 256
HELD_OUT: Final = 0.03
IMAGE_SUFFIXES: Final = frozenset({".png", ".webp", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Tiles:
    """Pictures uint8 [N,3,256,256]; no source image has tiles in both."""

    train: Tensor
    held_out: Tensor


def read_tiles(folder: Path) -> Tiles:
    """Reads every tile below `folder`: tars of tiles (with `manifest.tsv`), and plain image files.

    Held out are the 3 % of the source images whose names hash lowest, so that the choice depends
    on nothing but the names.

    Raises:
        DataError: ``E_TILES``, there is no picture of at least 256x256 in the folder, or a picture
            in it is damaged.
    """
    if not folder.is_dir():
        raise DataError(
            "E_TILES",
            f"--data {folder}: got no folder, expected one. Correct the name.",
        )
    named = sorted(_tiles(folder), key=lambda item: item[0])
    if not named:
        raise DataError(
            "E_TILES",
            f"--data {folder}: got no picture of at least {TILE}x{TILE}, expected some. "
            "Name another folder.",
        )
    sources = sorted(
        {source for source, _ in named}, key=lambda s: hashlib.sha256(s.encode()).digest()
    )
    held = set(sources[: max(1, round(HELD_OUT * len(sources)))])
    train = [tile for source, tile in named if source not in held]
    held_out = [tile for source, tile in named if source in held]
    if not train:
        train = held_out
    return Tiles(_stack(train), _stack(held_out))


def _stack(tiles: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def _tiles(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    sources = _sources(folder / "manifest.tsv")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for member in sorted(archive.getmembers(), key=lambda m: m.name):
                    stream = archive.extractfile(member) if member.isfile() else None
                    if stream is not None and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                        source = sources.get((path.name, member.name), member.name)
                        for tile in _cut(stream.read(), f"{path}, {member.name}"):
                            yield f"{path.name}/{source}", tile
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            for tile in _cut(path.read_bytes(), str(path)):
                yield path.name, tile


def _sources(manifest: Path) -> dict[tuple[str, str], str]:
    if not manifest.exists():
        return {}
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {(row["tar"], row["tile"]): row["source_image"] for row in rows}


def _cut(data: bytes, where: str) -> Iterator[np.ndarray]:
    """Yields the whole 256x256 tiles of a picture, from its top left corner."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError as error:
        raise DataError(
            "E_TILES",
            f"{where}: got {type(error).__name__} ({printable(str(error))}), expected a whole "
            "picture. Copy it again or take it away.",
        ) from error
    for top in range(0, pixels.shape[0] - TILE + 1, TILE):
        for left in range(0, pixels.shape[1] - TILE + 1, TILE):
            yield pixels[top : top + TILE, left : left + TILE]


def draw_crops(tiles: Tensor, *, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns random crops [count,3,size,size] in [0,1], each turned or mirrored at random."""
    which = torch.randint(len(tiles), (count,), generator=generator).tolist()
    corners = torch.randint(tiles.shape[-1] - size + 1, (count, 2), generator=generator).tolist()
    turns = torch.randint(2, (count, 3), generator=generator).tolist()
    crops = []
    for index, (top, left), (mirror, flip, transpose) in zip(which, corners, turns, strict=True):
        crop = tiles[index, :, top : top + size, left : left + size]
        axes = [axis for axis, wanted in ((2, mirror), (1, flip)) if wanted]
        crop = crop.flip(axes) if axes else crop
        crops.append(crop.transpose(1, 2) if transpose else crop)
    return torch.stack(crops).float() / 255
