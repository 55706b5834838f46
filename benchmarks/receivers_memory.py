"""Receivers' memory: the most that one receiver takes, in a process that does nothing else.

What takes turns shares one process, so none of them has a peak of its own there. Each is run once
more by the command itself, alone, with one step: a loop needs no more memory for more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jscc.runtime.errors import UnavailableError

if TYPE_CHECKING:
    import argparse

    from jscc.benchmarks.contestants import Contestant

LIMIT_S = 3600


def peak_alone_mib(
    contestant: Contestant, size: tuple[int, int], threads: int, options: argparse.Namespace
) -> float | None:
    """Most memory of a process that loads `contestant` and receives two images, in MiB.

    Args:
        contestant: What is run; of its settings all count but the number of steps and turns.
        size: Height and width of the image in pixels.
        threads: Of the engine.
        options: Those of the command: seed, SNR, and the checkpoint of modules in PyTorch.

    Returns:
        None where the system does not tell.

    Raises:
        UnavailableError: ``E_MEASURE``, the process failed, or took more than `LIMIT_S` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="jscc-receivers-") as folder:
        result = Path(folder) / "alone.json"
        command = [sys.executable, "-m", "jscc", *_arguments(contestant, size, threads, options)]
        try:
            ran = subprocess.run(
                [*command, "--json", str(result)],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                "E_MEASURE",
                f"memory of {contestant}: got no end within {LIMIT_S} s, expected one. "
                "Leave --memory out, or give a smaller --size.",
            ) from error
        if ran.returncode != 0:
            last = (ran.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise UnavailableError(
                "E_MEASURE",
                f"memory of {contestant}: got status {ran.returncode} ({last}), expected 0. "
                "Leave --memory out.",
            )
        peak: float | None = json.loads(result.read_text(encoding="utf-8"))["peak_rss_mib"]
        return peak


def _arguments(
    contestant: Contestant, size: tuple[int, int], threads: int, options: argparse.Namespace
) -> list[str]:
    settings = {
        "engine": contestant.engine,
        "sampler": contestant.sampler,
        "spacing": contestant.spacing,
    }
    if contestant.steps is not None:
        settings["steps"] = "1"
    named = [f"{key}={value}" for key, value in settings.items() if value is not None]
    arguments = ["bench", "receivers", ",".join((str(contestant.path), *named)), "--turns", "1"]
    arguments += ["--size", f"{size[0]}x{size[1]}", "--threads", str(threads)]
    arguments += ["--seed", str(options.seed)]
    if options.snr is not None:
        arguments += ["--snr", str(options.snr)]
    if options.random_weights is not None:
        arguments += ["--random-weights", str(options.random_weights)]
    for key in ("checkpoint", "config"):
        arguments += [part for each in getattr(options, key) for part in (f"--{key}", each)]
    return arguments
