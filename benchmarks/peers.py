"""Peers: our denoise step against the same network in other engines, in turns.

Each engine lives in a process of its own, and each form of ours takes turns with one other engine
at a time (A B A B …), so both see the same machine in the same minutes and at most two networks are
in memory. What counts is the ratio; quality stands beside it: how far an output is from that of our
engine in full precision.
"""

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jscc.benchmarks import peer_ceilings, peer_int8
from jscc.benchmarks.peer_case import Case, is_prepared, read_flops
from jscc.benchmarks.peer_engines import ENGINES, FORMS, INT8_FOLDER, NNCF_FOLDER, OURS, lacking
from jscc.benchmarks.peer_turns import Bench, Say, pairing, refer, remote
from jscc.benchmarks.peer_worker import OPTIMUM
from jscc.benchmarks.peers_table import ceilings_table, table
from jscc.benchmarks.report import provenance, write_result
from jscc.runtime.commands.options import image_size, positive, seed
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.machine import available_threads
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import Progress, notice, say

SCALES = ("full", "small")
COMPILED = ("torch-compile", "torch-compile-freezing")
MULTIPLE = 64
ALL = "all"
PLOT_FORMS = ("svg", "png")
Keep = Callable[[Mapping[str, object]], None]
PEERS = (*(name for name in ENGINES if name not in FORMS.values()), OPTIMUM)
# The extra that brings a module.
_EXTRAS = {"torch": "export", "matplotlib": "bench", "openvino": "openvino", "optimum": "optimum"}
_PATH = re.compile(r"(/[\w.+-]*[\w-]){2,}")


@dataclass(frozen=True)
class Order:
    """What is compared.

    Attributes:
        case: The step.
        ours: Forms of ours; the first also takes turns with the others.
        peers: Other engines.
        threads: Of every engine.
        runs: Timed turns of each.
        pythons: Interpreters of engines that have an environment of their own, by name.
        int8: A bundle of the case's network in eight bits; None calibrates the case itself.
        ceilings: Whether the machine's own speed is measured too.
    """

    case: Case
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    threads: int
    runs: int
    pythons: Mapping[str, str] = field(default_factory=dict)
    int8: Path | None = None
    ceilings: bool = False

    @property
    def engines(self) -> tuple[str, ...]:
        """All that run, each once, ours in full precision among them."""
        return tuple(dict.fromkeys((OURS, *self.ours, *self.running)))

    @property
    def running(self) -> tuple[str, ...]:
        """The peers that can run the step."""
        return tuple(name for name in self.peers if name in ENGINES)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Who takes turns with whom."""
        first, *others = self.ours
        return (
            *((first, form) for form in others),
            *((form, peer) for peer in self.running for form in self.ours),
        )


def measure(order: Order, folder: Path, progress: Say, keep: Keep) -> dict[str, object]:
    """Prepare the case in `folder` unless it is there, and run every pairing.

    An engine that fails is left out of the figures, and the result says why.

    Args:
        order: What is compared.
        folder: Of the case.
        progress: Told of each step.
        keep: Given the result so far after every pairing: a run of hours may be interrupted.

    Raises:
        UnavailableError: ``E_MODULE``, an engine lacks a module; ``E_PEER``, the case cannot be
            made or our own engine cannot run it.
    """
    versions = check(order)
    rounded = _prepare(order, folder, progress)
    bench = Bench(folder, order.threads, order.runs, order.pythons, progress)
    refer(bench, OURS)
    found: dict[str, Any] = provenance()
    pairs: list[dict[str, object]] = []
    failed: list[dict[str, str]] = []
    result = {
        **found,
        "versions": {**versions.pop("", {}), **found["versions"]},
        "environments": versions,
        "case": {**asdict(order.case), "stage": "denoise", "precision": "fp32", "batch": 1},
        "flops": read_flops(folder),
        "threads": order.threads,
        "runs": order.runs,
        "ours": list(order.ours),
        "rounded": rounded,
        "pairs": pairs,
        "cannot": _ask(order, bench, failed),
        "failed": failed,
        **({"ceilings": _ceilings(order, progress)} if order.ceilings else {}),
    }
    for ours, peer in order.pairs:
        try:
            pairs.append(pairing(bench, ours, peer))
        except UnavailableError as error:
            failed.append(_failure(ours, peer, error))
        keep(result)
    return result


def check(order: Order) -> dict[str, dict[str, str]]:
    """Versions of what interpreters have, by engine; those of this one under no name.

    Raises:
        UnavailableError: ``E_MODULE``, an engine lacks a module.
    """
    asked = dict.fromkeys((*order.engines, *order.peers))
    found = {}
    for name, python in {"": None, **order.pythons}.items():
        engines = [name] if name else [each for each in asked if each not in order.pythons]
        with remote(name or "ours", python) as worker:
            answer = worker.ask("check", engines=engines)
        found[name] = answer["versions"]
        for engine, modules in answer["lacks"].items():
            raise _lack(modules[0], f"engine {engine!r}", f"name another with --python {engine}=")
    if order.ceilings and (missing := lacking(peer_ceilings.NEEDS)):
        raise _lack(missing[0], "--ceilings", "leave it out")
    return found


def _lack(module: str, where: str, otherwise: str) -> UnavailableError:
    extra = _EXTRAS.get(module, "peers")
    return UnavailableError(
        "E_MODULE",
        f"{where}: got no module {module!r}, expected its interpreter to have it. "
        f"Run: pip install 'jscc-edge[{extra}]', or {otherwise}.",
    )


def _prepare(order: Order, folder: Path, progress: Say) -> dict[str, object]:
    """Make what the folder lacks; what the graphs in eight bits are."""
    if not is_prepared(folder):
        progress("export")
        for graph in (INT8_FOLDER, NNCF_FOLDER):  # of another form of the case
            shutil.rmtree(folder / graph, ignore_errors=True)
        with remote("export") as worker:
            worker.ask("prepare", case=asdict(order.case), folder=str(folder))
    graphs = {ENGINES[name].graph for name in order.engines}
    rounded: dict[str, object] = {}
    if INT8_FOLDER in graphs:
        if order.int8 is not None:
            rounded[INT8_FOLDER] = peer_int8.adopt(folder, order.int8)
        else:
            ask = {"do": "calibrate", "threads": order.threads}
            rounded[INT8_FOLDER] = _round(folder, INT8_FOLDER, None, ask, progress)
    if NNCF_FOLDER in graphs:
        makers = (name for name in order.engines if ENGINES[name].graph == NNCF_FOLDER)
        python = next((order.pythons[name] for name in makers if name in order.pythons), None)
        rounded[NNCF_FOLDER] = _round(folder, NNCF_FOLDER, python, {"do": "nncf"}, progress)
    return rounded


def _round(
    folder: Path, graph: str, python: str | None, ask: dict[str, Any], progress: Say
) -> dict[str, object]:
    """Make the case's graph of eight bits in `graph` unless it is there."""
    if not peer_int8.is_rounded(folder / graph):
        progress(f"calibrate {graph}")
        with remote(f"calibrate {graph}", python) as worker:
            worker.ask(**ask, folder=str(folder))
    return peer_int8.read_counts(folder / graph)


def _failure(ours: str, peer: str, error: UnavailableError) -> dict[str, str]:
    """For the result file, without the machine's paths."""
    notice(str(error))
    reason = _PATH.sub("…", error.message.partition(", expected an answer")[0])
    return {"ours": ours, "name": peer, "reason": reason}


def _ask(order: Order, bench: Bench, failed: list[dict[str, str]]) -> dict[str, str]:
    """Why peers that do not run cannot; an answer that fails to come joins `failed`."""
    if OPTIMUM not in order.peers:
        return {}
    bench.progress(f"ask {OPTIMUM}")
    try:
        with bench.remote(OPTIMUM) as worker:
            reason = worker.ask("optimum", scale=order.case.scale)["reason"]
    except UnavailableError as error:
        failed.append(_failure("", OPTIMUM, error))
        return {}
    return {OPTIMUM: f"cannot export: {reason}" if reason else "can export it; not measured"}


def _ceilings(order: Order, progress: Say) -> object:
    progress("ceilings")
    case, threads = order.case, order.threads
    variables = {"OPENBLAS_NUM_THREADS": str(threads)}  # of NumPy, which has no other way
    with remote("ceilings", None, variables) as worker:
        answer = worker.ask(
            "ceilings", scale=case.scale, height=case.height, width=case.width, threads=threads
        )
    return answer["ceilings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench peers``."""
    parser.add_argument(
        "--size", type=image_size, default=(512, 512), metavar="HxW", help="default 512x512"
    )
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="timed turns of each engine"
    )
    parser.add_argument("--scale", choices=SCALES, default="full", help="widths of the network")
    parser.add_argument("--ours", default="fp32", help=f"some of {','.join(FORMS)} (default fp32)")
    parser.add_argument(
        "--peers", default="torch-eager", help=f"{ALL}, or some of {','.join(PEERS)}"
    )
    parser.add_argument("--compile", action="store_true", help=f"and {' and '.join(COMPILED)}")
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="BUNDLE",
        help="take the step in eight bits from a bundle of the same network; default: the case's "
        f"own, calibrated on {peer_int8.SAMPLES} random inputs",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=parse_python,
        metavar="PEER=FILE",
        help="interpreter of a peer that has an environment of its own; again for more",
    )
    parser.add_argument(
        "--ceilings", action="store_true", help="measure how fast the machine multiplies, too"
    )
    parser.add_argument("--any-size", action="store_true", help="a graph that takes any image size")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="of every engine; default: all"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="draws weights and inputs"
    )
    parser.add_argument(
        "--work", type=Path, help="keep the exported case in this folder, or use it"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"draw it: {' or '.join(PLOT_FORMS)}"
    )


def run(args: argparse.Namespace) -> int:
    """``jscc bench peers``: measure, print the table, write the result.

    Returns:
        0; 69 where an engine failed.
    """
    order = Order(
        Case(args.scale, *check_size(args.size), args.any_size, args.seed),
        choose_ours(args.ours),
        choose(args.peers, compiled=args.compile),
        args.threads or available_threads(),
        args.runs,
        dict(args.python),
        args.int8,
        args.ceilings,
    )
    form = check_plot(args.plot)

    def keep(result: Mapping[str, object]) -> None:
        if args.json is not None:
            write_result(args.json, "peers", result)

    bar = Progress("peers")
    try:
        with _folder(args.work, order.case) as folder:
            result = measure(order, folder, bar.advance, keep)
    finally:
        bar.close()
    keep(result)
    if form is not None:
        from jscc.benchmarks.peers_plot import plot_peers  # nothing else needs matplotlib

        write_file(args.plot, plot_peers(result, form), force=True)
    say(table(result))
    if order.ceilings:
        say(ceilings_table(result))
    return UnavailableError.exit_status if result["failed"] else 0


def parse_python(text: str) -> tuple[str, str]:
    """``PEER=FILE``.

    Raises:
        argparse.ArgumentTypeError: Something else.
    """
    name, _, file = text.partition("=")
    if name not in PEERS or not file:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected one of {', '.join(PEERS)} with = and a file"
        )
    return name, file


def check_plot(path: Path | None) -> str | None:
    """Form of the plot that is to be written to `path`; None without.

    Raises:
        UsageError: ``E_PLOT``, its name ends otherwise.
        OutputError: The file cannot be created.
        UnavailableError: ``E_MODULE``, matplotlib is missing.
    """
    if path is None:
        return None
    form = path.suffix.removeprefix(".")
    if form not in PLOT_FORMS:
        raise UsageError(
            "E_PLOT",
            f"--plot: got {path.name!r}, expected a name that ends in {' or '.join(PLOT_FORMS)}. "
            "Correct it.",
        )
    if lacking(("matplotlib",)):
        raise _lack("matplotlib", "--plot", "leave it out")
    check_destination(path, force=True)
    return form


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` if the network takes it.

    Raises:
        UsageError: ``E_SIZE``, height or width is no multiple of `MULTIPLE`.
    """
    if any(side % MULTIPLE for side in size):
        raise UsageError(
            "E_SIZE",
            f"--size: got {size[0]}x{size[1]}, expected multiples of {MULTIPLE}. "
            "Give 512x512, for example.",
        )
    return size


def choose(names: str, *, compiled: bool) -> tuple[str, ...]:
    """The peers that are named, each once.

    Raises:
        UsageError: ``E_PEERS``, an unknown engine, or ours.
    """
    named = PEERS if names == ALL else tuple(names.split(","))
    return _known((*named, *(COMPILED if compiled else ())), PEERS, "--peers")


def choose_ours(names: str) -> tuple[str, ...]:
    """The engines that run the forms of ours that are named, each once.

    Raises:
        UsageError: ``E_PEERS``, an unknown form.
    """
    return tuple(FORMS[name] for name in _known(names.split(","), tuple(FORMS), "--ours"))


def _known(asked: Sequence[str], known: Sequence[str], where: str) -> tuple[str, ...]:
    for name in asked:
        if name not in known:
            raise UsageError(
                "E_PEERS", f"{where}: got {name!r}, expected some of {', '.join(known)}. Pick one."
            )
    return tuple(dict.fromkeys(asked))


@contextmanager
def _folder(work: Path | None, case: Case) -> Iterator[Path]:
    """A folder for the case: a temporary one, or one below `work` that is named for it."""
    if work is None:
        with tempfile.TemporaryDirectory(prefix="jscc-peers-") as temporary:
            yield Path(temporary)
        return
    size = "any" if case.any_size else f"{case.height}x{case.width}"
    folder = work / f"{case.scale}-{size}-{case.height}x{case.width}-{case.seed}"
    os.makedirs(folder, exist_ok=True)
    yield folder
