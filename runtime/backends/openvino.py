"""OpenVINO backend: the CPU in float32, or in bfloat16 where the processor has it.

Weights go from the bundle's memory to the engine and no file is written; how is told in
`jscc.runtime.backends.openvino_graph`. The library is imported when a backend is made.

NOTE: facts measured on OpenVINO 2026.4.1 (2-core x86 with AVX512_BF16):
    it can be wrong: a tensor that is the kernel of both a Conv and a ConvTranspose gives noise in
        float32. Such a stage runs on ONNX Runtime, and the session says so. All else is held to
        the bundle's self-test, which `fallback` answers. Nothing checks what a transmitter
        computes: let ONNX Runtime run that.
    int8 as `jscc.calibration.quantize` writes it comes out right, and is left as fast as it is:
        LP_TRANSFORMS_MODE NO mends int8 graphs that do not, by running them unquantised.
        With AVX2 alone it does not, see `jscc.runtime.backends.saturation`: ONNX Runtime runs it.
    runs started and awaited: with one thread, `infer` swallows every error, leaves garbage in the
        outputs and aborts the process when the request goes.
    precision always set: by default it runs bfloat16 where the processor has it, silently.
    shapes compared after a run: it writes a result that is smaller than its buffer without a word.
    pinning off (not measured): by default it binds threads to cores that others use too.
    one infer request per run: 5 microseconds, and nothing keeps a caller's arrays afterwards.
    edges checked on the bytes: while it reads a graph, inputs that nothing uses vanish.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jscc.runtime.backends.base import Session
from jscc.runtime.backends.onnxruntime import (
    OnnxRuntimeBackend,
    is_out_of_memory,
    return_free_memory,
    usable_cores,
)
from jscc.runtime.backends.openvino_graph import point_to, shared_kernel
from jscc.runtime.backends.saturation import MAY_CUT_OFF, cuts_off_sums, multiplies_integers
from jscc.runtime.errors import BundleError, UnavailableError, UsageError
from jscc.runtime.graphs import ExternalTensor, GraphSummary, summarise
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port, check_ports, describe, resolve

PRECISIONS = ("f32", "bf16")
PROVIDER = "cpu"


@dataclass(frozen=True)
class OpenVinoBackend:
    """OpenVINO on the CPU.

    Attributes:
        threads: CPU threads per stage; None for every core that the process may use.
        precision: What it computes in, of `PRECISIONS`. What a session does not get it says.
    """

    threads: int | None = None
    precision: str = "f32"

    def __post_init__(self) -> None:
        """Refuse what cannot run.

        Raises:
            UsageError: ``E_PRECISION`` or ``E_THREADS``.
            UnavailableError: ``E_MODULE``, OpenVINO is not installed or does not start.
        """
        if self.precision not in PRECISIONS:
            raise UsageError(
                "E_PRECISION",
                f"precision: got {self.precision!r}, expected {' or '.join(PRECISIONS)}. Pick one.",
            )
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                "E_THREADS", f"threads: got {self.threads}, expected 1 or more. Leave it out."
            )
        _library()

    @property
    def name(self) -> str:
        """Engine library, version and precision."""
        return f"{_named()} {self.precision}"

    def fallback(self) -> OnnxRuntimeBackend:
        """ONNX Runtime on the CPU."""
        return OnnxRuntimeBackend(threads=self.threads)

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load one stage; see `jscc.runtime.backends.base.Backend`.

        What OpenVINO is known to compute wrongly is loaded in ONNX Runtime.
        """
        summary = _summarise(stage, graph)
        kernel = shared_kernel(graph, f"stage {stage!r}")
        if kernel is not None:
            wrong = (
                f"is wrong where one tensor ({kernel!r}) is the kernel of a Conv and of a "
                "ConvTranspose"
            )
            return self._elsewhere(stage, entry, graph, external, wrong)
        if multiplies_integers(graph) and cuts_off_sums():
            return self._elsewhere(stage, entry, graph, external, MAY_CUT_OFF)
        whole, alive = _with_weights(stage, graph, summary, external)
        compiled = _compile(stage, whole, self.precision, self.threads or usable_cores())
        del whole, alive  # OpenVINO has copied what they hold
        return_free_memory()
        _check_edges(stage, entry, summary)
        asked, got = self.precision, compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        notes = () if got == asked else (f"stage {stage!r}: runs in {got}, not in {asked}",)
        return OpenVinoSession(stage, entry, notes, compiled)

    def _elsewhere(
        self,
        stage: str,
        entry: StageEntry,
        graph: bytes,
        external: Mapping[str, memoryview],
        wrong: str,
    ) -> Session:
        """Load in ONNX Runtime a stage that this library computes wrongly, and say so."""
        backend = self.fallback()
        session = backend.load(stage, entry, graph, external)
        session.provider = f"{backend.name} on {session.provider}"
        session.fallbacks = (
            *session.fallbacks,
            f"stage {stage!r}: {backend.name} runs it, since {_named()} {wrong}",
        )
        return session


class OpenVinoSession:
    """One stage in OpenVINO; thread-safe. `jscc.runtime.backends.base.Session`.

    Args:
        stage: Its name.
        entry: What the manifest says of it.
        fallbacks: What was asked for and not done.
        compiled: The library's compiled model.
    """

    def __init__(
        self, stage: str, entry: StageEntry, fallbacks: tuple[str, ...], compiled: Any
    ) -> None:
        self.inputs: tuple[Port, ...] = entry.inputs
        self.outputs: tuple[Port, ...] = entry.outputs
        self.provider = PROVIDER
        self.fallbacks = fallbacks
        self._stage = stage
        self._compiled = compiled
        self._fed = _places(entry.inputs, compiled.inputs)
        self._told = _places(entry.outputs, compiled.outputs)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once; see `jscc.runtime.backends.base.Session`."""
        sizes = check_ports(self._stage, self.inputs, arrays)
        shapes = {port.name: resolve(port, sizes) for port in self.outputs}
        try:
            results = {port.name: np.empty(shapes[port.name], port.dtype) for port in self.outputs}
            written = self._run_into(arrays, results)
        except Exception as error:  # the library raises whatever its C++ code threw
            raise self._explain(error, arrays) from error
        for name, shape in written.items():
            if shape != shapes[name]:
                wrong = f"port {name!r} of shape {list(shape)} instead of {list(shapes[name])}"
                raise self._failed(wrong, arrays)
        return results

    def _run_into(
        self, arrays: Mapping[str, Array], results: Mapping[str, Array]
    ) -> dict[str, tuple[int, ...]]:
        """Run on `arrays`; it writes into `results`. The shapes that it wrote, by port."""
        tensor = _library().Tensor
        request = self._compiled.create_infer_request()
        # The library reads this memory until the end: it does not keep the arrays alive itself.
        shared = {
            name: np.require(arrays[name], requirements=["C", "A", "W"]) for name in self._fed
        }
        for name, place in self._fed.items():
            request.set_input_tensor(place, tensor(shared[name], shared_memory=True))
        bound = {name: tensor(results[name], shared_memory=True) for name in self._told}
        for name, place in self._told.items():
            request.set_output_tensor(place, bound[name])
        request.start_async()
        request.wait()
        del shared
        return {name: tuple(each.shape) for name, each in bound.items()}

    def _explain(self, error: Exception, arrays: Mapping[str, Array]) -> UnavailableError:
        """Name what went wrong."""
        if not _is_out_of_memory(error):
            return self._failed(_words(error), arrays)
        return UnavailableError(
            "E_MEMORY",
            f"{self._where}: got {_words(error)} for {self._describe(arrays)}, expected enough "
            "memory. Receive fewer or smaller images at once, or use a bundle with a smaller tile.",
        )

    def _failed(self, got: str, arrays: Mapping[str, Array]) -> UnavailableError:
        return UnavailableError(
            "E_RUN",
            f"{self._where}: got {got} for {self._describe(arrays)}, expected it to run. "
            "Try onnxruntime; if it stays, export the bundle again.",
        )

    @property
    def _where(self) -> str:
        return f"stage {self._stage!r} in {_named()} on {self.provider}"

    def _describe(self, arrays: Mapping[str, Array]) -> str:
        return ", ".join(f"{port.name} {describe(arrays[port.name])}" for port in self.inputs)


@lru_cache(maxsize=1)
def _library() -> Any:
    """The module.

    Raises:
        UnavailableError: ``E_MODULE``.
    """
    try:
        import openvino
    except ImportError as error:
        got = "nothing" if isinstance(error, ModuleNotFoundError) else _words(error)
        raise UnavailableError(
            "E_MODULE",
            f"module 'openvino': got {got}, expected it installed. "
            "Run: pip install 'jscc-edge[openvino]'",
        ) from error
    return openvino


@lru_cache(maxsize=1)
def _core() -> Any:
    """The library's entry, which loads its plugins once."""
    return _library().Core()


def _named() -> str:
    """The library and its version, without the build."""
    return f"openvino {_library().__version__.partition('-')[0]}"


def _summarise(stage: str, graph: bytes) -> GraphSummary:
    """What the graph holds.

    Raises:
        BundleError: ``E_GRAPH_LOAD``, these bytes are no ONNX model.
    """
    try:
        return summarise(graph, f"stage {stage!r}")
    except BundleError as error:
        raise _load_error(stage, error) from error


def _compile(stage: str, graph: bytes, precision: str, threads: int) -> Any:
    """The stage's compiled model, from a graph whose weights are inside or in memory.

    Raises:
        BundleError: ``E_GRAPH_LOAD``.
        UnavailableError: ``E_MEMORY``.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # it would round activations of weight-only int8
    }
    try:
        return _core().compile_model(_core().read_model(graph), "CPU", settings)
    except Exception as error:  # RuntimeError, and UnicodeDecodeError for bad bytes
        raise _load_error(stage, error) from error


def _with_weights(
    stage: str, graph: bytes, summary: GraphSummary, external: Mapping[str, memoryview]
) -> tuple[bytes, list[Array]]:
    """The graph with references to its weights in memory, and the arrays referred to.

    Raises:
        BundleError: ``E_GRAPH_EXTERNAL``, they cannot be found.
    """
    tensors = summary.external
    if not tensors:
        return graph, []
    where = f"stage {stage!r}"
    arrays = {tensor.name: _part(tensor, external, where) for tensor in tensors}
    if len(arrays) != len(tensors):
        raise BundleError(
            "E_GRAPH_EXTERNAL",
            f"{where}: got several external tensors of one name, expected a name for each. "
            "Export the bundle again.",
        )
    places = {name: (array.ctypes.data, array.nbytes) for name, array in arrays.items()}
    return point_to(graph, where, places), list(arrays.values())


def _part(tensor: ExternalTensor, external: Mapping[str, memoryview], where: str) -> Array:
    """The bytes of `tensor`."""
    file = external.get(tensor.location, memoryview(b""))
    if tensor.fault or tensor.offset + tensor.length > file.nbytes:
        raise BundleError(
            "E_GRAPH_EXTERNAL",
            f"{where}, tensor {tensor.name!r}: got {tensor.fault or 'bytes outside its file'}, "
            "expected bytes inside it. Export the bundle again.",
        )
    return np.frombuffer(file, np.uint8)[tensor.offset : tensor.offset + tensor.length]


def _check_edges(stage: str, entry: StageEntry, summary: GraphSummary) -> None:
    """Hold the names of the graph's inputs and outputs to the ports; the rest runs will show.

    Raises:
        BundleError: ``E_GRAPH_PORTS``.
    """
    for side, ports, edges in (
        ("inputs", entry.inputs, summary.inputs),
        ("outputs", entry.outputs, summary.outputs),
    ):
        got, expected = {edge.name for edge in edges}, {port.name for port in ports}
        if got != expected:
            raise BundleError(
                "E_GRAPH_PORTS",
                f"stage {stage!r}: got graph {side} {sorted(got)}, expected {sorted(expected)}. "
                "Export the bundle again.",
            )


def _places(ports: tuple[Port, ...], edges: Any) -> dict[str, int]:
    """Where the library has each port, by name; inputs that nothing uses are nowhere."""
    found = [edge.get_names() for edge in edges]
    return {
        port.name: place
        for port in ports
        for place, names in enumerate(found)
        if port.name in names
    }


def _load_error(stage: str, error: Exception) -> BundleError | UnavailableError:
    if _is_out_of_memory(error):
        return UnavailableError(
            "E_MEMORY",
            f"stage {stage!r} on {PROVIDER}: got {_words(error)}, expected enough memory to load "
            "it. Close other programs or use a smaller bundle.",
        )
    return BundleError(
        "E_GRAPH_LOAD",
        f"stage {stage!r}: got {_words(error)}, expected a graph that {_named()} loads on "
        f"{PROVIDER}. Use onnxruntime, export the bundle again, or update openvino.",
    )


def _is_out_of_memory(error: Exception) -> bool:
    return "failed to allocate" in str(error).lower() or is_out_of_memory(error)


def _words(error: Exception) -> str:
    """The library's words, short, on one line and without where in its source they are raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("Exception from "))
    return f"{type(error).__name__} {text[:300]!r}"
