"""Tune: how many steps, from where and at which noise levels, fitted to a bundle and stored in it.

Two things are fitted on images that no network was trained on. *Levels*: for a number of steps, the
noise levels whose received images have the least LPIPS, by coordinate descent from those that the
bundle takes by itself. *Regimes*: for each SNR, the fewest steps (0: the codec's image as it is)
whose mean LPIPS is close to the best; where the channel is good, repainting may only do harm. What
is fitted is then held against other images, which decide one thing only: levels that are no better
there are dropped, and a regime that is worse there than the codec alone is given up.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jscc.calibration.lpips import Features, Lpips
from jscc.calibration.metrics import psnr_db
from jscc.calibration.rewrite import npy_bytes
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.commands.simulate import codec_alone
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import Loop, Regime
from jscc.runtime.receiver import Receiver
from jscc.runtime.schedule import schedule_from
from jscc.runtime.sides import host_sides
from jscc.runtime.table import table_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jscc.calibration.collect import Airing
    from jscc.calibration.rewrite import Place

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
        level_figures: By number of steps, mean LPIPS with the levels of before and with these, on
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
    name, loop, codec = _checked(source)
    judge = _Judge(source, codec, lpips, order.threads, progress)
    levels: dict[int, tuple[int, ...]] = {}
    level_figures: dict[int, tuple[float, float]] = {}
    for steps in order.level_steps:
        found = _find_levels(judge, loop, steps, fitted)
        before = judge.figures(held, Way(steps)).lpips
        after = judge.figures(held, Way(steps), found).lpips
        level_figures[steps] = (before, after)
        if after < before:
            levels[steps] = found

    def levels_of(way: Way) -> tuple[int, ...] | None:
        return levels.get(way.steps) if way.start == "noise" else None

    tried, chosen, checked = {}, {}, {}
    for snr_db, group in _by_snr(fitted).items():
        ways = _ways(loop, order.steps)
        tried[snr_db] = {way: judge.figures(group, way, levels_of(way)) for way in ways}
        chosen[snr_db] = choose(tried[snr_db])
    for snr_db, group in _by_snr(held).items():
        alone, way = judge.figures(group, Way(0)), chosen[snr_db]
        received = judge.figures(group, way, levels_of(way))
        if received.lpips > alone.lpips:
            chosen[snr_db], received = Way(0), alone
        checked[snr_db] = (alone, received)
    regimes = regimes_of(chosen)
    alone_name = codec.manifest.image_output
    bundle = _write(source, name, alone_name, regimes, levels, order, describe)
    return Tuned(bundle, levels, level_figures, regimes, tried, checked)


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
        codec: Bundle,
        lpips: Lpips,
        threads: int | None,
        progress: Callable[[str], None],
    ) -> None:
        backend = OnnxRuntimeBackend(threads=threads)
        self._receiver = Receiver(bundle, backend=backend, selftest=False)
        self._codec = Receiver(codec, backend=backend, selftest=False)
        self._codec_sides = codec.manifest.side_inputs
        self._lpips = lpips
        self._progress = progress
        self._taps: dict[str, Features] = {}

    def figures(
        self, airings: Sequence[Airing], way: Way, levels: tuple[int, ...] | None = None
    ) -> Figures:
        """Means over `airings`, at these noise levels or those that the bundle takes now."""
        spacing = None if levels is None else ",".join(map(str, levels))
        rows = []
        for airing in airings:
            r = airing.received
            if way.steps == 0:
                side = {name: r.side[name] for name in self._codec_sides}
                image, _ = self._codec.receive(
                    r.symbols, r.csi, seed=r.seed, frame=r.frame, size=r.size, side=side
                )
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
) -> tuple[int, ...]:
    """What coordinate descent ends with that begins at the levels of now; the last one stays."""
    best = present_levels(loop, steps)
    least = judge.figures(airings, Way(steps), best).lpips
    move = round(FIRST_MOVE * best[-1])
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
    return best


def present_levels(loop: Loop, steps: int) -> tuple[int, ...]:
    """The noise levels, ascending, of so many steps from noise as the bundle takes them now."""
    schedule = schedule_from(loop.schedule)
    for levels in loop.sampler.levels:
        if len(levels) == steps and levels[-1] == schedule.last:
            return levels
    rows = table_for(schedule, loop.sampler.name, steps, schedule.last).rows
    return tuple(sorted(row.t for row in rows if row.t is not None))


def _checked(source: Bundle) -> tuple[str, Loop, Bundle]:
    """The bundle's loop, its name, and the codec in front of it."""
    manifest = source.manifest
    codec = codec_alone(source)
    if len(manifest.loops) != 1 or codec is None:
        raise UsageError(
            "E_TUNE",
            f"bundle: got {manifest.system!r}, expected a system that repaints the image of a "
            "codec in one loop. There is nothing to tune.",
        )
    host = host_sides(manifest)
    if host:
        raise UsageError(
            "E_TUNE",
            f"bundle: got one whose receiver is given {', '.join(sorted(host))} by its host, "
            "expected one that needs the symbols alone. Export it without.",
        )
    name, loop = next(iter(manifest.loops.items()))
    return name, loop, codec


def _ways(loop: Loop, steps: Sequence[int]) -> tuple[Way, ...]:
    last = loop.schedule.timesteps - 1
    received = SHARES if loop.start is not None else ()
    return (
        Way(0),
        *(Way(count) for count in steps),
        *(
            Way(count, "received", share)
            for count in steps
            for share in received
            if count <= round(share * last) + 1
        ),
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
    kept = [each for each in loop.sampler.levels if (len(each), each[-1]) not in _ends(levels)]
    sampler = dataclasses.replace(
        loop.sampler, regimes=regimes, levels=tuple(sorted((*kept, *levels.values()), key=len))
    )
    tuned = dataclasses.replace(
        manifest,
        loops={name: dataclasses.replace(loop, sampler=sampler)},
        codec_output=alone,
        calibration={**(manifest.calibration or {}), "tuned": dict(describe)},
    )
    tuned = dataclasses.replace(tuned, format=needed_format(tuned))
    files: dict[str, bytes | Path] = {file: source.file(file) for file in manifest.files}
    test = manifest.selftest
    if test is not None:  # its few steps may be among those that take other levels now
        draft = dataclasses.replace(source, manifest=tuned)
        backend = OnnxRuntimeBackend(threads=order.threads)
        known = Receiver(draft, backend=backend, selftest=False).receive_known(draft)
        files[manifest.tensors[test.image].file] = npy_bytes(known)
    place = order.place
    return write_bundle(
        place.path,
        dataclasses.replace(tuned, files={}),
        files,
        single_file=place.single_file,
        overwrite=place.overwrite,
    )


def _ends(levels: Mapping[int, tuple[int, ...]]) -> set[tuple[int, int]]:
    return {(len(each), each[-1]) for each in levels.values()}
