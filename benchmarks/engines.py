"""Engines: what TensorRT for RTX makes of every graph of bundles, ahead of time, as a result.

    jscc bench engines BUNDLE … --ahead sm_89 --shapes 512x512 --json OUT

Each bundle goes through ``jscc build`` in a process of its own. The result says which graphs are
taken, how large their engines are and what building takes; it says nothing of what an engine
computes, nor of how fast it is on a device.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jscc.benchmarks.report import markdown_table, provenance, versions, write_result
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import notice, say

Json = dict[str, Any]

LIBRARY = "tensorrt_rtx"
_EDGES = ("height", "width")


def table(result: Mapping[str, Any]) -> str:
    """One row per stage, precisions side by side."""
    precisions = list(dict.fromkeys(row["precision"] for row in result["rows"]))
    stages: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        stages.setdefault(_place(row), {})[row["precision"]] = row
    rows = [
        (
            f"`{system}`, {stage}",
            sizes,
            *(cell for precision in precisions for cell in _cells(own.get(precision))),
        )
        for (system, _, stage, sizes), own in stages.items()
    ]
    figures = [f"{precision}, {what}" for precision in precisions for what in ("MiB", "CPU s")]
    return markdown_table((f"for {result['target']}", "at", *figures), rows)


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What precisions of one graph have in common."""
    sizes = dict.fromkeys(_sizes(profile) for profile in row["profiles"])
    return row["system"], row["variant"], row["stage"], "; ".join(sizes) or "its one size"


def _sizes(profile: Mapping[str, Sequence[int]]) -> str:
    """The images or tiles of a profile, or other sizes than those."""
    names = _EDGES if all(edge in profile for edge in _EDGES) else tuple(profile)
    ranges = [profile[name] for name in names]
    if all(least == most for least, _, most in ranges):
        text = "×".join(str(most) for *_, most in ranges)
    else:
        text = "×".join(f"{least}–{most}" for least, _, most in ranges)
    return text if names == _EDGES else f"{', '.join(names)} {text}"


def _cells(row: Mapping[str, Any] | None) -> tuple[str, str]:
    """Size and processor time of a build, or why there is no engine."""
    if row is None:
        return "–", "–"
    if row["error"] is not None:
        return str(row["error"]).rpartition("[")[2].rstrip("]"), "–"
    return f"{row['size'] / 2**20:.1f}", f"{row['cpu_s']:.1f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench engines``."""
    parser.add_argument("bundle", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--ahead", required=True, metavar="SM", help="kind of device: sm_89, …")
    parser.add_argument("--shapes", required=True, metavar="[Bx]HxW", help="as of jscc build")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(options: argparse.Namespace) -> int:
    """Run ``jscc bench engines``."""
    if options.json is not None:
        check_destination(options.json, force=options.force)
    if "," in options.ahead:
        raise UsageError(
            "E_USAGE", f"--ahead: got {options.ahead!r}, expected one kind of device. Pick one."
        )
    built: list[Json] = []
    for bundle in options.bundle:
        built.append(build(bundle, options.ahead, options.shapes))
        notice(f"jscc bench engines: built {bundle.name}")
    result = result_of(built, options.ahead, options.shapes)
    say(table(result))
    if options.json is not None:
        write_result(options.json, "engines", result)
    return 0


def build(bundle: Path, target: str, shapes: str) -> Json:
    """What ``jscc build --json`` says of a bundle; refused graphs are among it.

    Raises:
        UnavailableError: ``E_WORKER``, it says nothing.
    """
    with tempfile.TemporaryDirectory(prefix="jscc-engines-") as folder:
        where = ("--ahead", target, "--shapes", shapes, "-o", str(Path(folder, "engines")))
        ran = subprocess.run(
            [sys.executable, "-m", "jscc", "build", str(bundle), *where, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        document: Json = json.loads(ran.stdout)
    except ValueError as error:
        last = (ran.stderr.strip().splitlines() or [f"status {ran.returncode}"])[-1]
        raise UnavailableError(
            "E_WORKER",
            f"{bundle.name}: got {last!r}, expected jscc build to build it. Run that by itself.",
        ) from error
    return document


def result_of(built: Sequence[Json], target: str, shapes: str) -> Json:
    """One result of what builds said.

    Raises:
        UsageError: ``E_USAGE``, two bundles would share their cells of the table.
    """
    rows = [row for document in built for row in _rows(document)]
    cells = [(*_place(row), row["precision"]) for row in rows]
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice is not None:
        raise UsageError(
            "E_USAGE",
            f"bundles: got {twice[0]} in {twice[-1]} more than once, expected one of each system, "
            "variant and precision. Leave one out.",
        )
    version = built[0]["library"].partition(" ")[2]
    return {
        **provenance(),
        "versions": {**versions(), LIBRARY: version},
        "engine": LIBRARY,
        "target": target,
        "shapes": shapes,
        "rows": rows,
    }


def _rows(document: Mapping[str, Any]) -> Iterator[Json]:
    common = {name: document[name] for name in ("bundle", "precision", "system", "variant")}
    for engine in document["engines"]:
        figures = {name: value for name, value in engine.items() if name not in ("file", "target")}
        yield {**common, **figures}
