"""Report: what every recorded result says about where it was measured, and how it is written.

A result is one strict JSON file: ``kind`` and ``format``, the provenance below, then the figures.
README tables are made from these files by `jscc.benchmarks.readme_tables`.
"""

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jscc.runtime.machine import describe_machine, version_of
from jscc.runtime.output_files import write_file

FORMAT = 1
# Instruction sets that decide how fast products of few bits are.
_MULTIPLYING = (
    *("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimddp", "i8mm", "bf16"),
)
_WIDE = ("avx512f", "avx2")  # told where there are none of those
PACKAGES = (
    "jscc-edge",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "pillow",
    "torch",
)


def provenance() -> dict[str, object]:
    """Machine, versions and commit; nothing that names a person, a host or a folder."""
    return {"machine": machine(), "versions": versions(), "commit": commit()}


def machine() -> dict[str, object]:
    """Processor, threads that this process may use, memory in MiB, system; a Jetson's settings."""
    found = asdict(describe_machine())
    left_out = ["available_mib", "nvidia", *["jetson"] * (found["jetson"] is None)]
    return {name: value for name, value in found.items() if name not in left_out}


def board(machine: Mapping[str, Any]) -> str:
    """A recorded Jetson and what its speed depends on, behind a comma; nothing elsewhere."""
    jetson = machine.get("jetson")
    if jetson is None:
        return ""
    pinned = {True: "clocks pinned", False: "clocks not pinned", None: "clocks unknown"}
    mode = f"power mode {jetson['power_mode'] or 'unknown'}"
    words = [jetson["model"], jetson["l4t"] and f"Jetson Linux {jetson['l4t']}", mode]
    return "".join(f", {word}" for word in [*words, pinned[jetson["clocks_pinned"]]] if word)


def instructions(machine: Mapping[str, Any]) -> str:
    """What a recorded processor multiplies with, in brackets; nothing where it is unknown."""
    features = machine.get("features") or []
    own = [name for name in _MULTIPLYING if name in features]
    own = own or [name for name in _WIDE if name in features][:1]
    return f" ({', '.join(own)})" if own else ""


def versions() -> dict[str, str]:
    """Python and those of `PACKAGES` that are installed."""
    found = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    return {"python": platform.python_version(), **found}


def commit() -> str | None:
    """The commit of this checkout, with ``+`` if files differ from it; None outside one."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                check=True,
                text=True,
                timeout=30,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return run.stdout.strip()

    # An installed copy may lie inside somebody else's checkout.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return head if head is None or not git("status", "--porcelain") else f"{head}+"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of `values`."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def finite(value: float) -> float | None:
    """`value` for strict JSON: None where it is infinite, as the PSNR of equal images."""
    return value if math.isfinite(value) else None


def write_result(path: Path, kind: str, figures: Mapping[str, object]) -> None:
    """Write a result of this `kind` to `path` in one step, over an older one.

    Raises:
        OutputError: The file cannot be created.
        StorageError: Writing failed half-way; an older file is as it was.
    """
    result = {"kind": kind, "format": FORMAT, **figures}
    parts = []
    for name, value in sorted(result.items()):
        if name == "rows" and isinstance(value, list):  # there are thousands: a line each
            lines = ",\n".join(f"  {_json(row)}" for row in value)
            text = f"[\n{lines}\n ]" if value else "[]"
        else:
            text = _json(value, indent=1).replace("\n", "\n ")
        parts.append(f" {_json(name)}: {text}")
    write_file(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode(), force=True)


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)


def energy_line(energy: Mapping[str, Any]) -> str:
    """One line on what `jscc.benchmarks.energy.Meter.per_image` found."""
    if energy["joules_per_image"] is None:
        return str(energy["reason"])
    parts = ", ".join(energy["parts"])
    note = f"; {energy['reason']}" if energy["reason"] else ""
    return (
        f"energy: {energy['joules_per_image']:.3g} J per image, {energy['watts']:.3g} W "
        f"({parts}, whoever used it{note})"
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; the first column is text, the others are figures."""
    rule = ["---", *("--:" for _ in header[1:])]
    lines = [[_cell(text) for text in row] for row in (header, rule, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """`text` such that it stays one cell on one line."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").splitlines())
