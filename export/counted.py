"""Counted: traces a stage whose open axes are counted in multiples.

A network that cuts its image into windows divides height and width again and again. Where an axis
is `n` times 128 instead of any number, every quotient is a multiple of `n`, and the tracer's
reasoning about shapes takes a quarter of the time. So each such axis of an input is traced as two,
[n, 128], joined before the network; in the graph, which takes the axis whole, it is split first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from jscc.runtime.ports import Port, split_dim

INNER = "inner"  # name of the stage inside `Joined`

Split = tuple[tuple[int, int], ...]  # axis and unit of each axis that is split, in order


@dataclass(frozen=True)
class Counting:
    """How the inputs of a stage are split, one entry each."""

    splits: tuple[Split, ...]

    @classmethod
    def of(cls, ports: tuple[Port, ...], units: Mapping[str, int]) -> "Counting":
        """Split the axes of `ports` whose symbol is a multiple of the number in `units`."""
        return cls(tuple(_split_of(port, units) for port in ports))

    def cut(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Example inputs as they are traced."""
        return tuple(_cut(each, split) for each, split in zip(tensors, self.splits, strict=True))

    def open_axes(self, ports: tuple[Port, ...]) -> tuple[dict[int, object], ...]:
        """The axes of the cut inputs that may have any size, for ``torch.export``."""
        opened = []
        for port, split in zip(ports, self.splits, strict=True):
            axes = [axis for axis, dim in enumerate(port.shape) if isinstance(dim, str)]
            before = [sum(other < axis for other, _ in split) for axis in axes]
            moved = [axis + shift for axis, shift in zip(axes, before, strict=True)]
            opened.append(dict.fromkeys(moved, torch.export.Dim.DYNAMIC))
        return tuple(opened)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` behind inputs that are cut."""
        return Joined(module, self.splits)

    def restore(self, model: ir.Model) -> None:
        """Let the traced graph take whole inputs."""
        for index, split in enumerate(self.splits):
            if split:
                _take_whole(model.graph, index, split)


class Joined(nn.Module):
    """A stage whose inputs come cut."""

    def __init__(self, inner: nn.Module, splits: tuple[Split, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.splits = splits

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Join the cut axes of `inputs` and run the stage."""
        whole = (_join(each, split) for each, split in zip(inputs, self.splits, strict=True))
        out: Tensor | tuple[Tensor, ...] = self.inner(*whole)
        return out


def _split_of(port: Port, units: Mapping[str, int]) -> Split:
    split = []
    for axis, dim in enumerate(port.shape):
        symbol, divisor = split_dim(dim) if isinstance(dim, str) else ("", 1)
        unit, rest = divmod(units.get(symbol, 1), divisor)
        if unit > 1 and rest == 0:
            split.append((axis, unit))
    return tuple(split)


def _cut(tensor: Tensor, split: Split) -> Tensor:
    for axis, unit in reversed(split):
        tensor = torch.unflatten(tensor, axis, (-1, unit))
    return tensor


def _join(tensor: Tensor, split: Split) -> Tensor:
    for axis, _ in split:  # earlier axes are joined already: what follows has moved back
        tensor = tensor.flatten(axis, axis + 1)
    return tensor


def _take_whole(graph: ir.Graph, index: int, split: Split) -> None:
    """Put a reshape in front of the cut input number `index` of `graph`.

    The new shape is ``shape[source] / divisor * keep + fixed``, axis by axis.
    """
    cut = graph.inputs[index]
    units = dict(split)
    rank = (0 if cut.shape is None else len(cut.shape)) - len(split)
    source, divisor, keep, fixed = [], [], [], []
    for axis in range(rank):
        unit = units.get(axis, 1)
        source.append(axis)
        divisor.append(unit)
        keep.append(1)
        fixed.append(0)
        if unit > 1:
            source.append(axis)
            divisor.append(1)
            keep.append(0)
            fixed.append(unit)
    whole = ir.Value(name=cut.name, type=cut.type)
    cut.name = f"{whole.name}_cut"
    nodes = [ir.node("Shape", [whole])]

    def apply(operator: str, numbers: list[int]) -> None:
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
        nodes.extend((constant, ir.node(operator, [nodes[-1].outputs[0], constant.outputs[0]])))

    for operator, numbers in (("Gather", source), ("Div", divisor), ("Mul", keep), ("Add", fixed)):
        apply(operator, numbers)
    nodes.append(ir.node("Reshape", [whole, nodes[-1].outputs[0]]))
    ir.convenience.replace_all_uses_with(cut, nodes[-1].outputs[0])
    graph.inputs[index] = whole
    graph.insert_before(next(iter(graph)), nodes)
