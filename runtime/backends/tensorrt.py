"""TensorRT backend: engines built on the device that runs them, or ahead of time, and kept.

A stage runs with the engines of the cache; for sizes that none of them takes, one is built when
they first come, which `tell` announces. Images of those sizes wait for it, since a self-test that
the CPU passed meanwhile would say nothing of the engine; other sizes go on. Who may not wait takes
`jscc.runtime.meanwhile`: another receiver, with a self-test of its own, serves until all is built.

Its sessions also take tensors where they are, on the device; see `jscc.runtime.device.reception`.
Where library, driver or device are missing, where an engine crashed the library before, and for
sizes that no engine can be built for, ONNX Runtime runs the stage on the CPU and its session says
so.

NOTE: no part of it that needs a device was ever executed on one: loading engines, running them and
full TensorRT. Building for other devices, by TensorRT for RTX, was. Tests have a fake for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jscc.runtime.backends.base import Session
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.device.device import open_device
from jscc.runtime.device.station import station_of
from jscc.runtime.errors import JsccError, UnavailableError, UsageError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.private_folder import cache_folder
from jscc.runtime.tensorrt.build import Plan
from jscc.runtime.tensorrt.cache import EngineCache, EngineKey, hash_graph
from jscc.runtime.tensorrt.lane import Place
from jscc.runtime.tensorrt.library import FULL, load_library
from jscc.runtime.tensorrt.session import TensorRtSession
from jscc.runtime.tensorrt.supply import Supply, Tell


def usual_folder() -> Path:
    """Where engines are kept unless somebody says otherwise; see `cache_folder`."""
    return cache_folder("engines")


def find_place(folder: Path | None = None) -> Place:
    """The library that is installed and the first device.

    Args:
        folder: Where engines are kept; compiled kernels are kept beside it.

    Raises:
        UnavailableError: ``E_MODULE``, ``E_CUDA``.
    """
    library = load_library()
    beside = (usual_folder() if folder is None else folder).with_name("kernels")
    return Place(library, station_of(open_device(), beside))


def target_of(place: Place) -> str:
    """What an engine for this device is called in its key; see `jscc.runtime.tensorrt.library`."""
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
            return find_place(self.folder).library.named
        except UnavailableError:
            return self.fallback().name

    def fallback(self) -> OnnxRuntimeBackend:
        """ONNX Runtime on the CPU."""
        return OnnxRuntimeBackend(threads=self.threads)

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load one stage; see `jscc.runtime.backends.base.Backend`."""

        def spare(note: str = "") -> Session:
            session = self.fallback().load(stage, entry, graph, external)
            if note:
                session.fallbacks = (*session.fallbacks, note)
            return session

        try:
            place = find_place(self.folder)
        except JsccError as error:  # goes for all stages alike
            return spare(f"the CPU takes TensorRT's place: {error}")
        try:
            cache = EngineCache(self.folder)
            digest = hash_graph(graph, external)
            key = EngineKey(digest, place.library.named, target_of(place), self.tf32)
            cache.check_survived(key)
        except JsccError as error:
            return spare(f"stage {stage!r} runs on the CPU: {error}")
        plan = Plan(stage, entry, graph, external, (), tf32=self.tf32)
        return TensorRtSession(entry, Supply(place, plan, cache, key, self.tell), spare)
