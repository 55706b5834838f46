"""Quantise: write explicit QuantizeLinear and DequantizeLinear pairs into a graph.

Around each chosen layer stand a pair on what it reads, a DequantizeLinear on its 8-bit weights, one
step per output feature, and behind convolutions a pair on what they return. All are symmetric int8
with zero point 0, which ONNX Runtime (it turns them into uint8 where the CPU prefers that) and the
strongly typed networks of TensorRT 10 and 11 all take; biases stay float32, since TensorRT refuses
integer ones and ONNX Runtime makes them itself. Benoit Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv:1712.05877, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from jscc.calibration.graph import array_of, constant
from jscc.calibration.ranges import LEVELS, NOTHING
from jscc.runtime.backends.unsigned import ZERO_POINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jscc.calibration.layers import Layer


@dataclass(frozen=True)
class Weights:
    """Weights in eight bits.

    Attributes:
        integers: int8, of the weight's shape.
        steps: float32, one per output feature.
        axis: Of the output features.
    """

    integers: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float32]
    axis: int

    @property
    def floats(self) -> npt.NDArray[np.float32]:
        """What they stand for."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.integers * self.steps.reshape(shape)


def quantise_weights(weights: npt.NDArray[np.float32], axis: int) -> Weights:
    """The nearest of 255 values, with the largest magnitude of each output feature as the end."""
    others = tuple(a for a in range(weights.ndim) if a != axis)
    peaks = np.abs(weights).max(axis=others)
    steps = np.where(peaks >= NOTHING, peaks / LEVELS, 1.0).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    integers = np.clip(np.round(weights / steps.reshape(shape)), -LEVELS, LEVELS)
    return Weights(integers.astype(np.int8), steps, axis)


def quantise(model: ir.Model, layers: Iterable[Layer], scale_of: Callable[[str], float]) -> None:
    """Write the pairs around `layers` into their graph.

    Args:
        model: The graph; changed.
        layers: Of this graph.
        scale_of: Step of a tensor's integers, by its name before this call.
    """
    zero = constant(model, ZERO_POINT, np.array(0, np.int8))
    pairs: dict[ir.Value, ir.Value] = {}
    rounded: set[ir.Value] = set()  # read as they are: they have been through a pair
    for layer in layers:
        read = layer.input
        if read not in rounded:
            if read not in pairs:
                pairs[read] = _pair(model, read, scale_of(str(read.name)), zero)
            layer.node.replace_input_with(0, pairs[read])
        layer.node.replace_input_with(1, _stored(model, layer))
        if layer.node.op_type == "Conv":
            step = scale_of(str(layer.output.name))
            rounded.add(_round_output(model, layer.output, step, zero))


def store_weights(model: ir.Model, layers: Iterable[Layer]) -> None:
    """Write the weights of `layers` in eight bits, to be dequantised once, when they are loaded."""
    for layer in layers:
        layer.node.replace_input_with(1, _stored(model, layer))


def rounding_error(layer: Layer) -> float:
    """Power of the weights' rounding error over the power of the weights."""
    exact = array_of(layer.weight)
    power = float(np.sum(np.square(exact), dtype=np.float64))
    if power == 0.0:
        return 0.0
    off = quantise_weights(exact, layer.out_axis).floats - exact
    return float(np.sum(np.square(off), dtype=np.float64)) / power


def _stored(model: ir.Model, layer: Layer) -> ir.Value:
    """The layer's weights, in eight bits and dequantised in the graph."""
    weight = layer.weight
    name = str(weight.name)
    if f"{name}_int8" in model.graph.initializers:  # another layer shares them
        shared = model.graph.initializers[f"{name}_int8"]
        (node,) = (use.node for use in shared.uses())
        return node.outputs[0]
    stored = quantise_weights(array_of(weight), layer.out_axis)
    integers = constant(model, f"{name}_int8", stored.integers)
    steps = constant(model, f"{name}_step", stored.steps)
    zeros = constant(model, f"{name}_zero", np.zeros(stored.steps.shape, np.int8))
    node = ir.node("DequantizeLinear", [integers, steps, zeros], {"axis": stored.axis})
    node.outputs[0].name = f"{name}_dequantised"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(layer.node, node)
    return node.outputs[0]


def _pair(model: ir.Model, value: ir.Value, step: float, zero: ir.Value) -> ir.Value:
    """`value` rounded to integers of `step`, as float32 again."""
    producer = value.producer()
    name = str(value.name)
    scale = constant(model, f"{name}_scale", np.array(step, np.float32))
    to_int = ir.node("QuantizeLinear", [value, scale, zero])
    to_int.outputs[0].name = f"{name}_int8"
    # Its type stays unsaid: see `jscc.runtime.backends.unsigned`.
    to_float = ir.node("DequantizeLinear", [to_int.outputs[0], scale, zero])
    to_float.outputs[0].name = f"{name}_rounded"
    to_float.outputs[0].type = value.type
    to_float.outputs[0].shape = value.shape
    if producer is None:
        model.graph.insert_before(model.graph[0], [to_int, to_float])
    else:
        model.graph.insert_after(producer, [to_int, to_float])
    return to_float.outputs[0]


def _round_output(model: ir.Model, value: ir.Value, step: float, zero: ir.Value) -> ir.Value:
    """Let everybody who reads `value`, and the graph's output, have it rounded."""
    readers = [(use.node, use.idx) for use in value.uses()]
    rounded = _pair(model, value, step, zero)
    for node, index in readers:
        node.replace_input_with(index, rounded)
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            name = value.name
            value.name, rounded.name = f"{name}_exact", name
            model.graph.outputs[index] = rounded
    return rounded
