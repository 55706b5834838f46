"""Calibrated: an export whose bundle is calibrated at once, as ``--precision int8 --calib DIR``.

Both commands run one after the other, each in a process of its own: what torch took is given back
before the first image is received, and export and calibration share nothing but the bundle. What
the second would refuse is looked at before the first, which takes long.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.runtime.errors import OutputError, UsageError
from jscc.runtime.write import check_destination

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

INT8, FP8 = "int8", "fp8"
_OWN = ("--precision", "--calib", "--calib-option", "--output", "-o")  # of this way of exporting
_TAKEN = ("check", "force", "help", "images", "output", "precision", "single-file")
_FLAGS = ("--single-file",)  # that concern the last bundle only


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The options of an export that calibrates."""
    parser.add_argument(
        "--calib",
        metavar="DIR",
        help="images to calibrate with, needed by --precision int8 and fp8; with fp16, the islands "
        "are chosen by what they show, and the loss is measured",
    )
    parser.add_argument(
        "--calib-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of jscc calibrate, such as budget=psnr=0.2 or limit=12; may be repeated",
    )


def is_calibrated(arguments: argparse.Namespace) -> bool:
    """Whether the bundle is to be calibrated.

    Raises:
        UsageError: ``E_CALIBRATE``, images and precision do not go together.
    """
    calib, precision = arguments.calib, arguments.precision
    if (precision in (INT8, FP8) and calib is None) or (calib is not None and precision == "fp32"):
        raise UsageError(
            "E_CALIBRATE",
            f"--precision {precision}: got {'no --calib' if calib is None else '--calib'}, "
            "expected --precision int8, fp8 or fp16 together with --calib DIR. Give both.",
        )
    if arguments.calib_option and calib is None:
        raise UsageError(
            "E_CALIBRATE",
            "--calib-option: got one without --calib, expected both. Add --calib DIR.",
        )
    return calib is not None


def export_calibrated(argv: Sequence[str], arguments: argparse.Namespace) -> int:
    """Look at options and images, export in full precision, then calibrate.

    Args:
        argv: The command line.
        arguments: The same, parsed.

    Returns:
        The exit status of the first that fails.

    Raises:
        OutputError: ``E_EXISTS``, the destination is taken.
        UsageError: ``E_CALIBRATE``, a ``--calib-option`` is no pair, or is set by the export.
    """
    output: Path = arguments.output
    if not output.resolve().parent.is_dir():
        raise OutputError(
            "E_OUTPUT",
            f"{output}: got no folder {output.parent}, expected one that is there. Make it first.",
        )
    if not any(Path(arguments.calib).glob("*")):
        raise UsageError(
            "E_CALIBRATE",
            f"--calib: got no file in {arguments.calib!r}, expected a folder of images. Name one.",
        )
    check_destination(output, overwrite=arguments.force)
    options = [part for text in arguments.calib_option for part in _option(text)]
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}.full.", dir=output.resolve().parent
    ) as folder:
        full = f"{folder}/full.jscc"
        first = ["export", *_without(argv), "--precision", "fp32", "-o", full]
        last = [
            "calibrate",
            full,
            *("--images", arguments.calib, "--precision", arguments.precision),
            *("-o", str(output)),
            *options,
            *(("--force",) if arguments.force else ()),
            *(("--single-file",) if arguments.single_file else ()),
        ]
        for command in ([*last, "--check"], first, last):
            status = subprocess.run(
                [sys.executable, "-m", "jscc", *command], check=False
            ).returncode
            if status:
                return status
    return 0


def _option(text: str) -> tuple[str, ...]:
    name, sign, value = text.partition("=")
    if not name or name.startswith("-"):
        raise UsageError(
            "E_CALIBRATE",
            f"--calib-option: got {text!r}, expected NAME=VALUE, such as limit=12. Correct it.",
        )
    if any(taken.startswith(name) for taken in _TAKEN):  # argparse takes what begins a name
        raise UsageError(
            "E_CALIBRATE",
            f"--calib-option: got {name!r}, expected an option of jscc calibrate that the export "
            "does not set itself. Leave it out.",
        )
    return (f"--{name}", value) if sign else (f"--{name}",)


def _without(argv: Sequence[str]) -> list[str]:
    """The command line without the options that the second command takes."""
    kept, skip = [], False
    for part in argv:
        name = part.partition("=")[0]
        if skip:
            skip = False
        elif name in _OWN or (part.startswith("-o") and part != "-o"):
            skip = part in _OWN
        elif part not in _FLAGS:
            kept.append(part)
    return kept
