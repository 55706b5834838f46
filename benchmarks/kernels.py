"""Kernels: what nvcc makes of each for each architecture, as a recorded result.

    jscc bench kernels --json OUT

What `python -m jscc.kernels.report` prints. No device is needed, and nothing is said of speed on
one.
"""

import argparse
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jscc.benchmarks.report import provenance, versions, write_result
from jscc.kernels.report import Use, compile_kernel, known_architectures, markdown, release_of
from jscc.kernels.sources import KERNELS
from jscc.runtime.errors import UnavailableError
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import Progress, say

COMPILER = "nvcc"


def table(result: Mapping[str, Any]) -> str:
    """One row per entry, architectures side by side."""
    return f"{markdown([Use(**row) for row in result['rows']])}\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench kernels``."""
    parser.add_argument("--nvcc", default=COMPILER, help="the compiler; by default that of PATH")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(options: argparse.Namespace) -> int:
    """Run ``jscc bench kernels``."""
    if options.json is not None:
        check_destination(options.json, force=options.force)
    result = measure(options.nvcc)
    say(table(result))
    if options.json is not None:
        write_result(options.json, "kernels", result)
    return 0


def measure(compiler: str) -> Mapping[str, Any]:
    """Compile every kernel for those of `ARCHITECTURES` that the compiler knows.

    Raises:
        UnavailableError: ``E_NVCC``, there is none, or it fails.
    """
    nvcc = shutil.which(compiler)
    if nvcc is None:
        raise UnavailableError(
            "E_NVCC",
            f"nvcc: got no program {compiler!r}, expected that of a CUDA toolkit. Install one, or "
            "name it with --nvcc.",
        )
    progress = Progress("jscc bench kernels")
    uses: list[Use] = []
    try:
        release = release_of(nvcc)
        architectures = known_architectures(nvcc)
        for kernel in KERNELS:
            progress.advance(kernel)
            uses += compile_kernel(nvcc, kernel, architectures)
    except (OSError, subprocess.CalledProcessError) as error:
        words = str(getattr(error, "stderr", None) or error).strip().partition("\n")[0]
        raise UnavailableError(
            "E_NVCC", f"nvcc: got {words!r}, expected it to compile. Install another."
        ) from error
    finally:
        progress.close()
    return {
        **provenance(),
        "versions": {**versions(), COMPILER: release},
        "engine": COMPILER,
        "rows": [asdict(use) for use in uses],
    }
