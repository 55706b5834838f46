"""Quality: how good received images are, for each SNR, with the codec alone beside the whole.

Every image goes through the transmitter, a simulated radio channel and the receiver; PSNR, MS-SSIM,
LPIPS and what else is asked for against the image that was sent are recorded row by row. An
interrupted measurement goes on where it stopped.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jscc.benchmarks.countdown import Countdown
from jscc.benchmarks.grid import grid_png
from jscc.benchmarks.judge import add_wanted, wanted_from
from jscc.benchmarks.measure import SIDES, Recipe, means, sent_features, without_features
from jscc.benchmarks.parameters import count_parameters
from jscc.benchmarks.partial import Partial, Row
from jscc.benchmarks.pictures import picture_rows
from jscc.benchmarks.report import markdown_table, provenance, write_result
from jscc.benchmarks.sweep import (
    Sweep,
    Variant,
    add_images,
    add_settings,
    check_sides,
    check_use,
    describe_settings,
    fitted,
    items,
    key_of,
    rates_of,
    settings_from,
    snrs_from,
    taken_sides,
)
from jscc.benchmarks.titles import TITLES, cell, metrics_of
from jscc.benchmarks.workers import run_jobs
from jscc.calibration.images import describe_images, find_images
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_engine_choice, positive
from jscc.runtime.engine_names import DEFAULT
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench quality``."""
    parser.add_argument("bundle", nargs="+", type=Path, help="bundles to compare")
    add_images(parser)
    add_settings(parser)
    add_wanted(parser)
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="of the engine in each worker (default: all, of several workers 1)",
    )
    add_engine_choice(parser)
    parser.add_argument("--grid", type=Path, help="write a picture of crops to this PNG")
    parser.add_argument("--grid-images", default="", help="names in it, by commas, without suffix")
    parser.add_argument("--grid-kb", type=positive, default=600, help="largest size of it")


def run(args: argparse.Namespace) -> int:
    """``jscc bench quality``: measure, write the result, print the table."""
    for path in filter(None, (args.json, args.grid)):
        check_destination(path, force=True)
    sweep, bundles, sides = _sweep(args)
    wanted = wanted_from(args)
    threads = args.threads or (1 if args.workers > 1 else None)
    head = {
        "bundles": bundles,
        "images": describe_images(sweep.images),
        "names": [file.name for file in sweep.images],
        "snrs_db": list(sweep.snrs_db),
        "channel": sweep.channel,
        "seeds": sweep.seeds,
        **({"sides": sides} if sides else {}),
        **({"engine": args.engine} if args.engine != DEFAULT else {}),
        **wanted.describe(),
    }
    with Partial(args.json.with_name(f"{args.json.name}.partial"), head) as partial:
        measure(Recipe(sweep, wanted, threads, args.engine), partial, args.workers)
        order = sweep.order()
        rows = sorted(partial.rows, key=lambda row: order[key_of(row)])
        result = {
            **provenance(),
            **head,
            "rows": without_features(rows),
            "means": means(rows, sent_features(sweep.images, wanted)),
        }
        write_result(args.json, "quality", result)
        if args.grid is not None:
            names = items("--grid-images", args.grid_images, str)
            names = names or [file.stem for file in sweep.images[:2]]
            pictures = picture_rows(sweep, names, rows, threads, args.engine)
            write_file(args.grid, grid_png(pictures, 1000 * args.grid_kb), force=True)
        partial.discard()
    say(table(result))
    return 0


def measure(recipe: Recipe, partial: Partial, workers: int) -> None:
    """Add the rows that `partial` lacks."""
    done = {key_of(row) for row in partial.rows}
    jobs = recipe.jobs(done)
    bar = Countdown("quality", len(done) + sum(len(job.cases) for job in jobs), len(done))

    def add(row: Row) -> None:
        partial.add(row)
        bar.advance()

    try:
        run_jobs(recipe, jobs, workers, add)
    finally:
        bar.close()


def _sweep(
    args: argparse.Namespace,
) -> tuple[Sweep, list[dict[str, object]], dict[str, str]]:
    """What the options ask for, and what the result says of the bundles and of side inputs."""
    settings, images = settings_from(args), find_images(args.images, args.limit)
    variants, descriptions, manifests = [], [], []
    for path in args.bundle:
        bundle = Bundle.open(path)  # one at a time: they may be large
        own = []
        for choices in (fitted(each, bundle.manifest) for each in settings):
            if choices not in own:
                own.append(choices)
        rates, sides = (
            rates_of(args.rate, bundle.manifest),
            taken_sides(args.sides, bundle.manifest),
        )
        variants.append(Variant(path, tuple(own), rates, sides))
        descriptions.append({**_describe(bundle), "settings": describe_settings(own)})
        manifests.append(bundle.manifest)
    check_use(settings, args.rate, manifests)
    sweep = Sweep(tuple(variants), images, snrs_from(args.snr), args.channel, args.seeds)
    return sweep, descriptions, check_sides(args.sides, manifests)


def _describe(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "name": bundle.path.name.removesuffix(".jscc"),
        "sha256": bundle.sha256,
        "system": manifest.system,
        "variant": manifest.variant,
        "precision": manifest.precision,
        "weights": manifest.source.sha256,
        "parameters": count_parameters(bundle),
    }


def table(result: Mapping[str, Any]) -> str:
    """The means as a Markdown table."""
    several = len(result["bundles"]) > 1
    metrics = metrics_of(result["means"])
    rows = []
    for mean in result["means"]:
        name = f"{result['bundles'][mean['bundle']]['name']}, " if several else ""
        ran = mean["ran"] or "codec"
        if mean.get("rate") is not None:
            ran = f"{ran}, {mean['rate']} planes"
        cells = [cell(mean[side], metric) for metric in metrics for side in SIDES]
        rows.append((f"{name}{ran}", f"{mean['snr_db']:g}", *cells))
    heads = (f"{TITLES[metric][0]}, {side}" for metric in metrics for side in SIDES)
    return markdown_table(("receiver", "SNR, dB", *heads), rows)
