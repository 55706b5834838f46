"""README tables: rewrites what stands between markers from the recorded results.

A place for a table is one comment that names a file of ``benchmarks/results``, and one that ends
it; run ``python -m jscc.benchmarks.readme_tables`` after recording, with ``--check`` to only look::

    <!-- table: peers-512x512.json -->
    <!-- end of table -->
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jscc.runtime.errors import DataError
from jscc.runtime.output_files import write_file
from jscc.runtime.terminal import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<file>[A-Za-z0-9_.-]+\.json) -->\n)"
    r".*?"
    r"(?P<end><!-- end of table -->)",
    re.DOTALL,
)

Table = Callable[[Mapping[str, Any]], str]


def fill(text: str, results: Path) -> str:
    """`text` with every table replaced by that of its result file.

    Args:
        text: Markdown.
        results: Folder of the result files.

    Raises:
        DataError: ``E_RESULT``, a file is missing or no result of a known kind.
    """
    return PLACE.sub(
        lambda place: f"{place['begin']}{render(results / place['file'])}{place['end']}", text
    )


def render(path: Path) -> str:
    """The table of one result file, and a line that says where it was measured."""
    if not path.is_file():
        raise DataError(
            "E_RESULT", f"{path.name}: got no such file, expected it in {path.parent}. Record it."
        )
    result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return f"{table_of(result, path.name)(result)}\n{measured(result)}\n"


def table_of(result: Mapping[str, Any], where: str) -> Table:
    """The function ``table`` of the module that is named like the result's kind."""
    kind = str(result.get("kind"))
    if not re.fullmatch(r"[a-z_]+", kind) or not Path(__file__).with_name(f"{kind}.py").is_file():
        raise DataError(
            "E_RESULT",
            f"{where}: got kind {kind!r}, expected a module of benchmarks/. Record again.",
        )
    table: Table = importlib.import_module(f"jscc.benchmarks.{kind}").table
    return table


def measured(result: Mapping[str, Any]) -> str:
    """One line on machine, versions and commit."""
    machine, versions = result["machine"], result["versions"]
    commit = str(result["commit"])
    return (
        f"Measured on {machine['cpu']}, {machine['threads']} threads, with Python "
        f"{versions['python']} and ONNX Runtime {versions['onnxruntime']}, "
        f"at commit {commit[:10]}{'+' if commit.endswith('+') else ''}.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the README's tables; with ``--check``, return 1 where one is out of date."""
    parser = argparse.ArgumentParser(prog="readme_tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args(argv)
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = fill(before, RESULTS)
    if before == after:
        return 0
    if arguments.check:
        sys.stderr.write(f"{readme.name}: a table differs from its result file.\n")
        return 1
    write_file(readme, after.encode(), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(run("readme_tables", main, sys.argv[1:]))
