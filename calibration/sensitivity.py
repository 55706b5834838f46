"""Sensitivity: how much each layer's output loses when that layer alone is rounded.

Beside every layer a second one is put that reads the rounded input and has the rounded weights; it
only tells how far it is off and nobody reads it. So one reception measures all layers at once, each
on exact inputs, in the engine's own arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from jscc.calibration.collect import receive
from jscc.calibration.formats import INT8
from jscc.calibration.graph import drop_unused
from jscc.calibration.layers import Layer, layers_of
from jscc.calibration.probe import Probe
from jscc.calibration.quantize import quantise
from jscc.runtime.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from jscc.calibration.collect import Airing, Grid
    from jscc.calibration.formats import Format
    from jscc.runtime.bundle import Bundle
    from jscc.runtime.ports import Array

_ERROR, _POWER = "rounding_error", "exact_power"


def sensitivity(
    bundle: Bundle,
    chosen: Mapping[str, Collection[str]],
    steps_of: Mapping[str, Callable[[str], float]],
    airings: Sequence[Airing],
    grid: Grid,
    form: Format = INT8,
    *,
    threads: int | None,
    progress: Callable[[str], None],
) -> dict[tuple[str, str], float]:
    """Power of the rounding error over power of the output, mean of all runs.

    Args:
        bundle: In full precision.
        chosen: By stage, the names of the layers that are to be quantised.
        steps_of: By stage, what a stored 1 of a tensor stands for.
        airings: What is received.
        grid: How.
        form: Of the rounded numbers.
        threads: Of the engine.
        progress: Told of each reception.

    Returns:
        By stage and layer.
    """
    sums: dict[tuple[str, str], list[float]] = {}

    def expose(stage: str, model: ir.Model) -> tuple[str, ...]:
        if not chosen.get(stage):
            return ()
        wanted = [layer for layer in layers_of(model) if layer.name in chosen[stage]]
        return add_doubles(model, wanted, steps_of[stage], form)

    def tell(stage: str, fed: Mapping[str, Array], tensors: Mapping[str, Array]) -> None:
        del fed
        for name, array in tensors.items():
            kind, _, layer = name.partition(":")
            if kind == _ERROR:
                power = float(tensors[f"{_POWER}:{layer}"])
                ratio = float(array) / power if power > 0 else 0.0
                sums.setdefault((stage, layer), []).append(ratio)

    receiver = Receiver(bundle, backend=Probe(expose, tell, threads), selftest=False)
    for airing in airings:
        receive(receiver, airing, grid)
        progress("compared")
    return {key: float(np.mean(ratios)) for key, ratios in sums.items()}


def add_doubles(
    model: ir.Model,
    layers: Sequence[Layer],
    step_of: Callable[[str], float],
    form: Format = INT8,
) -> tuple[str, ...]:
    """Put a rounded double beside each of `layers`; the names of what they tell."""
    doubles = []
    for layer in layers:
        node = ir.node(
            layer.node.op_type,
            list(layer.node.inputs),
            {name: attribute.value for name, attribute in layer.node.attributes.items()},
        )
        node.outputs[0].name = f"{layer.output.name}_double"
        node.outputs[0].type = layer.output.type
        model.graph.insert_after(layer.node, node)
        doubles.append(Layer(layer.name, node, layer.transposed))
    exact = {f"{layer.output.name}_double": str(layer.output.name) for layer in layers}
    names: list[str] = []
    for layer, double in zip(layers, doubles, strict=True):
        names += _compare(model, layer, double.output)
    # Quantising lets everybody who reads a convolution's output read it rounded: the comparisons.
    quantise(model, doubles, lambda name: step_of(exact.get(name, name)), form)
    drop_unused(model)
    return tuple(names)


def _compare(model: ir.Model, layer: Layer, double: ir.Value) -> list[str]:
    off = ir.node("Sub", [double, layer.output])
    error = ir.node("ReduceSumSquare", [off.outputs[0]], {"keepdims": 0})
    power = ir.node("ReduceSumSquare", [layer.output], {"keepdims": 0})
    off.outputs[0].name = f"{layer.output.name}_off"
    off.outputs[0].type = layer.output.type
    for node, kind in ((error, _ERROR), (power, _POWER)):
        node.outputs[0].name = f"{kind}:{layer.name}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(())
        model.graph.outputs.append(node.outputs[0])
    model.graph.extend([off, error, power])
    return [f"{_ERROR}:{layer.name}", f"{_POWER}:{layer.name}"]
