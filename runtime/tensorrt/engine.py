"""TensorRT engine: one engine on a device, and the runs of it that go on at a time.

NOTE: never executed on a device; see `jscc.runtime.tensorrt.library`.
"""

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jscc.runtime.device.device import DeviceArray
from jscc.runtime.device.flow import Flow
from jscc.runtime.errors import UnavailableError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array
from jscc.runtime.tensorrt.buffers import Buffers
from jscc.runtime.tensorrt.build import dtype_of
from jscc.runtime.tensorrt.lane import Graphs, Lane, Place, RunError
from jscc.runtime.tensorrt.spans import Span


class EngineError(Exception):
    """An engine that the library does not load, or not for these ports.

    Args:
        got: The library's words.
        memory: Whether memory ran out, which is not the engine's fault.
    """

    def __init__(self, got: str, *, memory: bool = False) -> None:
        super().__init__(got)
        self.memory = memory


@dataclass(frozen=True)
class Lent:
    """A lane in the hands of a flow."""

    engine: "Engine"
    profile: int
    lane: Lane

    def settle(self) -> None:
        """Give the lane back to its engine."""
        self.lane.settle()
        self.engine.take_back(self.profile, self.lane)

    def close(self) -> None:
        """Close the lane."""
        self.lane.close()


@dataclass
class Engine:
    """An engine on the device; threads share its weights, each with a lane of its own.

    Attributes:
        place: Where it is.
        loaded: The library's engine.
        spans: Sizes of its profiles, in their order; empty where all shapes are fixed.
        hosted: Inputs whose numbers are sizes, which the library reads on the host.
        graphs: Whether its runs are captured.
    """

    place: Place
    loaded: Any
    spans: tuple[Span, ...]
    hosted: frozenset[str]
    graphs: Graphs = field(default_factory=Graphs)
    _idle: dict[int, list[Lane]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Its tensors; inputs that nothing uses are none of them."""
        count = self.loaded.num_io_tensors
        return frozenset(self.loaded.get_tensor_name(index) for index in range(count))

    def run(self, profile: int, arrays: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Run one of its profiles; see `Lane.run`."""
        lane = self._lend(profile)
        try:
            lane.run(arrays, results, self.hosted)
        except BaseException:
            lane.close()  # what it holds may be what there is too little of
            raise
        self.take_back(profile, lane)

    def run_there(
        self,
        profile: int,
        arrays: Mapping[str, DeviceArray],
        results: Mapping[str, DeviceArray],
        flow: Flow,
    ) -> None:
        """Run one of its profiles in a flow, which keeps the lane; see `Lane.run_there`."""
        key = (id(self), profile)
        lent = flow.host(key, lambda: Lent(self, profile, self._lend(profile)))
        try:
            lent.lane.run_there(arrays, results, flow)
        except BaseException:
            flow.dismiss(key)
            raise

    def take_back(self, profile: int, lane: Lane) -> None:
        """Keep a lane that nothing goes on in for the next run."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(profile, []).append(lane)
                return
        lane.close()

    def shrink(self) -> None:
        """Give back what no run is using."""
        with self._lock:
            idle = self._idle.copy()
            self._idle.clear()
        _close_all(idle)

    def close(self) -> None:
        """Give back what no run is using now, and the rest when its run ends."""
        with self._lock:
            self._closed = True
        self.shrink()

    def _lend(self, profile: int) -> Lane:
        with self._lock:
            idle = self._idle.get(profile)
            lane = idle.pop() if idle else None
        return lane or self._open(profile)

    def _open(self, profile: int) -> Lane:
        device = self.place.device
        stream = device.stream()
        lines = self.place.library.listen()
        context = self.place.library.make_context(self.loaded)
        ready = context is not None and (
            not self.spans or context.set_optimization_profile_async(profile, int(stream))
        )
        if not ready:
            device.destroy(stream)
            raise RunError(lines.words, memory=lines.memory or context is None)
        lane = Lane(self.place, context, stream, Buffers(device), self.graphs)
        try:
            device.wait(stream)  # the context runs in other streams too
        except BaseException:
            lane.close()
            raise
        return lane


def _close_all(idle: Mapping[int, list[Lane]]) -> None:
    for lanes in idle.values():
        for lane in lanes:
            lane.close()


def load_engine(
    place: Place, plan: memoryview, spans: tuple[Span, ...], entry: StageEntry
) -> Engine:
    """An engine from its bytes.

    Raises:
        EngineError: The library refuses it, or its tensors are not those of the ports.
        UnavailableError: ``E_CUDA``, the library does not start.
    """
    library = place.library
    lines = library.listen()
    runtime = library.start("Runtime")
    if runtime is None and not lines.memory:
        raise UnavailableError(
            "E_CUDA",
            f"{library.named}: got {lines.words}, expected it to start on {place.device.name}. "
            "Install NVIDIA's driver that it needs, or receive on the CPU.",
        )
    loaded = None if runtime is None else runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise EngineError(lines.words, memory=lines.memory)
    hosted = frozenset(
        port.name for port in entry.inputs if library.is_shape_input(loaded, port.name)
    )
    engine = Engine(place, loaded, spans, hosted)
    weakref.finalize(engine, _close_all, engine._idle).atexit = False  # nobody has to close it
    names = engine.names
    for port in (*entry.inputs, *entry.outputs):
        if port.name in names and loaded.get_tensor_dtype(port.name) != dtype_of(library, port):
            raise EngineError(f"another dtype of {port.name!r}")
    if not {port.name for port in entry.outputs} <= names:
        raise EngineError(f"the tensors {', '.join(sorted(names))}")
    return engine
