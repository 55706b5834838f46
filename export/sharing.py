"""Sharing: weights that several graphs of a bundle have in common are stored once.

A guided step holds the denoiser's weights and so does the plain one; a descent's gradient holds the
generator's. ONNX lets a graph's tensor lie in any file beside it, so the common ones move to one
file that all graphs refer to.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SHARED = "shared.data"  # no stage's own weights are called so
TENSOR_BYTES = 4096  # below it a tensor stays in its graph
LEAST_SAVED = 1 << 20  # bytes; for less no bundle gets one more file


@dataclass(frozen=True)
class _Copy:
    """One tensor of one graph."""

    stage: str
    value: ir.Value
    digest: str
    size: int


def share_weights(stages: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Rewrite the graphs in place so that what they have in common lies in `SHARED`.

    Args:
        stages: Graph file of each stage; its weights may lie beside it.
        folder: Where the common file is to be.

    Returns:
        The files of all stages by their name in the bundle; as they were, if little is in common.
    """
    models = {name: ir.load(path) for name, path in stages.items()}
    found: dict[str, list[_Copy]] = defaultdict(list)
    for name, model in models.items():
        for copy in _copies(name, model):
            found[copy.digest].append(copy)
    common = [copies for copies in found.values() if len({copy.stage for copy in copies}) > 1]
    saved = sum(sum(copy.size for copy in copies[1:]) for copies in common)
    if saved < LEAST_SAVED:
        return dict(pair for place in stages.values() for pair in _beside(place))
    tensors = [copies[0].value.const_value for copies in common]
    placed = ir.external_data.convert_tensors_to_external(
        [tensor for tensor in tensors if tensor is not None], folder, SHARED, alignment=64
    )
    for copies, tensor in zip(common, placed, strict=True):
        for copy in copies:
            copy.value.const_value = _like(copy.value, tensor)
    files = {f"graphs/{SHARED}": folder / SHARED}
    for name in sorted({copy.stage for copies in common for copy in copies}):
        _write(models[name], stages[name])
    for place in stages.values():
        files |= _beside(place)
    return files


def _copies(stage: str, model: ir.Model) -> Iterator[_Copy]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < TENSOR_BYTES:
            continue
        digest = hashlib.sha256(f"{tensor.dtype.name} ".encode())
        digest.update(tensor.tobytes())
        yield _Copy(stage, value, digest.hexdigest(), tensor.nbytes)


def _like(value: ir.Value, tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The common bytes as the tensor that `value` has: they may differ in name and shape."""
    own = value.const_value
    assert own is not None
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        own.dtype,
        shape=ir.Shape(own.shape.numpy()),
        name=str(value.name),
        base_dir=tensor.base_dir,
    )


def _write(model: ir.Model, path: Path) -> None:
    """The graph again; of what it keeps outside, all in a file of its own and none twice."""
    own = [
        value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.location != SHARED
    ]
    data = path.with_name(f"{path.name}.data")
    if own:
        kept = [value.const_value for value in own if value.const_value is not None]
        fresh = ir.external_data.convert_tensors_to_external(kept, path.parent, data.name)
        for value, tensor in zip(own, fresh, strict=True):
            value.const_value = tensor
    else:
        data.unlink(missing_ok=True)
    ir.save(model, path)


def _beside(path: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(path.parent.glob(f"{path.name}*")):
        yield f"graphs/{file.name}", file
