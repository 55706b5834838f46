"""TensorRT lane: one run at a time of an engine.

In a reception's flow the second run of the same shapes is captured as a CUDA graph, and each one
after that is a launch of it: the lane's own buffers keep their addresses. What cannot be captured
is enqueued as before.

NOTE: never executed on a device; see `jscc.runtime.tensorrt.library`.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jscc.runtime.device.device import Device, DeviceArray, shown
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.station import Station
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array
from jscc.runtime.tensorrt.buffers import Buffers
from jscc.runtime.tensorrt.library import Library, Lines

Shape = tuple[int, ...]
_Shapes = Mapping[str, Array] | Mapping[str, DeviceArray]


@dataclass(frozen=True)
class Place:
    """What an engine runs in and on."""

    library: Library
    station: Station

    @property
    def device(self) -> Device:
        """The station's."""
        return self.station.device


class RunError(Exception):
    """A run that came to nothing."""

    def __init__(self, got: str, *, memory: bool = False) -> None:
        super().__init__(got)
        self.memory = memory


@dataclass
class Graphs:
    """Whether the runs of an engine are captured.

    Attributes:
        refused: Why not, once one could not be.
    """

    refused: str = ""


@dataclass
class Lane:
    """A context of an engine, on a stream and with buffers of its own.

    Attributes:
        place: Where it is.
        context: The library's.
        stream: Of runs that no flow asks for.
        buffers: Of its tensors.
        graphs: The engine's.
    """

    place: Place
    context: Any
    stream: Any
    buffers: Buffers
    graphs: Graphs
    _bound: tuple[tuple[str, Shape, int], ...] = ()
    _ran: bool = False  # since it was bound
    _graph: Any = None  # of what is bound
    _copied: dict[str, DeviceArray] = field(default_factory=dict)

    def run(
        self, arrays: Mapping[str, Array], results: Mapping[str, Array], hosted: frozenset[str]
    ) -> None:
        """Fill `results` from `arrays`; those in `hosted` are read on the host."""
        device = self.place.device
        lines = self.place.library.listen()
        self._copied.clear()
        places = {
            name: array.ctypes.data if name in hosted else self.buffers.at_least(name, array.nbytes)
            for name, array in arrays.items()
        }
        for name, array in arrays.items():
            if name not in hosted:
                device.upload(places[name], array, self.stream)
        self._bind(arrays, results, places, lines)
        self._enqueue(self.stream, lines)
        for name, result in results.items():
            device.download(result, self.buffers.at_least(name, 0), self.stream)
        device.wait(self.stream)

    def run_there(
        self, arrays: Mapping[str, DeviceArray], results: Mapping[str, DeviceArray], flow: Flow
    ) -> None:
        """The same in a flow: what is there already, since the last time in it, is not copied."""
        lines = self.place.library.listen()
        places = {name: self.buffers.at_least(name, each.nbytes) for name, each in arrays.items()}
        self._bind(arrays, results, places, lines)
        for name, array in arrays.items():
            if self._copied.get(name) is not array:
                flow.copy(places[name], array)
                self._copied[name] = array
        self._launch(flow, lines)
        for name, result in results.items():
            source = self.buffers.at_least(name, 0)
            self.place.device.copy(result.pointer, source, result.nbytes, flow.stream)

    def _bind(
        self, arrays: _Shapes, results: _Shapes, places: Mapping[str, int], lines: Lines
    ) -> None:
        """Tell the context shapes and addresses where they are not as the last time."""
        sources = [(name, array.shape, places[name]) for name, array in arrays.items()]
        targets = [
            (name, result.shape, self.buffers.at_least(name, result.nbytes))
            for name, result in results.items()
        ]
        bound = (*sources, *targets)
        if bound == self._bound:
            return
        self._unbind()
        for name, shape, address in sources:
            if not self.context.set_input_shape(name, shape):
                raise RunError(f"{name} {shown(arrays[name])}, {lines.words}", memory=lines.memory)
            self.context.set_tensor_address(name, address)
        for name, wanted, address in targets:
            shape = tuple(self.context.get_tensor_shape(name))
            if shape != wanted:
                raise RunError(f"{name} of shape {list(shape)}, not {list(wanted)}")
            self.context.set_tensor_address(name, address)
        self._bound = bound

    def _unbind(self) -> None:
        self._bound, self._ran = (), False
        self._copied.clear()
        graph, self._graph = self._graph, None
        if graph is not None:
            with suppress(UnavailableError):
                self.place.device.drop(graph)

    def _launch(self, flow: Flow, lines: Lines) -> None:
        """Run as a graph, captured if what is bound has run without one before."""
        if self._graph is None and self._ran and not self.graphs.refused:
            self._capture(flow, lines)
        if self._graph is None:
            self._enqueue(flow.stream, lines)
        else:
            flow.device.launch(self._graph, flow.stream)

    def _capture(self, flow: Flow, lines: Lines) -> None:
        try:
            self._graph = flow.device.capture(
                flow.stream, lambda: self._enqueue(flow.stream, lines)
            )
        except (RunError, UnavailableError) as error:
            got = error.message if isinstance(error, UnavailableError) else f"got {error}"
            self.graphs.refused = got.partition(", expected")[0]

    def _enqueue(self, stream: Any, lines: Lines) -> None:
        if not self.context.execute_async_v3(int(stream)):
            raise RunError(lines.words, memory=lines.memory)
        self._ran = True

    def settle(self) -> None:
        """Forget what the flow that has ended left here."""
        self._copied.clear()

    def close(self) -> None:
        """Wait for what goes on, and give everything back."""
        device = self.place.device
        with suppress(UnavailableError):
            device.wait(self.stream)
        self._unbind()
        self.buffers.close()
        with suppress(UnavailableError):
            device.destroy(self.stream)
        self.context = None
