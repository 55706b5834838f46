"""jscc choose: try every engine of this machine on a bundle, and remember the fastest."""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jscc.runtime.backends.engines import check_machine, make_backend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_json, image_size, make_parser, positive
from jscc.runtime.csi import Csi
from jscc.runtime.engine_choice import Trial, best_of, circumstances, keep, usual_folder
from jscc.runtime.engine_names import DEFAULT, ENGINES
from jscc.runtime.errors import JsccError, UnavailableError, UsageError
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.selftest import empty_sides, psnr_db
from jscc.runtime.terminal import notice, say, say_json, table

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is received, and how often.

    Attributes:
        size: (height, width) of the image.
        steps: None for the bundle's own.
        threads: Of the processor; None for all.
        runs: Timed receptions; one more comes before them.
    """

    size: tuple[int, int]
    steps: int | None
    threads: int | None
    runs: int


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
    trials = []
    for engine in options.engines or ENGINES:
        notice(f"jscc choose: {engine} …")
        trials.append(try_engine(bundle, engine, asked))
    if all(trial.seconds is None for trial in trials):
        reasons = "; ".join(f"{trial.engine}: {trial.reason}" for trial in trials)
        raise UnavailableError(
            "E_CHOICE",
            f"engines: got none that receives ({reasons}), expected one. Install another.",
        )
    best = best_of(trials)
    path = keep(best, circumstances(bundle.sha256), usual_folder())
    if options.json:
        rows = [dataclasses.asdict(trial) for trial in trials]
        say_json({"bundle": bundle.sha256, "engine": best, "file": str(path), "trials": rows})
    else:
        say(_text(trials, best))
    return 0


def try_engine(
    bundle: Bundle, engine: str, asked: Asked, clock: Callable[[], float] = time.perf_counter
) -> Trial:
    """Receive with one engine; whatever keeps it from that is its trial's reason."""
    try:
        check_machine(engine)
        backend = make_backend(engine, threads=asked.threads)
        receiver = Receiver(bundle, backend=backend)
        record = _receive(bundle, receiver, asked)
        if receiver.backend != backend.name:
            return Trial(engine, None, reason=record.fallbacks[0])
        seconds = []
        for _ in range(asked.runs):
            begun = clock()
            _receive(bundle, receiver, asked)
            seconds.append(clock() - begun)
        test = bundle.manifest.selftest
        assert test is not None
        psnr = psnr_db(receiver.receive_known(bundle), bundle.tensor(test.image))
    except JsccError as error:
        return Trial(engine, None, reason=error.message)
    shown = psnr if math.isfinite(psnr) else None
    return Trial(engine, statistics.median(seconds), shown, "; ".join(record.fallbacks))


def _receive(bundle: Bundle, receiver: Receiver, asked: Asked) -> Record:
    """Receive symbols that carry nothing."""
    manifest = bundle.manifest
    multiple, stride = manifest.image.multiple, manifest.signal.stride
    height, width = (-(-side // multiple) * multiple for side in asked.size)
    shape = (2, manifest.signal.planes // 2, height // stride, width // stride)
    real, imaginary = np.random.default_rng(_SEED).normal(0.0, 0.5**0.5, shape)
    symbols = (real + 1j * imaginary).astype(np.complex64)
    _, record = receiver.receive(
        symbols,
        Csi(manifest.signal.snr_db_default),
        seed=_SEED,
        steps=asked.steps if manifest.loops or manifest.descents else None,
        size=asked.size,
        side=empty_sides(manifest, (height, width)),
    )
    return record


def _text(trials: Sequence[Trial], best: str) -> str:
    usual = next((trial.seconds for trial in trials if trial.engine == DEFAULT), None)
    rows = [("engine", "seconds", f"of {DEFAULT}", "self-test, dB", "")]
    for trial in trials:
        cells = ("", "", "")
        if trial.seconds is not None:
            share = "" if usual is None else f"{trial.seconds / usual:.2f}"
            psnr = "equal" if trial.psnr_db is None else f"{trial.psnr_db:.1f}"
            cells = (f"{trial.seconds:.3f}", share, psnr)
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
        "--runs", type=positive, default=3, metavar="N", help="timed receptions (default 3)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads (default all available)"
    )
    parser.add_argument(
        "--engine",
        dest="engines",
        action="append",
        choices=ENGINES,
        help="try this one only; repeat for several (default all)",
    )
    add_json(parser)
    return parser.parse_args(arguments)
