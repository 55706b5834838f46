"""jscc bench: measure a bundle on this machine; a table on stdout, the whole story as JSON."""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jscc.benchmarks.latency import SCENARIO, Case, measure
from jscc.benchmarks.report import write_result
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import image_size, make_parser, positive, providers, seed
from jscc.runtime.output_files import check_destination
from jscc.runtime.terminal import notice, pairs, say, table

# Measurements with options of their own: ``jscc bench NAME …``.
SUITES = {
    "quality": ("jscc.benchmarks.quality", "Measure how good received images are at each SNR."),
    "digital": (
        "jscc.benchmarks.digital.suite",
        "Measure how good images are that HEVC and a channel code have sent.",
    ),
    "plot": ("jscc.benchmarks.plot", "Draw recorded results: curves, planes, rows of pictures."),
    "systems": ("jscc.benchmarks.systems", "Print one table of several recorded results."),
    "peers": ("jscc.benchmarks.peers", "Measure one denoise step in turns with other engines."),
    "guided": ("jscc.benchmarks.guided", "Measure guided steps in turns with the plain one."),
    "export": (
        "jscc.benchmarks.exports",
        "Measure what exporting published networks takes, at their real size.",
    ),
}

_COLUMNS = ("p50", "p90", "p99", "mean", "min", "max")


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc bench BUNDLE``, or one of `SUITES`."""
    if arguments and arguments[0] in SUITES:
        return _run_suite(arguments[0], arguments[1:])
    options = _parse(arguments)
    if options.json is not None:
        check_destination(options.json, force=options.force)
    bundle = Bundle.open(options.bundle)
    case = Case(
        size=options.size,
        runs=options.runs,
        warmup=options.warmup,
        seed=options.seed,
        sampler=options.sampler,
        steps=options.steps,
        threads=options.threads,
        providers=providers(options.providers),
    )
    document = measure(bundle, case)
    if options.json is not None:
        write_result(options.json, "latency", document)
        notice(f"jscc bench: wrote {options.json}")
    say(report(document))
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
    parser.add_argument("--scenario", choices=(SCENARIO,), default=SCENARIO)
    parser.add_argument(
        "--size", type=image_size, default=(256, 256), metavar="HxW", help="default 256x256"
    )
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="default 20")
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="default 2")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument("--sampler", metavar="NAME", help="default: the bundle's")
    parser.add_argument("--steps", type=positive, metavar="N", help="default: the bundle's")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all available")
    parser.add_argument("--provider", action="append", dest="providers", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    return parser.parse_args(arguments)


def report(document: Mapping[str, Any]) -> str:
    """The tables of a measurement."""
    latency = document["latency_ms"]
    parts = {"end to end": latency["end_to_end"], **latency["stages"]}
    rows = [("ms", *_COLUMNS)]
    rows += [(name, *(f"{times[key]:.2f}" for key in _COLUMNS)) for name, times in parts.items()]
    cold = {name: f"{value:.1f} ms" for name, value in document["cold_start_ms"].items()}
    memory = {
        name: "unknown" if value is None else f"{value:.1f} MiB"
        for name, value in document["memory_mib"].items()
    }
    return "\n\n".join(
        (
            pairs(_head(document)),
            table(rows, header=True),
            "Cold start\n" + pairs(cold),
            "Memory (resident, highest so far)\n" + pairs(memory),
        )
    )


def _head(document: Mapping[str, Any]) -> dict[str, str]:
    bundle, case, machine = document["bundle"], document["case"], document["machine"]
    record = document["record"]
    loops = [f"{loop['steps']} steps ({loop['sampler']})" for loop in record["loops"].values()]
    threads = case["threads"] or machine["threads"]
    return {
        "bundle": f"{bundle['name']}, {bundle['system']}, {bundle['precision']}, "
        f"{bundle['size_mib']:.2f} MiB",
        "case": f"{case['scenario']}, {case['size'][0]}x{case['size'][1]}, {case['runs']} runs, "
        + (", ".join(loops) or "no steps"),
        "engine": f"{record['backend']} on {', '.join(sorted(set(record['providers'].values())))}, "
        f"{threads} threads",
        "machine": f"{machine['cpu']}, {machine['threads']} threads",
        "commit": str(document["commit"]),
    }
