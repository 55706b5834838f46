"""Peer engines: the step of a prepared case in each engine, ours and others, by name.

An engine imports its library when it is loaded; what it cannot do without is listed beside it, so
that a process can be asked before anything is measured.

NOTE: OpenVINO and NNCF are called directly here, not through our backend, with the settings that
their documentation gives for one request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from jscc.benchmarks import peer_diffusers
from jscc.benchmarks.peer_case import STAGE, read_case, read_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jscc.benchmarks.peer_case import Array

    Step = Callable[[], Array]

OURS = "jscc"  # full precision in ONNX Runtime: what all outputs are compared with
INT8_FOLDER, NNCF_FOLDER = "int8", "nncf"  # of a case: its graph in eight bits


@dataclass(frozen=True)
class Maker:
    """How an engine is made.

    Attributes:
        load: Makes the step of the case in a folder, with so many threads.
        precision: Of its products.
        needs: Modules that have to be installed.
        graph: Folder of a case whose graph it runs; empty for the exported one.
    """

    load: Callable[[Path, int], Step]
    precision: str = "fp32"
    needs: tuple[str, ...] = ("torch",)
    graph: str = ""


def _ours(engine: str, graph: str = "") -> Callable[[Path, int], Step]:
    """Our runtime, through the backend that a receiver uses."""

    def load(folder: Path, threads: int) -> Step:
        from jscc.runtime.backends.engines import make_backend

        _, entry, inputs = read_case(folder)
        backend = make_backend(engine, threads=threads)
        session = backend.load(STAGE, entry, *read_graph(folder / graph))
        if session.fallbacks:
            raise RuntimeError("; ".join(session.fallbacks))
        name = entry.outputs[0].name
        return lambda: np.asarray(session.run(inputs)[name], np.float32)

    return load


def _torch(
    *,
    channels_last: bool = False,
    compiled: bool = False,
    frozen: bool = False,
    bfloat16: bool = False,
) -> Callable[[Path, int], Step]:
    """PyTorch on the modules that the graph was exported from.

    Args:
        channels_last: Weights and activations are stored color last.
        compiled: By torch.compile, with its defaults.
        frozen: Weights are constants to the compiler, its fastest setting on a CPU.
        bfloat16: Products in bfloat16, by autocast.
    """

    def load(folder: Path, threads: int) -> Step:
        import torch
        from torch._inductor import config

        from jscc.benchmarks.peer_network import build

        torch.set_num_threads(threads)
        case, _, inputs = read_case(folder)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        network: Any = build(case)
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
            form = torch.channels_last
            tensors = [t.contiguous(memory_format=form) if t.dim() == 4 else t for t in tensors]
        config.freezing = frozen
        if compiled:
            network = torch.compile(network)

        def step() -> Array:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return np.asarray(network(*tensors).float().numpy(), np.float32)

        return step

    return load


def _openvino(graph: str, precision: str) -> Callable[[Path, int], Step]:
    """OpenVINO as its documentation says for the least latency of one request.

    Args:
        graph: File below the case's folder.
        precision: ``f32`` or ``bf16``, of what is not in eight bits.
    """

    def load(folder: Path, threads: int) -> Step:
        import openvino

        _, entry, inputs = read_case(folder)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(str(folder / graph)), "CPU", settings)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != precision:
            raise RuntimeError(f"OpenVINO runs in {got}, not in {precision}")
        request = compiled.create_infer_request()
        name = entry.outputs[0].name

        def step() -> Array:
            request.infer(inputs, share_inputs=True)
            return np.array(request.get_tensor(name).data, np.float32)

        return step

    return load


_GRAPH = f"{STAGE}.onnx"
_RATED = f"{INT8_FOLDER}/{_GRAPH}"
_NNCF = f"{NNCF_FOLDER}/{STAGE}.xml"
_OPENVINO, _BOTH = ("openvino",), ("openvino", "nncf")
FORMS = {  # of ours, by what `--ours` calls them
    "fp32": OURS,
    "int8": f"{OURS}-int8",
    "openvino": f"{OURS}-openvino",
    "openvino-bf16": f"{OURS}-openvino-bf16",
    "openvino-int8": f"{OURS}-openvino-int8",
    "openvino-int8-bf16": f"{OURS}-openvino-int8-bf16",
}
ENGINES: dict[str, Maker] = {
    FORMS["fp32"]: Maker(_ours("onnxruntime"), needs=("onnxruntime",)),
    FORMS["int8"]: Maker(
        _ours("onnxruntime", INT8_FOLDER), "int8", needs=("onnxruntime",), graph=INT8_FOLDER
    ),
    FORMS["openvino"]: Maker(_ours("openvino"), needs=_OPENVINO),
    FORMS["openvino-bf16"]: Maker(_ours("openvino-bf16"), "bf16", needs=_OPENVINO),
    FORMS["openvino-int8"]: Maker(
        _ours("openvino", INT8_FOLDER), "int8", needs=_OPENVINO, graph=INT8_FOLDER
    ),
    FORMS["openvino-int8-bf16"]: Maker(
        _ours("openvino-bf16", INT8_FOLDER), "int8", needs=_OPENVINO, graph=INT8_FOLDER
    ),
    "torch-eager": Maker(_torch()),
    "torch-eager-channels-last": Maker(_torch(channels_last=True)),
    "torch-eager-bf16": Maker(_torch(bfloat16=True, channels_last=True), "bf16"),
    "torch-compile": Maker(_torch(compiled=True)),
    "torch-compile-freezing": Maker(_torch(compiled=True, frozen=True)),
    "torch-compile-bf16": Maker(_torch(compiled=True, frozen=True, bfloat16=True), "bf16"),
    "diffusers": Maker(peer_diffusers.load, needs=("torch", "diffusers")),
    "openvino": Maker(_openvino(_GRAPH, "f32"), needs=_OPENVINO),
    "openvino-bf16": Maker(_openvino(_GRAPH, "bf16"), "bf16", needs=_OPENVINO),
    "openvino-int8": Maker(_openvino(_RATED, "f32"), "int8", needs=_OPENVINO, graph=INT8_FOLDER),
    "openvino-int8-bf16": Maker(
        _openvino(_RATED, "bf16"), "int8", needs=_OPENVINO, graph=INT8_FOLDER
    ),
    "openvino-nncf": Maker(_openvino(_NNCF, "f32"), "int8", needs=_BOTH, graph=NNCF_FOLDER),
    "openvino-nncf-bf16": Maker(_openvino(_NNCF, "bf16"), "int8", needs=_BOTH, graph=NNCF_FOLDER),
}


def lacking(needs: tuple[str, ...]) -> tuple[str, ...]:
    """Those modules of `needs` that this interpreter does not find."""
    return tuple(name for name in needs if find_spec(name) is None)
