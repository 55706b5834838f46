"""Export worker: one export with drawn weights in a process of its own, timed and weighed.

Run as ``python -m jscc.benchmarks.export_worker`` with a `Request` as JSON on stdin; the figures
come as JSON on stdout. `ask` does that. With a file for ``reference``, what torch's own automatic
differentiation computes for the guided stages goes there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jscc.benchmarks.step_inputs import step_inputs
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UnavailableError
from jscc.runtime.machine import peak_rss_mib
from jscc.runtime.manifest import Manifest

MODULE = "jscc.benchmarks.export_worker"


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        system: Name of the system.
        configs: As ``--config`` takes them.
        options: Of the system alone, name → value.
        seed: Draws the weights.
        output: Where the bundle goes.
        reference: Where torch's gradients go, as .npz; empty for nowhere.
    """

    system: str
    configs: tuple[str, ...]
    options: Mapping[str, str]
    seed: int
    output: str
    reference: str = ""


def ask(request: Request) -> dict[str, Any]:
    """The figures of one export.

    Raises:
        UnavailableError: ``E_EXPORT``, it failed, or its process died.
    """
    ran = subprocess.run(
        [sys.executable, "-m", MODULE],
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        died = f"a process killed by signal {-ran.returncode} (9 is what lack of memory looks like)"
        got = died if ran.returncode < 0 else f"status {ran.returncode} ({last})"
        raise UnavailableError(
            "E_EXPORT",
            f"export of {', '.join(request.configs)} as {request.system}: got {got}, expected a "
            "bundle. Leave it out, or use a machine with more memory.",
        )
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures


def carry_out(request: Request) -> dict[str, object]:
    """Export, and say what it took; the reference is computed after the clock has stopped."""
    from jscc.benchmarks.parameters import count_parameters
    from jscc.export.exporter import Order, export
    from jscc.export.gather import Request as Weights
    from jscc.export.gather import gather
    from jscc.export.system import Options, find

    started = time.perf_counter()
    system = find(request.system)
    source, _ = gather(system, Weights(configs=request.configs, random_seed=request.seed))
    options = Options(extra=request.options)
    order = Order(
        name=request.system,
        destination=Path(request.output),
        precision="fp32",
        size=None,
        overwrite=True,
        single_file=False,
        options=options,
    )
    times = {}

    def progress(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - what export calls
        times[stage] = time.process_time()

    bundle = export(system, source, order, progress)
    ended, wall = time.process_time(), time.perf_counter() - started
    figures: dict[str, object] = {
        "cpu_s": round(ended, 2),
        "wall_s": round(wall, 2),
        "peak_rss_mib": peak_rss_mib(),
        "stages_cpu_s": _durations(times, ended),
        "size_mib": round(sum(f.size for f in bundle.manifest.files.values()) / 2**20, 2),
        "parity": worst_parity(bundle.manifest),
        "parameters": count_parameters(bundle),
        "variant": bundle.manifest.variant,
    }
    if request.reference:
        np.savez(request.reference, **_gradients(system.plan(source, options).stages, bundle))
    return figures


def _durations(begun: Mapping[str, float], ended: float) -> dict[str, float]:
    """CPU time of each part from the times at which they began."""
    ends = [*list(begun.values())[1:], ended]
    return {
        name: round(end - start, 2) for (name, start), end in zip(begun.items(), ends, strict=True)
    }


def worst_parity(manifest: Manifest) -> dict[str, object]:
    """The output that is furthest from torch: by its PSNR, which knows the output's range."""
    found = [
        (parity.psnr_db, stage, port, parity.max_abs)
        for stage, ports in manifest.parity.items()
        for port, parity in ports.items()
        if parity.psnr_db is not None
    ]
    largest = max(p.max_abs for ports in manifest.parity.values() for p in ports.values())
    worst = min(found, default=None)
    return {
        "max_abs": largest,
        "psnr_db": None if worst is None else round(worst[0], 2),
        "output": None if worst is None else f"{worst[1]}/{worst[2]}",
    }


def _gradients(specs: Any, bundle: Bundle) -> dict[str, Any]:
    """What torch computes in the guided stages of `bundle`, as ``STAGE/PORT``."""
    from jscc.export.proof import evaluate

    manifest = bundle.manifest
    guided = {stage for loop in manifest.loops.values() for stage in loop.guides.values()}
    found = {}
    for spec in specs:
        if spec.name in guided:
            inputs = step_inputs(manifest, spec.name)
            for port, array in evaluate(spec.build().eval(), spec, inputs).items():
                found[f"{spec.name}/{port}"] = array
    return found


def main() -> None:
    """Carry out the request on stdin; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        given = json.load(sys.stdin)
        request = Request(**{**given, "configs": tuple(given["configs"])})
        json.dump(carry_out(request), answers, allow_nan=False)


if __name__ == "__main__":
    main()
