"""Writes the golden bundles of format 1. Run once; what it wrote must stay readable for ever.

    PYTHONPATH=tests/support python tests/golden/make_format_1.py

``tiny.jscc`` is a folder with a transmitter, a receiver and a self-test; ``tiny-loop.jscc`` is one
file with a loop, external weights, a constant and a side input. A later format gets a folder of
its own beside this one; these bytes do not change.
"""

import sys
from pathlib import Path

import tiny_bundle

FOLDER = Path(__file__).resolve().parent / "format-1"


def main() -> int:
    """Write both bundles where there are none."""
    FOLDER.mkdir(exist_ok=True)
    codec = tiny_bundle.write_codec(FOLDER / "tiny.jscc")
    loop = tiny_bundle.write_diffusion(FOLDER / "tiny-loop.jscc", single_file=True)
    sys.stdout.write(f"{codec.sha256} tiny.jscc\n{loop.sha256} tiny-loop.jscc\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
