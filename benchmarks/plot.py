"""Plot: recorded results as figures with the papers' axes, or as rows of pictures.

snr     metric against SNR, at one cbr
cbr     metric against cbr, at one SNR
plane   perception over distortion, at one cbr
time    LPIPS over the seconds that receivers took in turns (jscc bench receivers)
grid    crops of what was sent and received; made again from the images and the bundles
"""

import argparse
from pathlib import Path

from jscc.benchmarks.grid import grid_png
from jscc.benchmarks.panels import panel_rows
from jscc.benchmarks.plots import FORMATS, plot_cbr, plot_plane, plot_snr
from jscc.benchmarks.receivers_plot import plot_receivers, read_receivers
from jscc.benchmarks.series import add_selection, read_result, select
from jscc.benchmarks.sweep import fraction, metrics_from, one
from jscc.benchmarks.titles import TITLES
from jscc.runtime.commands.options import decibels, positive
from jscc.runtime.errors import UsageError
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import notice

KINDS = ("snr", "cbr", "plane", "time", "grid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench plot``."""
    add_selection(parser)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help=" or ".join(FORMATS)
    )
    parser.add_argument(
        "--metric",
        default="psnr_db,lpips",
        metavar="NAMES",
        help=f"by commas, of {', '.join(TITLES)} (default psnr_db,lpips)",
    )
    parser.add_argument("--cbr", default="1/96", help="for snr, plane and grid (default 1/96)")
    parser.add_argument("--snr", default="10", help="for cbr, and by commas for grid (default 10)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="grid: what was sent")
    parser.add_argument(
        "--bundles", type=Path, metavar="DIR", help="grid: where the results' bundles are"
    )
    parser.add_argument("--names", default="", help="grid: images by commas, without suffix")
    parser.add_argument(
        "--kb", type=positive, default=600, metavar="N", help="grid: its largest size (default 600)"
    )


def run(args: argparse.Namespace) -> int:
    """``jscc bench plot``: read the results, write the figure."""
    form = args.output.suffix.removeprefix(".")
    forms = ("png",) if args.kind == "grid" else FORMATS
    if form not in forms:
        raise UsageError(
            "E_PLOT",
            f"--output: got {args.output.name!r}, expected a name that ends in "
            f"{' or '.join(forms)}. Correct it.",
        )
    check_destination(args.output, force=True)
    write_file(args.output, _drawn(args, form), force=True)
    notice(f"jscc bench plot: wrote {args.output}")
    return 0


def _drawn(args: argparse.Namespace, form: str) -> bytes:
    if args.kind == "grid":
        if args.common:
            raise UsageError(
                "E_PLOT",
                "--common: got it with --kind grid, expected a kind that draws means: each "
                "picture is of one image. Leave it out.",
            )
        return grid_png(panel_rows(args), 1000 * args.kb)
    if args.kind == "time":
        return plot_receivers([read_receivers(path) for path in args.result], form)
    series = select([read_result(path) for path in args.result], args)
    metrics = metrics_from(args.metric)
    if args.kind == "cbr":
        return plot_cbr(series, metrics, one("--snr", args.snr, decibels), form)
    plot = plot_snr if args.kind == "snr" else plot_plane
    return plot(series, metrics, one("--cbr", args.cbr, fraction), form)
