"""README tables and figures: made again from the recorded results.

A place for a table is one comment that names a file of ``benchmarks/results``, or ``systems`` with
the options and files of ``jscc bench systems``, or ``stages`` with a file of ``jscc bench
receivers``, and one comment that ends it. A figure is one
comment with its file and the options and files of ``jscc bench plot``; the picture's own link is
written by hand. Run ``python -m jscc.benchmarks.readme_tables`` after recording; ``--check`` only
looks at the tables, ``--figures`` draws the figures too::

    <!-- table: peers-512x512.json -->
    <!-- end of table -->
    <!-- table: systems --cbr 1/96 kodak-systems.json digital-kodak.json -->
    <!-- end of table -->
    <!-- figure: psnr.svg --kind snr --metric psnr_db kodak-systems.json digital-kodak.json -->
"""

import argparse
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jscc.benchmarks import receivers_table, systems
from jscc.benchmarks.report import board, instructions
from jscc.runtime.commands.options import make_parser
from jscc.runtime.errors import DataError
from jscc.runtime.output_files import write_file
from jscc.runtime.terminal import notice, run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<words>[^>\n]+?) -->\n)"
    r".*?"
    r"(?P<end><!-- end of table -->)",
    re.DOTALL,
)
FIGURE = re.compile(r"<!-- figure: (?P<file>[A-Za-z0-9_.-]+) (?P<words>[^>\n]+?) -->")
RESULT = re.compile(r"[A-Za-z0-9_.-]+\.json")
LIBRARIES = {  # by the name of the engine
    "nvcc": "nvcc",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt_rtx": "TensorRT for RTX",
}
# Where the function ``table`` of each kind of result is.
TABLES = {
    "digital": "jscc.benchmarks.digital.tables",
    "engines": "jscc.benchmarks.engines",
    "export": "jscc.benchmarks.exports",
    "feature-cache": "jscc.benchmarks.feature_cache_table",
    "guided": "jscc.benchmarks.guided",
    "kernels": "jscc.benchmarks.kernels",
    "latency": "jscc.benchmarks.latency",
    "offline": "jscc.benchmarks.offline",
    "peers": "jscc.benchmarks.peers",
    "quality": "jscc.benchmarks.quality",
    "receivers": "jscc.benchmarks.receivers",
    "server": "jscc.benchmarks.server",
}

Table = Callable[[Mapping[str, Any]], str]


def fill(text: str, results: Path) -> str:
    """`text` with every table replaced by that of its result files.

    Args:
        text: Markdown.
        results: Folder of the result files.

    Raises:
        DataError: ``E_RESULT``, a file is missing or no result of a known kind.
        UsageError: The options of a table are wrong.
    """
    return PLACE.sub(lambda place: f"{place['begin']}{_made(place, results)}{place['end']}", text)


def _made(place: re.Match[str], results: Path) -> str:
    first, *rest = shlex.split(place["words"])
    if first == "stages":
        result = _read(results / rest[0])
        return f"{receivers_table.stages_table(result)}\n{measured(result)}\n"
    if first != "systems":
        return render(results / first)
    words = [str(results / word) if RESULT.fullmatch(word) else word for word in rest]
    parser = make_parser("bench systems", "")
    systems.add_arguments(parser)
    args = parser.parse_args(words)
    where = dict.fromkeys(measured(_read(path)) for path in args.result)
    return f"{systems.systems_table(args)}\n{''.join(where)}\n"


def render(path: Path) -> str:
    """The table of one result file, and a line that says where it was measured."""
    result = _read(path)
    return f"{table_of(result, path.name)(result)}\n{measured(result)}\n"


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(
            "E_RESULT", f"{path.name}: got no such file, expected it in {path.parent}. Record it."
        )
    result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def table_of(result: Mapping[str, Any], where: str) -> Table:
    """The function that makes a table of this kind of result."""
    kind = str(result.get("kind"))
    if kind not in TABLES:
        raise DataError(
            "E_RESULT",
            f"{where}: got kind {kind!r}, expected one of {', '.join(TABLES)}. Record again.",
        )
    table: Table = importlib.import_module(TABLES[kind]).table
    return table


def measured(result: Mapping[str, Any]) -> str:
    """One line on machine, versions and commit."""
    machine, versions = result["machine"], result["versions"]
    commit = str(result["commit"])
    library, _, precision = str(result.get("engine") or "onnxruntime").partition("-")
    engine = f"{LIBRARIES[library]} {versions[library]}{precision and f' in {precision}'}"
    return (
        f"Measured on {machine['cpu']}{instructions(machine)}, {machine['threads']} threads"
        f"{board(machine)}, with Python {versions['python']} and {engine}, "
        f"at commit {commit[:10]}{'+' if commit.endswith('+') else ''}.\n"
    )


def draw(text: str, results: Path, *, images: Path | None, bundles: Path | None) -> list[str]:
    """Draw every figure that `text` names into `results`.

    Args:
        text: Markdown.
        results: Folder of the result files and of the figures.
        images: Folder of what was sent, which rows of pictures need; without it they stay.
        bundles: Folder of the bundles, likewise.

    Returns:
        Names of the figures that were drawn.

    Raises:
        DataError: ``E_RESULT``, a file is missing or does not fit.
        UsageError: The options of a figure are wrong.
    """
    from jscc.benchmarks import plot  # tables need no plotting library

    drawn = []
    for figure in FIGURE.finditer(text):
        words = [
            str(results / word) if RESULT.fullmatch(word) else word
            for word in shlex.split(figure["words"])
        ]
        for option, folder in (("--images", images), ("--bundles", bundles)):
            words += [] if folder is None else [option, str(folder)]
        parser = make_parser("bench plot", "")
        plot.add_arguments(parser)
        args = parser.parse_args([*words, "--output", str(results / figure["file"])])
        if args.kind == "grid" and images is None:
            notice(f"{figure['file']} stays: its pictures need --images and --bundles.")
            continue
        plot.run(args)
        drawn.append(figure["file"])
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the README's tables; with ``--check``, return 1 where one is out of date."""
    parser = argparse.ArgumentParser(prog="readme_tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    parser.add_argument("--images", type=Path, metavar="DIR", help="for rows of pictures")
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="for rows of pictures")
    arguments = parser.parse_args(argv)
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = fill(before, RESULTS)
    if arguments.figures and not arguments.check:
        draw(after, RESULTS, images=arguments.images, bundles=arguments.bundles)
    if before == after:
        return 0
    if arguments.check:
        sys.stderr.write(f"{readme.name}: a table differs from its result file.\n")
        return 1
    write_file(readme, after.encode(), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(run("readme_tables", main, sys.argv[1:]))
