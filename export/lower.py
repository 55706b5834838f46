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
import onnxruntime as ort
import torch
from torch import nn

from jscc.export.counted import INNER, Counting
from jscc.export.gradient import has_gradient, write_out
from jscc.export.models.precision import halve
from jscc.export.passes import shrink
from jscc.runtime.errors import CheckpointError, ParityError
from jscc.runtime.manifest import ParityEntry, StageEntry
from jscc.runtime.ports import Port, resolve, split_dim

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
# Constants of up to so many elements are stored once however often a graph makes them anew; weights
# are larger and no tracer doubles them.
SHARED_ELEMENTS = 1 << 16
# Half precision rounds at 5e-4; what a deep network makes of it is recorded, and bounded here.
HALF_TOLERANCE = 5e-2
# Where the loss is smooth, graphs and autograd agree to 1e-5 by the 2-norm and better, which the
# tests hold them to. At the edge of a rectifier or of a clip the gradient jumps, and rounding
# decides which elements lie past it: few, but one may be 5e-3 of a small gradient, so no fixed
# bound fits. What is allowed is what autograd's own gradient does, edges and all, when its inputs
# move by `NUDGE` of their values, which takes enough elements over an edge to count on.
GRADIENT_TOLERANCE = 1e-5
NUDGE = 1e-3
# And never more than this.
WORST_GRADIENT = 5e-2
SYMBOLS = ("height", "width")
# Of inputs that mean the same in every system.
RANGES: Mapping[str, tuple[float, float]] = {
    "image": (0.0, 1.0),
    "reconstruction": (0.0, 1.0),
    "snr_db": (0.0, 14.0),
    "alpha_bar": (0.0, 1.0),
    "alpha_bar_next": (0.0, 1.0),
}


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
class Bounds:
    """How far a graph may be from torch.

    Attributes:
        peak: Largest difference of an output, relative to its peak.
        gradients: Of the outputs that are gradients instead, by name: 2-norm of the difference,
            relative to the gradient's.
    """

    peak: float
    gradients: Mapping[str, float]


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
    tolerance, moves = spec.tolerance, moved(module, spec, probe, reference)
    if precision == "fp16":
        module = halve(module)
        tolerance = max(tolerance, HALF_TOLERANCE)
        moves = {name: max(move, HALF_TOLERANCE) for name, move in moves.items()}
    inputs = tuple(sizes.fix(port) for port in spec.inputs)
    outputs = tuple(sizes.fix(port) for port in spec.outputs)
    path = folder / f"{spec.name}.onnx"
    _write_graph(spec, module, inputs, outputs, sizes, path)
    del module
    release_memory()
    size = compared_size((*spec.inputs, *spec.outputs), proved)
    parity = prove(spec, path, probe, reference, Bounds(tolerance, moves), size)
    entry = StageEntry(
        graph=f"graphs/{path.name}",
        opset=OPSET,
        tiled=spec.tiled,
        inputs=inputs,
        outputs=outputs,
    )
    files = {f"graphs/{file.name}": file for file in sorted(folder.glob(f"{path.name}*"))}
    return Lowered(entry, files, parity)


def compared_size(ports: tuple[Port, ...], sizes: Mapping[str, int]) -> tuple[int, int]:
    """Height and width that a stage of these ports has when its symbols have `sizes`.

    Those of the image where they are open, of the largest port where all of them are fixed.
    """
    dims = [dim for port in ports for dim in port.shape if isinstance(dim, str)]
    planes = [resolve(port, sizes)[2:] for port in ports if len(port.shape) == 4]
    if planes and not any(split_dim(dim)[0] in SYMBOLS for dim in dims):
        height, width = max(planes, key=math.prod)
        return height, width
    return sizes["height"], sizes["width"]


def _with_planes(sizes: Mapping[str, int], rates: tuple[int, ...]) -> dict[str, int]:
    """`sizes`, and the last of `rates`, if there is any, as the number of planes."""
    return {**sizes, **({"planes": rates[-1]} if rates else {})}


def release_memory() -> None:
    """Give freed weights back to the system: the next stage's are as large."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def examples(
    ports: tuple[Port, ...],
    sizes: Mapping[str, int],
    seed: int,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
) -> Arrays:
    """Inputs of plausible range for `ports`, drawn from `seed`.

    Args:
        ports: What to draw.
        sizes: Of their symbols.
        seed: Of the generator.
        ranges: Least and largest value of ports by name, beside those known here.
    """
    rng = np.random.default_rng(seed)
    known = {**RANGES, **ranges}
    arrays = {}
    for port in ports:
        shape = resolve(port, sizes)
        if port.name == "rate":
            array = np.full(shape, sizes["planes"], np.float64)
        elif port.name == "timestep":
            array = rng.integers(0, 1000, shape).astype(np.float64)
        elif port.name in known:
            array = rng.uniform(*known[port.name], shape)
        else:
            array = rng.standard_normal(shape)
        arrays[port.name] = array.astype(np.float32)
    return arrays


def evaluate(module: nn.Module, spec: StageSpec, arrays: Arrays) -> Arrays:
    """What torch computes for `arrays`, by output port."""
    with torch.no_grad():
        result = module(*(torch.from_numpy(arrays[port.name]) for port in spec.inputs))
    tensors = result if isinstance(result, tuple) else (result,)
    return {
        port.name: tensor.float().numpy()
        for port, tensor in zip(spec.outputs, tensors, strict=True)
    }


def moved(
    module: nn.Module, spec: StageSpec, arrays: Arrays, reference: Arrays
) -> dict[str, float]:
    """How far each gradient of the stage may be from autograd's, relative, by the 2-norm.

    That is as far as autograd's own moves when every element of the maps and vectors among the
    inputs moves by `NUDGE` of itself, up or down; `GRADIENT_TOLERANCE` at least, and
    `WORST_GRADIENT` at most.
    """
    if not spec.gradients:
        return {}
    rng = np.random.default_rng(2)
    nudged = {
        name: array
        if array.ndim < 2
        else array * (1 + rng.choice([-NUDGE, NUDGE], array.shape)).astype(np.float32)
        for name, array in arrays.items()
    }
    after = evaluate(module, spec, nudged)
    return {
        name: min(max(_apart(after[name], reference[name]), GRADIENT_TOLERANCE), WORST_GRADIENT)
        for name in spec.gradients
    }


def prove(
    spec: StageSpec,
    path: Path,
    probe: Arrays,
    reference: Arrays,
    bounds: Bounds,
    size: tuple[int, int],
) -> dict[str, ParityEntry]:
    """Compare the graph at `path` with torch's `reference`.

    An output's largest difference counts, relative to its peak; a gradient's 2-norm, relative to
    the gradient's, as its single elements may be anything at the edge of a rectifier.

    Raises:
        ParityError: ``E_PARITY``, with the differences of the first port that is too far off.
    """
    computed = run_graph(path, probe, tuple(reference))
    parity = {}
    for name, expected in reference.items():
        gap = np.abs(computed[name].astype(np.float64) - expected)
        peak = float(np.abs(expected).max())
        worst, mean = float(gap.max()), float(gap.mean())
        if name in bounds.gradients:
            apart, allowed = _apart(computed[name], expected), bounds.gradients[name]
            got = f"{worst:.2e} at most and {apart:.2e} of its length"
            expected_at_most = f"{allowed:.2e} of its length"
        else:
            apart, allowed = worst, bounds.peak * peak
            got = f"{worst:.2e} at most and {mean:.2e} on average"
            expected_at_most = f"{allowed:.2e}"
        if not apart <= allowed:
            raise ParityError(
                "E_PARITY",
                f"stage {spec.name!r}, port {name!r}: got a graph that differs from torch by "
                f"{got}, expected at most {expected_at_most}. Nothing was written; report this "
                "with the checkpoint's configuration.",
            )
        rms = math.sqrt(float(np.square(gap).mean()))
        psnr = 20 * math.log10(peak / rms) if rms > 0 and peak > 0 else None
        parity[name] = ParityEntry(max_abs=worst, psnr_db=psnr, size=size)
    return parity


def _apart(computed: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """2-norm of the difference over that of what was expected."""
    reference = np.asarray(expected, np.float64)
    gap = float(np.linalg.norm(computed - reference))
    return gap / max(float(np.linalg.norm(reference)), float(np.finfo(np.float64).tiny))


def run_graph(path: Path, arrays: Arrays, outputs: tuple[str, ...]) -> Arrays:
    """Run the graph at `path` once in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), arrays), strict=True))


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
