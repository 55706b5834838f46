"""Peers: our denoise step against the same network in other engines, in turns.

Each engine lives in a process of its own, and ours takes turns with one peer at a time
(A B A B …), so both see the same machine in the same minutes and at most two networks are in
memory. What counts is the ratio; quality (the difference between the outputs) stands beside it.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.peer_case import Case
from jscc.benchmarks.peer_worker import ENGINES, OURS
from jscc.benchmarks.report import finite, markdown_table, provenance, spread, write_result
from jscc.runtime.commands.options import image_size, positive, seed
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.machine import available_threads
from jscc.runtime.terminal import Progress, say

SCALES = ("full", "small")
COMPILED = ("torch-compile", "torch-compile-freezing")
MULTIPLE = 64

Say = Callable[[str], None]


@dataclass(frozen=True)
class Turn:
    """One timed step.

    Attributes:
        wall_ms: Time on the clock.
        cpu_ms: Processor time of all threads.
    """

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Engine:
    """What one engine did in one pairing; the first turn, which warms up, is kept apart.

    Attributes:
        name: Key of `ENGINES`.
        load_s: Until the engine could run: reading or drawing the weights, optimising the graph.
        first: Warm-up; for a compiler it holds the compilation.
        turns: The timed steps, in order.
        peak_rss_mib: Most memory that its process has had.
    """

    name: str
    load_s: float
    first: Turn
    turns: tuple[Turn, ...]
    peak_rss_mib: float

    def as_json(self) -> dict[str, object]:
        """For the result file."""
        return {
            "name": self.name,
            "load_s": self.load_s,
            "first_ms": self.first.wall_ms,
            "wall_ms": spread([turn.wall_ms for turn in self.turns]),
            "cpu_ms": spread([turn.cpu_ms for turn in self.turns]),
            "turns": [asdict(turn) for turn in self.turns],
            "peak_rss_mib": self.peak_rss_mib,
        }


class Remote:
    """A worker process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jscc.benchmarks.peer_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ask(self, do: str, **arguments: object) -> dict[str, float]:
        """Send one command and wait for its answer.

        Raises:
            UnavailableError: ``E_PEER``, the engine failed or its process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._death()}
        if "error" in answer:
            raise UnavailableError(
                "E_PEER",
                f"engine {self._name!r}: got {answer['error']}, expected an answer to {do!r}. "
                "Leave this engine out with --peers, or look at what it printed above.",
            )
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what a dead process never read
                    pipe.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _death(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"a process killed by signal {-status} (9 is what lack of memory looks like)"
        return f"a process that ended with status {status}"


@contextmanager
def remote(name: str) -> Iterator[Remote]:
    """A worker process that does not outlive the block."""
    worker = Remote(name)
    try:
        yield worker
    finally:
        worker.close()


def pairing(
    folder: Path, peer: str, *, threads: int, runs: int, progress: Say
) -> dict[str, object]:
    """Let our engine and `peer` take turns on the case in `folder`."""
    names = (OURS, peer)
    with remote(OURS) as ours, remote(peer) as theirs:
        workers = (ours, theirs)
        loads = []
        for name, worker in zip(names, workers, strict=True):
            progress(f"load {name}")
            answer = worker.ask("load", engine=name, folder=str(folder), threads=threads)
            loads.append(answer["load_s"])
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        for _ in range(runs + 1):
            for name, worker, record in zip(names, workers, turns, strict=True):
                progress(name)
                record.append(Turn(**worker.ask("run")))
        paths = tuple(folder / f"output.{name}.npy" for name in names)
        peaks = [
            worker.ask("save", path=str(path))["peak_rss_mib"]
            for worker, path in zip(workers, paths, strict=True)
        ]
    engines = [
        Engine(name, load, record[0], tuple(record[1:]), peak)
        for name, load, record, peak in zip(names, loads, turns, peaks, strict=True)
    ]
    outputs = [np.load(path, allow_pickle=False) for path in paths]
    return compare(engines[0], engines[1], difference(outputs[0], outputs[1]))


def compare(ours: Engine, peer: Engine, quality: Mapping[str, float | None]) -> dict[str, object]:
    """One pairing for the result file.

    The ratios say how many times as long the peer takes: median over median, and beside it the
    smallest and largest ratio of neighbouring turns.
    """
    ratios = {}
    for field in ("wall_ms", "cpu_ms"):
        mine, others = ([getattr(turn, field) for turn in e.turns] for e in (ours, peer))
        rounds = spread([other / own for own, other in zip(mine, others, strict=True)])
        median = spread(others)["median"] / spread(mine)["median"]
        ratios[f"{field[:-3]}_ratio"] = {**rounds, "median": median}
    return {"ours": ours.as_json(), "peer": peer.as_json(), "quality": dict(quality), **ratios}


def difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> dict[str, float | None]:
    """Largest difference, the peer's largest value, and PSNR in dB against that value."""
    gap = ours.astype(np.float64) - theirs
    peak, power = float(np.abs(theirs).max()), float(np.mean(np.square(gap)))
    psnr = 10 * np.log10(peak**2 / power) if power else np.inf
    return {"max_abs": float(np.abs(gap).max()), "peak": peak, "psnr_db": finite(float(psnr))}


def measure(
    case: Case, peers: Sequence[str], folder: Path, *, threads: int, runs: int, progress: Say
) -> dict[str, object]:
    """Prepare the case in `folder` unless it is there, and run every pairing."""
    if not (folder / "case.json").exists():
        progress("export")
        with remote("export") as worker:
            worker.ask("prepare", case=asdict(case), folder=str(folder))
    pairs = [pairing(folder, peer, threads=threads, runs=runs, progress=progress) for peer in peers]
    return {
        **provenance(),
        "case": {**asdict(case), "stage": "denoise", "precision": "fp32", "batch": 1},
        "threads": threads,
        "runs": runs,
        "pairs": pairs,
    }


def table(result: Mapping[str, Any]) -> str:
    """The pairings as a Markdown table."""
    rows = []
    for pair in result["pairs"]:
        ours, peer, ratio = pair["ours"], pair["peer"], pair["wall_ratio"]
        psnr = pair["quality"]["psnr_db"]
        rows.append(
            (
                peer["name"],
                f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})",
                f"{pair['cpu_ratio']['median']:.2f}",
                f"{ours['wall_ms']['median'] / 1e3:.3g} / {peer['wall_ms']['median'] / 1e3:.3g}",
                f"{ours['peak_rss_mib'] / 1024:.2f} / {peer['peak_rss_mib'] / 1024:.2f}",
                "equal" if psnr is None else f"{psnr:.0f}",
            )
        )
    header = ("peer", "time ÷ ours", "CPU time ÷ ours", "s per step, ours / peer")
    return markdown_table((*header, "peak GiB, ours / peer", "PSNR to peer, dB"), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench peers``."""
    others = tuple(name for name in ENGINES if name != OURS)
    parser.add_argument(
        "--size", type=image_size, default=(512, 512), metavar="HxW", help="default 512x512"
    )
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="timed turns of each engine"
    )
    parser.add_argument("--scale", choices=SCALES, default="full", help="widths of the network")
    parser.add_argument("--peers", default="torch-eager", help=f"some of {','.join(others)}")
    parser.add_argument("--compile", action="store_true", help=f"and {' and '.join(COMPILED)}")
    parser.add_argument("--any-size", action="store_true", help="a graph that takes any image size")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="of every engine; default: all"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="draws weights and inputs"
    )
    parser.add_argument(
        "--work", type=Path, help="keep the exported case in this folder, or use it"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")


def run(args: argparse.Namespace) -> int:
    """``jscc bench peers``: measure, print the table, write the result."""
    peers = choose(args.peers, compiled=args.compile)
    case = Case(args.scale, *check_size(args.size), args.any_size, args.seed)
    threads = args.threads or available_threads()
    bar = Progress("peers")
    try:
        with _folder(args.work, case) as folder:
            result = measure(
                case, peers, folder, threads=threads, runs=args.runs, progress=bar.advance
            )
    finally:
        bar.close()
    if args.json is not None:
        write_result(args.json, "peers", result)
    say(table(result))
    return 0


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` if the network takes it.

    Raises:
        UsageError: ``E_SIZE``, height or width is no multiple of `MULTIPLE`.
    """
    if any(side % MULTIPLE for side in size):
        raise UsageError(
            "E_SIZE",
            f"--size: got {size[0]}x{size[1]}, expected multiples of {MULTIPLE}. "
            "Give 512x512, for example.",
        )
    return size


def choose(names: str, *, compiled: bool) -> tuple[str, ...]:
    """The peers that are named, each once.

    Raises:
        UsageError: ``E_PEERS``, an unknown engine, or ours.
    """
    asked = [*names.split(","), *(COMPILED if compiled else ())]
    known = [name for name in ENGINES if name != OURS]
    for name in asked:
        if name not in known:
            raise UsageError(
                "E_PEERS", f"--peers: got {name!r}, expected some of {', '.join(known)}. Pick one."
            )
    return tuple(dict.fromkeys(asked))


@contextmanager
def _folder(work: Path | None, case: Case) -> Iterator[Path]:
    """A folder for the case: a temporary one, or one below `work` that is named for it."""
    if work is None:
        with tempfile.TemporaryDirectory(prefix="jscc-peers-") as temporary:
            yield Path(temporary)
        return
    size = "any" if case.any_size else f"{case.height}x{case.width}"
    folder = work / f"{case.scale}-{size}-{case.height}x{case.width}-{case.seed}"
    os.makedirs(folder, exist_ok=True)
    yield folder
