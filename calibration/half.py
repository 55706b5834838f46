"""Half: a graph in float16 with islands of float32, casts written out.

Islands are what float16 is known to spoil (norms, softmax, sums, powers, the embeddings of time
step and SNR), whatever came near float16's largest number during calibration, and all that is not
plain arithmetic. Edges of the graph stay float32, so a bundle's ports do not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from jscc.calibration.graph import array_of, constant
from jscc.calibration.layers import KINDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from jscc.calibration.layers import Layer
    from jscc.calibration.ranges import Ranges

LARGEST = 65504.0  # of float16
SMALLEST = 6e-8  # of float16, rounded up; a smaller constant, such as a norm's, would become 0
MARGIN = 4.0  # an image that was not calibrated with may reach so many times as far

HALF_OPS = frozenset(
    [
        "Abs",
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "Div",
        "Expand",
        "Gather",
        "Gelu",
        "GlobalAveragePool",
        "Identity",
        "LeakyRelu",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "PRelu",
        "Pad",
        "Relu",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
_FIRST_ONLY = {"Resize"}  # ops whose other inputs stay float32
_PERIODIC = ("Sin", "Cos")


def overflowing(ranges: Mapping[str, Ranges]) -> dict[str, float]:
    """Tensors that came within `MARGIN` of `LARGEST`, and how far they went."""
    largest = {name: measured.largest for name, measured in ranges.items()}
    return {name: most for name, most in largest.items() if most * MARGIN >= LARGEST}


def half_tensors(model: ir.Model) -> tuple[str, ...]:
    """The tensors that could become float16, to be measured first."""
    return tuple(
        str(value.name)
        for node in model.graph
        if node.op_type in HALF_OPS
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
    )


def convert_to_half(
    model: ir.Model, overflow: Collection[str], exact: Collection[Layer] = ()
) -> int:
    """Turn the graph to float16 but for its islands.

    Args:
        model: Changed.
        overflow: Tensors that must stay float32.
        exact: Layers that must.

    Returns:
        How many nodes now compute in float16.
    """
    held = {layer.node for layer in exact} | _phases(model)
    halves: dict[ir.Value, ir.Value] = {}  # float32 value → float16 value
    produced: set[ir.Value] = set()  # values that float16 nodes make
    count = 0
    for node in list(model.graph):
        if _is_half(node, overflow) and node not in held:
            _halve(model, node, halves, produced)
            count += 1
        else:
            _widen(model, node, halves, produced)
    for index, value in enumerate(model.graph.outputs):
        if value in produced:
            model.graph.outputs[index] = _edge(model, value)
    return count


def _phases(model: ir.Model) -> set[ir.Node]:
    """What makes the arguments of sines, back to the layers: at 999, float16 rounds by up to 0.25.

    Embeddings of time step and SNR are sines of such numbers.
    """
    found: set[ir.Node] = set()
    waiting = [v for node in model.graph if node.op_type in _PERIODIC for v in node.inputs]
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found and node.op_type not in KINDS:
            found.add(node)
            waiting.extend(node.inputs)
    return found


def _is_half(node: ir.Node, overflow: Collection[str]) -> bool:
    if node.op_type not in HALF_OPS or node.domain not in ("", "ai.onnx"):
        return False
    values = [value for value in (*node.inputs[:1], *node.outputs) if value is not None]
    floats = [value for value in values if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)]
    every = [value for value in (*node.inputs, *node.outputs) if value is not None]
    lost = any(value.name in overflow or _is_too_small(value) for value in every)
    return bool(floats) and not lost


def _is_too_small(value: ir.Value) -> bool:
    """Whether it is a single number that float16 would take for 0."""
    if not value.is_initializer() or value.const_value is None or value.const_value.size != 1:
        return False
    return value.dtype == ir.DataType.FLOAT and 0 < abs(float(array_of(value).item())) < SMALLEST


def _halve(
    model: ir.Model,
    node: ir.Node,
    halves: dict[ir.Value, ir.Value],
    produced: set[ir.Value],
) -> None:
    """Let `node` read and make float16."""
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.FLOAT or value in produced:
            continue
        if index and node.op_type in _FIRST_ONLY:
            continue
        if value not in halves:
            halves[value] = _narrowed(model, node, value)
        node.replace_input_with(index, halves[value])
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
            produced.add(value)


def _widen(
    model: ir.Model,
    node: ir.Node,
    wides: dict[ir.Value, ir.Value],
    produced: set[ir.Value],
) -> None:
    """Let `node` read float32 of what float16 nodes make."""
    for index, value in enumerate(node.inputs):
        if value is not None and value in produced:
            if value not in wides:
                wides[value] = _cast(model, node, value, ir.DataType.FLOAT, "float32")
            node.replace_input_with(index, wides[value])


def _narrowed(model: ir.Model, node: ir.Node, value: ir.Value) -> ir.Value:
    """`value` in float16: a constant is converted now, anything else by a cast."""
    if value.is_initializer() and value.const_value is not None:
        array = np.clip(array_of(value), -LARGEST, LARGEST).astype(np.float16)
        return constant(model, f"{value.name}_float16", array)
    return _cast(model, node, value, ir.DataType.FLOAT16, "float16")


def _cast(
    model: ir.Model, before: ir.Node, value: ir.Value, dtype: ir.DataType, suffix: str
) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].name = f"{value.name}_{suffix}"
    node.outputs[0].type = ir.TensorType(dtype)
    node.outputs[0].shape = value.shape
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _edge(model: ir.Model, value: ir.Value) -> ir.Value:
    """A graph output in float32 under its own name."""
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    outside = node.outputs[0]
    name = value.name
    value.name, outside.name = f"{name}_float16", name
    outside.type = ir.TensorType(ir.DataType.FLOAT)
    outside.shape = value.shape
    model.graph.append(node)
    return outside
