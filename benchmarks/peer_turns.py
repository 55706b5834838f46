"""Peer turns: processes of one engine each, and what two of them do in turns."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.peer_case import noise_in, read_array, read_case
from jscc.benchmarks.peer_engines import ENGINES
from jscc.benchmarks.report import finite, spread
from jscc.runtime.errors import UnavailableError

Say = Callable[[str], None]
REFERENCE = "reference.npy"  # of a case: the output of our engine in full precision

_MODULE = "jscc.benchmarks.peer_worker"
# Another interpreter finds this package where this one has it, and nothing else of this one.
_ELSEWHERE = f"""
import importlib.util, runpy, sys
folder = sys.argv.pop()
spec = importlib.util.spec_from_file_location(
    "jscc", folder + "/__init__.py", submodule_search_locations=[folder]
)
sys.modules["jscc"] = importlib.util.module_from_spec(spec)
runpy.run_module({_MODULE!r}, run_name="__main__")
"""


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
        quality: What `quality` says of its output.
    """

    name: str
    load_s: float
    first: Turn
    turns: tuple[Turn, ...]
    peak_rss_mib: float
    quality: Mapping[str, float | None]

    def as_json(self) -> dict[str, object]:
        """For the result file."""
        return {
            "name": self.name,
            "precision": ENGINES[self.name].precision,
            "load_s": self.load_s,
            "first_ms": self.first.wall_ms,
            "wall_ms": spread([turn.wall_ms for turn in self.turns]),
            "cpu_ms": spread([turn.cpu_ms for turn in self.turns]),
            "turns": [asdict(turn) for turn in self.turns],
            "peak_rss_mib": self.peak_rss_mib,
            "quality": dict(self.quality),
        }


@dataclass(frozen=True)
class Bench:
    """What pairings have in common.

    Attributes:
        folder: The prepared case.
        threads: Of every engine.
        runs: Timed turns of each.
        pythons: Interpreters of engines that have an environment of their own, by name.
        progress: Told of each step.
    """

    folder: Path
    threads: int
    runs: int
    pythons: Mapping[str, str]
    progress: Say

    def remote(self, name: str) -> contextlib.AbstractContextManager["Remote"]:
        """A process for the engine called `name`."""
        return remote(name, self.pythons.get(name))


class Remote:
    """A worker process.

    Args:
        name: Of its engine, or of what it is for.
        python: Interpreter; None for this one.
        variables: Of its environment, beside those of this process.
    """

    def __init__(
        self, name: str, python: str | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self._name = name
        package = str(Path(__file__).parents[1])
        command = [sys.executable, "-m", _MODULE]
        if python is not None:
            command = [python, "-c", _ELSEWHERE, package]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(variables or {})},
        )

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
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
def remote(
    name: str, python: str | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Remote]:
    """A worker process that does not outlive the block; see `Remote`.

    Raises:
        UnavailableError: ``E_PEER``, there is no such interpreter.
    """
    try:
        worker = Remote(name, python, variables)
    except OSError as error:
        raise UnavailableError(
            "E_PEER",
            f"engine {name!r}: got {error.strerror} for its interpreter, expected a file that "
            "runs. Correct --python.",
        ) from error
    try:
        yield worker
    finally:
        worker.close()


def refer(bench: Bench, ours: str) -> None:
    """Let `ours` make the output that all others are compared with."""
    bench.progress("reference")
    with bench.remote(ours) as worker:
        worker.ask("load", engine=ours, folder=str(bench.folder), threads=bench.threads)
        worker.ask("run")
        worker.ask("save", path=str(bench.folder / REFERENCE))


def pairing(bench: Bench, ours: str, peer: str) -> dict[str, object]:
    """Let `ours` and `peer` take turns (A B A B …) on the prepared case, which has its reference.

    Raises:
        UnavailableError: ``E_PEER``, one of them failed.
    """
    names = (ours, peer)
    with bench.remote(ours) as first, bench.remote(peer) as second:
        workers = (first, second)
        loads = []
        for name, worker in zip(names, workers, strict=True):
            bench.progress(f"load {name}")
            answer = worker.ask(
                "load", engine=name, folder=str(bench.folder), threads=bench.threads
            )
            loads.append(answer["load_s"])
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        for _ in range(bench.runs + 1):
            for name, worker, record in zip(names, workers, turns, strict=True):
                bench.progress(name)
                record.append(Turn(**worker.ask("run")))
        paths = tuple(bench.folder / f"output.{name}.npy" for name in names)
        peaks = [
            worker.ask("save", path=str(path))["peak_rss_mib"]
            for worker, path in zip(workers, paths, strict=True)
        ]
    engines = [
        Engine(name, load, record[0], tuple(record[1:]), peak, quality(bench.folder, path))
        for name, load, record, peak, path in zip(names, loads, turns, peaks, paths, strict=True)
    ]
    return compare(*engines)


def compare(ours: Engine, peer: Engine) -> dict[str, object]:
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
    return {"ours": ours.as_json(), "peer": peer.as_json(), **ratios}


def quality(folder: Path, path: Path) -> dict[str, float | None]:
    """How far the output in `path` is from the reference of the case in `folder`.

    The step returns the clean latent, most of which is its input where little noise is left; the
    noise that it found is the network's own answer, so its SNR stands beside.
    """
    output, reference = read_array(path), read_array(folder / REFERENCE)
    inputs = read_case(folder)[2]
    found, known = (noise_in(each, inputs) for each in (output, reference))
    gap, power = np.mean(np.square(found - known)), np.mean(np.square(known))
    snr = 10 * np.log10(power / gap) if gap else np.inf
    return {**difference(output, reference), "noise_snr_db": finite(float(snr))}


def difference(output: npt.NDArray[Any], reference: npt.NDArray[Any]) -> dict[str, float | None]:
    """Largest difference, the reference's largest value, and PSNR in dB against that value."""
    gap = output.astype(np.float64) - reference
    peak, power = float(np.abs(reference).max()), float(np.mean(np.square(gap)))
    psnr = 10 * np.log10(peak**2 / power) if power else np.inf
    return {"max_abs": float(np.abs(gap).max()), "peak": peak, "psnr_db": finite(float(psnr))}
