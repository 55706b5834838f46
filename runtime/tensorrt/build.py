"""TensorRT build: one stage's graph to an engine for some kind of device and some sizes.

TensorRT for RTX needs no device for it; see `jscc.runtime.tensorrt.library`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscc.runtime.errors import BundleError, JsccError, UnavailableError
from jscc.runtime.graphs import summarise
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port
from jscc.runtime.tensorrt.library import (
    Library,
    Lines,
    Weights,
    is_out_of_memory,
    make_monitor,
    short,
)
from jscc.runtime.tensorrt.spans import Span

DTYPES: Mapping[str, str] = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        stage: Its name, for messages.
        entry: What the manifest says of it.
        graph: The ONNX file.
        external: Its weight files by the location that the graph gives them.
        spans: One optimisation profile for each; none where all shapes are fixed.
        target: Such as ``sm_89``, or None for the device at hand.
        tf32: Whether float32 products may round their factors to TF32.
        scratch: Where weights are written for a parser that reads files; None for the system's.
    """

    stage: str
    entry: StageEntry
    graph: bytes
    external: Mapping[str, memoryview]
    spans: tuple[Span, ...]
    target: str | None = None
    tf32: bool = False
    scratch: Path | None = None


@dataclass(frozen=True)
class Built:
    """An engine that was just built.

    Attributes:
        data: What the library deserialises.
        parse_s: Seconds of reading the graph.
        build_s: Seconds of compiling it.
        cpu_s: Seconds of processor time that both took, all threads of this process together.
        timings: What the library measured meanwhile, for the next build; empty where nothing.
    """

    data: memoryview
    parse_s: float
    build_s: float
    cpu_s: float
    timings: bytes = b""


def build_engine(
    library: Library,
    plan: Plan,
    tell: Callable[[float], None] = lambda share: None,
    timings: bytes = b"",
) -> Built:
    """Read a graph and compile it.

    Args:
        library: What builds.
        plan: What to build.
        tell: Hears how much is done, from 0 to 1.
        timings: Of an earlier build on this device.

    Raises:
        BundleError: ``E_GRAPH_LOAD``, the library does not take a node; ``E_GRAPH_PORTS``, the
            graph has other edges; ``E_GRAPH_EXTERNAL``.
        StorageError: ``E_DISK_FULL``, no room for the weights of a parser that reads files.
        UnavailableError: ``E_ENGINE_BUILD``, it takes every node and still fails; ``E_MEMORY``.
    """
    begun, busy = time.monotonic(), time.process_time()
    lines = library.listen()
    builder = library.start("Builder")
    if builder is None:
        raise _failed(library, plan, lines)
    network = library.make_network(builder)
    parser = library.module.OnnxParser(network, library.log)
    tensors = summarise(plan.graph, f"stage {plan.stage!r}").external
    weights = Weights(plan.stage, tensors, plan.external, plan.scratch)
    if not library.parse(parser, plan.graph, weights):
        raise _refused(library, plan, parser, lines)
    _check_edges(library, plan, network)
    config = library.make_config(builder, target=plan.target, tf32=plan.tf32)
    _add_profiles(plan, builder, config, network)
    parsed = time.monotonic()
    monitor = make_monitor(library.module, tell)
    config.progress_monitor = monitor
    measured = library.use_timing_cache(config, timings)
    made = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    if made is None:
        raise _failed(library, plan, lines)
    return Built(
        memoryview(made).cast("B"),
        parsed - begun,
        time.monotonic() - parsed,
        time.process_time() - busy,
        b"" if measured is None else bytes(measured.serialize()),
    )


def _add_profiles(plan: Plan, builder: Any, config: Any, network: Any) -> None:
    """One optimisation profile for each span."""
    inputs = {each.name: each for each in _edges(network.num_inputs, network.get_input)}
    moving = [port for port in plan.entry.inputs if any(isinstance(dim, str) for dim in port.shape)]
    if not moving:
        return
    for span in plan.spans:
        profile = builder.create_optimization_profile()
        for port in moving:
            if not inputs[port.name].is_shape_tensor:
                profile.set_shape(port.name, *span.shapes(port))
        config.add_optimization_profile(profile)


def _check_edges(library: Library, plan: Plan, network: Any) -> None:
    """Hold names and dtypes of the graph's edges to the ports.

    Raises:
        BundleError: ``E_GRAPH_PORTS``.
    """
    for side, ports, edges in (
        ("inputs", plan.entry.inputs, _edges(network.num_inputs, network.get_input)),
        ("outputs", plan.entry.outputs, _edges(network.num_outputs, network.get_output)),
    ):
        got = {edge.name: edge.dtype for edge in edges}
        expected = {port.name: dtype_of(library, port) for port in ports}
        if got != expected:
            raise BundleError(
                "E_GRAPH_PORTS",
                f"stage {plan.stage!r}: got graph {side} {_listed(got)}, expected "
                f"{_listed(expected)}. Export the bundle again.",
            )


def dtype_of(library: Library, port: Port) -> Any:
    """The library's name for the dtype of a port."""
    return getattr(library.module.DataType, DTYPES[port.dtype])


def _listed(edges: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {getattr(dtype, 'name', dtype)}" for name, dtype in sorted(edges.items())
    )


def _edges(count: int, get: Callable[[int], Any]) -> list[Any]:
    return [get(index) for index in range(count)]


def _refused(library: Library, plan: Plan, parser: Any, lines: Lines) -> JsccError:
    """The error for a graph that the parser does not take: the first node, and how many more."""
    errors = _edges(parser.num_errors, parser.get_error)
    if not errors:
        where, got = f"stage {plan.stage!r}", lines.words
    else:
        first = errors[0]
        where, got = f"stage {plan.stage!r}", repr(short(first.desc()))
        if first.node_operator():
            where += f", node {first.node_name() or first.node()!r} ({first.node_operator()})"
        if len(errors) > 1:
            got += f" and {len(errors) - 1} more of the kind"
    if is_out_of_memory(got):
        return _memory(library, plan, got)
    return BundleError(
        "E_GRAPH_LOAD",
        f"{where}: got {got}, expected a graph that {library.named} takes. "
        "Run it with another engine, or export the bundle again.",
    )


def _failed(library: Library, plan: Plan, lines: Lines) -> UnavailableError:
    """The error for a build that came to nothing."""
    if lines.memory:
        return _memory(library, plan, lines.words)
    target = plan.target or "this device"
    return UnavailableError(
        "E_ENGINE_BUILD",
        f"stage {plan.stage!r}: got {lines.words}, expected {library.named} to build it for "
        f"{target}. Run it with another engine, or update the library.",
    )


def _memory(library: Library, plan: Plan, got: str) -> UnavailableError:
    return UnavailableError(
        "E_MEMORY",
        f"stage {plan.stage!r}: got {got}, expected enough memory for {library.named} to build it. "
        "Close other programs, or build for smaller images.",
    )
