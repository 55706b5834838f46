"""Scenarios: what ``jscc bench BUNDLE`` can measure, and the options that say how."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from jscc.benchmarks import latency, offline, server
from jscc.benchmarks.cases import Case, Json
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import (
    add_engine_choice,
    image_size,
    number,
    positive,
    providers,
    seed,
)
from jscc.runtime.errors import UsageError

Item = TypeVar("Item", int, float)


class Scenario(Protocol):
    """A module that measures one scenario of MLPerf Inference."""

    SCENARIO: str
    KIND: str
    OPTIONS: tuple[str, ...]

    def run(self, bundle: Bundle, case: Case, options: argparse.Namespace) -> dict[str, Json]:
        """Measure; the document that is stored."""

    def report(self, document: Mapping[str, Any]) -> str:
        """What is printed of it."""


_MODULES: tuple[Scenario, ...] = (latency, offline, server)
SCENARIOS: Mapping[str, Scenario] = {module.SCENARIO: module for module in _MODULES}

# Options that only some scenarios take, and their values where they are left out.
DEFAULTS: Mapping[str, Any] = {
    "runs": 20,
    "batches": (1, 2, 4, 8),
    "worker_counts": (1, 2),
    "duration": 10.0,
    "rates": None,
    "bound_ms": None,
}
_SERVER = {"worker_counts": (1,)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured and how."""
    parser.add_argument("--scenario", choices=tuple(SCENARIOS), default=latency.SCENARIO)
    parser.add_argument(
        "--size", type=image_size, default=(256, 256), metavar="HxW", help="default 256x256"
    )
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="default 2")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument("--sampler", metavar="NAME", help="default: the bundle's")
    parser.add_argument("--steps", type=positive, metavar="N", help="default: the bundle's")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="of each receiver (default all available; offline shares them among its workers)",
    )
    add_engine_choice(parser)
    parser.add_argument("--provider", action="append", dest="providers", metavar="NAME")
    only = parser.add_argument_group("of some scenarios")
    only.add_argument(
        "--runs",
        type=positive,
        metavar="N",
        help="single-stream, server: images to measure at least (default 20)",
    )
    only.add_argument(
        "--batches",
        type=listed(positive),
        metavar="N,…",
        help="offline: images that are received together (default 1,2,4,8)",
    )
    only.add_argument(
        "--worker-counts",
        type=listed(positive),
        metavar="N,…",
        help="offline: processes (default 1,2); server: threads, of which the first entry is taken "
        "(default 1)",
    )
    only.add_argument(
        "--duration",
        type=above_zero,
        metavar="S",
        help="offline, server: seconds that each point is measured at least (default 10)",
    )
    only.add_argument(
        "--rates",
        type=listed(above_zero),
        metavar="X,…",
        help="server: images per second (default: "
        f"{', '.join(f'{part:g}' for part in server.FRACTIONS)} of one image after another)",
    )
    only.add_argument(
        "--bound-ms", type=above_zero, metavar="MS", help="server: what p99 has to hold"
    )


def settle(options: argparse.Namespace) -> None:
    """Refuse options of other scenarios and fill in what was left out.

    Raises:
        UsageError: ``E_SCENARIO``.
    """
    name = options.scenario
    for option, default in DEFAULTS.items():
        given = getattr(options, option) is not None
        takers = [other for other, module in SCENARIOS.items() if option in module.OPTIONS]
        if given and name not in takers:
            raise UsageError(
                "E_SCENARIO",
                f"--{option.replace('_', '-')}: got it with --scenario {name}, expected "
                f"{' or '.join(takers)}. Leave it out.",
            )
        if not given:
            own = _SERVER if name == server.SCENARIO else {}
            setattr(options, option, own.get(option, default))


def case_of(options: argparse.Namespace) -> Case:
    """The case that settled options describe."""
    return Case(
        size=options.size,
        runs=options.runs,
        warmup=options.warmup,
        seed=options.seed,
        sampler=options.sampler,
        steps=options.steps,
        threads=options.threads,
        providers=providers(options.providers),
        engine=options.engine,
    )


def listed(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """Reads different items of a kind, separated by commas."""

    def read(text: str) -> tuple[Item, ...]:
        found = tuple(kind(item.strip()) for item in text.split(","))
        if len(set(found)) != len(found):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected each item once")
        return found

    return read


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0")
    return value
