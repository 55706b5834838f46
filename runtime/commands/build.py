"""jscc build: compile a bundle's graphs to engines, for this device or ahead for others."""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscc.runtime.backends.tensorrt import find_place, target_of, usual_folder
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_json, display, make_parser
from jscc.runtime.errors import JsccError, UsageError
from jscc.runtime.private_folder import make_private
from jscc.runtime.tensorrt.build import Plan
from jscc.runtime.tensorrt.cache import ENGINE, EngineCache, EngineKey, hash_graph
from jscc.runtime.tensorrt.library import RTX, Library, load_library
from jscc.runtime.tensorrt.progress import Announcer, left
from jscc.runtime.tensorrt.spans import Span, parse_shapes, stage_spans, usual_images
from jscc.runtime.tensorrt.timings import build_timed
from jscc.runtime.terminal import notice, say, say_json, table


@dataclass(frozen=True)
class Row:
    """What became of one stage for one kind of device.

    Attributes:
        stage: Its name.
        target: Kind of device.
        nodes: Of its graph.
        spans: Sizes of its profiles.
        error: Why there is no engine; None where there is one.
        file: Of the cache.
        size: Bytes of the engine.
        parse_s: Seconds of reading the graph; None where the engine was there already.
        build_s: Seconds of compiling it.
        cpu_s: Seconds of processor time that both took.
    """

    stage: str
    target: str
    nodes: int
    spans: tuple[Span, ...]
    error: JsccError | None = None
    file: str = ""
    size: int = 0
    parse_s: float | None = None
    build_s: float | None = None
    cpu_s: float | None = None


@dataclass(frozen=True)
class Job:
    """One engine to build.

    Attributes:
        plan: What of.
        key: What it is called.
        nodes: Of its graph, which is what time goes with.
    """

    plan: Plan
    key: EngineKey
    nodes: int


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc build BUNDLE [--ahead SM,…] -o DIR``; the status of the first failure."""
    options = _parse(arguments)
    bundle = Bundle.open(options.bundle)
    _check_precision(options.precision, bundle.manifest.precision)
    library, targets = _targets(options.ahead)
    folder = options.output or usual_folder()
    make_private(folder, ENGINE)
    cache = EngineCache(folder)
    jobs = list(_jobs(bundle, options, library, targets, cache))
    rows = list(_build_all(jobs, library, cache, force=options.force))
    if options.json:
        say_json(_document(bundle, library, folder, rows))
    else:
        say(_text(folder, rows, elsewhere=options.output is not None))
    failures = [row.error for row in rows if row.error is not None]
    return failures[0].exit_status if failures else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "build", "Compile a bundle's graphs to TensorRT engines, on the device or ahead of time."
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="[Bx]HxW[-[Bx]HxW]",
        help="images to build for, or the least and the largest, which engines are tuned for; by "
        "commas or repeated (default: the self-test's and a tile)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="the bundle's own, to be sure of it: engines have no other",
    )
    parser.add_argument(
        "--ahead",
        metavar="SM,…",
        help="build for these kinds of device, such as sm_86,sm_89, by TensorRT for RTX, on any "
        "machine (default: for this device)",
    )
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="only this; may be repeated"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where the engines go (default: where receivers look for them)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="build again what is there")
    again.add_argument(
        "--missing", action="store_true", help="leave out sizes that engines there take already"
    )
    add_json(parser)
    return parser.parse_args(arguments)


def _check_precision(asked: str | None, precision: str) -> None:
    """Hold what is asked for to the graphs, where an engine's precision is written.

    Raises:
        UsageError: ``E_PRECISION``.
    """
    if asked not in (None, precision):
        raise UsageError(
            "E_PRECISION",
            f"--precision: got {asked!r} for a bundle of {precision}, expected {precision}, since "
            "engines keep the graphs' own types. Run jscc calibrate first.",
        )


def _targets(ahead: str | None) -> tuple[Library, tuple[str, ...]]:
    """What builds, and for which kinds of device.

    Raises:
        UnavailableError: ``E_MODULE``, no library; ``E_CUDA``, no device.
        UsageError: ``E_ENGINE_TARGET``.
    """
    if ahead is None:
        place = find_place()
        return place.library, (target_of(place),)
    library = load_library(RTX)
    known = library.targets()
    for target in ahead.split(","):
        if target not in known:
            raise UsageError(
                "E_ENGINE_TARGET",
                f"--ahead: got {target!r}, expected some of {', '.join(known)}, for which "
                f"{library.named} builds. Build on the device itself: leave out --ahead.",
            )
    return library, tuple(dict.fromkeys(ahead.split(",")))


def _jobs(
    bundle: Bundle,
    options: argparse.Namespace,
    library: Library,
    targets: tuple[str, ...],
    cache: EngineCache,
) -> Iterator[Job]:
    """Every stage that was asked for, for every kind of device."""
    manifest = bundle.manifest
    for name in options.stage:
        if name not in manifest.stages:
            raise UsageError(
                "E_STAGE",
                f"--stage: got {name!r}, expected some of {', '.join(manifest.stages)}. Pick one.",
            )
    images = [span for text in options.shapes for span in parse_shapes(text)]
    for stage in options.stage or manifest.stages:
        entry, graph, external = manifest.stages[stage], bundle.graph(stage), bundle.external(stage)
        spans = stage_spans(images or usual_images(manifest), entry, manifest)
        spans = tuple(span for span in spans if span.ranges)
        digest = hash_graph(graph, external)
        for target in targets:
            key = EngineKey(digest, library.named, target)
            asked = target if target in library.targets() else None
            wanted = _lacking(spans, key, cache) if options.missing else spans
            if spans and not wanted:
                continue
            plan = Plan(stage, entry, graph, external, wanted, asked, scratch=cache.folder)
            yield Job(plan, key, bundle.summaries[stage].nodes)


def _lacking(spans: tuple[Span, ...], key: EngineKey, cache: EngineCache) -> tuple[Span, ...]:
    """Those that no sound engine of the cache takes; all where none may be built, which is said."""
    kept: list[Span] = []
    try:
        cache.check_survived(key)
    except JsccError:
        return spans
    for name in cache.names(key):
        try:
            kept.extend(cache.read(key, name).spans)
        except JsccError as error:
            notice(f"jscc build: built again unless others do, since {error}")
    return tuple(span for span in spans if not any(each.includes(span) for each in kept))


def _build_all(
    jobs: Sequence[Job], library: Library, cache: EngineCache, *, force: bool
) -> Iterator[Row]:
    """Build one after the other; a failure is said and the next one built."""
    begun, done, total = time.monotonic(), 0, sum(job.nodes for job in jobs)
    for number, job in enumerate(jobs, 1):
        row = None if force else _found(job, cache)
        if row is None:
            estimate = left(done / max(1, total), time.monotonic() - begun)
            what = f"{job.plan.stage} for {job.key.target}, {number} of {len(jobs)}{estimate}"
            row = _build(job, library, cache, f"jscc build: {what}")
            if force and row.error is None:
                cache.forgive(job.key, spared=row.file)
        if row.error is not None:
            notice(f"jscc build: {row.error}")
        done += job.nodes
        yield row


def _found(job: Job, cache: EngineCache) -> Row | None:
    """The engine that is there already, if it is sound, or why none may be built."""
    spans, name = job.plan.spans, job.key.file_name(job.plan.spans)
    about = job.plan.stage, job.key.target, job.nodes, spans
    try:
        cache.check_survived(job.key)
    except JsccError as error:
        return Row(*about, error)
    try:
        if name not in cache.names(job.key):
            return None
        kept = cache.read(job.key, name)
    except JsccError as error:
        notice(f"jscc build: built again, since {error}")
        return None
    return Row(*about, None, name, kept.plan.nbytes)


def _build(job: Job, library: Library, cache: EngineCache, what: str) -> Row:
    plan, key = job.plan, job.key
    announcer = Announcer(notice, what)
    try:
        built = build_timed(library, plan, announcer.advance, cache.folder, key)
        path = cache.keep(key, plan.spans, built.data, built.parse_s + built.build_s)
    except JsccError as error:
        return Row(plan.stage, key.target, job.nodes, plan.spans, error)
    announcer.finish()
    return Row(
        plan.stage,
        key.target,
        job.nodes,
        plan.spans,
        None,
        path.name,
        built.data.nbytes,
        round(built.parse_s, 3),
        round(built.build_s, 3),
        round(built.cpu_s, 3),
    )


def _document(
    bundle: Bundle, library: Library, folder: Path, rows: Sequence[Row]
) -> Mapping[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": bundle.sha256,
        "engines": [
            {
                "build_s": row.build_s,
                "cpu_s": row.cpu_s,
                "error": None if row.error is None else str(row.error),
                "file": row.file,
                "nodes": row.nodes,
                "parse_s": row.parse_s,
                "profiles": [dict(span.ranges) for span in row.spans],
                "size": row.size,
                "stage": row.stage,
                "target": row.target,
            }
            for row in rows
        ],
        "folder": display(folder),
        "library": library.named,
        "precision": manifest.precision,
        "system": manifest.system,
        "variant": manifest.variant,
    }


def _text(folder: Path, rows: Sequence[Row], *, elsewhere: bool) -> str:
    header = ("stage", "device", "nodes", "parse", "build", "size", "profiles")
    text = f"{table([header, *map(_cells, rows)], header=True)}\n\nin {display(folder)}"
    if not elsewhere:
        return text
    return (
        f"{text}\nReceivers look for them in ~/.cache/jscc/engines of their user: copy them there "
        "on the device, into a folder of mode 0700."
    )


def _cells(row: Row) -> tuple[str, ...]:
    spans = "; ".join(map(str, row.spans)) or "one shape"
    if row.error is not None:
        return (row.stage, row.target, str(row.nodes), "-", "-", row.error.code, spans)
    times = (row.parse_s, row.build_s)
    parsed, built = ("there" if each is None else f"{each:.1f} s" for each in times)
    size = f"{row.size / 2**20:.1f} MiB"
    return (row.stage, row.target, str(row.nodes), parsed, built, size, spans)
