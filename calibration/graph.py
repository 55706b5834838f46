"""Graph: a stage of a bundle as something that can be rewritten, and back to files.

The bundle's bytes are not copied: a tensor that lies in a weight file stays a view of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jscc.runtime.bundle import Bundle

# Weights up to this size stay in the graph's own file, the others in one beside it.
EMBEDDED_BYTES = 256 << 20
_STORED_APART = 1024  # bytes; the least that a tensor in the other file has


class _Mapped(ir.Tensor[npt.NDArray[np.generic]]):
    """Weights over the bytes of another file.

    Args:
        array: The weights.
        origin: Where they lie.
    """

    def __init__(self, array: npt.NDArray[np.generic], origin: ir.ExternalTensor) -> None:
        super().__init__(array, name=origin.name)
        self.origin = origin


def read_graph(bundle: Bundle, stage: str) -> ir.Model:
    """The graph of `stage` with its weights.

    Raises:
        LookupError: There is no such stage.
    """
    return parse_graph(bundle.graph(stage), bundle.external(stage))


def parse_graph(graph: bytes, external: Mapping[str, memoryview]) -> ir.Model:
    """An ONNX file with the weights of the files that it refers to, by location.

    Types and shapes that it does not say of its tensors are inferred.
    """
    proto = onnx.ModelProto.FromString(graph)
    said = {info.name for info in (*proto.graph.value_info, *proto.graph.output)}
    if not said.issuperset(name for node in proto.graph.node for name in node.output if name):
        proto = onnx.shape_inference.infer_shapes(proto)
    model = ir.serde.deserialize_model(proto)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            first = tensor.offset or 0
            part = external[str(tensor.location)][first : first + tensor.nbytes]
            array = np.frombuffer(part, tensor.dtype.numpy()).reshape(tensor.shape.numpy())
            value.const_value = _Mapped(array, tensor)
    return model


def serialise_graph(model: ir.Model) -> bytes:
    """An ONNX file that refers to the same weight files as the one that was parsed."""
    inside = {}
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, _Mapped):
            inside[name] = value.const_value
            value.const_value = value.const_value.origin
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    for name, tensor in inside.items():
        model.graph.initializers[name].const_value = tensor
    return data


def write_graph(model: ir.Model, stage: str, folder: Path) -> dict[str, Path]:
    """Write the graph to `folder`; file in a bundle → where it lies."""
    path = folder / f"{stage}.onnx"
    constants = (value.const_value for value in model.graph.initializers.values())
    size = sum(constant.nbytes for constant in constants if constant is not None)
    if size > EMBEDDED_BYTES:
        ir.save(
            model,
            path,
            external_data=f"{path.name}.data",
            size_threshold_bytes=_STORED_APART,
        )
    else:
        ir.save(model, path)
    return {f"graphs/{file.name}": file for file in sorted(folder.glob(f"{path.name}*"))}


def constant(model: ir.Model, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """A new constant of the graph."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.Tensor(array, name=name),
    )
    model.graph.register_initializer(value)
    return value


def array_of(value: ir.Value) -> npt.NDArray[np.float32]:
    """The numbers of a constant."""
    assert value.const_value is not None, f"{value.name} is no constant"
    return np.asarray(value.const_value.numpy())


def drop_unused(model: ir.Model) -> None:
    """Remove what no output needs any more."""
    common.RemoveUnusedNodesPass()(model)
