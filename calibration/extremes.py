"""Extremes: how far each tensor of a graph goes, told by the graph itself.

A tensor that is an output lives until the run ends, and all of them at once take more memory than
the run. Their extremes are three numbers each, and the engine lets go of the tensors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jscc.runtime.ports import Array

# A maximum may pass a NaN by; a sum of magnitudes does not.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceL1")


def add_extremes(model: ir.Model, names: Iterable[str]) -> tuple[str, ...]:
    """Let the graph compute the extremes of the tensors called `names`.

    Args:
        model: Changed: three nodes follow what makes a tensor.
        names: Tensors of float32.

    Returns:
        The names of what they compute, `numbers` for each tensor.
    """
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    added = []
    for name in names:
        value = values[name]
        nodes = [ir.node(kind, [value], {"keepdims": 0}) for kind in _REDUCTIONS]
        for node, number in zip(nodes, numbers(name), strict=True):
            node.outputs[0].name = number
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape([])
            added.append(number)
        maker = value.producer()
        if maker is None:
            model.graph.insert_before(model.graph[0], nodes)
        else:
            model.graph.insert_after(maker, nodes)
    return tuple(added)


def numbers(name: str) -> tuple[str, str, str]:
    """What the least, the largest and the sum of magnitudes of a tensor are called."""
    low, high, total = (f"{name}_{kind}" for kind in _REDUCTIONS)
    return low, high, total


def extremes(name: str, told: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """The least and the largest value of the tensor `name`, and NaN if it holds one.

    Args:
        name: Of the tensor.
        told: What the graph computed, by name.
    """
    low, high, total = (float(told[number]) for number in numbers(name))
    if math.isnan(total):
        return np.array([low, high, math.nan], np.float32)
    return np.array([low, high] if low <= high else [], np.float32)
