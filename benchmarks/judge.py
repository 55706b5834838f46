"""Judge: every figure that is asked for, of one received image after the other.

Most figures compare a pair of images. Those that compare the set of received images with the set
that was sent (`SETS`) come from features that each image leaves behind. A metric that an image is
too small for is None, and so is every mean that it would be part of.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jscc.benchmarks.classifier import RANGES, Classifier
from jscc.benchmarks.frechet import (
    FeatureNetwork,
    Features,
    frechet_distance,
    from_text,
    patches_of,
    to_text,
)
from jscc.benchmarks.networks import (
    AlexNetFeatures,
    Dists,
    InceptionFeatures,
    lpips_from_package,
    lpips_package_is_there,
)
from jscc.benchmarks.report import finite
from jscc.benchmarks.titles import PAIRS, SETS, TASK, Figures
from jscc.calibration.images import digest
from jscc.calibration.lpips import LPIPS_FILES, LPIPS_MIN_SIDE, Lpips, load_lpips
from jscc.calibration.lpips import Features as Taps
from jscc.calibration.metrics import MS_SSIM_MIN_SIDE, Image, ms_ssim, psnr_db
from jscc.runtime.errors import UsageError
from jscc.runtime.terminal import notice

Texts = dict[str, str]


@dataclass(frozen=True)
class Wanted:
    """Which figures, and where their networks come from; may go to another process.

    Attributes:
        lpips_weights: Folder of LPIPS weights.
        lpips_package: Without that folder, take the weights of the package ``lpips``.
        also: Names out of `PAIRS` and `SETS`.
        task: ONNX file of a classifier.
        task_range: Values that the classifier takes.
    """

    lpips_weights: Path | None = None
    lpips_package: bool = False
    also: tuple[str, ...] = ()
    task: Path | None = None
    task_range: str = RANGES[0]

    def describe(self) -> dict[str, object]:
        """What a result says of them."""
        folder = self.lpips_weights
        weights = None if folder is None else digest([folder / name for name in LPIPS_FILES])
        return {
            "lpips": "package lpips" if self.lpips_package else weights,
            "also": list(self.also),
            "task": None
            if self.task is None
            else {"name": self.task.name, "sha256": digest([self.task]), "range": self.task_range},
        }


class Instruments:
    """The metrics themselves, loaded once in each process.

    Args:
        wanted: Which.

    Raises:
        DataError: ``E_METRIC_WEIGHTS``, ``E_TASK``.
        UnavailableError: ``E_METRIC_PACKAGE``, ``E_METRIC_NETWORK``.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.lpips: Lpips | None = None
        if wanted.lpips_weights is not None:
            self.lpips = load_lpips(wanted.lpips_weights)
        elif wanted.lpips_package:
            self.lpips = lpips_from_package()
        self.dists = Dists() if "dists" in wanted.also else None
        self.sets: dict[str, FeatureNetwork] = {}
        if "fd_alexnet" in wanted.also:
            assert self.lpips is not None  # `wanted_from` has made sure
            self.sets["fd_alexnet"] = AlexNetFeatures(self.lpips)
        if "fid" in wanted.also:
            self.sets["fid"] = InceptionFeatures()
        self.classifier: Classifier | None = None
        if wanted.task is not None:
            self.classifier = Classifier(wanted.task, wanted.task_range)

    def features(self, image: Image) -> Texts:
        """What `image` leaves behind for each set metric; nothing where it holds no patch."""
        patches = patches_of(image)
        return {name: to_text(net(patches)) for name, net in self.sets.items() if patches}


class Judge:
    """Compares received images with the one that was sent.

    Args:
        image: What was sent.
        instruments: The metrics.
    """

    def __init__(self, image: Image, instruments: Instruments) -> None:
        self._image = image
        self._instruments = instruments
        side = min(image.shape[:2])
        self._structure = side >= MS_SSIM_MIN_SIDE
        self._lpips = instruments.lpips if side >= LPIPS_MIN_SIDE else None
        self._taps: Taps = () if self._lpips is None else self._lpips.features(image)
        classify = instruments.classifier
        self._class = None if classify is None else classify(image)

    def __call__(self, received: Image) -> Figures:
        """The figures by name."""
        instruments = self._instruments
        figures: Figures = {
            "psnr_db": finite(psnr_db(self._image, received)),
            "ms_ssim": ms_ssim(self._image, received) if self._structure else None,
            "lpips": None,
        }
        if self._lpips is not None:
            figures["lpips"] = self._lpips.between(self._taps, self._lpips.features(received))
        if instruments.dists is not None:
            figures["dists"] = instruments.dists(self._image, received)
        if instruments.classifier is not None:
            figures[TASK] = float(instruments.classifier(received) == self._class)
        return figures

    def features(self, received: Image) -> Texts:
        """What it leaves behind for the set metrics."""
        return self._instruments.features(received)


def set_distance(sent: Sequence[Texts], received: Sequence[Texts], metric: str) -> float | None:
    """Distance of two sets of images by what they left behind; None where one left nothing."""
    sides: list[Features] = []
    for texts in (sent, received):
        if not all(metric in text for text in texts):
            return None
        sides.append(np.concatenate([from_text(text[metric], WIDTHS[metric]) for text in texts]))
    if min(len(side) for side in sides) < 2:
        return None
    return frechet_distance(*sides)


WIDTHS: Mapping[str, int] = {"fd_alexnet": 256, "fid": 2048}


def add_wanted(parser: argparse.ArgumentParser) -> None:
    """The options that `wanted_from` reads."""
    parser.add_argument(
        "--lpips-weights",
        type=Path,
        metavar="DIR",
        help="LPIPS weights (default: those of the package lpips; without it no LPIPS)",
    )
    parser.add_argument(
        "--also",
        default="",
        metavar="NAMES",
        help=f"more metrics by commas: {', '.join((*PAIRS, *SETS))}",
    )
    parser.add_argument(
        "--task", type=Path, metavar="FILE.onnx", help="classifier for the top-1 agreement"
    )
    parser.add_argument(
        "--task-range",
        choices=RANGES,
        default=RANGES[0],
        help="values that it takes (default unit)",
    )


def wanted_from(args: argparse.Namespace) -> Wanted:
    """What the options ask for.

    Raises:
        UsageError: ``E_METRIC_NAME``, no such metric, or one that lacks its weights.
    """
    also = tuple(dict.fromkeys(name.strip() for name in args.also.split(",") if name.strip()))
    for name in also:
        if name not in (*PAIRS, *SETS):
            raise UsageError(
                "E_METRIC_NAME",
                f"--also: got {name!r}, expected some of {', '.join((*PAIRS, *SETS))}. Correct it.",
            )
    package = args.lpips_weights is None and lpips_package_is_there()
    if args.lpips_weights is None and not package:
        if "fd_alexnet" in also:
            raise UsageError(
                "E_METRIC_NAME",
                "--also: got 'fd_alexnet' without weights of AlexNet, expected --lpips-weights or "
                "the package lpips. Give the folder.",
            )
        notice("LPIPS is left out: neither --lpips-weights nor the package lpips is there.")
    return Wanted(args.lpips_weights, package, also, args.task, args.task_range)
