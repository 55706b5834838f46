"""Attention: softmax(Q Kᵀ) V as one operation that never holds all the scores.

Tri Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
arXiv 2205.14135, algorithm 1: the scores are made, normalised and used block by block. ONNX Runtime
has it on the CPU behind its own ``MultiHeadAttention``, which TensorRT does not read. So a bundle
keeps the plain products, and they are replaced here, where a graph is loaded.

NOTE: 4096 tokens of 5 heads have 335 MB of scores. In ONNX Runtime 1.31 the one operation is
faster, too; both products in int8, and rounding the weights between them, take longer than float32.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jscc.runtime.onnx_edit import (
    FLOAT,
    Graph,
    Node,
    Tensor,
    int64_constant,
    make_node,
    read_graph,
)

DOMAIN, VERSION = "com.microsoft", 1
PREFIX = "jscc_attention"  # of the names of values that are added
_MATMUL, _SOFTMAX, _MUL = ("", "MatMul"), ("", "Softmax"), ("", "Mul")
_RESHAPE, _TRANSPOSE = ("", "Reshape"), ("", "Transpose")
_RANK = 4
_HEADS_LAST = (0, 2, 1, 3)


@dataclass(frozen=True)
class _Found:
    """One attention of rank 4.

    Attributes:
        query: [B, heads, N, d].
        key: [B, heads, M, d].
        value: [B, heads, M, v].
        output: [B, heads, N, v].
        heads: Their number.
        scale: Of the scores, besides what the query has taken in.
        gone: Places of the nodes that it replaces.
        last: Place of the last of them.
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    scale: float
    gone: frozenset[int]
    last: int


def fused(data: bytes) -> bytes:
    """The model `data` with each attention over fixed heads as one operation.

    Those with a bias, and those whose shapes do not show that batch and heads agree, stay.

    Raises:
        BundleError: ``E_GRAPH_FORMAT``, these bytes are no ONNX model.
    """
    if b"Softmax" not in data:
        return data
    graph = read_graph(data)
    if graph is None or any(PREFIX in name for name in graph.names):
        return data
    found: list[_Found] = []
    gone: set[int] = set()
    for attention in _attentions(graph):
        if gone.isdisjoint(attention.gone):  # one may read what another would take away
            found.append(attention)
            gone |= attention.gone
    if not found:
        return data
    made = {attention.last: list(_nodes(attention, i)) for i, attention in enumerate(found)}
    nodes: list[Node] = []
    for place, node in enumerate(graph.nodes):
        nodes += made.get(place, [] if place in gone else [node])
    constants = [int64_constant(f"{PREFIX}_join", (0, 0, -1))]
    heads = sorted({attention.heads for attention in found})
    constants += [int64_constant(f"{PREFIX}_split_{count}", (0, 0, count, -1)) for count in heads]
    return graph.bytes_with(nodes, constants, DOMAIN, VERSION)


def _nodes(attention: _Found, index: int) -> Iterator[Node]:
    """What stands for it: the library reads and writes tokens [B, N, heads * d]."""
    tokens = {}
    for side in ("query", "key", "value"):
        name = f"{PREFIX}_{index}_{side}"
        turned, tokens[side] = f"{name}_turned", f"{name}_tokens"
        yield make_node("Transpose", [getattr(attention, side)], turned, perm=_HEADS_LAST)
        yield make_node("Reshape", [turned, f"{PREFIX}_join"], tokens[side])
    mixed, split = f"{PREFIX}_{index}_mixed", f"{PREFIX}_{index}_split"
    yield make_node(
        "MultiHeadAttention",
        [tokens["query"], tokens["key"], tokens["value"]],
        mixed,
        domain=DOMAIN,
        name=f"{PREFIX}_{index}",
        num_heads=attention.heads,
        scale=attention.scale,
    )
    yield make_node("Reshape", [mixed, f"{PREFIX}_split_{attention.heads}"], split)
    yield make_node("Transpose", [split], attention.output, perm=_HEADS_LAST)


def _attentions(graph: Graph) -> Iterator[_Found]:
    makers = {name: place for place, node in enumerate(graph.nodes) for name in node.outputs}
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(place)
    for place, node in enumerate(graph.nodes):
        if not _is(node, _SOFTMAX, 1) or node.ints("axis") not in ((-1,), (3,)):
            continue
        scores, weights = makers.get(node.inputs[0]), readers.get(node.outputs[0], [])
        if scores is None or len(weights) != 1:
            continue
        found = _attention(graph, makers, scores, place, weights[0])
        if found is not None:
            yield found


def _attention(
    graph: Graph, makers: Mapping[str, int], scores: int, softmax: int, mix: int
) -> _Found | None:
    """The attention around a softmax, if that is what the products are."""
    first, last = graph.nodes[scores], graph.nodes[mix]
    alone = all(graph.readers.get(graph.nodes[p].outputs[0]) == 1 for p in (scores, softmax))
    if not _is(first, _MATMUL, 2) or not _is(last, _MATMUL, 2) or not alone:
        return None
    if last.inputs[0] != graph.nodes[softmax].outputs[0]:
        return None
    key = _key(graph, makers, first.inputs[1])
    if key is None:
        return None
    name, scale, passed = key
    query, value = first.inputs[0], last.inputs[1]
    heads = _heads(*(graph.tensor(part) for part in (query, name, value)))
    if heads is None:
        return None
    gone = frozenset((scores, softmax, mix, *passed))
    return _Found(query, name, value, last.outputs[0], heads, scale, gone, mix)


def _key(
    graph: Graph, makers: Mapping[str, int], name: str
) -> tuple[str, float, tuple[int, ...]] | None:
    """The keys [B, heads, M, d] of which `name` is the transpose, its factor, the nodes between.

    PyTorch's exporter writes Transpose, or Reshape, Transpose, Reshape with the planes as one axis;
    then the square root of the scores' factor.
    """
    passed: list[int] = []
    scale = 1.0
    node = _maker(graph, makers, name, passed)
    if node is not None and _is(node, _MUL, 2):
        factor = graph.scalar(node.inputs[1])
        if not factor or not math.isfinite(factor):  # 0 would stand for the usual factor
            return None
        scale = factor
        node = _maker(graph, makers, node.inputs[0], passed)
    if node is not None and _is(node, _RESHAPE, 2):
        return _through_planes(graph, makers, node, scale, passed)
    if node is None or not _is(node, _TRANSPOSE, 1) or node.ints("perm") != (0, 1, 3, 2):
        return None
    return node.inputs[0], scale, tuple(passed)


def _through_planes(
    graph: Graph, makers: Mapping[str, int], last: Node, scale: float, passed: list[int]
) -> tuple[str, float, tuple[int, ...]] | None:
    """Reshape [-1, M, d], Transpose, Reshape [B, heads, d, M], as their constants or shapes say."""
    inner = _maker(graph, makers, last.inputs[0], passed)
    if inner is None or not _is(inner, _TRANSPOSE, 1) or inner.ints("perm") != (0, 2, 1):
        return None
    first = _maker(graph, makers, inner.inputs[0], passed)
    if first is None or not _is(first, _RESHAPE, 2):
        return None
    key = graph.tensor(first.inputs[0])
    if key is None or len(key.shape) != _RANK:
        return None
    planes = graph.sizes(makers, first.inputs[1])
    split = graph.sizes(makers, last.inputs[1])
    batch, heads, tokens, width = key.shape
    if planes != (-1, tokens, width):
        return None
    if split not in ((batch, heads, width, tokens), (-1, heads, width, tokens)):
        return None
    return first.inputs[0], scale, tuple(passed)


def _is(node: Node, op: tuple[str, str], inputs: int) -> bool:
    """Whether it is that operation with so many inputs and one output."""
    return node.op == op and len(node.inputs) == inputs and len(node.outputs) == 1


def _maker(graph: Graph, makers: Mapping[str, int], name: str, passed: list[int]) -> Node | None:
    """The node that makes a value for one reader alone; its place joins `passed`."""
    place = makers.get(name)
    if place is None or graph.readers.get(name) != 1:
        return None
    passed.append(place)
    return graph.nodes[place]


def _heads(query: Tensor | None, key: Tensor | None, value: Tensor | None) -> int | None:
    """The number of heads, where the shapes show that the three belong together."""
    if query is None or key is None or value is None:
        return None
    if {query.dtype, key.dtype, value.dtype} != {FLOAT}:
        return None
    q, k, v = query.shape, key.shape, value.shape
    if not len(q) == len(k) == len(v) == _RANK or None in (*q[:2], q[3], *k[:3]):
        return None
    if q[:2] != k[:2] or k[:3] != v[:3] or q[3] != k[3]:
        return None
    heads = q[1]
    return heads if isinstance(heads, int) and heads > 0 else None
