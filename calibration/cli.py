"""Command ``jscc calibrate``: a bundle of lower precision, measured on real receptions."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.calibration.air import CHANNELS
from jscc.calibration.calibrate import PRECISIONS, Images, Order, Outcome, calibrate
from jscc.calibration.collect import Grid
from jscc.calibration.images import describe_images, find_images, read_image
from jscc.calibration.lpips import LPIPS_MIN_SIDE, load_lpips
from jscc.calibration.ranges import ESTIMATORS
from jscc.calibration.rewrite import Place
from jscc.calibration.trials import Budget
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_output, make_parser, positive, seed
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import peak_rss_mib
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import Progress, notice, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jscc.calibration.collect import Image
    from jscc.runtime.manifest import Manifest

EVERY = 3  # of so many images one is tried on, the others are measured
BUDGET = "psnr=0.1"
_POINTS = 5  # of the trained SNR range


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc calibrate BUNDLE --images DIR -o OUT.jscc``."""
    begun = time.monotonic()
    options = _parse(arguments)
    report = options.report or options.output.with_suffix(".calibration.md")
    plot = report.with_suffix(".svg")
    if report == plot:
        raise UsageError(
            "E_CALIBRATE",
            f"--report: got {report.name!r}, expected a name that does not end in .svg: the plot "
            "takes it. Write out.md.",
        )
    for file in (report, plot):
        check_destination(file, force=options.force)
    source = Bundle.open(options.bundle)
    lpips = None if options.lpips_weights is None else load_lpips(options.lpips_weights)
    budget = parse_budget(options.budget)
    if budget.lpips is not None and lpips is None:
        raise UsageError(
            "E_CALIBRATE",
            "--budget: got lpips= without the metric's weights, expected --lpips-weights DIR. "
            "Give the folder, or budget psnr= alone.",
        )
    files = find_images(options.images, options.limit)
    images = split_images(files, options.crop)
    if budget.lpips is not None:
        check_sizes(images)
    order = _order(options, source.manifest, budget)
    progress = Progress("jscc calibrate")
    try:
        outcome = calibrate(
            source,
            images,
            order,
            lpips=lpips,
            describe={"images": describe_images(files)["sha256"], "crop": options.crop},
            progress=progress.advance,
        )
    finally:
        progress.close()
    _write_report(outcome, report, plot, force=options.force)
    say(_summary(outcome, time.monotonic() - begun))
    notice(f"jscc calibrate: wrote {report} and {plot.name}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "calibrate",
        "Lower a bundle's precision. Images are really sent and received over a grid of SNRs and "
        "time steps to measure what each layer meets; then layers return to full precision, worst "
        "first, until the budget holds on images that were not measured.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="in full precision")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="three or more that no network was trained on; every third is held back to try on",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="weights-int8 is for small files only: it computes in float32 (default int8)",
    )
    add_output(parser, "OUT.jscc", "bundle to write")
    parser.add_argument("--single-file", action="store_true", help="write one file, not a folder")
    parser.add_argument(
        "--budget",
        default=BUDGET,
        metavar="psnr=DB,lpips=X,agreement=DB",
        help="how much PSNR may be lost and LPIPS gained against the images that were sent, and "
        f"the least PSNR to what full precision receives (default {BUDGET})",
    )
    parser.add_argument(
        "--limit", type=positive, default=24, metavar="N", help="images to use (default 24)"
    )
    parser.add_argument(
        "--crop",
        type=positive,
        default=256,
        metavar="PX",
        help="use the middle of larger images, which bounds memory (default 256)",
    )
    parser.add_argument(
        "--snr",
        type=numbers_db,
        metavar="DB,…",
        help=f"default: {_POINTS} points of the range that the bundle was trained on",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="of loops (default: its own)")
    parser.add_argument(
        "--channel", choices=CHANNELS, default=CHANNELS[0], help=f"default {CHANNELS[0]}"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--stages", type=_names, metavar="NAME,…", help="default: the receiver's, but gradients"
    )
    parser.add_argument(
        "--ranges",
        choices=ESTIMATORS,
        default="mse",
        dest="estimator",
        help="where int8 clips (default mse)",
    )
    parser.add_argument(
        "--smooth",
        type=_alpha,
        metavar="ALPHA",
        help="SmoothQuant: move outliers from activations to weights; 0 to 1, try 0.5",
    )
    parser.add_argument(
        "--keep",
        action="append",
        type=_pattern,
        default=[],
        metavar="REGEX",
        help="more layers that keep full precision, by name; may be repeated",
    )
    parser.add_argument(
        "--no-deny",
        action="store_true",
        help="convert even first, last and embedding layers, shortcuts and zero convolutions",
    )
    parser.add_argument("--lpips-weights", type=Path, metavar="DIR", help="to measure LPIPS")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all available")
    parser.add_argument(
        "--report", type=Path, metavar="OUT.md", help="default: beside OUT.jscc, with a plot"
    )
    return parser.parse_args(arguments)


def _order(options: argparse.Namespace, manifest: Manifest, budget: Budget) -> Order:
    grid = Grid(
        snrs_db=options.snr or usual_snrs(manifest),
        steps=options.steps,
        channel=options.channel,
        seed=options.seed,
    )
    return Order(
        place=Place(options.output, options.single_file, options.force),
        precision=options.precision,
        grid=grid,
        budget=budget,
        stages=options.stages,
        estimator=options.estimator,
        smoothing=options.smooth,
        keep=tuple(options.keep),
        deny=not options.no_deny,
        threads=options.threads,
    )


def usual_snrs(manifest: Manifest) -> tuple[float, ...]:
    """Points spread evenly over the SNRs that the bundle was trained on."""
    first, last = manifest.signal.snr_db_range
    if first == last:
        return (first,)
    return tuple(first + (last - first) * i / (_POINTS - 1) for i in range(_POINTS))


def split_images(files: Sequence[Path], crop: int) -> Images:
    """The middles of images, those to measure and those to try.

    Raises:
        UsageError: ``E_IMAGES``, there are too few.
    """
    if len(files) < EVERY:
        raise UsageError(
            "E_IMAGES",
            f"--images: got {len(files)}, expected {EVERY} or more: of {EVERY} images one is tried "
            "on, the others are measured. Add some.",
        )
    measured: dict[str, Image] = {}
    tried: dict[str, Image] = {}
    for index, file in enumerate(files):
        group = tried if index % EVERY == EVERY - 1 else measured
        group[file.name] = middle(read_image(file), crop)
    return Images(measured, tried)


def check_sizes(images: Images) -> None:
    """Refuse images that LPIPS cannot be taken of.

    Raises:
        UsageError: ``E_IMAGES``.
    """
    for name, image in images.tried.items():
        if min(image.shape[:2]) < LPIPS_MIN_SIDE:
            raise UsageError(
                "E_IMAGES",
                f"--images: got {name!r} of {image.shape[0]}x{image.shape[1]} pixels with lpips= "
                f"in the budget, expected {LPIPS_MIN_SIDE} or more on each side. Take larger ones.",
            )


def middle(image: Image, crop: int) -> Image:
    """The middle of `image`, at most `crop` pixels on each side."""
    height, width = image.shape[:2]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return image[top : top + crop, left : left + crop]


def parse_budget(text: str) -> Budget:
    """``psnr=0.1,lpips=0.005`` as a budget.

    Raises:
        UsageError: ``E_CALIBRATE``, another name or no number.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in ("psnr", "lpips", "agreement") or name in values or not _is_number(number):
            raise UsageError(
                "E_CALIBRATE",
                f"--budget: got {part!r}, expected psnr=DB, lpips=X or agreement=DB, each once. "
                "Write for example psnr=0.1,lpips=0.005.",
            )
        values[name] = float(number)
    return Budget(**values)


def _write_report(outcome: Outcome, report: Path, plot: Path, *, force: bool) -> None:
    from jscc.calibration.report import markdown, picture

    write_file(plot, picture(outcome), force=force)
    write_file(report, markdown(outcome, plot.name).encode(), force=force)


def _summary(outcome: Outcome, seconds: float) -> str:
    cost = outcome.cost
    before, after = outcome.sizes
    lpips = "" if cost.lpips is None else f", {cost.lpips:+.4f} LPIPS"
    peak = peak_rss_mib()
    memory = "" if peak is None else f", peak memory {peak / 1024:.2f} GiB"
    return (
        f"{outcome.bundle.path}: {outcome.order.precision}, {after:.2f} MiB (was {before:.2f})\n"
        f"  costs {cost.psnr:.3f} dB PSNR{lpips}; {cost.agreement_db:.2f} dB to full precision\n"
        f"  {len(outcome.kept)} layers kept full precision, {len(outcome.found.returned)} more "
        f"were given it back by {len(outcome.found.trials)} attempts\n"
        f"  measured on {outcome.collected.receptions} receptions, tried on {outcome.tried}\n"
        f"  {seconds:.0f} s{memory}"
    )


def numbers_db(text: str) -> tuple[float, ...]:
    """Several SNRs by commas.

    Raises:
        argparse.ArgumentTypeError: One is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_is_number, parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers of dB by commas")
    return tuple(dict.fromkeys(float(part) for part in parts))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _alpha(text: str) -> float:
    if not (_is_number(text) and 0.0 <= float(text) <= 1.0):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 1")
    return float(text)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"got {text!r} ({error}), expected a regex") from error
    return text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
