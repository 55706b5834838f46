"""Smooth: move what is hard to round from activations to weights; the graph computes the same.

Guangxuan Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", arXiv:2211.10438, eq. 3 and 4: feature j of what a product reads is divided by
s_j = max|X_j|^α / max|W_j|^(1-α), and row j of its weights multiplied by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from jscc.calibration.graph import array_of, constant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jscc.calibration.layers import Layer
    from jscc.calibration.ranges import Ranges

Floats = npt.NDArray[np.float32]

_LEAST = 1e-5  # no feature is divided by less, nor by more than the inverse


def smooth(
    model: ir.Model, layers: Iterable[Layer], ranges: Mapping[str, Ranges], alpha: float
) -> int:
    """Balance the matrix products among `layers`; the others stay as they are.

    Products that read the same tensor share one division, which a layer norm in front takes over
    where it can; else it is a multiplication of its own.

    Args:
        model: The graph; changed.
        layers: Of this graph.
        ranges: Of the tensors that they read.
        alpha: 0 leaves all to the activations, 1 to the weights.

    Returns:
        How many products were balanced.
    """
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        if layer.node.op_type == "MatMul":
            groups.setdefault(layer.input, []).append(layer)
    for value, members in groups.items():
        peaks = ranges[str(value.name)].peaks
        assert peaks is not None, f"{value.name} was not measured by feature"
        divisors = _divisors(peaks, members, alpha)
        for layer in members:
            _scale_weight(model, layer, divisors)
        if not _absorbed(model, value, members, divisors):
            _divide(model, value, members, divisors)
    return sum(map(len, groups.values()))


def _divisors(peaks: Floats, members: list[Layer], alpha: float) -> Floats:
    """What each feature is divided by."""
    weights = np.max([np.abs(array_of(layer.weight)).max(axis=1) for layer in members], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        divisors = np.power(peaks, alpha) / np.power(weights, 1 - alpha)
    dead = (peaks == 0) | (weights == 0) | ~np.isfinite(divisors)
    return np.where(dead, 1.0, np.clip(divisors, _LEAST, 1 / _LEAST)).astype(np.float32)


def _scale_weight(model: ir.Model, layer: Layer, divisors: Floats) -> None:
    name = f"{layer.weight.name}_smoothed_{layer.node.name or layer.output.name}"
    scaled = (array_of(layer.weight) * divisors[:, None]).astype(np.float32)
    layer.node.replace_input_with(1, constant(model, name, scaled))


def _absorbed(model: ir.Model, value: ir.Value, members: list[Layer], divisors: Floats) -> bool:
    """Whether a layer norm makes `value` for these products only; it then divides it itself."""
    norm = value.producer()
    readers = {use.node for use in value.uses()}
    if norm is None or norm.op_type != "LayerNormalization" or value.is_graph_output():
        return False
    if readers != {layer.node for layer in members}:
        return False
    affine = norm.inputs[1:]
    if not all(part is not None and part.is_initializer() for part in affine):
        return False
    if any(array_of(part).shape != divisors.shape for part in affine if part is not None):
        return False
    for index, part in enumerate(affine, start=1):
        assert part is not None
        divided = constant(model, f"{part.name}_smoothed_{value.name}", array_of(part) / divisors)
        norm.replace_input_with(index, divided)
    return True


def _divide(model: ir.Model, value: ir.Value, members: list[Layer], divisors: Floats) -> None:
    inverse = constant(model, f"{value.name}_smoothing", (1 / divisors).astype(np.float32))
    node = ir.node("Mul", [value, inverse])
    node.outputs[0].name = f"{value.name}_smoothed"
    node.outputs[0].type = value.type
    node.outputs[0].shape = value.shape
    model.graph.insert_before(members[0].node, node)
    for layer in members:
        layer.node.replace_input_with(0, node.outputs[0])
