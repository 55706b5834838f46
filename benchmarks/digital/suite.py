"""Digital: how good images are that a still-picture coder and a channel code have sent.

The same channel draws, images and metrics as ``jscc bench quality``, so that the curves may stand
in one plot.
"""

import argparse
from typing import Any

from jscc.benchmarks.countdown import Countdown
from jscc.benchmarks.digital import hevc, ldpc
from jscc.benchmarks.digital.schemes import KEY, Plan, Recipe
from jscc.benchmarks.digital.tables import SCHEMES, means, table
from jscc.benchmarks.judge import add_wanted, wanted_from
from jscc.benchmarks.measure import sent_features, without_features
from jscc.benchmarks.partial import Partial, Row
from jscc.benchmarks.report import provenance, write_result
from jscc.benchmarks.sweep import add_images, fraction, items, snrs_from
from jscc.benchmarks.workers import run_jobs
from jscc.calibration.images import describe_images, find_images
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import version_of
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import say

PACKAGES = ("av", "sionna-no-rt", "sionna")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench digital``."""
    add_images(parser)
    parser.add_argument(
        "--cbr",
        default="1/48,1/96,1/384",
        help="complex channel uses per source sample, by commas (default 1/48,1/96,1/384)",
    )
    parser.add_argument(
        "--scheme", default=",".join(SCHEMES), help=f"of {', '.join(SCHEMES)} (default: all)"
    )
    add_wanted(parser)


def run(args: argparse.Namespace) -> int:
    """``jscc bench digital``: measure, write the result, print the table."""
    check_destination(args.json, force=True)
    plan, wanted = _plan(args), wanted_from(args)
    head = {
        "schemes": [{"name": name, "title": SCHEMES[name]} for name in plan.schemes],
        "coder": {
            **hevc.OPTIONS,
            "x265": hevc.X265,
            "scales": list(hevc.SCALES),
            "ldpc_iterations": ldpc.ITERATIONS,
            **{name: version for name in PACKAGES if (version := version_of(name)) is not None},
        },
        "cbrs": [str(cbr) for cbr in plan.cbrs],
        "images": describe_images(plan.images),
        "names": [file.name for file in plan.images],
        "snrs_db": list(plan.snrs_db),
        "channel": plan.channel,
        "seeds": plan.seeds,
        **wanted.describe(),
    }
    with Partial(args.json.with_name(f"{args.json.name}.partial"), head) as partial:
        measure(Recipe(plan, wanted), partial, args.workers)
        order = {key: place for place, key in enumerate(plan.keys())}
        rows = sorted(partial.rows, key=lambda row: order[_key(row)])
        result = {
            **provenance(),
            **head,
            "rows": without_features(rows),
            "means": means(rows, sent_features(plan.images, wanted)),
        }
        write_result(args.json, "digital", result)
        partial.discard()
    say(table(result))
    return 0


def measure(recipe: Recipe, partial: Partial, workers: int) -> None:
    """Add the rows that `partial` lacks."""
    done = {_key(row) for row in partial.rows}
    jobs = recipe.jobs(done)
    bar = Countdown("digital", len(done) + sum(len(job.keys) for job in jobs), len(done))

    def add(row: Row) -> None:
        partial.add(row)
        bar.advance()

    try:
        run_jobs(recipe, jobs, workers, add)
    finally:
        bar.close()


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _plan(args: argparse.Namespace) -> Plan:
    """What the options ask for."""
    schemes = tuple(dict.fromkeys(items("--scheme", args.scheme, str)))
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise UsageError(
                "E_SCHEME",
                f"--scheme: got {scheme!r}, expected some of {', '.join(SCHEMES)}. Correct it.",
            )
    cbrs = tuple(dict.fromkeys(items("--cbr", args.cbr, fraction)))
    images = find_images(args.images, args.limit)
    return Plan(schemes, cbrs, images, snrs_from(args.snr), args.channel, args.seeds)
