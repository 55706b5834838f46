"""TensorRT backend: engines built on the device that runs them, or ahead of time, and kept.

A stage runs with the engines of the cache; for sizes that none of them takes, one is built when
they first come, which `tell` announces. Where library, driver or device are missing, ONNX Runtime
runs the stage on the CPU and its session says so.

NOTE: no part of it that needs a device was ever executed on one: loading engines, running them and
full TensorRT. Building for other devices, by TensorRT for RTX, was. Tests have a fake for the rest.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jscc.runtime.backends.base import Session
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.tensorrt_build import Plan, build_engine
from jscc.runtime.backends.tensorrt_cuda import open_device
from jscc.runtime.backends.tensorrt_library import FULL, load_library
from jscc.runtime.backends.tensorrt_session import (
    Engine,
    EngineError,
    Place,
    TensorRtSession,
    load_engine,
)
from jscc.runtime.engines.cache import EngineCache, EngineKey, hash_graph
from jscc.runtime.engines.progress import Announcer
from jscc.runtime.engines.spans import Span
from jscc.runtime.errors import JsccError, UnavailableError, UsageError
from jscc.runtime.manifest import StageEntry

Tell = Callable[[str], None]


def usual_folder() -> Path:
    """Where engines are kept unless somebody says otherwise."""
    return Path.home() / ".cache" / "jscc" / "engines"


def find_place() -> Place:
    """The library that is installed and the first device.

    Raises:
        UnavailableError: ``E_MODULE``, ``E_CUDA``.
    """
    library = load_library()
    return Place(library, open_device())


def target_of(place: Place) -> str:
    """What an engine for this device is called in its key; see `tensorrt_library`."""
    device = place.device
    return f"{device.target} {device.name}" if place.library.name == FULL else device.target


@dataclass(frozen=True)
class TensorRtBackend:
    """TensorRT on the first CUDA device.

    Attributes:
        threads: Processor threads of stages that ONNX Runtime runs instead; None for all.
        folder: Where engines are kept.
        tf32: Whether float32 products may round their factors to TF32.
        tell: Hears what takes long, in lines.
    """

    threads: int | None = None
    folder: Path = field(default_factory=usual_folder)
    tf32: bool = False
    tell: Tell = field(default=lambda text: None, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: ``E_THREADS``.
        """
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                "E_THREADS", f"threads: got {self.threads}, expected 1 or more. Leave it out."
            )

    @property
    def name(self) -> str:
        """Library and version; without one, what runs instead."""
        try:
            return find_place().library.named
        except UnavailableError:
            return self.fallback().name

    def fallback(self) -> OnnxRuntimeBackend:
        """ONNX Runtime on the CPU."""
        return OnnxRuntimeBackend(threads=self.threads)

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load one stage; see `jscc.runtime.backends.base.Backend`."""
        try:
            place = find_place()
        except UnavailableError as error:
            session = self.fallback().load(stage, entry, graph, external)
            session.fallbacks = (*session.fallbacks, f"stage {stage!r} runs on the CPU: {error}")
            return session
        loader = _Loader(self, place, Plan(stage, entry, graph, external, ()))
        engines, notes = loader.kept()
        named = f"{place.library.named} on {place.device.name}"
        return TensorRtSession(stage, entry, named, notes, engines, loader.make)


class _Loader:
    """Finds, builds and keeps the engines of one stage."""

    def __init__(self, backend: TensorRtBackend, place: Place, plan: Plan) -> None:
        self._backend = backend
        self._place = place
        self._plan = plan
        self._cache = EngineCache(backend.folder)
        target = target_of(place)
        graph = hash_graph(plan.graph, plan.external)
        self._key = EngineKey(graph, place.library.named, target, backend.tf32)
        self._timings = b""

    def kept(self) -> tuple[list[Engine], tuple[str, ...]]:
        """The engines of the cache that load, and why others did not; those are removed."""
        engines, notes = [], []
        for name in self._cache.names(self._key):
            try:
                engines.append(self._load(name))
            except (EngineError, JsccError) as error:
                self._cache.discard(name)
                reason = f"stage {self._plan.stage!r}: an engine is built again, since {error}"
                notes.append(reason)
                self._backend.tell(reason)
        return engines, tuple(notes)

    def _load(self, name: str) -> Engine:
        kept = self._cache.read(self._key, name)
        with self._cache.loading(name):
            return load_engine(self._place, kept.plan, kept.spans, self._plan.entry)

    def make(self, sizes: Mapping[str, int]) -> Engine:
        """Build an engine for exactly `sizes` and keep it.

        Raises:
            JsccError: What `build_engine` raises; ``E_ENGINE_LOAD``, what was built does not load.
        """
        plan, library = self._plan, self._place.library
        spans = (Span.exactly(sizes),) if sizes else ()
        target = self._key.target if self._key.target in library.targets() else None
        wanted = Plan(
            plan.stage, plan.entry, plan.graph, plan.external, spans, target, self._backend.tf32
        )
        begun = time.monotonic()
        what = f"stage {plan.stage!r}: building an engine for {', '.join(map(str, spans))}"
        announcer = Announcer(self._backend.tell, what)
        built = build_engine(library, wanted, announcer.advance, self._timings)
        self._timings = built.timings
        announcer.finish()
        try:
            self._cache.keep(self._key, spans, built.data, time.monotonic() - begun)
        except JsccError as error:
            self._backend.tell(f"stage {plan.stage!r}: its engine is not kept: {error}")
        try:
            return load_engine(self._place, built.data, spans, plan.entry)
        except EngineError as error:
            raise UnavailableError(
                "E_ENGINE_LOAD",
                f"stage {plan.stage!r}: got {error} from an engine just built, expected "
                f"{library.named} to load it. Use onnxruntime, or update the library.",
            ) from error
