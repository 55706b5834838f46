"""jscc choose: try the engines of this machine on a bundle, and remember the fastest."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jscc.runtime.backends.engines import check_machine, make_backend, ran_on
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_json, image_size, make_parser, positive
from jscc.runtime.csi import Csi
from jscc.runtime.engine_choice import (
    CHOICE,
    Trial,
    best_of,
    circumstances,
    keep,
    usual_folder,
)
from jscc.runtime.engine_names import DEFAULT, ENGINES, EXACT
from jscc.runtime.errors import JsccError, UnavailableError, UsageError
from jscc.runtime.preprocess import geometry_of
from jscc.runtime.private_folder import make_private
from jscc.runtime.probe import make_sides, make_symbols
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.selftest import psnr_db
from jscc.runtime.terminal import notice, say, say_json, table

_SEED = 0


@dataclass(frozen=True)
class Asked:
    """What is received, and how often.

    Attributes:
        size: (height, width) of the image.
        steps: None for the bundle's own.
        threads: Of the processor; None for all.
        runs: Timed turns; one reception comes before them.
    """

    size: tuple[int, int]
    steps: int | None
    threads: int | None
    runs: int


@dataclass
class Contestant:
    """An engine with the bundle loaded.

    Attributes:
        engine: Its name.
        receiver: None where it does not receive.
        reason: Why not; or what of the request it does not do.
        seconds: Of each turn.
    """

    engine: str
    receiver: Receiver | None = None
    reason: str = ""
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc choose BUNDLE``."""
    options = _parse(arguments)
    bundle = Bundle.open(options.bundle)
    if bundle.manifest.selftest is None:
        raise UsageError(
            "E_CHOICE",
            f"{options.bundle}: got a bundle without a self-test, expected one to hold engines "
            "to. Export it again, or receive with --engine.",
        )
    asked = Asked(options.size, options.steps, options.threads, options.runs)
    geometry_of(asked.size, bundle.manifest.image, bundle.manifest.image.max_pixels)
    folder = usual_folder()
    make_private(folder, CHOICE)  # before all the work
    trials = try_all(bundle, options.engines or EXACT, asked)
    if all(trial.seconds is None for trial in trials):
        reasons = "; ".join(f"{trial.engine}: {trial.reason}" for trial in trials)
        raise UnavailableError(
            "E_CHOICE",
            f"engines: got none that receives ({reasons}), expected one. Install another.",
        )
    best = best_of(trials)
    rows = [dataclasses.asdict(trial) for trial in trials]
    if not options.json:
        say(_text(trials, best))
    measured = {**dataclasses.asdict(asked), "trials": rows}
    path = keep(best, circumstances(bundle.sha256), folder, measured)
    if options.json:
        say_json({"bundle": bundle.sha256, "engine": best, "file": str(path), "trials": rows})
    return 0


def try_all(
    bundle: Bundle,
    engines: Sequence[str],
    asked: Asked,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Trial]:
    """Receive in turns with the default engine, two engines in memory at a time."""
    usual = _load(bundle, DEFAULT, asked)
    trials = []
    for engine in engines:
        if engine == DEFAULT:
            continue
        other = _load(bundle, engine, asked)
        begun = len(usual.seconds)
        ready = [each for each in (usual, other) if each.receiver is not None]
        if other.receiver is not None:
            _take_turns(bundle, ready, asked, clock)
        pairs = zip(other.seconds, usual.seconds[begun:], strict=False)
        trials.append(_trial(bundle, other, tuple(own / base for own, base in pairs)))
    if usual.receiver is not None and not usual.seconds:
        _take_turns(bundle, [usual], asked, clock)
    return [_trial(bundle, usual, ()), *trials]


def _load(bundle: Bundle, engine: str, asked: Asked) -> Contestant:
    """An engine that received once; whatever keeps it from that is its reason.

    Raises:
        UsageError: What is asked of the loops is wrong, with whatever engine.
    """
    notice(f"jscc choose: {engine} …")
    try:
        check_machine(engine)
        backend = make_backend(engine, threads=asked.threads)
        receiver = Receiver(bundle, backend=backend)
        record = _receive(bundle, receiver, asked)
    except UsageError:
        raise
    except JsccError as error:
        return Contestant(engine, reason=error.message)
    if receiver.backend != backend.name or not ran_on(engine, record.providers.values()):
        return Contestant(engine, reason=record.fallbacks[0])
    return Contestant(engine, receiver, "; ".join(record.fallbacks))


def _take_turns(
    bundle: Bundle, contestants: Sequence[Contestant], asked: Asked, clock: Callable[[], float]
) -> None:
    for _ in range(asked.runs):
        for each in contestants:
            assert each.receiver is not None
            begun = clock()
            _receive(bundle, each.receiver, asked)
            each.seconds.append(clock() - begun)


def _trial(bundle: Bundle, contestant: Contestant, ratios: tuple[float, ...]) -> Trial:
    test = bundle.manifest.selftest
    assert test is not None
    if contestant.receiver is None:
        return Trial(contestant.engine, None, reason=contestant.reason)
    known = contestant.receiver.receive_known(bundle)
    psnr = psnr_db(known, bundle.tensor(test.image))
    shown = psnr if math.isfinite(psnr) else None
    least = min(contestant.seconds)
    return Trial(contestant.engine, least, ratios, shown, contestant.reason)


def _receive(bundle: Bundle, receiver: Receiver, asked: Asked) -> Record:
    """Receive symbols that carry nothing."""
    manifest = bundle.manifest
    return receiver.receive(
        make_symbols(manifest, asked.size, seed=_SEED),
        Csi(manifest.signal.snr_db_default),
        seed=_SEED,
        steps=asked.steps if manifest.loops or manifest.descents else None,
        size=asked.size,
        side=make_sides(manifest, asked.size),
    )[1]


def _text(trials: Sequence[Trial], best: str) -> str:
    rows = [("engine", "seconds", f"of {DEFAULT}, each turn", "self-test, dB", "")]
    for trial in trials:
        cells = ("", "", "")
        if trial.seconds is not None:
            psnr = "equal" if trial.psnr_db is None else f"{trial.psnr_db:.1f}"
            ratios = " ".join(f"{ratio:.2f}" for ratio in trial.ratios)
            cells = (f"{trial.seconds:.3f}", ratios, psnr)
        rows.append((trial.engine, *cells, trial.reason))
    return f"{table(rows, header=True)}\n\nFrom now on {best} receives this bundle here."


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "choose",
        "Try every engine of this machine on a bundle; the fastest receives it then.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--size",
        type=image_size,
        default=(512, 512),
        metavar="HxW",
        help="of the image that is received (default 512x512)",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="default: the bundle's")
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="timed turns (default 5)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads (default all available)"
    )
    parser.add_argument(
        "--engine",
        dest="engines",
        action="append",
        choices=ENGINES,
        help="try this one; repeat for several (default: those that compute in float32, or as the "
        "bundle says)",
    )
    add_json(parser)
    return parser.parse_args(arguments)
