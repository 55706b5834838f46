"""Write the tiles that no network is trained on as pictures, to choose defaults by.

    python -m jscc.export.reference.held_out --data DIR --out DIR

What a paper leaves open (steps, weights of guides, where a loop starts) is chosen on these by
``jscc bench quality``; the pictures of a published figure are never looked at for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from jscc.export.reference.tiles import TILE, read_tiles
from jscc.runtime.terminal import Parser
from jscc.runtime.terminal import run as run_command

if TYPE_CHECKING:
    from collections.abc import Sequence


def _every(text: str) -> int:
    return _whole(text, most=1 << 16)


def _edge(text: str) -> int:
    return _whole(text, most=TILE)


def _whole(text: str, *, most: int) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 1 to {most}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status."""
    parser = Parser(prog="python -m jscc.export.reference.held_out", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of tars of 256x256 tiles, or of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--every", type=_every, default=1, metavar="N", help="only one of N tiles")
    parser.add_argument(
        "--size", type=_edge, default=TILE, metavar="PX", help="edge of their middles, in pixels"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    held_out = read_tiles(options.data).held_out[:: options.every]
    begin = (TILE - options.size) // 2
    end = begin + options.size
    for index, tile in enumerate(held_out):
        picture = Image.fromarray(tile[:, begin:end, begin:end].permute(1, 2, 0).numpy())
        picture.save(options.out / f"{index * options.every:03d}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("held_out", main, sys.argv[1:]))
