"""Proof: a stage's graph held to torch, on inputs of plausible range.

An output's largest difference counts, relative to its peak; a gradient's 2-norm, see `moved`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import torch

from jscc.runtime.errors import ParityError
from jscc.runtime.manifest import ParityEntry
from jscc.runtime.ports import Port, resolve, split_dim

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    from torch import nn

    from jscc.export.system import StageSpec

    Arrays = dict[str, npt.NDArray[np.float32]]

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
class Bounds:
    """How far a graph may be from torch.

    Attributes:
        peak: Largest difference of an output, relative to its peak.
        gradients: Of the outputs that are gradients instead, by name: 2-norm of the difference,
            relative to the gradient's.
    """

    peak: float
    gradients: Mapping[str, float]


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


def bounds_of(
    module: nn.Module, spec: StageSpec, arrays: Arrays, reference: Arrays, precision: str
) -> Bounds:
    """What the stage's graph is held to, by what `module` does in single precision.

    Args:
        module: The stage.
        spec: What it tolerates.
        arrays: What it was asked.
        reference: What it answered.
        precision: ``fp32``, or ``fp16``, which rounds more.
    """
    least = HALF_TOLERANCE if precision == "fp16" else 0.0
    moves = moved(module, spec, arrays, reference)
    return Bounds(
        peak=max(spec.tolerance, least),
        gradients={name: max(move, least) for name, move in moves.items()},
    )


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
