"""TensorRT library: TensorRT 10 and 11 and TensorRT for RTX behind one face.

What differs between them is named here and nowhere else:

    module         ``tensorrt``, or ``tensorrt_rtx`` for RTX. Full TensorRT is taken where both are.
    strong typing  a flag of the network in 10 and RTX, always on in 11, which ignores the flag.
    weights        handed over from memory since 10.13 and in RTX (`load_initializer`); before, the
                   parser reads them from files, which are written to a folder of this user's own.
    targets        RTX compiles for any compute capability that it lists, on any machine, and its
                   engine runs on every device of that kind. Full TensorRT compiles on the device,
                   for that device, and times what it tries: its engines hold for one device name.
    timing cache   full TensorRT only; RTX has the calls, without effect.

NOTE: what RTX 1.7 does without a device (parse, compile ahead of time, refuse to deserialise) was
tried. What needs a device, and all of full TensorRT, is written to NVIDIA's documentation and was
never executed; tests stand a fake in, with the libraries' own words.
"""

import importlib
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jscc.runtime.errors import BundleError, StorageError, UnavailableError
from jscc.runtime.graphs import ExternalTensor
from jscc.runtime.jetson import TENSORRT, describe_jetson

FULL, RTX = "tensorrt", "tensorrt_rtx"
_MEMORY_WORDS = ("out of memory", "outofmemory", "could not be allocated", "mem_alloc_failed")
_NO_CUDA = "cuda initialization failure"  # newer versions call it a warning
_KEPT_LINES = 64
_LONGEST = 300


@dataclass(frozen=True)
class Library:
    """One of the libraries, or what stands in for it.

    Attributes:
        name: `FULL` or `RTX`.
        module: The Python module.
    """

    name: str
    module: Any

    @property
    def named(self) -> str:
        """The library and its version."""
        return f"{self.name} {self.module.__version__}"

    @property
    def log(self) -> Any:
        """The logger, of which the library takes one per process; see `Lines`."""
        return _log_of(self.module)

    def listen(self) -> "Lines":
        """The complaints from now on; those of other threads may be among them."""
        return Lines(self.log.lines, self.log.count)

    def start(self, kind: str) -> Any:
        """Its ``Builder`` or ``Runtime``; None where CUDA does not start.

        The bindings raise a TypeError for what the library does not make ("pybind11::init():
        factory function returned nullptr"; NVIDIA/TensorRT issues 308, 635, 2913).
        """
        make = getattr(self.module, kind)
        try:
            return make(self.log)
        except TypeError:
            return None

    def targets(self) -> tuple[str, ...]:
        """Kinds of device that it compiles for on any machine, such as ``sm_89``."""
        kinds = getattr(self.module, "ComputeCapability", None)
        if kinds is None:
            return ()
        names = [name for name in kinds.__members__ if name[:2] == "SM" and name[2:].isdigit()]
        return tuple(f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:])))

    def make_network(self, builder: Any) -> Any:
        """An empty strongly typed network."""
        flags = self.module.NetworkDefinitionCreationFlag
        strong = getattr(flags, "STRONGLY_TYPED", None)
        return builder.create_network(0 if strong is None else 1 << int(strong))

    def make_config(self, builder: Any, *, target: str | None, tf32: bool) -> Any:
        """How to build: for `target`, of `targets`, or for the device at hand."""
        config = builder.create_builder_config()
        if not tf32:
            config.clear_flag(self.module.BuilderFlag.TF32)
        if target in self.targets():
            kind = getattr(self.module.ComputeCapability, str(target).upper().replace("_", ""))
            config.num_compute_capabilities = 1
            config.set_compute_capability(kind, 0)
        return config

    def parse(self, parser: Any, graph: bytes, weights: "Weights") -> bool:
        """Read a graph into the parser's network.

        Raises:
            BundleError: ``E_GRAPH_EXTERNAL``, weights are not where the graph says.
        """
        if not weights.tensors:
            return bool(parser.parse(graph))
        if not hasattr(parser, "load_initializer"):
            with weights.as_files() as path:
                return bool(parser.parse(graph, str(path)))
        if not parser.load_model_proto(graph):
            return False
        for tensor in weights.tensors:
            data = weights.part(tensor)
            if not parser.load_initializer(tensor.name, data.ctypes.data, data.nbytes):
                raise weights.missing(tensor, f"bytes that {self.named} does not take")
        return bool(parser.parse_model_proto())

    def make_context(self, engine: Any) -> Any:
        """What runs an engine; it holds the memory of one profile at a time. None if it cannot."""
        strategy = self.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        return engine.create_execution_context(strategy)

    def use_timing_cache(self, config: Any, data: bytes) -> Any:
        """Let a build profit from what earlier ones timed; None where there is nothing to time."""
        if self.name == RTX:
            return None
        for known in dict.fromkeys((data, b"")):  # what another driver measured is refused
            cache = config.create_timing_cache(known)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                return cache
        return None

    def is_shape_input(self, engine: Any, name: str) -> bool:
        """Whether the engine reads the numbers in this tensor on the host, as sizes."""
        return bool(engine.is_shape_inference_io(name))


@dataclass(frozen=True)
class Weights:
    """The weight files of one graph.

    Attributes:
        stage: Whose they are, for messages.
        tensors: What the graph refers to.
        files: Bytes by the location that the graph gives them.
        folder: Below which they are written for a parser that reads files; None for the system's.
    """

    stage: str
    tensors: tuple[ExternalTensor, ...]
    files: Mapping[str, memoryview]
    folder: Path | None = None

    def part(self, tensor: ExternalTensor) -> Any:
        """The bytes of `tensor`, uint8.

        Raises:
            BundleError: ``E_GRAPH_EXTERNAL``.
        """
        file = self.files.get(tensor.location, memoryview(b""))
        if tensor.fault or tensor.offset + tensor.length > file.nbytes:
            raise self.missing(tensor, tensor.fault or "bytes outside its file")
        return np.frombuffer(file, np.uint8)[tensor.offset : tensor.offset + tensor.length]

    def missing(self, tensor: ExternalTensor, got: str) -> BundleError:
        """The error for a tensor whose bytes are not there."""
        return BundleError(
            "E_GRAPH_EXTERNAL",
            f"stage {self.stage!r}, tensor {tensor.name!r}: got {got}, expected bytes inside its "
            "file. Export the bundle again.",
        )

    @contextmanager
    def as_files(self) -> Iterator[Path]:
        """The path that a graph would have beside its weights, for a parser that reads files.

        Raises:
            BundleError: ``E_GRAPH_EXTERNAL``.
            StorageError: ``E_DISK_FULL``.
        """
        for tensor in self.tensors:
            self.part(tensor)
        with ExitStack() as stack:
            try:
                made = TemporaryDirectory(prefix=".weights-", suffix=".tmp", dir=self.folder)
                folder = Path(stack.enter_context(made))  # mode 0700
                for location, data in self.files.items():
                    (folder / location).write_bytes(data)
            except OSError as error:
                raise self._no_room(error) from error
            yield folder / "graph.onnx"

    def _no_room(self, error: OSError) -> StorageError:
        size = sum(data.nbytes for data in self.files.values())
        where = "the system's temporary folder" if self.folder is None else repr(str(self.folder))
        return StorageError(
            "E_DISK_FULL",
            f"stage {self.stage!r}: got {short(str(error.strerror or error))!r}, expected room for "
            f"{size} bytes of weights in {where}. Free some space.",
        )


@dataclass(frozen=True)
class Lines:
    """What a library complained of since some moment.

    Attributes:
        kept: All that is remembered, each with its number.
        after: Number of the last line before.
    """

    kept: "deque[tuple[int, str]]"
    after: int

    @property
    def new(self) -> tuple[str, ...]:
        """The lines since then, oldest first."""
        return tuple(text for number, text in self.kept.copy() if number > self.after)

    @property
    def words(self) -> str:
        """The first of them, short and on one line."""
        lines = self.new
        return repr(short(lines[0])) if lines else "no reason"

    @property
    def memory(self) -> bool:
        """Whether the library says, in its own words, that memory ran out."""
        return any(is_out_of_memory(line) for line in self.new)


def is_out_of_memory(text: str) -> bool:
    """Whether these words of a library mean that memory ran out."""
    return any(words in text.lower() for words in _MEMORY_WORDS)


def short(text: str) -> str:
    """`text` on one line of bounded length."""
    return " ".join(text.split())[:_LONGEST]


@lru_cache(maxsize=4)
def load_library(name: str | None = None) -> Library:
    """The library called `name`, or the first of both that is installed.

    Raises:
        UnavailableError: ``E_MODULE``, none is, or it does not load.
    """
    failures: dict[str, str] = {}
    for each in (FULL, RTX) if name is None else (name,):
        try:
            return Library(each, importlib.import_module(each))
        except Exception as error:  # a library without its driver raises anything
            found = "nothing" if isinstance(error, ModuleNotFoundError) else None
            failures[each] = found or f"{type(error).__name__} {short(str(error))!r}"
    tried = " or ".join(repr(each) for each in failures)
    got = next((text for text in failures.values() if text != "nothing"), "nothing")
    raise UnavailableError(
        "E_MODULE", f"module {tried}: got {got}, expected it installed. {remedy_for(name or FULL)}"
    )


def remedy_for(name: str) -> str:
    """How a library comes to this machine; PyPI has RTX for x86_64 only."""
    kind = platform.machine()
    x86 = kind in ("x86_64", "AMD64")
    if name == RTX:
        install = "Run: pip install 'jscc-edge[tensorrt-rtx]'"
        return install if x86 else f"There is none for {kind}: build on the device, without --ahead"
    if describe_jetson() is not None:
        return f"Run: {TENSORRT}"
    return "Run: pip install 'jscc-edge[tensorrt]'" + " (or [tensorrt-rtx])" * x86


@lru_cache(maxsize=4)
def _log_of(module: Any) -> Any:
    """A logger of this module's class that keeps complaints and prints nothing."""
    worst = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps the last errors."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
            self.count = 0
            self._lock = threading.Lock()

        def log(self, severity: Any, text: str) -> None:
            """Called by the library, from any of its threads."""
            if severity in worst or _NO_CUDA in text.lower():
                with self._lock:
                    self.count += 1
                    self.lines.append((self.count, text))

    return Log()


def make_monitor(module: Any, tell: Callable[[float], None]) -> Any:
    """What a build reports to: `tell` hears how much of it is done, from 0 to 1.

    Whatever `tell` raises, such as an interrupt, stops the build and is kept in ``raised``. The
    library calls from several threads at once; `tell` is called by one after the other.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Adds up nested phases."""

        def __init__(self) -> None:
            super().__init__()
            self.raised: BaseException | None = None
            self._phases: dict[str, list[int]] = {}
            self._most = 0.0
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            """A phase of so many steps begins."""
            del parent
            with self._lock:
                self._phases[name] = [0, max(1, steps)]

        def step_complete(self, name: str, step: int) -> bool:
            """A step is done; whether to go on."""
            with self._lock:
                if name in self._phases:
                    self._phases[name][0] = step + 1
                try:
                    tell(self._share())
                except BaseException as error:  # it must not pass through the library
                    self.raised = error
                return self.raised is None

        def phase_finish(self, name: str) -> None:
            """A phase ends."""
            with self._lock:
                self._phases.pop(name, None)

        def _share(self) -> float:
            done, width = 0.0, 1.0
            for at, steps in self._phases.values():
                done += width * min(at, steps) / steps
                width /= steps
            # A phase may end before its last step; what is done stays done.
            self._most = max(self._most, min(done, 1.0))
            return self._most

    return Monitor()
