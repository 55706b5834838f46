"""Tune: how many steps, from where and at which noise levels, fitted to a bundle and stored in it.

Two things are fitted on images that no network was trained on. *Levels*: for a number of steps, the
noise levels whose received images have the least LPIPS, by coordinate descent from evenly spaced
ones. *Regimes*: for each SNR, the fewest steps (0: the codec's image as it is) whose mean LPIPS is
close to the best; where the channel is good, repainting may only do harm. What is fitted is then
held against images that it was not fitted on, and a regime that is worse there than the codec alone
is given up.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jscc.calibration.lpips import Features, Lpips
from jscc.calibration.metrics import psnr_db
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import Loop, LoopStep, Regime
from jscc.runtime.receiver import Receiver
from jscc.runtime.schedule import schedule_from
from jscc.runtime.spacing import linspace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jscc.calibration.collect import Airing
    from jscc.calibration.rewrite import Place
    from jscc.runtime.ports import Port

IMAGE = (3, "height", "width")
SLACK = 0.01  # share of the best LPIPS that fewer steps may cost
SHARES = (0.25, 0.5, 0.75)  # of the schedule, that a received start may run
FIRST_MOVE = 0.16  # of the schedule, by which a level is moved at first; then halved
HALVINGS = 3


@dataclass(frozen=True)
class Figures:
    """Means over images."""

    psnr_db: float
    lpips: float


@dataclass(frozen=True)
class Way:
    """One way to receive.

    Attributes:
        steps: Of the sampler; 0 for the codec alone.
        start: ``noise`` or ``received``.
        start_level: Share of the schedule; None from noise.
    """

    steps: int
    start: Literal["noise", "received"] = "noise"
    start_level: float | None = None

    def __str__(self) -> str:
        if self.steps == 0:
            return "codec alone"
        level = "" if self.start_level is None else f" at {self.start_level:g}"
        return f"{self.steps} steps from {self.start}{level}"


@dataclass(frozen=True)
class Tuned:
    """What was fitted.

    Attributes:
        bundle: The result.
        levels: By number of steps, ascending noise levels.
        level_figures: By number of steps, mean LPIPS with evenly spaced levels and with these, on
            the images that were held back.
        regimes: One per SNR.
        tried: By SNR, every way and its figures on the images that were fitted.
        held: By SNR, figures of the codec alone and of the regime on the others.
    """

    bundle: Bundle
    levels: Mapping[int, tuple[int, ...]]
    level_figures: Mapping[int, tuple[float, float]]
    regimes: tuple[Regime, ...]
    tried: Mapping[float, Mapping[Way, Figures]]
    held: Mapping[float, tuple[Figures, Figures]]


@dataclass(frozen=True)
class Order:
    """What to fit.

    Attributes:
        place: Where the result appears.
        steps: Numbers of steps that a regime may take.
        level_steps: Numbers of steps to find levels for.
        threads: Of the engine.
    """

    place: Place
    steps: tuple[int, ...]
    level_steps: tuple[int, ...]
    threads: int | None = None


def tune(
    source: Bundle,
    fitted: Sequence[Airing],
    held: Sequence[Airing],
    order: Order,
    *,
    lpips: Lpips,
    describe: Mapping[str, object],
    progress: Callable[[str], None],
) -> Tuned:
    """Fit levels and regimes and write them into a bundle like `source`.

    Args:
        source: Of any precision, with one loop.
        fitted: Receptions to fit on, of several SNRs.
        held: Receptions of other images at the same SNRs.
        order: What to fit.
        lpips: The metric.
        describe: What the manifest says of the images.
        progress: Told of each reception.

    Raises:
        UsageError: ``E_TUNE``, the bundle has no loop behind a codec's image.
        JsccError: What receiving raises.
    """
    name, loop, alone = _loop_of(source)
    ways = _ways(loop, order.steps)
    judge = _Judge(source, alone, lpips, order.threads, progress)
    levels: dict[int, tuple[int, ...]] = {}
    level_figures: dict[int, tuple[float, float]] = {}
    for steps in order.level_steps:
        even, found = _find_levels(judge, loop, steps, fitted)
        before = judge.figures(held, Way(steps), even).lpips
        after = judge.figures(held, Way(steps), found).lpips
        level_figures[steps] = (before, after)
        if after < before:
            levels[steps] = found
    tried, chosen = {}, {}
    for snr_db, group in _by_snr(fitted).items():
        tried[snr_db] = {
            way: judge.figures(group, way, levels.get(way.steps) if way.start == "noise" else None)
            for way in ways
        }
        chosen[snr_db] = choose(tried[snr_db])
    held_figures = {}
    for snr_db, group in _by_snr(held).items():
        codec = judge.figures(group, Way(0), None)
        way = chosen[snr_db]
        received = judge.figures(
            group, way, levels.get(way.steps) if way.start == "noise" else None
        )
        if received.lpips > codec.lpips:
            chosen[snr_db], received = Way(0), codec
        held_figures[snr_db] = (codec, received)
    regimes = regimes_of(chosen)
    bundle = _write(source, name, alone, regimes, levels, order, describe)
    return Tuned(bundle, levels, level_figures, regimes, tried, held_figures)


def choose(tried: Mapping[Way, Figures]) -> Way:
    """The fewest steps within `SLACK` of the least LPIPS, and never worse than the codec alone."""
    codec = tried[Way(0)]
    best = min(figures.lpips for figures in tried.values())
    bound = min(best * (1 + SLACK), codec.lpips)
    good = [way for way, figures in tried.items() if figures.lpips <= bound]
    return min(good, key=lambda way: (way.steps, -tried[way].psnr_db))


class _Judge:
    """Receives in every way and takes the means."""

    def __init__(
        self,
        bundle: Bundle,
        alone: str,
        lpips: Lpips,
        threads: int | None,
        progress: Callable[[str], None],
    ) -> None:
        backend = OnnxRuntimeBackend(threads=threads)
        self._receiver = Receiver(bundle, backend=backend, selftest=False)
        codec = dataclasses.replace(
            bundle.manifest,
            program=_before_loop(bundle),
            image_output=alone,
            loops={},
            side_inputs=(),
            selftest=None,
        )
        self._codec = Receiver(
            dataclasses.replace(bundle, manifest=codec), backend=backend, selftest=False
        )
        self._lpips = lpips
        self._progress = progress
        self._taps: dict[str, Features] = {}

    def figures(
        self, airings: Sequence[Airing], way: Way, levels: tuple[int, ...] | None
    ) -> Figures:
        """Means over `airings`, at these noise levels or the sampler's own."""
        spacing = None if levels is None else ",".join(map(str, levels))
        rows = []
        for airing in airings:
            r = airing.received
            if way.steps == 0:
                image, _ = self._codec.receive(r.symbols, r.csi, seed=r.seed, size=r.size)
            else:
                image, _ = self._receiver.receive(
                    r.symbols,
                    r.csi,
                    seed=r.seed,
                    frame=r.frame,
                    size=r.size,
                    side=r.side,
                    steps=way.steps,
                    start=way.start,
                    start_level=way.start_level,
                    spacing=spacing,
                )
            if airing.name not in self._taps:
                self._taps[airing.name] = self._lpips.features(airing.image)
            taps = self._taps[airing.name]
            lpips = self._lpips.between(taps, self._lpips.features(image))
            rows.append((psnr_db(airing.image, image), lpips))
            self._progress("received")
        psnr, lpips_mean = (statistics.fmean(column) for column in zip(*rows, strict=True))
        return Figures(psnr, lpips_mean)


def _find_levels(
    judge: _Judge, loop: Loop, steps: int, airings: Sequence[Airing]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Evenly spaced levels, and those that coordinate descent ends with; the last one stays."""
    schedule = schedule_from(loop.schedule)
    even = linspace(schedule, steps, schedule.last)
    best, least = even, judge.figures(airings, Way(steps), even).lpips
    move = round(FIRST_MOVE * schedule.last)
    for _ in range(HALVINGS + 1):
        moved = True
        while moved:
            moved = False
            for index in range(steps - 1):
                for shift in (move, -move):
                    levels = list(best)
                    levels[index] += shift
                    if levels[index] < 0 or sorted(set(levels)) != levels:
                        continue
                    lpips = judge.figures(airings, Way(steps), tuple(levels)).lpips
                    if lpips < least:
                        best, least, moved = tuple(levels), lpips, True
        move = max(1, move // 2)
    return even, best


def _loop_of(source: Bundle) -> tuple[str, Loop, str]:
    """The bundle's loop, its name, and the tensor that is the codec's image."""
    manifest = source.manifest
    ports: list[Port] = [
        port
        for step in _before_loop(source)
        for port in manifest.stages[str(step)].outputs
        if port.shape[1:] == IMAGE
    ]
    if len(manifest.loops) != 1 or not ports:
        raise UsageError(
            "E_TUNE",
            f"bundle: got {manifest.system!r}, expected a system that repaints the image of a "
            "codec in one loop. There is nothing to tune.",
        )
    name, loop = next(iter(manifest.loops.items()))
    return name, loop, ports[0].name


def _before_loop(source: Bundle) -> tuple[str | LoopStep, ...]:
    program = source.manifest.program
    looped = [index for index, step in enumerate(program) if isinstance(step, LoopStep)]
    return program[: looped[0]] if looped else program


def _ways(loop: Loop, steps: Sequence[int]) -> tuple[Way, ...]:
    received = SHARES if loop.start is not None else ()
    return (
        Way(0),
        *(Way(count) for count in steps),
        *(Way(count, "received", share) for count in steps for share in received),
    )


def _by_snr(airings: Sequence[Airing]) -> dict[float, list[Airing]]:
    groups: dict[float, list[Airing]] = {}
    for airing in airings:
        groups.setdefault(airing.received.csi.snr_db, []).append(airing)
    return dict(sorted(groups.items()))


def regimes_of(chosen: Mapping[float, Way]) -> tuple[Regime, ...]:
    """One per SNR, neighbours that agree as one; the border lies half way between two SNRs."""
    regimes: list[Regime] = []
    before: float | None = None
    for snr_db, way in sorted(chosen.items()):
        border = snr_db if before is None else (before + snr_db) / 2
        regime = Regime(border, way.steps, way.start, way.start_level)
        if not regimes or dataclasses.replace(regimes[-1], snr_db=border) != regime:
            regimes.append(regime)
        before = snr_db
    return tuple(regimes)


def _write(
    source: Bundle,
    name: str,
    alone: str,
    regimes: tuple[Regime, ...],
    levels: Mapping[int, tuple[int, ...]],
    order: Order,
    describe: Mapping[str, object],
) -> Bundle:
    manifest = source.manifest
    loop = manifest.loops[name]
    kept = [each for each in loop.sampler.levels if len(each) not in levels]
    sampler = dataclasses.replace(
        loop.sampler, regimes=regimes, levels=tuple(sorted((*kept, *levels.values()), key=len))
    )
    tuned = dataclasses.replace(
        manifest,
        loops={name: dataclasses.replace(loop, sampler=sampler)},
        codec_output=alone,
        calibration={**(manifest.calibration or {}), "tuned": dict(describe)},
        files={},
    )
    tuned = dataclasses.replace(tuned, format=needed_format(tuned))
    files = {file: source.file(file) for file in manifest.files}
    place = order.place
    return write_bundle(
        place.path, tuned, files, single_file=place.single_file, overwrite=place.overwrite
    )
