"""Guided: what a guided step costs beside a plain one, and how exact its gradient is.

The plain step and the guided ones of a bundle take turns (A B C A B C …) in one process, at the
size of one tile, so all see the same machine in the same minutes. What counts is the ratio. With
``--prior`` the bundle is made first, weights drawn from a seed, and its gradients are compared with
those of torch's automatic differentiation on the same weights and inputs; that takes torch, the
measurement does not.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.cases import describe_bundle
from jscc.benchmarks.report import markdown_table, provenance, spread, write_result
from jscc.benchmarks.step_inputs import SEED, step_inputs
from jscc.runtime.backends.base import Session
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import positive, seed
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import available_threads
from jscc.runtime.terminal import Progress, say

SYSTEM = "sing_inn"
GRADIENT = "grad"

Arrays = Mapping[str, npt.NDArray[np.float32]]


def measure(bundle: Bundle, references: Arrays, threads: int, runs: int) -> dict[str, object]:
    """Time the steps of `bundle` in turns and compare their gradients with `references`.

    Args:
        bundle: With guides.
        references: Gradients by ``STAGE/PORT``; those that are missing are not compared.
        threads: Of each engine.
        runs: Timed turns of each step, after one that warms up.

    Raises:
        UsageError: ``E_GUIDE``, the bundle has no guide.
    """
    plain, guided = steps_of(bundle)
    inputs = {stage: step_inputs(bundle.manifest, stage) for stage in (plain, *guided)}
    backend, bar = OnnxRuntimeBackend(threads=threads), Progress("guided")
    sessions = {}
    for stage in inputs:
        bar.advance("load")
        sessions[stage] = _load(backend, bundle, stage)
    turns: dict[str, list[tuple[float, float]]] = {stage: [] for stage in inputs}
    errors = {}
    try:
        for number in range(runs + 1):
            for stage, session in sessions.items():
                bar.advance(stage)
                turn, outputs = _turn(session, inputs[stage])
                if number:
                    turns[stage].append(turn)
                elif f"{stage}/{GRADIENT}" in references:
                    errors[stage] = error(outputs[GRADIENT], references[f"{stage}/{GRADIENT}"])
    finally:
        bar.close()
    return {
        **provenance(),
        "bundle": {**describe_bundle(bundle), "tile": bundle.manifest.image.tile},
        "threads": threads,
        "runs": runs,
        "inputs_seed": SEED,
        "plain": plain,
        "steps": {stage: figures(turns[stage], turns[plain]) for stage in turns},
        "gradients": errors,
    }


def steps_of(bundle: Bundle) -> tuple[str, tuple[str, ...]]:
    """The stage of a bundle's loop and those that stand in for it on guided steps.

    Raises:
        UsageError: ``E_GUIDE``, there are none.
    """
    for plain, loop in bundle.manifest.loops.items():
        if loop.guides:
            return plain, tuple(dict.fromkeys(loop.guides.values()))
    raise UsageError(
        "E_GUIDE",
        f"{bundle.path.name}: got no guided steps, expected a loop with guides. Take a bundle of "
        f"{SYSTEM}, for example.",
    )


def _load(backend: OnnxRuntimeBackend, bundle: Bundle, stage: str) -> Session:
    entry = bundle.manifest.stages[stage]
    return backend.load(stage, entry, bundle.graph(stage), bundle.external(stage))


def _turn(session: Session, inputs: Arrays) -> tuple[tuple[float, float], Mapping[str, Any]]:
    """One run: time on the clock and of all threads in ms, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = session.run(inputs)
    times = 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)
    return times, outputs


def figures(
    turns: Sequence[tuple[float, float]], plain: Sequence[tuple[float, float]]
) -> dict[str, object]:
    """Times of one step, and how many times those of the plain step they are.

    Of a ratio the median is that of the medians; the extremes are of neighbouring turns.
    """
    found: dict[str, object] = {"turns_ms": [[round(part, 3) for part in turn] for turn in turns]}
    for place, clock in enumerate(("wall", "cpu")):
        own, others = ([turn[place] for turn in each] for each in (turns, plain))
        rounds = spread([mine / other for mine, other in zip(own, others, strict=True)])
        median = spread(own)["median"] / spread(others)["median"]
        found |= {f"{clock}_ms": spread(own), f"{clock}_ratio": {**rounds, "median": median}}
    return found


def error(gradient: npt.NDArray[Any], reference: npt.NDArray[Any]) -> dict[str, float]:
    """How far a gradient is from `reference`: largest difference, and of the lengths' 2-norms."""
    gap, wanted = gradient.astype(np.float64) - reference, reference.astype(np.float64)
    return {
        "l2_relative": float(np.linalg.norm(gap) / np.linalg.norm(wanted)),
        "max_abs": float(np.abs(gap).max()),
        "peak": float(np.abs(wanted).max()),
    }


def table(result: Mapping[str, Any]) -> str:
    """The README's table: what each step costs, and how exact its gradient is."""
    rows = []
    for stage, step in result["steps"].items():
        ratio, found = step["wall_ratio"], result["gradients"].get(stage)
        plain = stage == result["plain"]
        rows.append(
            (
                stage,
                f"{step['wall_ms']['median'] / 1e3:.3g}",
                "1" if plain else f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})",
                "1" if plain else f"{step['cpu_ratio']['median']:.2f}",
                "–" if found is None else f"{found['l2_relative']:.1e}",
            )
        )
    tile = result["bundle"]["tile"]
    header = (f"step, {tile}×{tile}", "s", "time ÷ plain", "CPU time ÷ plain")
    return markdown_table((*header, "gradient's error to autograd, relative"), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench guided``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bundle", nargs="?", type=Path, help="a bundle with guides")
    what.add_argument(
        "--prior",
        metavar="FILE|architecture:NAME",
        help=f"make a {SYSTEM} bundle with a prior of this configuration, weights drawn",
    )
    parser.add_argument("--work", type=Path, help="keep what --prior makes in this folder, or use")
    parser.add_argument("--runs", type=positive, default=5, metavar="N", help="turns (default 5)")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="draws the weights")
    parser.add_argument("--json", type=Path, help="write the result to this file")


def run(args: argparse.Namespace) -> int:
    """``jscc bench guided``: measure, print the table, write the result."""
    threads = args.threads or available_threads()
    with _made(args) as (path, reference):
        references: dict[str, npt.NDArray[np.float32]] = {}
        if reference is not None:
            with np.load(reference, allow_pickle=False) as stored:
                references = dict(stored)
        result = measure(Bundle.open(path), references, threads, args.runs)
    result["prior"], result["weights_seed"] = args.prior, args.seed if args.prior else None
    if args.json is not None:
        write_result(args.json, "guided", result)
    say(table(result))
    return 0


@contextmanager
def _made(args: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """The bundle to measure and torch's gradients for it, made unless they are there."""
    if args.prior is None:
        yield args.bundle, None
        return
    with contextlib.ExitStack() as stack:
        folder = args.work or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="jscc-guided-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{Path(args.prior).stem.removeprefix('architecture:')}-{args.seed}"
        bundle, reference = folder / f"{name}.jscc", folder / f"{name}.npz"
        if not (bundle.exists() and reference.exists()):
            _make(args, bundle, reference)
        yield bundle, reference


def _make(args: argparse.Namespace, bundle: Path, reference: Path) -> None:
    from jscc.benchmarks.export_worker import Request, ask

    bar = Progress("guided")
    bar.advance("export")
    try:
        configs = (f"prior={args.prior}",)
        ask(Request(SYSTEM, configs, {}, args.seed, str(bundle), str(reference)))
    finally:
        bar.close()
