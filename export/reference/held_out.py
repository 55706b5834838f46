"""Write the tiles that no network is trained on as pictures, to choose defaults by.

    python -m jscc.export.reference.held_out --data DIR --out DIR

What a paper leaves open (steps, weights of guides, where a loop starts) is chosen on these by
``jscc bench quality``; the pictures of a published figure are never looked at for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from jscc.export.reference.tiles import TILE, read_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jscc.export.reference.held_out", description=__doc__
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of tars of 256x256 tiles, or of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only one of N tiles")
    parser.add_argument("--size", type=int, default=TILE, help="edge of their middles, in pixels")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    held_out = read_tiles(options.data).held_out[:: options.every]
    begin = (TILE - options.size) // 2
    end = begin + options.size
    for index, tile in enumerate(held_out):
        picture = Image.fromarray(tile[:, begin:end, begin:end].permute(1, 2, 0).numpy())
        picture.save(options.out / f"{index * options.every:03d}.png")


if __name__ == "__main__":
    main()
