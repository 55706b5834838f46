"""TensorRT session: one stage's engines on a device, each run with the narrowest that fits.

NOTE: never executed on a device; see `jscc.runtime.backends.tensorrt_library`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jscc.runtime.backends.tensorrt_build import dtype_of
from jscc.runtime.backends.tensorrt_cuda import Buffers, Device
from jscc.runtime.backends.tensorrt_library import Library
from jscc.runtime.engines.spans import Span, symbols_of
from jscc.runtime.errors import UnavailableError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port, check_ports, describe, resolve

PROVIDER = "cuda"


@dataclass(frozen=True)
class Place:
    """What an engine runs in and on."""

    library: Library
    device: Device


class EngineError(Exception):
    """An engine that the library does not load, or not for these ports."""


@dataclass
class Lane:
    """One run at a time: a context of an engine, on a stream and with buffers of its own."""

    place: Place
    context: Any
    stream: Any
    buffers: Buffers

    def run(
        self, arrays: Mapping[str, Array], results: Mapping[str, Array], hosted: frozenset[str]
    ) -> None:
        """Fill `results` from `arrays`; those in `hosted` are read on the host."""
        device, context = self.place.device, self.context
        lines = self.place.library.listen()
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise _Failure(f"{name} {describe(array)}, {lines.words}", memory=lines.memory)
            address = array.ctypes.data
            if name not in hosted:
                address = self.buffers.at_least(name, array.nbytes)
                device.upload(address, array, self.stream)
            context.set_tensor_address(name, address)
        for name, result in results.items():
            shape = tuple(context.get_tensor_shape(name))
            if shape != result.shape:
                raise _Failure(f"{name} of shape {list(shape)}, not {list(result.shape)}")
            context.set_tensor_address(name, self.buffers.at_least(name, result.nbytes))
        if not context.execute_async_v3(int(self.stream)):
            raise _Failure(lines.words, memory=lines.memory)
        for name, result in results.items():
            device.download(result, self.buffers.at_least(name, 0), self.stream)
        device.wait(self.stream)

    def close(self) -> None:
        """Give everything back."""
        self.buffers.close()
        self.place.device.destroy(self.stream)
        self.context = None


class _Failure(Exception):
    """A run that came to nothing."""

    def __init__(self, got: str, *, memory: bool = False) -> None:
        super().__init__(got)
        self.memory = memory


@dataclass
class Engine:
    """An engine on the device; threads share its weights, each with a lane of its own.

    Attributes:
        place: Where it is.
        loaded: The library's engine.
        spans: Sizes of its profiles, in their order; empty where all shapes are fixed.
        hosted: Inputs whose numbers are sizes, which the library reads on the host.
    """

    place: Place
    loaded: Any
    spans: tuple[Span, ...]
    hosted: frozenset[str]
    _idle: dict[int, list[Lane]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def profiles(self) -> tuple[tuple[int, Span], ...]:
        """Number and span of each profile."""
        return tuple(enumerate(self.spans or (Span(),)))

    @property
    def names(self) -> frozenset[str]:
        """Its tensors; inputs that nothing uses are none of them."""
        count = self.loaded.num_io_tensors
        return frozenset(self.loaded.get_tensor_name(index) for index in range(count))

    def run(self, profile: int, arrays: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        """Run one of its profiles; see `Lane.run`."""
        with self._lock:
            idle = self._idle.get(profile)
            lane = idle.pop() if idle else None
        lane = lane or self._open(profile)
        try:
            lane.run(arrays, results, self.hosted)
        except BaseException:
            lane.close()  # what it holds may be what there is too little of
            raise
        with self._lock:
            self._idle.setdefault(profile, []).append(lane)

    def shrink(self) -> None:
        """Give back what no run is using."""
        with self._lock:
            idle = [lane for lanes in self._idle.values() for lane in lanes]
            self._idle.clear()
        for lane in idle:
            lane.close()

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
            raise _Failure(lines.words, memory=lines.memory or context is None)
        return Lane(self.place, context, stream, Buffers(device))


def load_engine(
    place: Place, plan: memoryview, spans: tuple[Span, ...], entry: StageEntry
) -> Engine:
    """An engine from its bytes.

    Raises:
        EngineError: The library refuses it, or its tensors are not those of the ports.
    """
    library = place.library
    lines = library.listen()
    runtime = library.module.Runtime(library.log)
    loaded = None if runtime is None else runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise EngineError(lines.words)
    hosted = frozenset(
        port.name for port in entry.inputs if library.is_shape_input(loaded, port.name)
    )
    engine = Engine(place, loaded, spans, hosted)
    names = engine.names
    for port in (*entry.inputs, *entry.outputs):
        if port.name in names and loaded.get_tensor_dtype(port.name) != dtype_of(library, port):
            raise EngineError(f"another dtype of {port.name!r}")
    if not {port.name for port in entry.outputs} <= names:
        raise EngineError(f"the tensors {', '.join(sorted(names))}")
    return engine


class TensorRtSession:
    """One stage in TensorRT; thread-safe. `jscc.runtime.backends.base.Session`.

    Args:
        stage: Its name.
        entry: What the manifest says of it.
        named: Library and device, for messages.
        fallbacks: What was asked for and not done.
        engines: Those that are there.
        make: Builds an engine for sizes that none of them takes.
    """

    def __init__(
        self,
        stage: str,
        entry: StageEntry,
        named: str,
        fallbacks: tuple[str, ...],
        engines: list[Engine],
        make: Callable[[Mapping[str, int]], Engine],
    ) -> None:
        self.inputs: tuple[Port, ...] = entry.inputs
        self.outputs: tuple[Port, ...] = entry.outputs
        self.provider = PROVIDER
        self.fallbacks = fallbacks
        self._where = f"stage {stage!r} in {named}"
        self._stage = stage
        self._symbols = symbols_of(entry)
        self._engines = engines
        self._make = make
        self._lock = threading.Lock()

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once; see `jscc.runtime.backends.base.Session`.

        Raises:
            BundleError: ``E_GRAPH_LOAD``, there is no engine for these sizes and the library
                refuses to build one.
        """
        sizes = check_ports(self._stage, self.inputs, arrays)
        engine, profile = self._choose({symbol: sizes[symbol] for symbol in self._symbols})
        names = engine.names
        fed = {
            port.name: np.ascontiguousarray(arrays[port.name])
            for port in self.inputs
            if port.name in names
        }
        results: dict[str, Array] = {
            port.name: np.empty(resolve(port, sizes), port.dtype) for port in self.outputs
        }
        try:
            self._run(engine, profile, fed, results)
        except _Failure as error:
            raise self._explain(error, fed) from error
        except UnavailableError as error:
            if error.code == "E_MEMORY":
                raise
            got = error.message.partition(", expected")[0].replace(": got ", " ")
            raise self._explain(_Failure(got), fed) from error
        return results

    def _run(
        self,
        engine: Engine,
        profile: int,
        fed: Mapping[str, Array],
        results: Mapping[str, Array],
    ) -> None:
        """Run once, and once more with all idle memory given back if there was too little."""
        try:
            engine.run(profile, fed, results)
        except (_Failure, UnavailableError) as error:
            short_of = error.memory if isinstance(error, _Failure) else error.code == "E_MEMORY"
            if not short_of:
                raise
            for each in self._engines:
                each.shrink()
            engine.run(profile, fed, results)

    def _choose(self, sizes: Mapping[str, int]) -> tuple[Engine, int]:
        """The narrowest profile that takes `sizes`, of an engine that is built if none does."""
        with self._lock:
            found = self._fitting(sizes)
            if found is None:
                self._engines.append(self._make(sizes))
                found = self._fitting(sizes)
        assert found is not None
        return found

    def _fitting(self, sizes: Mapping[str, int]) -> tuple[Engine, int] | None:
        fitting = [
            (span.reach, place, number)
            for place, engine in enumerate(self._engines)
            for number, span in engine.profiles()
            if span.covers(sizes)
        ]
        if not fitting:
            return None
        _, place, number = min(fitting)
        return self._engines[place], number

    def _explain(self, error: _Failure, fed: Mapping[str, Array]) -> UnavailableError:
        shown = ", ".join(f"{name} {describe(array)}" for name, array in fed.items())
        if error.memory:
            return UnavailableError(
                "E_MEMORY",
                f"{self._where}: got {error} for {shown}, expected enough memory. "
                "Receive fewer or smaller images at once, or use a bundle with a smaller tile.",
            )
        return UnavailableError(
            "E_RUN",
            f"{self._where}: got {error} for {shown}, expected it to run. "
            "Try onnxruntime; if it stays, export the bundle again.",
        )
