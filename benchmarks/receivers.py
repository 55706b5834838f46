"""Receivers: whole receivers take turns on the same symbols, with speed beside quality.

    jscc bench receivers official.jscc,engine=torch,steps=100 small.jscc,steps=4 small.jscc,steps=1

    jscc bench receivers small.jscc,steps=4 small.jscc,engine=diffusers,steps=4

Each contestant is a bundle with its settings. In every turn each receives the same image once
(A B C A B C …), so all see the same machine in the same minutes; what counts are the ratios to the
first. One that takes very long is run in the first turns only (``turns=1``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jscc.benchmarks.contestants import (
    AnyReceiver,
    Contestant,
    Loaded,
    Loader,
    Told,
    check_contestants,
    parse_contestant,
)
from jscc.benchmarks.receivers_memory import peak_alone_mib
from jscc.benchmarks.receivers_table import stages_table, table
from jscc.benchmarks.report import finite, provenance, spread, write_result
from jscc.calibration.collect import Grid, send_all
from jscc.calibration.images import describe_images, find_images, read_image
from jscc.calibration.lpips import LPIPS_MIN_SIDE, Lpips, load_lpips
from jscc.calibration.metrics import MS_SSIM_MIN_SIDE, ms_ssim, psnr_db
from jscc.runtime.backends.engines import ran_on
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import decibels, image_size, positive, seed
from jscc.runtime.csi import Csi
from jscc.runtime.machine import available_threads, peak_rss_mib
from jscc.runtime.output_files import check_destination
from jscc.runtime.probe import make_sides, make_symbols
from jscc.runtime.terminal import Progress, say
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jscc.calibration.metrics import Image
    from jscc.export.gather import Request
    from jscc.runtime.ports import Array

_WARM_UP_STEPS = 4  # enough for each round of a descent
_METRICS = ("psnr_db", "ms_ssim", "lpips")


@dataclass(frozen=True)
class Heard:
    """What all contestants receive in one turn.

    Attributes:
        symbols: complex64[planes / 2, rows, columns].
        csi: Of the channel.
        size: Height and width of the image in pixels.
        image: What was sent; None where the symbols are noise.
        frame: Of the sampler's noise.
        side: Side inputs.
    """

    symbols: np.ndarray[Any, np.dtype[np.complex64]]
    csi: Csi
    size: tuple[int, int]
    image: Image | None
    frame: int
    side: Mapping[str, Array] = field(default_factory=dict)


@dataclass
class Runs:
    """What one contestant did."""

    load_s: float = 0.0
    described: dict[str, object] = field(default_factory=dict)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stages_ms: list[Mapping[str, float]] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    steps: int = 0
    engine: str = ""
    named: str = ""
    providers: Mapping[str, str] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench receivers``."""
    parser.add_argument(
        "contestants",
        nargs="+",
        type=parse_contestant,
        metavar="BUNDLE[,engine=…][,steps=N]",
        help="also sampler=NAME, spacing=NAME, turns=N (at most) and label=TEXT; engine torch runs "
        "the modules that the bundle was exported from, torch-compile compiles them, and diffusers "
        "runs its own ControlNet, UNet and scheduler with their weights (ddim and unipc with "
        "spacing trailing)",
    )
    parser.add_argument("--turns", type=positive, default=3, metavar="N", help="default 3")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all available")
    parser.add_argument(
        "--size",
        type=image_size,
        default=(512, 512),
        metavar="HxW",
        help="of an image that is only noise (default 512x512); with --images their own",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="send these, one each turn")
    parser.add_argument("--snr", type=decibels, metavar="DB", help="default: the bundle's")
    parser.add_argument("--lpips-weights", type=Path, metavar="DIR", help="to measure LPIPS")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="of engines torch, torch-compile and diffusers, as for jscc export",
    )
    parser.add_argument("--config", action="append", default=[], help="likewise")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="likewise")
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="load each for its turn only, and receive once before it: less memory, more time",
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure each one's peak memory too, alone"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(options: argparse.Namespace) -> int:
    """Run ``jscc bench receivers``."""
    check_contestants(options.contestants)
    if options.json is not None:
        check_destination(options.json, force=options.force)
    lpips = None if options.lpips_weights is None else load_lpips(options.lpips_weights)
    threads = options.threads or available_threads()
    first = Bundle.open(options.contestants[0].path)
    heard, images = _heard(first, options)
    signal = first.manifest.signal
    del first
    peaks = _peaks(options, heard[0].size, threads)
    sizes = {each.size: each for each in reversed(heard)}

    def warm_up(receiver: AnyReceiver, contestant: Contestant) -> None:
        few = None if contestant.steps is None else min(contestant.steps, _WARM_UP_STEPS)
        for each in sizes.values():
            _receive(receiver, replace(contestant, steps=few), each, options.seed)

    loader = Loader(
        signal, lambda: _request(options), threads, warm_up, together=not options.one_at_a_time
    )
    if loader.together:
        for contestant in options.contestants:
            loader.get(contestant)
    taken = [Runs() for _ in options.contestants]
    progress = Progress("jscc bench receivers")
    try:
        for turn in range(options.turns):
            for contestant, runs in zip(options.contestants, taken, strict=True):
                if contestant.turns is None or turn < contestant.turns:
                    each = heard[turn % len(heard)]
                    # Not named here: the next is loaded when nothing holds on to this one.
                    _take_turn(loader.get(contestant), runs, contestant, each, options.seed)
                    progress.advance(str(contestant))
    finally:
        progress.close()
    document = {
        **provenance(),
        "threads": threads,
        "turns": options.turns,
        "seed": options.seed,
        "size": list(options.size) if images is None else None,
        "images": images,
        "snr_db": heard[0].csi.snr_db,
        "peak_rss_mib": peak_rss_mib(),
        "contestants": [
            {**figures, "peak_mib": peak}
            for figures, peak in zip(
                _contestants(options.contestants, taken, heard, lpips), peaks, strict=True
            )
        ],
    }
    say(f"{table(document)}\n{stages_table(document)}")
    if options.json is not None:
        write_result(options.json, "receivers", document)
    return 0


def _peaks(options: argparse.Namespace, size: tuple[int, int], threads: int) -> list[float | None]:
    """Peak memory of each contestant, measured before anything is loaded here; None unasked.

    Those that differ in steps only have one measurement.
    """
    if not options.memory:
        return [None] * len(options.contestants)
    known: dict[tuple[object, ...], float | None] = {}
    keys = [(each.path, each.engine, each.sampler) for each in options.contestants]
    for key, contestant in zip(keys, options.contestants, strict=True):
        if key not in known:
            known[key] = peak_alone_mib(contestant, size, threads, options)
    return [known[key] for key in keys]


def _heard(bundle: Bundle, options: argparse.Namespace) -> tuple[list[Heard], object]:
    """What is received in each turn, and what a result says of the images."""
    snr_db = bundle.manifest.signal.snr_db_default if options.snr is None else options.snr
    if options.images is None:
        symbols = make_symbols(bundle.manifest, options.size, seed=options.seed)
        side = make_sides(bundle.manifest, options.size)
        return [Heard(symbols, Csi(snr_db), options.size, None, 0, side)], None
    files = find_images(options.images, options.turns)
    transmitter = Transmitter(bundle, backend=OnnxRuntimeBackend())
    sent = {file.name: read_image(file) for file in files}
    airings = send_all(transmitter, sent, Grid((snr_db,), seed=options.seed))
    heard = [
        Heard(r.symbols, r.csi, r.size, airing.image, r.frame, r.side)
        for airing in airings
        for r in (airing.received,)
    ]
    return heard, describe_images(files)


def _request(options: argparse.Namespace) -> Request:
    """The weights of the engines that take those that bundles were exported from."""
    from jscc.export.gather import Request

    return Request(
        checkpoints=tuple(options.checkpoint),
        configs=tuple(options.config),
        random_seed=options.random_weights,
    )


def _receive(
    receiver: AnyReceiver, contestant: Contestant, heard: Heard, number: int
) -> tuple[Image, Told]:
    return receiver.receive(
        heard.symbols,
        heard.csi,
        seed=number,
        frame=heard.frame,
        size=heard.size,
        side=heard.side,
        sampler=contestant.sampler,
        steps=contestant.steps,
        spacing=contestant.spacing,
    )


def _take_turn(
    loaded: Loaded, runs: Runs, contestant: Contestant, heard: Heard, number: int
) -> None:
    runs.load_s, runs.described, runs.named = loaded.load_s, loaded.described, loaded.named
    wall, cpu = time.perf_counter(), time.process_time()
    image, record = _receive(loaded.receiver, contestant, heard, number)
    runs.wall_s.append(time.perf_counter() - wall)
    runs.cpu_s.append(time.process_time() - cpu)
    runs.stages_ms.append(record.times_ms)
    runs.images.append(image)
    runs.steps, runs.engine = record.steps, record.backend
    runs.providers, runs.fallbacks = record.providers, record.fallbacks


def _contestants(
    contestants: Sequence[Contestant],
    taken: Sequence[Runs],
    heard: Sequence[Heard],
    lpips: Lpips | None,
) -> list[dict[str, object]]:
    """Each one's figures; ratios to the first over the turns that both took."""
    first = taken[0]
    common = min(len(runs.images) for runs in taken)  # quality is of the same images
    found: list[dict[str, object]] = []
    for contestant, runs in zip(contestants, taken, strict=True):
        figures = [
            _quality(image, heard[turn % len(heard)], lpips)
            for turn, image in enumerate(runs.images[:common])
        ]
        pairs = min(len(first.wall_s), len(runs.wall_s))  # turns that both took
        found.append(
            {
                "name": str(contestant),
                "bundle": runs.described,
                "engine": runs.engine,
                "steps": runs.steps,
                "load_s": runs.load_s,
                "wall_s": spread(runs.wall_s),
                "cpu_s": spread(runs.cpu_s),
                "turns": len(runs.wall_s),
                "pairs": pairs,
                "faster": _ratios(first.wall_s, runs.wall_s),
                "faster_cpu": _ratios(first.cpu_s, runs.cpu_s),
                "providers": dict(runs.providers),
                "fallbacks": list(runs.fallbacks),
                "asked": contestant.engine,
                "unused": runs.named not in ("", runs.engine)
                or not ran_on(contestant.engine, runs.providers.values()),
                "quality_images": common,
                "stages_ms": {
                    stage: statistics.median(times[stage] for times in runs.stages_ms)
                    for stage in runs.stages_ms[0]
                },
                "psnr_to_first_db": _mean(
                    [
                        finite(psnr_db(first.images[turn], runs.images[turn]))
                        for turn in range(common)
                    ]
                ),
                **{key: _mean([each[key] for each in figures]) for key in _METRICS},
            }
        )
    return found


def _ratios(first: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as fast the other was, turn by turn."""
    return spread([a / b for a, b in zip(first, other, strict=False)])


def _quality(image: Image, heard: Heard, lpips: Lpips | None) -> dict[str, float | None]:
    """The metrics to what was sent, None where one has no meaning."""
    sent, side = heard.image, min(image.shape[:2])
    if sent is None:
        return dict.fromkeys(_METRICS)
    return {
        "psnr_db": finite(psnr_db(sent, image)),
        "ms_ssim": ms_ssim(sent, image) if side >= MS_SSIM_MIN_SIDE else None,
        "lpips": lpips(sent, image) if lpips is not None and side >= LPIPS_MIN_SIDE else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
