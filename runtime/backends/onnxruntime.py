"""ONNX Runtime backend: the CPU by default, CUDA, TensorRT and others where the library has them.

NOTE: settings measured on ONNX Runtime 1.31 (2-core x86):
    allow_spinning 0: a receiver has a session per stage, each with its own threads. Spinning, those
        of the stage before steal the cores of the next: four sessions in turn took 5 times longer.
    arena on: without it every large activation is a fresh mapping, 1.2 to 2.3 times the CPU time.
    one arena for all sessions: as large as the largest stage's activations, not as their sum.
    memory pattern off: it keeps a plan per input shape and lets the arena grow by a third.
    large weight files from their folder: the engine's own copy is the only one. Of what is in
        memory, as OrtValues, the bundle's copy may be dropped once the engine has its own; the peak
        is a quarter lower than with files-in-memory.
    x64quantprecision: kernels that cut no sums off, which take 1.1 to 1.4 times as long. Only where
        others do; see `jscc.runtime.backends.saturation`.
    malloc_trim after loading: glibc keeps the intermediate layouts, as much again as the weights.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from jscc.runtime.backends.attention import fused
from jscc.runtime.backends.quantised import computes_in_float, is_x86, unsigned
from jscc.runtime.backends.saturation import MAY_CUT_OFF, cuts_off_sums, multiplies_integers
from jscc.runtime.errors import BundleError, JsccError, UnavailableError, UsageError
from jscc.runtime.external import External, FileChangedError
from jscc.runtime.graphs import ExternalTensor, summarise
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port, check_ports, describe, resolve

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

# TF32 would differ from the reference by 1e-3; exhaustive search picks by timing, so differently.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cuda": {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
}

_MEMORY_WORDS = ("failed to allocate memory", "out of memory", "bad_alloc", "bfcarena", "bad alloc")
_FOLDER = "session.model_external_initializers_file_folder_path"
_EXACT_SUMS = "session.x64quantprecision"
_MOST_REBUILDS = 3  # of one session, after the device ran out of memory
_LOG_FATAL = 4  # everything below is raised as an error anyway


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime with the providers that a caller wants.

    Attributes:
        providers: Wanted, best first: names of `PROVIDERS`. Those after the first are accepted
            in its place; the session then says so.
        threads: CPU threads per stage; None for every core that the process may use.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names.

        Raises:
            UsageError: ``E_PROVIDER`` or ``E_THREADS``.
        """
        if not self.providers or any(name not in PROVIDERS for name in self.providers):
            raise UsageError(
                "E_PROVIDER",
                f"providers: got {', '.join(map(repr, self.providers)) or 'none'}, expected names "
                f"of {', '.join(PROVIDERS)}. Pick among these.",
            )
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                "E_THREADS", f"threads: got {self.threads}, expected 1 or more. Leave it out."
            )

    @property
    def name(self) -> str:
        """Engine library and version."""
        return f"onnxruntime {ort.__version__}"

    def fallback(self) -> "OnnxRuntimeBackend | None":
        """This backend without its first choice of provider; None where no other is left."""
        if len(self.providers) == 1:
            return None
        return OnnxRuntimeBackend(providers=self.providers[1:], threads=self.threads)

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> "OnnxRuntimeSession":
        """Load one stage; see `jscc.runtime.backends.base.Backend`."""
        missed: list[str] = []
        for name in self.providers:
            lack = _lack(name) or _wrong(name, graph)
            if lack is None:
                build = session_builder(
                    stage, graph, external, provider=name, threads=self.threads or usable_cores()
                )
                session = build()
                lack, partly = _assigned(session, name)
                if lack is None:
                    notes = (*missed, *(f"stage {stage!r}: {text}" for text in partly))
                    # The closure holds the bundle's copy of the weights.
                    again = None if name == "cpu" else build
                    return OnnxRuntimeSession(stage, entry, name, notes, again, session)
            missed.append(f"stage {stage!r}: {lack}")
        raise UnavailableError(
            "E_EP_MISSING",
            f"providers: got {'; '.join(missed)}, expected one of {', '.join(self.providers)} to "
            "run it. Install the onnxruntime package that has the provider, or accept cpu.",
        )


class OnnxRuntimeSession:
    """One stage in ONNX Runtime; thread-safe. `jscc.runtime.backends.base.Session`.

    Args:
        stage: Its name.
        entry: What the manifest says of it.
        provider: What it runs on.
        fallbacks: What was asked for and not done.
        build: Makes `session` again after the device ran out of memory; None for the CPU, whose
            allocator recovers by itself.
        session: The library's session.
    """

    def __init__(
        self,
        stage: str,
        entry: StageEntry,
        provider: str,
        fallbacks: tuple[str, ...],
        build: Callable[[], ort.InferenceSession] | None,
        session: ort.InferenceSession,
    ) -> None:
        self.inputs: tuple[Port, ...] = entry.inputs
        self.outputs: tuple[Port, ...] = entry.outputs
        self.provider = provider
        self.fallbacks = fallbacks
        self._stage = stage
        self._build = build
        self._session = session
        self._lock = threading.Lock()
        self._rebuilds = 0
        _check_edges(stage, entry, session)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once; see `jscc.runtime.backends.base.Session`."""
        sizes = check_ports(self._stage, self.inputs, arrays)
        session = self._session
        shapes = {port.name: resolve(port, sizes) for port in self.outputs}
        try:
            results = {port.name: np.empty(shapes[port.name], port.dtype) for port in self.outputs}
            _run_into(session, {port.name: arrays[port.name] for port in self.inputs}, results)
        except Exception as error:  # the library raises whatever its C++ code threw
            raise self._explain(error, session, arrays) from error
        return results

    def _explain(
        self, error: Exception, session: ort.InferenceSession, arrays: Mapping[str, Array]
    ) -> UnavailableError:
        """Name what went wrong; after running out of memory the engine has to be built anew."""
        fed = ", ".join(f"{port.name} {describe(arrays[port.name])}" for port in self.inputs)
        where = f"stage {self._stage!r} on {self.provider}"
        if not is_out_of_memory(error):
            return UnavailableError(
                "E_RUN",
                f"{where}: got {_first_line(error)} for {fed}, expected it to run. "
                "Try another provider; if it stays, export the bundle again.",
            )
        self._rebuild(session)
        return UnavailableError(
            "E_MEMORY",
            f"{where}: got {_first_line(error)} for {fed}, expected enough memory. "
            "Receive fewer or smaller images at once, or use a bundle with a smaller tile.",
        )

    def _rebuild(self, broken: ort.InferenceSession) -> None:
        """Replace a session whose allocator failed: on a GPU it keeps failing otherwise."""
        with self._lock:
            fresh = self._session is broken and self._rebuilds < _MOST_REBUILDS
            if self._build is not None and fresh:
                self._rebuilds += 1
                self._session = self._build()


def _run_into(
    session: ort.InferenceSession, arrays: Mapping[str, Array], results: Mapping[str, Array]
) -> None:
    """Run `session` on `arrays`; it writes into `results`, whose shapes it has to agree with."""
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name, result in results.items():
        pointer = result.ctypes.data
        binding.bind_output(name, "cpu", 0, result.dtype.type, result.shape, pointer)
    session.run_with_iobinding(binding)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the engine says, in its own words, that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lack(name: str) -> str | None:
    """Why the library cannot have this provider, or None."""
    available = ort.get_available_providers()
    if PROVIDERS[name] in available:
        return None
    known = {full: short for short, full in PROVIDERS.items()}
    has = ", ".join(known.get(full, full) for full in available)
    return f"{name} is not in this onnxruntime {ort.__version__}, which has {has}"


def _wrong(name: str, graph: bytes) -> str | None:
    """Why what this provider makes of `graph` may be wrong, or None."""
    if name == "openvino" and multiplies_integers(graph) and cuts_off_sums():
        return f"{name} {MAY_CUT_OFF}"
    return None


def _assigned(session: ort.InferenceSession, name: str) -> tuple[str | None, tuple[str, ...]]:
    """Why the provider does not run the stage after all, or None; and what it leaves to others.

    The library moves to the CPU what a provider cannot run, and everything if its driver is
    missing, with no more than a line in its log.
    """
    if PROVIDERS[name] not in session.get_providers():
        return f"{name} could not start on this machine (driver or libraries)", ()
    if name == "cpu" or not hasattr(session, "get_provider_graph_assignment_info"):
        return None, ()
    elsewhere: set[str] = set()
    counts = [0, 0]
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        own = part.ep_name == PROVIDERS[name]
        counts[own] += len(nodes)
        if not own:
            elsewhere |= {node.op_type for node in nodes}
    if not counts[True]:
        return f"{name} runs none of its {sum(counts)} nodes", ()
    if not counts[False]:
        return None, ()
    kinds = ", ".join(sorted(elsewhere)[:8])
    return None, (f"{counts[False]} of {sum(counts)} nodes do not run on {name}: {kinds}",)


def session_builder(
    stage: str,
    graph: bytes,
    external: Mapping[str, memoryview],
    *,
    provider: str,
    threads: int,
    in_order: bool = False,
) -> Callable[[], ort.InferenceSession]:
    """What makes the stage's session on one provider, as often as needed.

    With `in_order`, nodes run in the graph's order. Otherwise the library may leave to the end what
    no other node waits for, and keeps until then what that reads.

    The session raises what the library raises; `OnnxRuntimeSession` is the stage with its ports
    checked and its errors explained.
    """
    suited = fused(graph) if provider == "cpu" else graph
    suited = unsigned(suited) if provider == "cpu" and is_x86() else suited

    def load(weights: Mapping[str, memoryview]) -> ort.InferenceSession:
        options = _options(suited, threads, watched=provider != "cpu")
        if in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        with _weights(options, stage, suited, weights):
            return ort.InferenceSession(
                suited,
                options,
                providers=_provider_list(provider),
                enable_fallback=False,  # it would print to stdout and run on the CPU
            )

    def build() -> ort.InferenceSession:
        try:
            try:
                session = load(external)
            except FileChangedError:  # somebody touched a file while it was read: once more
                session = load({name: external[name] for name in external})
        except JsccError:
            raise
        except Exception as error:  # even UnicodeDecodeError, for a bad name in the graph
            raise _load_error(stage, provider, error) from error
        return_free_memory()
        return session

    return build


def _load_error(stage: str, provider: str, error: Exception) -> BundleError | UnavailableError:
    if is_out_of_memory(error):
        return UnavailableError(
            "E_MEMORY",
            f"stage {stage!r} on {provider}: got {_first_line(error)}, expected enough memory to "
            "load it. Close other programs or use a smaller bundle.",
        )
    return BundleError(
        "E_GRAPH_LOAD",
        f"stage {stage!r}: got {_first_line(error)}, expected a graph that onnxruntime "
        f"{ort.__version__} loads on {provider}. Export the bundle again, or update onnxruntime.",
    )


def _provider_list(name: str) -> list[tuple[str, dict[str, str]]]:
    chosen = [(PROVIDERS[name], dict(_OPTIONS.get(name, {})))]
    if name == "tensorrt":
        chosen.append((PROVIDERS["cuda"], dict(_OPTIONS["cuda"])))
    return chosen


@functools.cache
def _share_arena() -> None:
    """Register one CPU arena with the library, whose sessions then take it by their option."""
    arena = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = ort.OrtMemoryInfo("Cpu", arena, 0, ort.OrtMemType.DEFAULT)
    # Whoever embeds this runtime may have registered one: theirs serves as well.
    with contextlib.suppress(Exception):
        ort.create_and_register_allocator(info, None)


def _options(graph: bytes, threads: int, *, watched: bool) -> ort.SessionOptions:
    """Session options; see the head of this file.

    `watched` has the library note which provider each node went to.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if computes_in_float(graph):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if multiplies_integers(graph) and cuts_off_sums():
        options.add_session_config_entry(_EXACT_SUMS, "1")
    if watched:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


@contextlib.contextmanager
def _weights(
    options: ort.SessionOptions, stage: str, graph: bytes, external: Mapping[str, memoryview]
) -> Iterator[None]:
    """Give the library the weight files, for as long as it loads.

    From a folder it takes tensor after tensor; bytes in memory it holds beside its own copy.
    """
    lying = external.folder() if isinstance(external, External) else contextlib.nullcontext()
    with lying as folder:
        if folder is not None:
            options.add_session_config_entry(_FOLDER, folder)
        elif external:
            _give_weights(options, summarise(graph, f"stage {stage!r}").external, external)
        yield


def _give_weights(
    options: ort.SessionOptions,
    tensors: tuple[ExternalTensor, ...],
    external: Mapping[str, memoryview],
) -> None:
    """Hand over the weight files from memory, tensor by tensor where NumPy knows the dtype."""
    if all(_is_plain(tensor) for tensor in tensors):
        values = [_weight(tensor, external[tensor.location]) for tensor in tensors]
        options.add_external_initializers([tensor.name for tensor in tensors], values)
        return
    names, files = list(external), list(external.values())
    options.add_external_initializers_from_files_in_memory(
        names, files, [file.nbytes for file in files]
    )


def _is_plain(tensor: ExternalTensor) -> bool:
    """Whether NumPy has the dtype, and the bytes are all of the tensor and not none."""
    try:
        itemsize = np.dtype(tensor.dtype).itemsize
    except TypeError:
        return False
    return tensor.length == itemsize * int(np.prod(tensor.shape)) > 0


def _weight(tensor: ExternalTensor, file: memoryview) -> ort.OrtValue:
    """The tensor over the bytes of `file`, not copied unless they are unaligned."""
    part = file[tensor.offset : tensor.offset + tensor.length]
    array = np.frombuffer(part, np.dtype(tensor.dtype)).reshape(tensor.shape)
    return ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements=["C", "A"]))


def _check_edges(stage: str, entry: StageEntry, session: ort.InferenceSession) -> None:
    """Hold the names of the graph's inputs and outputs to the ports; the rest runs will show.

    Raises:
        BundleError: ``E_GRAPH_PORTS``.
    """
    for side, ports, nodes in (
        ("inputs", entry.inputs, session.get_inputs()),
        ("outputs", entry.outputs, session.get_outputs()),
    ):
        got, expected = {node.name for node in nodes}, {port.name for port in ports}
        if got != expected:
            raise BundleError(
                "E_GRAPH_PORTS",
                f"stage {stage!r}: got graph {side} {sorted(got)}, expected {sorted(expected)}. "
                "Export the bundle again.",
            )


def return_free_memory() -> None:
    """Give back to the system what glibc keeps; nothing happens with other C libraries."""
    if os.name == "posix":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _first_line(error: Exception) -> str:
    """The library's words, short and on one line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__} {text[:300]!r}"
