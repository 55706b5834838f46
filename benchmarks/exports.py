"""Exports: what turning a published network into a bundle takes, and how exact the graphs are.

Every network has its published size and weights drawn from a seed; each is exported in a process of
its own, so its peak memory is its own. The time is from the start of that process, torch's import
included.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jscc.benchmarks.export_cases import CASES
from jscc.benchmarks.export_worker import Request, ask
from jscc.benchmarks.report import markdown_table, provenance, write_result
from jscc.benchmarks.sweep import items
from jscc.runtime.commands.options import seed
from jscc.runtime.errors import UsageError
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import Progress, notice, say

ALL = "all"


def measure(name: str, drawn: int, folder: Path) -> dict[str, object]:
    """Export the case called `name` into `folder` and return its row."""
    case = CASES[name]
    request = Request(case.system, case.configs, case.options, drawn, str(folder / f"{name}.jscc"))
    return {"name": name, "system": case.system, "title": case.title, **ask(request)}


def table(result: Mapping[str, Any]) -> str:
    """The README's table: one line per network."""
    rows = []
    for row in result["exports"]:
        count = row["parameters"]
        parity = row["parity"]
        rows.append(
            (
                row["title"],
                f"`{row['system']}`",
                f"{(count['transmitter'] + count['receiver']) / 1e6:.1f}",
                f"{row['cpu_s']:.0f}",
                f"{row['wall_s']:.0f}",
                f"{row['peak_rss_mib'] / 1024:.1f}",
                f"{row['size_mib']:.0f}",
                f"{parity['max_abs']:.0e}",
                "equal" if parity["psnr_db"] is None else f"{parity['psnr_db']:.0f}",
            )
        )
    header = ("network", "in a system", "parameters, M", "CPU s", "s", "peak GiB", "bundle MiB")
    return markdown_table((*header, "largest difference to torch", "worst PSNR, dB"), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench export``."""
    light = [name for name, case in CASES.items() if not case.heavy]
    heavy = [name for name, case in CASES.items() if case.heavy]
    parser.add_argument(
        "--cases",
        default=",".join(light),
        metavar="NAMES",
        help=f"by commas, or {ALL} (default {','.join(light)}; {','.join(heavy)} are more work)",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="draws the weights")
    parser.add_argument("--work", type=Path, help="keep the bundles in this folder")
    parser.add_argument("--json", type=Path, help="write the result to this file, case by case")


def run(args: argparse.Namespace) -> int:
    """``jscc bench export``: export, print the table, write the result."""
    names = choose(args.cases)
    if args.json is not None:
        check_destination(args.json, force=True)
    result: dict[str, Any] = {**provenance(), "weights_seed": args.seed, "exports": []}
    bar = Progress("export")
    try:
        for name in names:
            bar.advance(name)
            with tempfile.TemporaryDirectory(prefix="jscc-export-") as scratch:
                result["exports"].append(measure(name, args.seed, _folder(args.work, scratch)))
            if args.json is not None:  # what is done is kept when a later one fails
                write_result(args.json, "export", result)
                notice(f"jscc bench export: {name} is in {args.json}")
    finally:
        bar.close()
    say(table(result))
    return 0


def _folder(work: Path | None, scratch: str) -> Path:
    if work is None:
        return Path(scratch)
    work.mkdir(parents=True, exist_ok=True)
    return work


def choose(text: str) -> tuple[str, ...]:
    """The cases that are named, each once.

    Raises:
        UsageError: ``E_CASES``, there is none of that name.
    """
    asked = tuple(CASES) if text.strip() == ALL else tuple(items("--cases", text, str))
    for name in asked:
        if name not in CASES:
            raise UsageError(
                "E_CASES",
                f"--cases: got {name!r}, expected {ALL} or some of {', '.join(CASES)}. Pick some.",
            )
    return tuple(dict.fromkeys(asked))
