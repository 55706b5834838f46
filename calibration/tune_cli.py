"""Command ``jscc tune``: steps, start and noise levels of a bundle, fitted to the channel."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.calibration.collect import Grid, send_all
from jscc.calibration.images import describe_images, find_images
from jscc.calibration.lpips import load_lpips
from jscc.calibration.options import add_receptions, split_images, usual_snrs
from jscc.calibration.rewrite import Place
from jscc.calibration.tune import Order, Tuned, tune
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_output, make_parser, positive
from jscc.runtime.terminal import Parser, Progress, say, table
from jscc.runtime.transmitter import Transmitter
from jscc.runtime.write import check_destination

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc tune BUNDLE --images DIR --lpips-weights DIR -o OUT.jscc``."""
    begun = time.monotonic()
    options = _parser().parse_args(arguments)
    place = Place(options.output, options.single_file, options.force)
    check_destination(place.path, overwrite=place.overwrite)
    source = Bundle.open(options.bundle)
    lpips = load_lpips(options.lpips_weights)
    files = find_images(options.images, options.limit)
    images = split_images(files, options.crop)
    grid = Grid(options.snr or usual_snrs(source.manifest), seed=options.seed)
    transmitter = Transmitter(source, backend=OnnxRuntimeBackend(threads=options.threads))
    fitted = send_all(transmitter, images.measured, grid)
    held = send_all(transmitter, images.tried, grid)
    progress = Progress("jscc tune")
    try:
        tuned = tune(
            source,
            fitted,
            held,
            Order(place, options.steps, options.levels, options.threads),
            lpips=lpips,
            describe={
                "images": describe_images(files)["sha256"],
                "crop": options.crop,
                "snrs_db": list(grid.snrs_db),
                "channel": grid.channel,
                "seed": grid.seed,
                "fitted_receptions": len(fitted),
                "held_receptions": len(held),
            },
            progress=progress.advance,
        )
    finally:
        progress.close()
    say(report(tuned))
    say(f"\n{tuned.bundle.path}: tuned in {time.monotonic() - begun:.0f} s")
    return 0


def _parser() -> Parser:
    parser = make_parser(
        "tune",
        "Fit to a bundle, on images, the noise levels of its steps and, for each SNR, how many "
        "steps it takes and from where (none where the codec's image is best left alone). The "
        "result is a bundle whose receiver follows the SNR unless it is told otherwise.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="of any precision")
    add_receptions(parser, limit=12)
    parser.add_argument(
        "--lpips-weights", type=Path, required=True, metavar="DIR", help="of the metric"
    )
    add_output(parser, "OUT.jscc", "bundle to write")
    parser.add_argument(
        "--steps",
        type=_counts,
        default=(1, 2, 4),
        metavar="N,…",
        help="numbers of steps to choose from (default 1,2,4)",
    )
    parser.add_argument(
        "--levels",
        type=_counts,
        default=(4,),
        metavar="N,…",
        help="numbers of steps to find noise levels for, which takes longest (default 4)",
    )
    return parser


def report(tuned: Tuned) -> str:
    """What was fitted, as tables."""
    parts = []
    if tuned.level_figures:
        found_rows = [("steps", "noise levels", "LPIPS before", "LPIPS with those found")]
        for steps, (even, found) in tuned.level_figures.items():
            levels = tuned.levels.get(steps)
            text = (
                "those of before stay" if levels is None else " ".join(map(str, reversed(levels)))
            )
            found_rows.append((str(steps), text, f"{even:.4f}", f"{found:.4f}"))
        parts.append(table(found_rows, header=True))
    rows = [("SNR, dB", "chosen", "PSNR, dB", "LPIPS", "PSNR, codec", "LPIPS, codec")]
    for snr_db, (codec, received) in tuned.held.items():
        regime = next(r for r in reversed(tuned.regimes) if r.snr_db <= snr_db)
        chosen = f"{regime.steps} steps from {regime.start}" if regime.steps else "codec alone"
        if regime.start_level is not None:
            chosen += f" at {regime.start_level:g}"
        rows.append(
            (
                f"{snr_db:g}",
                chosen,
                f"{received.psnr_db:.2f}",
                f"{received.lpips:.4f}",
                f"{codec.psnr_db:.2f}",
                f"{codec.lpips:.4f}",
            )
        )
    parts.append(
        "On images that decided only whether a choice is kept:\n" + table(rows, header=True)
    )
    return "\n\n".join(parts)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers by commas") from error
    return counts
