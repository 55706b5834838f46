"""Systems: one table of everything that was measured, baselines included, at one cbr after another.

A cell holds the mean of each metric at one SNR, `lost` where no image arrived, and the share that
arrived where it is not all.
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction

from jscc.benchmarks.report import markdown_table
from jscc.benchmarks.series import Point, Series, add_selection, cbrs_of, read_result, select
from jscc.benchmarks.shared_images import images_of_all
from jscc.benchmarks.sweep import fraction, items, metrics_from, snrs_from
from jscc.benchmarks.titles import TITLES, cell
from jscc.runtime.errors import UsageError
from jscc.runtime.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench systems``."""
    add_selection(parser)
    parser.add_argument(
        "--metric",
        default="psnr_db,lpips",
        metavar="NAMES",
        help=f"in each cell, by commas, of {', '.join(TITLES)} (default psnr_db,lpips)",
    )
    parser.add_argument("--cbr", default="", help="by commas (default: all that were measured)")
    parser.add_argument("--snr", default="1,4,7,10,13", help="SNRs in dB, by commas")


def run(args: argparse.Namespace) -> int:
    """``jscc bench systems``: read the results, print the table."""
    say(systems_table(args))
    return 0


def systems_table(args: argparse.Namespace) -> str:
    """The Markdown table that the options ask for.

    Raises:
        UsageError: ``E_PLOT``, nothing was measured there; others as in `select`.
    """
    results = [read_result(path) for path in args.result]
    series = select(results, args)
    metrics, snrs_db = metrics_from(args.metric), snrs_from(args.snr)
    cbrs = items("--cbr", args.cbr, fraction) or cbrs_of(series)
    rows = [
        row
        for cbr in cbrs
        for each in series
        if (row := _row(each.at(cbr=cbr), cbr, snrs_db, metrics)) is not None
    ]
    if not rows:
        raise UsageError(
            "E_PLOT",
            f"table: got nothing at cbr {args.cbr or 'any'} and SNR {args.snr} dB, expected "
            "figures. Choose what was measured.",
        )
    names = " / ".join(TITLES[metric][0] for metric in metrics)
    heads = [f"{snr_db:g} dB" for snr_db in snrs_db]
    header = (f"system ({names})", "cbr", "parameters, M", "s per image", *heads)
    table = markdown_table(header, rows)
    if not args.common:
        return table
    count = len(images_of_all(results))
    return f"{table}\nMeans over the {count} images that all of these results have.\n"


def _row(
    series: Series, cbr: Fraction, snrs_db: Sequence[float], metrics: Sequence[str]
) -> tuple[str, ...] | None:
    """One line of the table; None where nothing was measured."""
    points = {snr_db: series.at(snr_db=snr_db).points for snr_db in snrs_db}
    there = [found[0] for found in points.values() if found]
    if not there:
        return None
    cells = [_cell(found[0], metrics) if found else "–" for found in points.values()]
    return (series.label, str(cbr), _parameters(there), _seconds(there), *cells)


def _cell(point: Point, metrics: Sequence[str]) -> str:
    if point.arrived == 0:
        return "lost"
    words = " / ".join(cell(point.figures, metric) for metric in metrics)
    return words if point.arrived == 1 else f"{words} ({100 * point.arrived:.0f} % arrived)"


def _parameters(points: Sequence[Point]) -> str:
    known = [point.parameters for point in points if point.parameters is not None]
    return f"{known[0] / 1e6:.2f}" if known else "–"


def _seconds(points: Sequence[Point]) -> str:
    known = [point.seconds for point in points if point.seconds is not None]
    return f"{sum(known) / len(known):.2f}" if known else "–"
