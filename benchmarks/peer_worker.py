"""Peer worker: one engine in a process of its own, driven line by line.

Run as ``python -m jscc.benchmarks.peer_worker``. Each line of stdin is a JSON command, each line
of stdout its JSON answer:

    {"do": "prepare", "case": {…}, "folder": …}             → {}
    {"do": "load", "engine": …, "folder": …, "threads": …}  → {"load_s": …}
    {"do": "run"}                                           → {"wall_ms": …, "cpu_ms": …}
    {"do": "save", "path": …}                               → {"peak_rss_mib": …}

An answer ``{"error": …}`` ends the process, and so does the end of stdin.
"""

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.peer_case import STAGE, Case, read_case
from jscc.runtime.machine import peak_rss_mib

Output = npt.NDArray[np.float32]
Step = Callable[[], Output]

OURS = "jscc"


def load_ours(folder: Path, threads: int) -> Step:
    """Our runtime on the case's graph, through the backend that a receiver uses."""
    from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend

    _, entry, inputs = read_case(folder)
    graph = (folder / f"{STAGE}.onnx").read_bytes()
    external = {path.name: _mapped(path) for path in folder.glob(f"{STAGE}.onnx.*")}
    session = OnnxRuntimeBackend(threads=threads).load(STAGE, entry, graph, external)
    name = entry.outputs[0].name
    return lambda: np.asarray(session.run(inputs)[name], np.float32)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def load_eager(folder: Path, threads: int) -> Step:
    """PyTorch as it is."""
    return _load_torch(folder, threads)


def load_channels_last(folder: Path, threads: int) -> Step:
    """PyTorch with weights and activations stored color last."""
    return _load_torch(folder, threads, channels_last=True)


def load_compiled(folder: Path, threads: int) -> Step:
    """torch.compile with its defaults."""
    return _load_torch(folder, threads, compiled=True)


def load_frozen(folder: Path, threads: int) -> Step:
    """torch.compile with the weights as constants, its fastest setting on a CPU."""
    return _load_torch(folder, threads, compiled=True, frozen=True)


ENGINES: dict[str, Callable[[Path, int], Step]] = {
    OURS: load_ours,
    "torch-eager": load_eager,
    "torch-eager-channels-last": load_channels_last,
    "torch-compile": load_compiled,
    "torch-compile-freezing": load_frozen,
}


def _load_torch(
    folder: Path,
    threads: int,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    frozen: bool = False,
) -> Step:
    import torch
    from torch._inductor import config

    from jscc.benchmarks.peer_network import build

    torch.set_num_threads(threads)
    case, _, inputs = read_case(folder)
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    network: Any = build(case)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        tensors = [
            t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors
        ]
    if frozen:
        config.freezing = True
    if compiled:
        network = torch.compile(network)

    def step() -> Output:
        with torch.no_grad():
            return np.asarray(network(*tensors).numpy(), np.float32)

    return step


class Worker:
    """Carries out the commands above, one after the other."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._output: Output | None = None

    def obey(self, command: dict[str, Any]) -> dict[str, float]:
        """Carry out one command and return its answer."""
        verbs: dict[str, Callable[..., dict[str, float]]] = {
            "prepare": self._prepare,
            "load": self._load,
            "run": self._run,
            "save": self._save,
        }
        return verbs[command.pop("do")](**command)

    def _prepare(self, case: dict[str, Any], folder: str) -> dict[str, float]:
        from jscc.benchmarks.peer_network import prepare

        prepare(Case(**case), Path(folder))
        return {}

    def _load(self, engine: str, folder: str, threads: int) -> dict[str, float]:
        start = time.perf_counter()
        self._step = ENGINES[engine](Path(folder), threads)
        return {"load_s": time.perf_counter() - start}

    def _run(self) -> dict[str, float]:
        if self._step is None:
            raise RuntimeError("run before load")
        wall, cpu = time.perf_counter(), time.process_time()
        self._output = self._step()
        return {
            "wall_ms": 1e3 * (time.perf_counter() - wall),
            "cpu_ms": 1e3 * (time.process_time() - cpu),
        }

    def _save(self, path: str) -> dict[str, float]:
        if self._output is None:
            raise RuntimeError("save before run")
        np.save(path, self._output, allow_pickle=False)
        return {"peak_rss_mib": peak_rss_mib() or 0.0}


def serve(commands: IO[str], answers: IO[str]) -> None:
    """Answer `commands` until they end or one fails."""
    worker = Worker()
    for line in commands:
        try:
            answer: dict[str, Any] = worker.obey(json.loads(line))
        except Exception as error:  # whatever an engine raises is the parent's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return


def main() -> None:
    """Keep stdout for the answers: what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
