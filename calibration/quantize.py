"""Quantise: write explicit QuantizeLinear and DequantizeLinear pairs into a graph.

Around each chosen layer stand a pair on what it reads, a DequantizeLinear on its 8-bit weights, one
step per output feature, and behind convolutions, if integers, a pair on what they return. All are
symmetric, of one of `jscc.calibration.formats`, with zero point 0, which ONNX Runtime (it turns
integers into uint8 where the CPU prefers that) and the strongly typed networks of TensorRT 10 and
11 all take; biases stay float32, since TensorRT refuses integer ones and ONNX Runtime makes them
itself. Benoit Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv:1712.05877, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from jscc.calibration.formats import INT8, Format
from jscc.calibration.graph import array_of, constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jscc.calibration.layers import Layer


@dataclass(frozen=True)
class Weights:
    """Weights in eight bits.

    Attributes:
        numbers: As they are stored, of the weight's shape.
        steps: float32, one per output feature: what a stored 1 stands for.
        axis: Of the output features.
    """

    numbers: npt.NDArray[Any]
    steps: npt.NDArray[np.float32]
    axis: int

    @property
    def floats(self) -> npt.NDArray[np.float32]:
        """What they stand for."""
        shape = [1] * self.numbers.ndim
        shape[self.axis] = -1
        return self.numbers.astype(np.float32) * self.steps.reshape(shape)


def quantise_weights(weights: npt.NDArray[np.float32], axis: int, form: Format = INT8) -> Weights:
    """The nearest stored numbers, each output feature's largest magnitude as the largest weight."""
    others = tuple(a for a in range(weights.ndim) if a != axis)
    peaks = np.abs(weights).max(axis=others)
    steps = np.where(peaks >= form.nothing, peaks / np.float32(form.largest_weight), 1.0)
    steps = steps.astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    return Weights(form.round(weights / steps.reshape(shape)), steps, axis)


def quantise(
    model: ir.Model,
    layers: Iterable[Layer],
    scale_of: Callable[[str], float],
    form: Format = INT8,
) -> None:
    """Write the pairs around `layers` into their graph.

    Args:
        model: The graph; changed.
        layers: Of this graph.
        scale_of: What a stored 1 of a tensor stands for, by its name before this call.
        form: Of the stored numbers.
    """
    zero = constant(model, form.zero_point, np.zeros((), form.dtype))
    pairs: dict[ir.Value, ir.Value] = {}
    rounded: set[ir.Value] = set()  # read as they are: they have been through a pair
    for layer in layers:
        read = layer.input
        if read not in rounded:
            if read not in pairs:
                pairs[read] = _pair(model, read, scale_of(str(read.name)), zero)
            layer.node.replace_input_with(0, pairs[read])
        layer.node.replace_input_with(1, _stored(model, layer, form))
        if layer.node.op_type == "Conv" and form.outputs:
            step = scale_of(str(layer.output.name))
            rounded.add(_round_output(model, layer.output, step, zero))


def store_weights(model: ir.Model, layers: Iterable[Layer]) -> None:
    """Write the weights of `layers` in eight bits, to be dequantised once, when they are loaded."""
    for layer in layers:
        layer.node.replace_input_with(1, _stored(model, layer, INT8))


def rounding_error(layer: Layer) -> float:
    """Power of the weights' rounding error over the power of the weights."""
    exact = array_of(layer.weight)
    power = float(np.sum(np.square(exact), dtype=np.float64))
    if power == 0.0:
        return 0.0
    off = quantise_weights(exact, layer.out_axis).floats - exact
    return float(np.sum(np.square(off), dtype=np.float64)) / power


def _stored(model: ir.Model, layer: Layer, form: Format) -> ir.Value:
    """The layer's weights, in eight bits and dequantised in the graph."""
    weight = layer.weight
    name = str(weight.name)
    key = f"{name}_{form.name}"
    if key in model.graph.initializers:  # another layer shares them
        shared = model.graph.initializers[key]
        (node,) = (use.node for use in shared.uses())
        return node.outputs[0]
    stored = quantise_weights(array_of(weight), layer.out_axis, form)
    numbers = constant(model, key, stored.numbers)
    steps = constant(model, f"{name}_step", stored.steps)
    zeros = constant(model, f"{name}_zero", np.zeros(stored.steps.shape, form.dtype))
    node = ir.node("DequantizeLinear", [numbers, steps, zeros], {"axis": stored.axis})
    node.outputs[0].name = f"{name}_dequantised"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(layer.node, node)
    return node.outputs[0]


def _pair(model: ir.Model, value: ir.Value, step: float, zero: ir.Value) -> ir.Value:
    """`value` rounded to stored numbers times `step`, as float32 again."""
    producer = value.producer()
    name = str(value.name)
    scale = constant(model, f"{name}_scale", np.array(step, np.float32))
    stored = ir.node("QuantizeLinear", [value, scale, zero])
    stored.outputs[0].name = f"{name}_stored"
    # Its type stays unsaid: see `jscc.runtime.backends.quantised`.
    to_float = ir.node("DequantizeLinear", [stored.outputs[0], scale, zero])
    to_float.outputs[0].name = f"{name}_rounded"
    to_float.outputs[0].type = value.type
    to_float.outputs[0].shape = value.shape
    if producer is None:
        model.graph.insert_before(model.graph[0], [stored, to_float])
    else:
        model.graph.insert_after(producer, [stored, to_float])
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
