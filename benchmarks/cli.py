"""jscc bench: measure a bundle on this machine; a table on stdout, the whole story as JSON."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from jscc.benchmarks.report import write_result
from jscc.benchmarks.scenarios import SCENARIOS, add_arguments, case_of, settle
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import make_parser
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import notice, say

# Measurements with options of their own: ``jscc bench NAME …``.
SUITES = {
    "quality": ("jscc.benchmarks.quality", "Measure how good received images are at each SNR."),
    "digital": (
        "jscc.benchmarks.digital.suite",
        "Measure how good images are that HEVC and a channel code have sent.",
    ),
    "plot": ("jscc.benchmarks.plot", "Draw recorded results: curves, planes, rows of pictures."),
    "report": ("jscc.benchmarks.page", "Make one HTML page of recorded results."),
    "systems": ("jscc.benchmarks.systems", "Print one table of several recorded results."),
    "receivers": (
        "jscc.benchmarks.receivers",
        "Measure whole receivers in turns: bundles, engines, steps, the modules in PyTorch.",
    ),
    "peers": ("jscc.benchmarks.peers", "Measure one denoise step in turns with other engines."),
    "guided": ("jscc.benchmarks.guided", "Measure guided steps in turns with the plain one."),
    "feature-cache": (
        "jscc.benchmarks.feature_cache",
        "Measure whether reusing a denoiser's inner features pays, against fewer steps.",
    ),
    "tegrastats": (
        "jscc.benchmarks.tegrastats_log",
        "Tell a Jetson's power, energy, memory, clocks and heat from a log of tegrastats.",
    ),
    "kernels": (
        "jscc.benchmarks.kernels",
        "Record what nvcc makes of the kernels, on any machine.",
    ),
    "engines": (
        "jscc.benchmarks.engines",
        "Record what TensorRT for RTX makes of the graphs of bundles, on any machine.",
    ),
    "export": (
        "jscc.benchmarks.exports",
        "Measure what exporting published networks takes, at their real size.",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc bench BUNDLE``, or one of `SUITES`."""
    if arguments and arguments[0] in SUITES:
        return _run_suite(arguments[0], arguments[1:])
    options = _parse(arguments)
    if options.json is not None:
        check_destination(options.json, force=options.force)
    scenario = SCENARIOS[options.scenario]
    document = scenario.run(Bundle.open(options.bundle), case_of(options), options)
    if options.json is not None:
        write_result(options.json, scenario.KIND, document)
        notice(f"jscc bench: wrote {options.json}")
    say(scenario.report(document))
    return 0


def _run_suite(name: str, arguments: Sequence[str]) -> int:
    module, what = SUITES[name]
    suite = importlib.import_module(module)
    parser = make_parser(f"bench {name}", what)
    suite.add_arguments(parser)
    status: int = suite.run(parser.parse_args(arguments))
    return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "bench",
        "Measure what a user waits for: symbols in memory to an image in memory. "
        f"See also jscc bench {' --help and jscc bench '.join(SUITES)} --help.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    options = parser.parse_args(arguments)
    settle(options)
    return options
