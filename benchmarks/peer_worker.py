"""Peer worker: one engine in a process of its own, driven line by line.

Run as ``python -m jscc.benchmarks.peer_worker``. Each line of stdin is a JSON command, each line
of stdout its JSON answer:

    {"do": "check", "engines": […]}                         → {"lacks": {…}, "versions": {…}}
    {"do": "prepare", "case": {…}, "folder": …}             → {}
    {"do": "calibrate", "folder": …, "threads": …}          → {}
    {"do": "nncf", "folder": …}                             → {}
    {"do": "optimum", "scale": …}                           → {"reason": …}
    {"do": "ceilings", "scale": …, …, "threads": …}         → {"ceilings": […]}
    {"do": "load", "engine": …, "folder": …, "threads": …}  → {"load_s": …}
    {"do": "run"}                                           → {"wall_ms": …, "cpu_ms": …}
    {"do": "save", "path": …}                               → {"peak_rss_mib": …}

An answer ``{"error": …}`` ends the process, and so does the end of stdin.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jscc.benchmarks import peer_optimum
from jscc.benchmarks.peer_case import Array, Case
from jscc.benchmarks.peer_engines import ENGINES, lacking
from jscc.runtime.machine import peak_rss_mib, version_of

OPTIMUM = "optimum"  # it is asked, and never runs
_PACKAGES = ("diffusers", "nncf", "onnxruntime", "openvino", "optimum-onnx", "torch")

Answer = dict[str, Any]


class Worker:
    """Carries out the commands above, one after the other."""

    def __init__(self) -> None:
        self._step: Callable[[], Array] | None = None
        self._output: Array | None = None

    def obey(self, command: dict[str, Any]) -> Answer:
        """Carry out one command and return its answer."""
        verbs: dict[str, Callable[..., Answer]] = {
            "check": _check,
            "prepare": _prepare,
            "calibrate": _calibrate,
            "nncf": _nncf,
            "optimum": peer_optimum.ask,
            "ceilings": _ceilings,
            "load": self._load,
            "run": self._run,
            "save": self._save,
        }
        return verbs[command.pop("do")](**command)

    def _load(self, engine: str, folder: str, threads: int) -> Answer:
        start = time.perf_counter()
        self._step = ENGINES[engine].load(Path(folder), threads)
        return {"load_s": time.perf_counter() - start}

    def _run(self) -> Answer:
        if self._step is None:
            raise RuntimeError("run before load")
        wall, cpu = time.perf_counter(), time.process_time()
        self._output = self._step()
        return {
            "wall_ms": 1e3 * (time.perf_counter() - wall),
            "cpu_ms": 1e3 * (time.process_time() - cpu),
        }

    def _save(self, path: str) -> Answer:
        if self._output is None:
            raise RuntimeError("save before run")
        np.save(path, self._output, allow_pickle=False)
        return {"peak_rss_mib": peak_rss_mib() or 0.0}


def _check(engines: list[str]) -> Answer:
    lacks = {}
    for name in engines:
        needs = peer_optimum.NEEDS if name == OPTIMUM else ENGINES[name].needs
        if missing := lacking(needs):
            lacks[name] = missing
    versions = {name: version for name in _PACKAGES if (version := version_of(name)) is not None}
    return {"lacks": lacks, "versions": versions}


def _prepare(case: dict[str, Any], folder: str) -> Answer:
    from jscc.benchmarks.peer_network import prepare

    prepare(Case(**case), Path(folder))
    return {}


def _calibrate(folder: str, threads: int) -> Answer:
    from jscc.benchmarks.peer_int8 import calibrate

    calibrate(Path(folder), threads)
    return {}


def _nncf(folder: str) -> Answer:
    from jscc.benchmarks.peer_int8 import quantise_by_nncf

    quantise_by_nncf(Path(folder))
    return {}


def _ceilings(scale: str, height: int, width: int, threads: int) -> Answer:
    from jscc.benchmarks.peer_ceilings import measure

    return {"ceilings": measure(scale, height, width, threads)}


def serve(commands: IO[str], answers: IO[str]) -> None:
    """Answer `commands` until they end or one fails."""
    worker = Worker()
    for line in commands:
        try:
            answer: Answer = worker.obey(json.loads(line))
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
