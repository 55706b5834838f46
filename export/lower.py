"""Lowering: one stage of a plan to an ONNX graph, proved against torch, at another size if it can.

A stage whose ports leave height and width open is traced at one size and compared at another.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import logging
import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from jscc.export.counted import INNER, Counting
from jscc.export.gradient import has_gradient, write_out
from jscc.export.models.precision import halve
from jscc.export.passes import shrink
from jscc.export.proof import (
    SYMBOLS,
    bounds_of,
    compared_size,
    evaluate,
    examples,
    prove,
)
from jscc.runtime.errors import CheckpointError
from jscc.runtime.manifest import ParityEntry, StageEntry
from jscc.runtime.ports import Port, split_dim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from jscc.export.system import StageSpec

    Arrays = dict[str, npt.NDArray[np.float32]]

# The exporter writes 18 whatever lower number is asked for and down-converts to invalid graphs;
# 20 is the lowest with GELU as one operator, and the fastest of 18-24 in ONNX Runtime on a CPU.
OPSET = 20
# A protobuf message ends at 2 GiB; beyond this, weights go to a file of their own.
EMBEDDED_BYTES = 256 << 20
# Fewer freed weights are not given back to the system before the next stage.
RELEASED_BYTES = 64 << 20
# Constants of up to so many elements are stored once however often a graph makes them anew; weights
# are larger and no tracer doubles them.
SHARED_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Lowered:
    """A stage on disk.

    Attributes:
        entry: What the manifest says of it.
        files: Bundle file name → where it lies now.
        parity: Difference to torch per output port.
    """

    entry: StageEntry
    files: Mapping[str, Path]
    parity: Mapping[str, ParityEntry]


@dataclass(frozen=True)
class Sizes:
    """Image sizes to trace and to prove at, in pixels; fixed if the bundle has one size only."""

    multiple: int
    fixed: tuple[int, int] | None = None

    def traced(self) -> dict[str, int]:
        """Sizes of the symbols while tracing."""
        return self._sizes(batch=2, rows=2, columns=3)

    def proved(self) -> dict[str, int]:
        """Other sizes, all different, so that a transposed or specialised graph cannot pass."""
        return self._sizes(batch=1, rows=4, columns=3)

    def _sizes(self, batch: int, rows: int, columns: int) -> dict[str, int]:
        if self.fixed is not None:
            return {"batch": batch, "height": self.fixed[0], "width": self.fixed[1]}
        unit = self.multiple * math.ceil(64 / self.multiple)
        return {"batch": batch, "height": rows * unit, "width": columns * unit}

    def fix(self, port: Port) -> Port:
        """`port` with height and width as integers where the size is fixed."""
        if self.fixed is None:
            return port
        sizes = dict(zip(SYMBOLS, self.fixed, strict=True))
        shape = tuple(
            sizes[split_dim(dim)[0]] // split_dim(dim)[1]
            if isinstance(dim, str) and split_dim(dim)[0] in sizes
            else dim
            for dim in port.shape
        )
        return Port(port.name, port.dtype, shape)


def lower(spec: StageSpec, folder: Path, sizes: Sizes, precision: str) -> Lowered:
    """Write the stage to ``folder/<name>.onnx`` and check it against torch.

    Raises:
        CheckpointError: ``E_EXPORT_OP``, the network holds what ONNX has no operator for.
        ParityError: ``E_PARITY``, the graph differs from torch by more than the stage tolerates.
    """
    module = spec.build().eval()
    proved = _with_planes(sizes.proved(), spec.rates[:1])
    probe = examples(spec.inputs, proved, seed=1, ranges=spec.ranges)
    reference = evaluate(module, spec, probe)
    bounds = bounds_of(module, spec, probe, reference, precision)
    if precision == "fp16":
        module = halve(module)
    inputs = tuple(sizes.fix(port) for port in spec.inputs)
    outputs = tuple(sizes.fix(port) for port in spec.outputs)
    path = folder / f"{spec.name}.onnx"
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    _write_graph(spec, module, inputs, outputs, sizes, path)
    del module
    release_memory(weights)
    size = compared_size((*spec.inputs, *spec.outputs), proved)
    parity = prove(spec, path, probe, reference, bounds, size)
    entry = StageEntry(
        graph=f"graphs/{path.name}",
        opset=OPSET,
        tiled=spec.tiled,
        inputs=inputs,
        outputs=outputs,
    )
    files = {f"graphs/{file.name}": file for file in sorted(folder.glob(f"{path.name}*"))}
    return Lowered(entry, files, parity)


def _with_planes(sizes: Mapping[str, int], rates: tuple[int, ...]) -> dict[str, int]:
    """`sizes`, and the last of `rates`, if there is any, as the number of planes."""
    return {**sizes, **({"planes": rates[-1]} if rates else {})}


def release_memory(freed: int) -> None:
    """Give so many bytes of freed weights back to the system: the next stage's are as large.

    For few it does nothing: they are not worth a look through all of torch's objects.
    """
    if freed < RELEASED_BYTES:
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _write_graph(
    spec: StageSpec,
    module: nn.Module,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    sizes: Sizes,
    path: Path,
) -> None:
    units = dict.fromkeys(SYMBOLS, sizes.multiple if spec.counted else 1)
    counting = Counting.of(inputs, {**units, "planes": math.gcd(*spec.rates)})
    traced = _trace(spec, module, inputs, sizes, counting)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                traced,
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in outputs],
                opset_version=OPSET,
                dynamo=True,
                optimize=False,  # `shrink` does it in half the time
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(spec.name, _module_of(traced, str(error)), error) from error
    assert program is not None  # only the exporter's other calling form returns nothing
    model = program.model
    with _quiet():
        shrink(model)
    counting.restore(model)
    ir.passes.common.DeduplicateInitializersPass(size_limit=SHARED_ELEMENTS)(model)
    ir.passes.common.CommonSubexpressionEliminationPass()(model)
    _declare(model, inputs, outputs)
    constants = (value.const_value for value in model.graph.initializers.values())
    weights = sum(constant.nbytes for constant in constants if constant is not None)
    external = f"{path.name}.data" if weights > EMBEDDED_BYTES else None
    ir.save(model, path, external_data=external)


def _trace(
    spec: StageSpec,
    module: nn.Module,
    inputs: tuple[Port, ...],
    sizes: Sizes,
    counting: Counting,
) -> torch.export.ExportedProgram:
    """Trace `module` with the symbolic axes of `inputs` left open."""
    arrays = examples(inputs, _with_planes(sizes.traced(), spec.rates), seed=0)
    dynamic: tuple[Any, ...] = counting.open_axes(inputs)
    tensors = tuple(torch.from_numpy(arrays[port.name]) for port in inputs)
    with _watch(module) as entered:
        try:
            with _quiet(), torch.no_grad():
                if any(counting.splits):
                    module, tensors = counting.wrap(module), counting.cut(tensors)
                if has_gradient(module):
                    module = write_out(module, tensors, dynamic)
                elif any(counting.splits):
                    dynamic = (dynamic,)  # of the one parameter that takes all inputs
                open_axes = dynamic if any(dynamic) else None  # None suits any signature
                return torch.export.export(module, tensors, dynamic_shapes=open_axes, strict=False)
        except Exception as error:  # torch.export wraps nothing: anything may come out
            raise _refusal(spec.name, entered[-1] if entered else "", error) from error


@contextlib.contextmanager
def _watch(module: nn.Module) -> Iterator[list[str]]:
    """The names of the submodules that are running; after a failure, those that it left."""
    entered: list[str] = []

    def leave(*_: object) -> None:
        entered.pop()

    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's progress notes and warnings off the terminal: errors are raised anyway."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _module_of(traced: torch.export.ExportedProgram, message: str) -> str:
    """Path of the module that the node named in the exporter's `message` comes from."""
    named = re.search(r"node %(\w+)", message)
    for node in traced.graph.nodes:
        if named is not None and node.name == named[1]:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            return str(stack[-1][0]).removeprefix(f"{INNER}.") if stack else ""
    return ""


def _declare(model: ir.Model, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """Give the graph's edges their declared shapes; drop the tracer's notes but the module's."""
    for value, port in zip(
        (*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True
    ):
        value.shape = ir.Shape(port.shape)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for key in [key for key in node.metadata_props if key != "namespace"]:
            del node.metadata_props[key]


def _refusal(stage: str, module: str, error: BaseException) -> CheckpointError:
    """One line out of the exporter's chain of errors: what it lacks and where that stands."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    lines = [line.strip() for line in str(innermost).splitlines() if line.strip()]
    got = lines[0][:300] if lines else type(innermost).__name__
    return CheckpointError(
        "E_EXPORT_OP",
        f"stage {stage!r}, module {module or 'itself'!r}: got {got!r}, expected operations that "
        f"ONNX opset {OPSET} has and that do not depend on data. Rewrite that module.",
    )
