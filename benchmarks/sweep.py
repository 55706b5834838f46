"""Sweep: everything that a quality measurement goes through, and the key of each of its rows."""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from jscc.benchmarks.titles import TITLES
from jscc.calibration.air import CHANNELS
from jscc.calibration.images import digest
from jscc.runtime.choices import NO_GUIDE, Choices
from jscc.runtime.commands.host_sides import add_side, check_names, read_sides
from jscc.runtime.commands.options import decibels, level, number, positive, travel
from jscc.runtime.descent import LEARNING_RATE
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import Manifest
from jscc.runtime.sides import host_sides
from jscc.runtime.spacing import OWN, SPACINGS

KEY = ("bundle", "setting", "rate", "image", "snr_db", "seed")

Key = tuple[Any, ...]
Item = TypeVar("Item", str, int, float, Fraction)


@dataclass(frozen=True)
class Variant:
    """One bundle and the ways in which it is measured.

    Attributes:
        path: The bundle.
        settings: Ways to receive.
        rates: Planes on the air to send at; None for the bundle's own.
        sides: Names and files of the side inputs that its host gives.
    """

    path: Path
    settings: tuple[Choices, ...]
    rates: tuple[int | None, ...]
    sides: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Case:
    """One row to measure: its key and what stands behind the numbers in it."""

    key: Key
    choices: Choices

    @property
    def sent(self) -> Key:
        """What decides what arrives on the air; the same for all ways to receive it."""
        return self.key[2:]


@dataclass(frozen=True)
class Sweep:
    """What to measure.

    Attributes:
        variants: Bundles, in the order of the tables.
        images: Image files.
        snrs_db: Channel SNRs.
        channel: Name of the channel.
        seeds: How many transmissions of each image at each SNR.
    """

    variants: tuple[Variant, ...]
    images: tuple[Path, ...]
    snrs_db: tuple[float, ...]
    channel: str
    seeds: int

    def cases(self) -> Iterator[tuple[int, Path, float, tuple[Case, ...]]]:
        """Bundle, image and SNR with the cases that they share, in the order of the result."""
        for bundle, variant in enumerate(self.variants):
            for file in self.images:
                for snr_db in self.snrs_db:
                    yield bundle, file, snr_db, tuple(self._of(bundle, variant, file, snr_db))

    def _of(self, bundle: int, variant: Variant, file: Path, snr_db: float) -> Iterator[Case]:
        for rate in variant.rates:
            for seed in range(self.seeds):
                for setting, choices in enumerate(variant.settings):
                    yield Case((bundle, setting, rate, file.name, snr_db, seed), choices)

    def order(self) -> dict[Key, int]:
        """Place of each row in the result."""
        keys = (case.key for *_, cases in self.cases() for case in cases)
        return {key: place for place, key in enumerate(keys)}


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of a row."""
    return tuple(row[name] for name in KEY)


def add_images(parser: argparse.ArgumentParser) -> None:
    """The options that every measurement on images has."""
    parser.add_argument("--images", type=Path, required=True, help="folder of images to send")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N of them")
    parser.add_argument("--snr", default="1,4,7,10,13", help="SNRs in dB, by commas")
    parser.add_argument("--channel", choices=CHANNELS, default="awgn")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="transmissions of each image and SNR"
    )
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes (default 1)"
    )
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that `settings_from` reads; of those with commas every combination is run."""
    parser.add_argument(
        "--rate",
        default="",
        metavar="PLANES",
        help="planes on the air, by commas, or all, for bundles that have a choice",
    )
    parser.add_argument("--steps", default="", help="numbers of steps, by commas")
    parser.add_argument("--sampler", default="", help="samplers, by commas")
    parser.add_argument(
        "--spacing",
        default="",
        metavar="NAMES",
        help=f"of the noise levels, by commas, of {', '.join((*SPACINGS, OWN))}",
    )
    parser.add_argument("--start", choices=("noise", "received"), help="where the loop starts")
    parser.add_argument(
        "--start-level", type=level, metavar="X", help="share of the schedule, in (0, 1]"
    )
    parser.add_argument("--guidance", default="", metavar="X", help="weights of the guide")
    parser.add_argument("--guide", default="", metavar="NAMES", help="guides, by commas, or none")
    parser.add_argument(
        "--guide-every", type=positive, metavar="N", help="of so many steps one is guided"
    )
    parser.add_argument(
        "--travel", type=travel, metavar="L,R", help="run every stretch of L steps R times"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values of a knob of the bundle, by commas; repeat for others",
    )
    add_side(parser)


def settings_from(args: argparse.Namespace) -> tuple[Choices, ...]:
    """What the options ask for, in every combination.

    Raises:
        UsageError: ``E_USAGE``, an option cannot be read.
    """
    knobs = dict(_knob(text) for text in args.set)
    axes: dict[str, Sequence[Any]] = {
        "sampler": items("--sampler", args.sampler, str) or [None],
        "steps": items("--steps", args.steps, positive) or [None],
        "spacing": items("--spacing", args.spacing, str) or [None],
        "guide": items("--guide", args.guide, str) or [None],
        "guidance": items("--guidance", args.guidance, number) or [None],
        **knobs,
    }
    settings = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        settings.append(
            Choices(
                sampler=chosen["sampler"],
                steps=chosen["steps"],
                start=args.start,
                start_level=args.start_level,
                guidance=chosen["guidance"],
                guide=chosen["guide"],
                guide_every=args.guide_every,
                travel=args.travel,
                settings={name: chosen[name] for name in knobs},
                spacing=chosen["spacing"],
            )
        )
    return tuple(settings)


def _knob(text: str) -> tuple[str, list[float]]:
    name, sign, values = text.partition("=")
    found = items("--set", values, _any_number)
    if not (name and sign and found):
        raise UsageError(
            "E_USAGE", f"--set: got {text!r}, expected NAME=VALUE[,VALUE…]. Correct it."
        )
    return name, found


def _any_number(text: str) -> float:
    negative = text.startswith("-")
    value = number(text[1:] if negative else text)
    return -value if negative else value


def fitted(choices: Choices, manifest: Manifest) -> Choices:
    """`choices` without what a bundle has no use for, so that bundles can be measured together.

    A plain codec takes nothing; knobs and guides go to the bundles that have them. Sampler, steps
    and start stay for all that loop.
    """
    loops = manifest.loops.values()
    settings = {name: v for name, v in choices.settings.items() if name in knobs_of(manifest)}
    if not loops:
        steps = choices.steps if manifest.descents else None
        return Choices(steps=steps, settings=settings)
    guides = {name for loop in loops for name in loop.guides}
    guide = choices.guide if choices.guide in {*guides, NO_GUIDE} else None
    guided = bool(guides) or any(loop.guide for loop in loops)
    return replace(
        choices,
        guide=guide,
        guidance=choices.guidance if guided else None,
        guide_every=choices.guide_every if guides else None,
        settings=settings,
    )


def rates_of(text: str, manifest: Manifest) -> tuple[int | None, ...]:
    """The rates to send at that ``--rate`` asks for; None for the bundle's own."""
    rates = manifest.signal.rates
    asked = set(rates) if text.strip() == "all" else set(items("--rate", text, positive))
    return tuple(rate for rate in rates if rate in asked) or (None,)


def knobs_of(manifest: Manifest) -> set[str]:
    """Names that ``--set`` may give to this bundle."""
    knobs = {name for loop in manifest.loops.values() for name in loop.settings}
    for descent in manifest.descents.values():
        knobs |= {LEARNING_RATE, *descent.settings}
    return knobs


def check_use(settings: Sequence[Choices], rate: str, manifests: Sequence[Manifest]) -> None:
    """Refuse a knob, a guide or a rate that none of the bundles has.

    Raises:
        UsageError: ``E_SETTING``, ``E_GUIDE`` or ``E_RATE``.
    """
    rates = sorted({each for manifest in manifests for each in manifest.signal.rates})
    for asked in [] if rate.strip() == "all" else items("--rate", rate, positive):
        if asked not in rates:
            raise UsageError(
                "E_RATE",
                f"--rate: got {asked}, expected one of {', '.join(map(str, rates)) or 'none'}, the "
                "rates of these bundles. Correct it.",
            )
    knobs: set[str] = set().union(*map(knobs_of, manifests))
    loops = [loop for manifest in manifests for loop in manifest.loops.values()]
    guides = {NO_GUIDE, *(name for loop in loops for name in loop.guides)}
    for choices in settings:
        for name in sorted(set(choices.settings) - knobs):
            raise UsageError(
                "E_SETTING",
                f"--set: got {name!r}, expected one of {', '.join(sorted(knobs)) or 'none'}, the "
                "knobs of these bundles. Correct the name.",
            )
        if choices.guide is not None and choices.guide not in guides:
            raise UsageError(
                "E_GUIDE",
                f"--guide: got {choices.guide!r}, expected one of {', '.join(sorted(guides))}, the "
                "guides of these bundles. Correct the name.",
            )


def check_sides(sides: Sequence[tuple[str, Path]], manifests: Sequence[Manifest]) -> dict[str, str]:
    """SHA-256 of the side inputs' files by name; refuses those that no bundle can use.

    Raises:
        UsageError: ``E_SIDE``, a name is unknown or there twice.
        JsccError: As `read_sides`, a file cannot be used.
    """
    known = sorted({name for manifest in manifests for name in host_sides(manifest)})
    check_names([name for name, _ in sides], known)
    for manifest in manifests:
        read_sides(manifest, None, taken_sides(sides, manifest))
    return {name: digest([path]) for name, path in sides}


def taken_sides(
    sides: Sequence[tuple[str, Path]], manifest: Manifest
) -> tuple[tuple[str, Path], ...]:
    """Those of `sides` that a bundle takes from its host, so that several are measured together."""
    wanted = host_sides(manifest)
    return tuple((name, path) for name, path in sides if name in wanted)


def describe_settings(settings: Sequence[Choices]) -> list[dict[str, object]]:
    """Settings for a result, without what was not chosen."""
    return [
        {name: v for name, v in asdict(each).items() if v not in (None, {})} for each in settings
    ]


def snrs_from(text: str) -> tuple[float, ...]:
    """SNRs in dB, by commas."""
    return tuple(items("--snr", text, decibels))


def fraction(text: str) -> Fraction:
    """A cbr such as ``1/96``."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a ratio such as 1/96") from None
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a ratio above 0 such as 1/96")
    return value


def items(option: str, text: str, kind: Callable[[str], Item]) -> list[Item]:
    """The items of `text`, separated by commas.

    Raises:
        UsageError: ``E_USAGE``, `kind` refuses one of them.
    """
    try:
        return [kind(item.strip()) for item in text.split(",") if item.strip()]
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            "E_USAGE",
            f"{option}: got {text!r}, expected items between commas: {error}. Correct it.",
        ) from None


def one(option: str, text: str, kind: Callable[[str], Item]) -> Item:
    """The only item of `text`.

    Raises:
        UsageError: ``E_USAGE``, there are none or several, or `kind` refuses it.
    """
    found = items(option, text, kind)
    if len(found) != 1:
        raise UsageError("E_USAGE", f"{option}: got {text!r}, expected one value. Name one.")
    return found[0]


def metrics_from(text: str) -> list[str]:
    """Metrics by commas.

    Raises:
        UsageError: ``E_METRIC_NAME``, there is no such metric.
    """
    metrics = items("--metric", text, str)
    for name in metrics:
        if name not in TITLES:
            raise UsageError(
                "E_METRIC_NAME",
                f"--metric: got {name!r}, expected some of {', '.join(TITLES)}. Correct it.",
            )
    return metrics
