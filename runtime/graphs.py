"""Graphs: what an ONNX file holds, read from its bytes before any engine sees it.

NOTE: no onnx package here; the device has none, and its reader would follow external data.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jscc.runtime.declared import shown
from jscc.runtime.errors import BundleError
from jscc.runtime.graph_walk import ExternalTensor as ExternalTensor
from jscc.runtime.graph_walk import Walk
from jscc.runtime.onnx_wire import Reader, forbidden
from jscc.runtime.operators import ALLOWED
from jscc.runtime.ports import Port

ELEMENT_LIMIT = 1 << 28  # elements of a tensor whose size is written in the graph; 1 GiB of float32
GROWTH_LIMIT = 1 << 16  # factor by which one op may multiply its input


@dataclass(frozen=True)
class GraphSummary:
    """What one ONNX file holds.

    Attributes:
        inputs: Graph inputs that are no initializers; a dimension without a size is ``"?"``.
        outputs: Graph outputs.
        ops: (domain, op type) of every node, nested ones too; the ONNX domain is ``""``.
        opsets: Version by domain.
        external: Tensors whose bytes lie in other files.
        nodes: Nodes, nested ones too.
        initializer_bytes: Bytes of weights inside the file.
        special: Constructs besides plain nodes: subgraphs, functions, sparse tensors, training.
        elements: Largest tensor whose size is written in the graph, and the op that makes it.
        growth: Largest factor by which an op multiplies its input, and the op.
        doc: The model's own description.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ops: frozenset[tuple[str, str]]
    opsets: Mapping[str, int]
    external: tuple[ExternalTensor, ...]
    nodes: int
    initializer_bytes: int
    special: frozenset[str]
    elements: tuple[float, str]
    growth: tuple[float, str]
    doc: str


def summarise(graph: bytes | memoryview, where: str = "graph") -> GraphSummary:
    """Walk the bytes of an ONNX file.

    Args:
        graph: The whole file.
        where: Its name, for messages.

    Raises:
        BundleError: ``E_GRAPH_FORMAT``, these bytes are no ONNX model; ``E_GRAPH_POLICY``, more
            nodes or deeper nesting than is walked.
    """
    walk = Walk(Reader(where))
    walk.model(memoryview(graph).cast("B"))
    return GraphSummary(
        inputs=tuple(walk.inputs),
        outputs=tuple(walk.outputs),
        ops=frozenset(walk.ops),
        opsets=walk.opsets,
        external=tuple(walk.external),
        nodes=walk.nodes,
        initializer_bytes=walk.initializer_bytes,
        special=frozenset(walk.special),
        elements=walk.elements,
        growth=walk.growth,
        doc=walk.doc,
    )


def check_policy(summary: GraphSummary, graph: str, sizes: Mapping[str, int]) -> None:
    """Refuse a graph that could do more than compute tensors from its inputs.

    Args:
        summary: What the graph holds.
        graph: Its name in the bundle, ``graphs/<stage>.onnx``.
        sizes: Bytes of every file that the manifest lists, by name.

    Raises:
        BundleError: ``E_GRAPH_EXTERNAL``, ``E_GRAPH_POLICY``.
    """
    _check_external(summary.external, graph, sizes)
    for special in sorted(summary.special):
        raise forbidden(graph, special, "plain nodes only")
    for domain, op in sorted(summary.ops):
        if op not in ALLOWED.get(domain, ()):
            raise forbidden(graph, f"op {shown(f'{domain}::{op}')}", "the allowed tensor ops")
    unknown = sorted(set(summary.opsets) - set(ALLOWED))
    if unknown:
        raise forbidden(graph, f"domains {shown(unknown)}", f"{shown(sorted(ALLOWED))}")
    elements, maker = summary.elements
    if elements > ELEMENT_LIMIT:
        raise forbidden(graph, f"{maker} of {elements:.0f} elements", f"at most {ELEMENT_LIMIT}")
    growth, grower = summary.growth
    if growth > GROWTH_LIMIT:
        raise forbidden(graph, f"{grower} growing {growth:.0f} times", f"at most {GROWTH_LIMIT}")


def _check_external(
    tensors: Iterable[ExternalTensor], graph: str, sizes: Mapping[str, int]
) -> None:
    for tensor in tensors:
        fault = tensor.fault or _outside(tensor, sizes)
        if fault:
            raise BundleError(
                "E_GRAPH_EXTERNAL",
                f"{graph}, tensor {shown(tensor.name)}: got {fault}, expected bytes inside a "
                "listed .data file beside the graph. Export the bundle again.",
            )


def _outside(tensor: ExternalTensor, sizes: Mapping[str, int]) -> str:
    """What keeps the bytes of `tensor` from lying in a listed file, or nothing."""
    size = sizes.get(f"graphs/{tensor.location}")
    if size is None or not tensor.location.endswith(".data"):
        return f"location {shown(tensor.location)}"
    if tensor.offset + tensor.length > size:
        return f"bytes {tensor.offset} to {tensor.offset + tensor.length} of a file of {size}"
    expected = math.ceil(math.prod(tensor.shape) * tensor.bits / 8)
    if tensor.length != expected:
        return f"{tensor.length} bytes for {tensor.dtype}{list(tensor.shape)}"
    return ""
