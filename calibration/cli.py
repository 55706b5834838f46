"""Command ``jscc calibrate``: a bundle of lower precision, measured on real receptions."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.calibration.air import CHANNELS
from jscc.calibration.calibrate import (
    ESTIMATOR,
    INT8,
    PRECISIONS,
    Images,
    Order,
    Outcome,
    calibrate,
    check_order,
)
from jscc.calibration.collect import Grid
from jscc.calibration.images import describe_images, find_images
from jscc.calibration.lpips import LPIPS_MIN_SIDE, load_lpips
from jscc.calibration.options import add_receptions, is_number, split_images, usual_snrs
from jscc.calibration.ranges import ESTIMATORS
from jscc.calibration.rewrite import Place
from jscc.calibration.trials import Budget
from jscc.runtime import write
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_output, make_parser, positive
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import peak_rss_mib
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import Progress, notice, say

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET = "psnr=0.1"


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc calibrate BUNDLE --images DIR -o OUT.jscc``."""
    begun = time.monotonic()
    options = _parse(arguments)
    report, plot = _reports(options)
    order = _order(options, _budget(options))
    check_order(order)
    source = None if options.check else Bundle.open(options.bundle)
    lpips = None if options.lpips_weights is None else load_lpips(options.lpips_weights)
    files = find_images(options.images, options.limit)
    images = split_images(files, options.crop)
    if order.budget.lpips is not None:
        check_sizes(images)
    if source is None:
        return 0
    if not order.grid.snrs_db:
        grid = replace(order.grid, snrs_db=usual_snrs(source.manifest))
        order = replace(order, grid=grid)
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
    add_receptions(parser, limit=24)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="fp8 is for GPUs that have it; weights-int8 is for small files only: it computes in "
        "float32 (default int8)",
    )
    add_output(parser, "OUT.jscc", "bundle to write")
    parser.add_argument(
        "--budget",
        default=BUDGET,
        metavar="psnr=DB,lpips=X,agreement=DB",
        help="how much PSNR may be lost and LPIPS gained against the images that were sent, and "
        f"the least PSNR to what full precision receives (default {BUDGET})",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="of loops (default: its own)")
    parser.add_argument(
        "--channel", choices=CHANNELS, default=CHANNELS[0], help=f"default {CHANNELS[0]}"
    )
    parser.add_argument(
        "--stages", type=_names, metavar="NAME,…", help="default: the receiver's, but gradients"
    )
    parser.add_argument(
        "--ranges",
        choices=ESTIMATORS,
        dest="estimator",
        help=f"where int8 clips (default {ESTIMATOR})",
    )
    parser.add_argument(
        "--smooth",
        type=_alpha,
        metavar="ALPHA",
        help="SmoothQuant: move outliers from activations to weights; 0 to 1, try 0.5",
    )
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="int8 weights in seven bits: x86 without VNNI runs them in its faster kernels",
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
    parser.add_argument(
        "--report", type=Path, metavar="OUT.md", help="default: beside OUT.jscc, with a plot"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at the options and the images only, before the bundle is there",
    )
    return parser.parse_args(arguments)


def _reports(options: argparse.Namespace) -> tuple[Path, Path]:
    """Where the report and its plot go; neither they nor OUT may be there without ``--force``."""
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
    write.check_destination(options.output, overwrite=options.force)
    return report, plot


def _budget(options: argparse.Namespace) -> Budget:
    """The budget, after a look at what other options make of it."""
    if options.estimator is not None and options.precision != INT8:
        raise UsageError(
            "E_CALIBRATE",
            f"--ranges: got it with precision {options.precision}, expected {INT8}: nothing else "
            "clips. Leave it out.",
        )
    budget = parse_budget(options.budget)
    if budget.lpips is not None and options.lpips_weights is None:
        raise UsageError(
            "E_CALIBRATE",
            "--budget: got lpips= without the metric's weights, expected --lpips-weights DIR. "
            "Give the folder, or budget psnr= alone.",
        )
    return budget


def _order(options: argparse.Namespace, budget: Budget) -> Order:
    """What was asked for; without ``--snr`` its grid has no SNR yet."""
    grid = Grid(
        snrs_db=options.snr or (),
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
        estimator=options.estimator or ESTIMATOR,
        smoothing=options.smooth,
        reduce_range=options.reduce_range,
        keep=tuple(options.keep),
        deny=not options.no_deny,
        threads=options.threads,
    )


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


def parse_budget(text: str) -> Budget:
    """``psnr=0.1,lpips=0.005`` as a budget.

    Raises:
        UsageError: ``E_CALIBRATE``, another name or no number.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in ("psnr", "lpips", "agreement") or name in values or not is_number(number):
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _alpha(text: str) -> float:
    if not (is_number(text) and 0.0 <= float(text) <= 1.0):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 to 1")
    return float(text)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"got {text!r} ({error}), expected a regex") from error
    return text
