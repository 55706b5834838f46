"""Options: arguments that several commands take, read the same way by each.

NOTE: `jscc doctor` reads this on machines where nothing but the standard library is there.
"""

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jscc.runtime.engine_names import AUTO, DEFAULT, ENGINES
from jscc.runtime.terminal import Parser

MAX_SEED = 2**63 - 1


def decibels(text: str) -> float:
    """A finite number of dB."""
    value = _number(text)
    if abs(value) > 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected -1000 to 1000 dB")
    return value


def gain(text: str) -> complex:
    """``RE,IM`` as a complex number that is not zero."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected RE,IM such as 0.6,-0.8")
    value = complex(_number(parts[0]), _number(parts[1]))
    if value == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a gain other than 0")
    return value


def image_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH`` in pixels."""
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if 0 in size:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected HEIGHTxWIDTH such as 512x768")
    return size


def positive(text: str) -> int:
    """A whole number from 1 to 100 000."""
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 to 100000")
    return int(text)


def seed(text: str) -> int:
    """A seed or frame number, from 0 to 2^63 - 1."""
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a whole number from 0 to {MAX_SEED}"
        )
    return int(text)


def number(text: str) -> float:
    """A finite number from 0 up."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 or more")
    return value


def level(text: str) -> float:
    """A share of the noise schedule, above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0 and at most 1")
    return value


def travel(text: str) -> tuple[int, int]:
    """``L,R``: steps of a stretch, and how often each is run."""
    found = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", text)
    if not found or 0 in (int(found[1]), int(found[2])):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected L,R such as 10,3")
    return int(found[1]), int(found[2])


def setting(text: str) -> tuple[str, float]:
    """``NAME=VALUE`` with a finite number."""
    name, _, value = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE such as eta=0.85")
    return name, _number(value)


def make_parser(command: str, description: str) -> Parser:
    """The parser of ``jscc <command>``."""
    return Parser(prog=f"jscc {command}", description=description, allow_abbrev=False)


def add_csi(parser: Parser) -> None:
    """``--snr`` and ``--gain``."""
    parser.add_argument("--snr", type=decibels, metavar="DB", help="signal-to-noise ratio in dB")
    parser.add_argument(
        "--gain", type=gain, metavar="RE,IM", help="complex gain of the channel (default 1,0)"
    )


def add_rate(parser: Parser) -> None:
    """``--rate``."""
    parser.add_argument(
        "--rate",
        type=positive,
        metavar="PLANES",
        help="planes to send, of a bundle that has several rates: see jscc inspect (default all)",
    )


def add_engine_choice(parser: argparse.ArgumentParser) -> None:
    """``--engine``, of what receives; transmitters have the default, see `load_transmitter`."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=DEFAULT, help=f"what receives (default {DEFAULT})"
    )


def add_engine(parser: Parser) -> None:
    """``--engine``, ``--provider`` and ``--threads``."""
    parser.add_argument(
        "--engine",
        choices=(AUTO, *ENGINES),
        default=AUTO,
        help=f"what receives (default {AUTO}: what jscc choose found, else {DEFAULT})",
    )
    add_providers(parser)


def add_providers(parser: Parser) -> None:
    """``--provider`` and ``--threads``."""
    parser.add_argument(
        "--provider",
        action="append",
        dest="providers",
        metavar="NAME",
        help="where to run, such as cpu, cuda or tensorrt; repeat for a list (default cpu)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads (default all available)"
    )


def add_sampling(parser: Parser) -> None:
    """What the loops do: ``--seed``, ``--sampler``, ``--steps`` and their like."""
    from jscc.runtime.spacing import OWN, SPACINGS

    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the receiver's noise (default 0)"
    )
    parser.add_argument("--sampler", metavar="NAME", help="such as ddim (default: the bundle's)")
    parser.add_argument("--steps", type=positive, metavar="N", help="default: the bundle's")
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help=f"of the noise levels: {', '.join((*SPACINGS, OWN))}, or the levels by commas "
        "(default: the bundle's own where it has fitting ones, else the sampler's)",
    )
    parser.add_argument(
        "--start",
        choices=("noise", "received"),
        help="begin from noise, or from the received image's own latent",
    )
    parser.add_argument(
        "--start-level",
        type=level,
        metavar="X",
        help="share of the noise schedule to run, above 0 and at most 1",
    )
    parser.add_argument("--guidance", type=number, metavar="X", help="weight of the guide")
    parser.add_argument(
        "--guide", metavar="NAME", help="which of the bundle's guides, or none (default: its own)"
    )
    parser.add_argument(
        "--guide-every", type=positive, metavar="K", help="guide every K-th step only"
    )
    parser.add_argument(
        "--travel",
        type=travel,
        metavar="L,R",
        help="run every stretch of L steps R times (time travel)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        type=setting,
        metavar="NAME=VALUE",
        help="turn a knob of the bundle, see jscc inspect; may be repeated",
    )


def add_output(parser: Parser, metavar: str, text: str, *, required: bool = True) -> None:
    """``-o`` and ``--force``."""
    parser.add_argument("-o", "--output", type=Path, required=required, metavar=metavar, help=text)
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def add_json(parser: Parser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def providers(given: Sequence[str] | None) -> tuple[str, ...]:
    """The providers to ask the engine for."""
    return tuple(given) if given else ("cpu",)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a finite number")
    return value


def display(path: Path) -> str:
    """`path` as text, for results."""
    return os.fsdecode(path)
