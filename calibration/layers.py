"""Layers: a graph's products with trained weights, and those of them that keep their precision.

A layer is a convolution or a matrix product one of whose factors is a constant. Everything else
(norms, softmax, attention's own two products, additions) is never quantised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

KINDS = ("Conv", "Gemm", "MatMul")
# Names under which published networks keep what is known not to stand eight bits.
EMBEDDING = r"time_?emb|timestep|snr_?emb|emb_layers|time_mlp|temb"
SHORTCUT = r"shortcut|skip_connection|\.skip($|\.)"
NORM = r"(^|\.)i?gdn($|\.|\d)"
ZERO = r"zero_conv|middle_block_out|controlnet_(cond|down|mid)"


@dataclass(frozen=True)
class Layer:
    """One product with trained weights.

    Attributes:
        name: Path of the module that it comes from, or the node's own name; unique in its graph.
        node: In the graph.
        transposed: Whether a Gemm's weight is [out, in].
    """

    name: str
    node: ir.Node
    transposed: bool

    @property
    def input(self) -> ir.Value:
        """What the weights meet."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        """Its weights."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What it returns."""
        return self.node.outputs[0]

    @property
    def out_axis(self) -> int:
        """Axis of the weight that runs over the output's features."""
        if self.node.op_type == "Conv":
            return 0
        return 0 if self.transposed else 1

    @property
    def in_axis(self) -> int:
        """Axis of the weight that runs over the input's features, of one group."""
        if self.node.op_type == "Conv":
            return 1
        return 1 if self.transposed else 0

    @property
    def feature_axis(self) -> int:
        """Axis of the input that runs over its features."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        constant = self.weight.const_value
        assert constant is not None
        return tuple(int(size) for size in constant.shape.numpy())

    @property
    def parameters(self) -> int:
        """Numbers in the weight."""
        return int(np.prod(self.shape))

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for the others."""
        return self.node.attributes.get_int("group", 1)


def layers_of(model: ir.Model) -> tuple[Layer, ...]:
    """All layers of the graph, in its order."""
    found: dict[str, Layer] = {}
    for node in model.graph:
        if not _is_layer(node):
            continue
        name = base = _module_of(node)
        count = 1
        while name in found:
            count += 1
            name = f"{base}#{count}"
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        found[name] = Layer(name, node, transposed)
    return tuple(found.values())


def kept(
    layers: tuple[Layer, ...],
    outputs: Sequence[ir.Value],
    patterns: Iterable[str] = (),
    *,
    usual: bool = True,
) -> dict[str, str]:
    """Layers that keep their precision, and why.

    Those are: products with single vectors, such as embeddings of the time step and of the SNR
    (nothing is gained there, and every block reads them); the layers that read a graph's input
    or make its output with no other between; shortcuts around a block; the convolutions, zero
    before training, through which a control network speaks to the denoiser.

    Args:
        layers: Of one graph.
        outputs: Of that graph.
        patterns: More of them, as regular expressions that are searched in the layers' names.
        usual: Whether those of the list above keep it.
    """
    first, last = _ends(layers, outputs)
    rules = [(re.compile(pattern), f"name matches {pattern!r}") for pattern in patterns]
    reasons: dict[str, str] = {}
    for layer in layers:
        if any(rule.search(layer.name) for rule, _ in rules):
            reasons[layer.name] = next(why for rule, why in rules if rule.search(layer.name))
        elif not usual:
            continue
        elif re.search(EMBEDDING, layer.name) or layer.node.op_type == "Gemm":
            reasons[layer.name] = "embedding, or another product with single vectors"
        elif layer.name in first:
            reasons[layer.name] = "first: reads a graph input"
        elif layer.name in last:
            reasons[layer.name] = "last: makes a graph output"
        elif re.search(ZERO, layer.name):
            reasons[layer.name] = "zero convolution"
        elif re.search(SHORTCUT, layer.name):
            reasons[layer.name] = "shortcut"
        elif re.search(NORM, layer.name):
            reasons[layer.name] = "norm: its input is squared"
    return reasons


def _is_layer(node: ir.Node) -> bool:
    if node.op_type not in KINDS or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return False
    if weight.const_value.dtype.name != "FLOAT":
        return False
    shape = weight.const_value.shape
    if node.op_type == "MatMul":
        return len(shape) == 2
    if node.op_type == "Conv":  # depthwise ones are memory-bound filters, and sensitive
        return not (node.attributes.get_int("group", 1) > 1 and shape[1] == 1)
    return node.attributes.get_int("transA", 0) == 0


def _module_of(node: ir.Node) -> str:
    """Path of the torch module that the node was traced from."""
    scopes = node.metadata_props.get("namespace", "").split("/")
    path = scopes[-2].partition(": ")[0] if len(scopes) > 1 else ""
    return path or node.name or node.outputs[0].name or "?"


def _ends(layers: tuple[Layer, ...], outputs: Sequence[ir.Value]) -> tuple[set[str], set[str]]:
    """Names of the layers that no other stands before, and of those that no other follows.

    Products with single vectors do not count as others.
    """
    stops = {layer.node: layer.name for layer in layers if layer.node.op_type != "Gemm"}
    first = {name for node, name in stops.items() if not any(_met((node.inputs[0],), stops))}
    return first, set(_met(outputs, stops))


def _met(values: Iterable[ir.Value | None], stops: Mapping[ir.Node, str]) -> Iterator[str]:
    """The stops that lie before `values` with no other between."""
    waiting = list(values)
    seen: set[ir.Node] = set()
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        if producer in stops:
            yield stops[producer]
        else:
            waiting.extend(producer.inputs)
