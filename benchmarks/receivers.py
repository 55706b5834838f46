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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jscc.benchmarks.cases import describe_bundle
from jscc.benchmarks.diffusers_schedulers import spacing_for
from jscc.benchmarks.receivers_memory import peak_alone_mib
from jscc.benchmarks.report import finite, markdown_table, provenance, spread, write_result
from jscc.calibration.collect import Grid, send_all
from jscc.calibration.images import describe_images, find_images, read_image
from jscc.calibration.lpips import LPIPS_MIN_SIDE, Lpips, load_lpips
from jscc.calibration.metrics import MS_SSIM_MIN_SIDE, ms_ssim, psnr_db
from jscc.runtime import engine_names
from jscc.runtime.backends import engines
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import decibels, image_size, positive, seed
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import available_threads, peak_rss_mib
from jscc.runtime.output_files import check_destination
from jscc.runtime.probe import make_sides, make_symbols
from jscc.runtime.receiver import Receiver
from jscc.runtime.terminal import Progress, say
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jscc.calibration.metrics import Image
    from jscc.export.gather import Request
    from jscc.runtime.backends.base import Backend
    from jscc.runtime.manifest import Signal
    from jscc.runtime.ports import Array

TORCH, DIFFUSERS = "torch", "diffusers"
_ENGINES = (*engine_names.ENGINES, TORCH, DIFFUSERS)
_WARM_UP_STEPS = 4  # enough for each round of a descent
_METRICS = ("psnr_db", "ms_ssim", "lpips")
_WHOLE = "total"  # among the stages' times
_UNKNOWN = "–"  # in tables
_KEYS = ("engine", "steps", "sampler", "spacing", "turns", "label")


@dataclass(frozen=True)
class Contestant:
    """A bundle and how it is run.

    Attributes:
        path: The bundle.
        engine: One of `jscc.runtime.engine_names.ENGINES`, ``torch``, or ``diffusers``.
        steps: Of loops; None for the bundle's.
        sampler: None for the bundle's.
        spacing: Of the noise levels; None for the sampler's own.
        turns: Most turns that it takes; None for all.
        label: What it is called in tables.
    """

    path: Path
    engine: str = engine_names.DEFAULT
    steps: int | None = None
    sampler: str | None = None
    spacing: str | None = None
    turns: int | None = None
    label: str = ""

    def __str__(self) -> str:
        if self.label:
            return self.label
        parts = [self.path.stem]
        parts += [] if self.engine == engine_names.DEFAULT else [self.engine]
        parts += [] if self.sampler is None else [self.sampler]
        parts += [] if self.spacing is None else [self.spacing]
        parts += [] if self.steps is None else [f"{self.steps} steps"]
        return ", ".join(parts)


class Told(Protocol):
    """What is read of a record, see `jscc.runtime.record.Record`."""

    @property
    def backend(self) -> str:
        """Engine library and version."""

    @property
    def steps(self) -> int:
        """Evaluations of the loop's network."""

    @property
    def times_ms(self) -> Mapping[str, float]:
        """Wall time by stage."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked for and not done."""


class AnyReceiver(Protocol):
    """What takes turns: `jscc.runtime.receiver.Receiver`, or one that stands beside it."""

    def receive(
        self,
        symbols: np.ndarray[Any, np.dtype[np.complex64]],
        csi: Csi,
        *,
        seed: int,
        frame: int,
        sampler: str | None,
        steps: int | None,
        spacing: str | None,
        size: tuple[int, int] | None,
        side: Mapping[str, Array] | None,
    ) -> tuple[Image, Told]:
        """Receive one image."""


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
    """What one contestant did; `load_s` is until it was ready, with its self-test if it has one."""

    load_s: float
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stages_ms: list[Mapping[str, float]] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    steps: int = 0
    engine: str = ""
    fallbacks: tuple[str, ...] = ()


def parse_contestant(text: str) -> Contestant:
    """``BUNDLE[,engine=NAME][,steps=N][,sampler=NAME][,spacing=NAME][,turns=N][,label=TEXT]``.

    Raises:
        argparse.ArgumentTypeError: Something else.
    """
    path, *settings = text.split(",")
    given: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if key not in _KEYS or not sign or not value or key in given:
            raise argparse.ArgumentTypeError(
                f"got {setting!r}, expected one of {', '.join(_KEYS)} with =, each once"
            )
        given[key] = positive(value) if key in ("steps", "turns") else value
    if given.get("engine", engine_names.DEFAULT) not in _ENGINES:
        known = ", ".join(_ENGINES)
        raise argparse.ArgumentTypeError(f"got engine {given['engine']!r}, expected {known}")
    return Contestant(Path(path), **given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench receivers``."""
    parser.add_argument(
        "contestants",
        nargs="+",
        type=parse_contestant,
        metavar="BUNDLE[,engine=…][,steps=N]",
        help="also sampler=NAME, spacing=NAME, turns=N (at most) and label=TEXT; engine torch runs "
        "the modules that the bundle was exported from, engine diffusers its own ControlNet, UNet "
        "and scheduler with their weights (ddim and unipc with spacing trailing)",
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
        help="of engines torch and diffusers, as for jscc export",
    )
    parser.add_argument("--config", action="append", default=[], help="likewise")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="likewise")
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
    loaded = _load_all(options.contestants, options, threads, signal)
    for contestant, (receiver, _, _) in zip(options.contestants, loaded, strict=True):
        if contestant is _first_with(contestant, options.contestants):
            few = None if contestant.steps is None else min(contestant.steps, _WARM_UP_STEPS)
            _receive(receiver, replace(contestant, steps=few), heard[0], options.seed)
    progress = Progress("jscc bench receivers")
    try:
        for turn in range(options.turns):
            for contestant, (receiver, runs, _) in zip(options.contestants, loaded, strict=True):
                if contestant.turns is None or turn < contestant.turns:
                    _take_turn(receiver, runs, contestant, heard[turn % len(heard)], options.seed)
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
                _contestants(options.contestants, loaded, heard, lpips), peaks, strict=True
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


def _load_all(
    contestants: Sequence[Contestant], options: argparse.Namespace, threads: int, signal: Signal
) -> list[tuple[AnyReceiver, Runs, dict[str, object]]]:
    """A receiver for each; those that differ in settings only share one."""
    known: dict[tuple[Path, str], tuple[AnyReceiver, float, dict[str, object]]] = {}
    for contestant in contestants:
        key = (contestant.path, contestant.engine)
        if key not in known:
            bundle = Bundle.open(contestant.path)
            if bundle.manifest.signal != signal:
                raise UsageError(
                    "E_USAGE",
                    f"contestants: got {contestant.path.name!r} with other symbols than the first, "
                    "expected bundles of one codec. Compare those in runs of their own.",
                )
            begun = time.perf_counter()
            receiver = _load(contestant, bundle, options, threads)
            known[key] = receiver, time.perf_counter() - begun, describe_bundle(bundle)
    parts = [known[contestant.path, contestant.engine] for contestant in contestants]
    return [(receiver, Runs(load_s), described) for receiver, load_s, described in parts]


def _first_with(contestant: Contestant, contestants: Sequence[Contestant]) -> Contestant:
    """The first that shares its receiver."""
    key = (contestant.path, contestant.engine)
    return next(each for each in contestants if (each.path, each.engine) == key)


def _load(
    contestant: Contestant, bundle: Bundle, options: argparse.Namespace, threads: int
) -> AnyReceiver:
    if contestant.engine == DIFFUSERS:
        from jscc.benchmarks.diffusers_receiver import DiffusersReceiver

        return DiffusersReceiver(bundle, _request(options), threads)
    return Receiver(bundle, backend=_backend(contestant, bundle, options, threads))


def _backend(
    contestant: Contestant, bundle: Bundle, options: argparse.Namespace, threads: int
) -> Backend:
    if contestant.engine != TORCH:
        return engines.make_backend(contestant.engine, threads=threads)
    from jscc.benchmarks.torch_backend import TorchBackend
    from jscc.export.system import Options

    return TorchBackend.of(bundle.manifest.system, _request(options), Options(), threads)


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
    receiver: AnyReceiver, runs: Runs, contestant: Contestant, heard: Heard, number: int
) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    image, record = _receive(receiver, contestant, heard, number)
    runs.wall_s.append(time.perf_counter() - wall)
    runs.cpu_s.append(time.process_time() - cpu)
    runs.stages_ms.append(record.times_ms)
    runs.images.append(image)
    runs.steps, runs.engine = record.steps, record.backend
    runs.fallbacks = record.fallbacks


def _contestants(
    contestants: Sequence[Contestant],
    loaded: Sequence[tuple[AnyReceiver, Runs, dict[str, object]]],
    heard: Sequence[Heard],
    lpips: Lpips | None,
) -> list[dict[str, object]]:
    """Each one's figures; ratios to the first over the turns that both took."""
    first = loaded[0][1]
    common = min(len(runs.images) for _, runs, _ in loaded)  # quality is of the same images
    found: list[dict[str, object]] = []
    for contestant, (_, runs, bundle) in zip(contestants, loaded, strict=True):
        figures = [
            _quality(image, heard[turn % len(heard)], lpips)
            for turn, image in enumerate(runs.images[:common])
        ]
        pairs = min(len(first.wall_s), len(runs.wall_s))  # turns that both took
        found.append(
            {
                "name": str(contestant),
                "bundle": bundle,
                "engine": runs.engine,
                "steps": runs.steps,
                "load_s": runs.load_s,
                "wall_s": spread(runs.wall_s),
                "cpu_s": spread(runs.cpu_s),
                "turns": len(runs.wall_s),
                "pairs": pairs,
                "faster": _ratios(first.wall_s, runs.wall_s),
                "faster_cpu": _ratios(first.cpu_s, runs.cpu_s),
                "fallbacks": list(runs.fallbacks),
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


def table(document: Mapping[str, Any]) -> str:
    """The table of a measurement, without columns that would be empty."""
    rows = [
        (
            "receiver",
            "engine",
            "steps",
            "times as fast",
            "by CPU time",
            "s per image",
            "MiB on disk",
            "peak GiB",
            "PSNR to the first, dB",
            "PSNR, dB",
            "MS-SSIM",
            "LPIPS",
        )
    ]
    for each in document["contestants"]:
        faster = each["faster"]
        rows.append(
            (
                each["name"],
                each["engine"] + (" (in part)" if each.get("fallbacks") else ""),
                str(each["steps"]),
                f"{faster['median']:.3g} ({faster['min']:.3g}–{faster['max']:.3g})",
                f"{each['faster_cpu']['median']:.3g}",
                f"{each['wall_s']['median']:.3g}",
                f"{each['bundle']['size_mib']:.0f}",
                _shown(None if each.get("peak_mib") is None else each["peak_mib"] / 1024, ".2f"),
                _shown(each["psnr_to_first_db"], ".1f"),
                _shown(each["psnr_db"], ".2f"),
                _shown(each.get("ms_ssim"), ".4f"),
                _shown(each["lpips"], ".4f"),
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {_UNKNOWN}]
    header, *lines = zip(*columns, strict=True)
    return markdown_table(header, lines)


def stages_table(document: Mapping[str, Any]) -> str:
    """Where the time of each receiver goes: seconds of each stage, and its share."""
    contestants = document["contestants"]
    stages = list(dict.fromkeys(name for each in contestants for name in each["stages_ms"]))
    stages.sort(key=lambda name: name == _WHOLE)
    rows = []
    for each in contestants:
        times = each["stages_ms"]
        cells = [
            f"{times[name] / 1e3:.3g} ({times[name] / times[_WHOLE]:.0%})" if name in times else "–"
            for name in stages
        ]
        rows.append((each["name"], str(each["steps"]), *cells))
    return markdown_table(("receiver", "steps", *(f"{name}, s" for name in stages)), rows)


def _shown(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)


def check_contestants(contestants: Sequence[Contestant]) -> None:
    """Refuse contestants that nobody could tell apart, or that an engine cannot run.

    Raises:
        UsageError: ``E_USAGE``, two have one name; ``E_SAMPLER``, ``E_SPACING``, see
            `jscc.benchmarks.diffusers_schedulers.spacing_for`.
    """
    for each in contestants:
        if each.engine == DIFFUSERS and each.sampler is not None:
            spacing_for(each.sampler, each.spacing)
    names = [str(each) for each in contestants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "E_USAGE", f"contestants: got {twice[0]!r} twice, expected different ones. Drop one."
        )
