"""Device: one CUDA device, its memory, its streams and what is started on it.

What is given to a stream is done later, in order; whatever it reads or writes has to be there until
the stream was waited for. One device serves the hand-written kernels and TensorRT alike: its
context is the primary one, which CUDA's runtime, and so TensorRT, uses too.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.kernels.sources import THREADS, Parameter
from jscc.runtime.device.bindings import Cuda, call, check_driver, import_cuda, no_device
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array

_NAME_BYTES = 256
_MOST_BLOCKS = (1 << 31) - 1  # of a grid; a thread takes more than one element where that is few
_TYPES = {
    "pointer": ctypes.c_void_p,
    "float32": ctypes.c_float,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
}
Value = int | float


@dataclass(frozen=True)
class DeviceArray:
    """An array in the device's memory.

    Attributes:
        pointer: Its address there.
        shape: Outermost axis first; rows are contiguous.
        dtype: As NumPy's.
        whole: What its memory belongs to where it is a part of another array; see `item`.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: "DeviceArray | None" = None

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    def item(self, index: int) -> "DeviceArray":
        """One item along the first axis, in the same memory."""
        shape = self.shape[1:]
        step = math.prod(shape) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + index * step, shape=shape, whole=self)


class Device:
    """One device, in use until it is closed.

    Threads may share it: each call makes its context the thread's own.

    Args:
        cuda: The libraries.
        ordinal: Which device, from 0.

    Raises:
        UnavailableError: ``E_CUDA``, no driver, an old one, or no such device; ``E_MEMORY``.
    """

    def __init__(self, cuda: Cuda, ordinal: int = 0) -> None:
        self.cuda = cuda
        driver = cuda.driver
        self._driver = driver
        call(driver.cuInit, 0)
        version = int(call(driver.cuDriverGetVersion))
        check_driver(driver, version)
        count = int(call(driver.cuDeviceGetCount))
        if not count:
            raise no_device()
        if not 0 <= ordinal < count:
            raise UnavailableError(
                "E_CUDA",
                f"device: got number {ordinal}, expected one of {count} from 0. Pick one, or "
                "receive on the CPU.",
            )
        self._number = call(driver.cuDeviceGet, ordinal)
        attribute = driver.CUdevice_attribute
        capability = [
            int(call(driver.cuDeviceGetAttribute, each, self._number))
            for each in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        ]
        self.architecture = f"{capability[0]}{capability[1]}"
        name = call(driver.cuDeviceGetName, _NAME_BYTES, self._number)
        self.name = name.partition(b"\0")[0].decode("utf-8", "replace")
        self.driver_version = str(version)
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._number)

    @property
    def target(self) -> str:
        """Its compute capability, such as ``sm_87``."""
        return f"sm_{self.architecture}"

    def __enter__(self) -> "Device":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the device back; arrays and modules on it go with it."""
        if self._context is not None:
            self._context = None
            call(self._driver.cuDevicePrimaryCtxRelease, self._number)

    def check(self) -> None:
        """Hold the device to still answer; some faults of a run leave it to this process for good.

        Raises:
            UnavailableError: ``E_CUDA``.
        """
        try:
            self._call("cuCtxSynchronize")
        except UnavailableError as error:
            if error.code != "E_CUDA":
                return
            got = error.message.partition(": got ")[2].partition(", expected")[0]
            raise UnavailableError(
                "E_CUDA",
                f"device {self.name!r}: got {got}, expected it to go on. Start the program again, "
                "and receive on the CPU if it stays.",
            ) from error

    def allocate(self, size: int) -> int:
        """The address of `size` bytes.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        return int(self._call("cuMemAlloc", max(1, size)))

    def free(self, address: int) -> None:
        """Give memory back that nothing reads or writes any more."""
        self._call("cuMemFree", address)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array of anything, whose memory `free` gives back.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        array = DeviceArray(0, tuple(shape), np.dtype(dtype))
        return replace(array, pointer=self.allocate(array.nbytes))

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        flags = self._driver.CUstream_flags
        return self._call("cuStreamCreate", int(flags.CU_STREAM_NON_BLOCKING))

    def wait(self, stream: Any) -> None:
        """Wait for all that was given to `stream`.

        Raises:
            UnavailableError: ``E_CUDA``, also what went wrong in something that was given to it.
        """
        self._call("cuStreamSynchronize", stream)

    def destroy(self, stream: Any) -> None:
        """Give back a stream that has nothing left to do."""
        self._call("cuStreamDestroy", stream)

    def upload(self, address: int, array: Array, stream: Any) -> None:
        """Copy a contiguous array to the device."""
        if array.nbytes:
            self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: Array, address: int, stream: Any) -> None:
        """Copy from the device into a contiguous array."""
        if array.nbytes:
            self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def copy(self, to: int, source: int, size: int, stream: Any) -> None:
        """Copy `size` bytes from one place on the device to another."""
        if size:
            self._call("cuMemcpyDtoDAsync", to, source, size, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        """Set `size` bytes to zero."""
        if size:
            self._call("cuMemsetD8Async", address, 0, size, stream)

    def load(self, cubin: bytes) -> Any:
        """A module of compiled kernels, until the device is closed.

        Raises:
            UnavailableError: ``E_CUDA``, it does not suit the device; ``E_MEMORY``.
        """
        return self._call("cuModuleLoadData", cubin)

    def function(self, module: Any, name: str) -> Any:
        """An entry of a module.

        Raises:
            UnavailableError: ``E_CUDA``, it has none of that name.
        """
        return self._call("cuModuleGetFunction", module, name.encode())

    def start(
        self,
        function: Any,
        parameters: Sequence[Parameter],
        values: Sequence[Value],
        work: int,
        stream: Any,
    ) -> None:
        """Start an entry.

        Args:
            function: As `function` gave it.
            parameters: What it takes.
            values: One for each; pointers as addresses, 0 for none.
            work: How many threads have something to do.
            stream: Where it is its turn.

        Raises:
            UnavailableError: ``E_CUDA``.
        """
        if work < 1:
            return
        blocks = min(-(-work // THREADS), _MOST_BLOCKS)
        kinds = tuple(_TYPES[parameter.kind] for parameter in parameters)
        packed = (tuple(values), kinds)
        grid, block = (blocks, 1, 1), (THREADS, 1, 1)
        self._call("cuLaunchKernel", function, *grid, *block, 0, stream, packed, 0)

    def capture(self, stream: Any, give: Callable[[], None]) -> Any:
        """What `give` gives to a stream as one graph, which nothing of it has run yet.

        Other threads go on meanwhile. The addresses in it stay what they are.

        Args:
            stream: Of which all earlier work may still be going on.
            give: Gives work to it; it may neither wait nor allocate.

        Raises:
            UnavailableError: ``E_CUDA``, something in it cannot be captured; ``E_MEMORY``.
        """
        modes = self._driver.CUstreamCaptureMode
        self._call("cuStreamBeginCapture", stream, modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            give()
        except BaseException:
            self._end_capture(stream)
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Give a captured graph to a stream.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        self._call("cuGraphLaunch", graph, stream)

    def drop(self, graph: Any) -> None:
        """Give a captured graph back, which is not running."""
        self._call("cuGraphExecDestroy", graph)

    def mark(self, stream: Any) -> Any:
        """An event at this place of a stream, for `elapsed_ms`."""
        event = self._call("cuEventCreate", 0)
        try:
            self._call("cuEventRecord", event, stream)
        except BaseException:
            self.forget(event)
            raise
        return event

    def elapsed_ms(self, begun: Any, ended: Any) -> float:
        """Milliseconds between two events of streams that were waited for."""
        return float(self._call("cuEventElapsedTime", begun, ended))

    def forget(self, event: Any) -> None:
        """Give an event back."""
        self._call("cuEventDestroy", event)

    def _end_capture(self, stream: Any) -> None:
        """Leave the capture of a stream whatever became of it."""
        self._enter()
        _, *graphs = self._driver.cuStreamEndCapture(stream)
        for graph in graphs:
            if graph is not None and int(graph):
                self._driver.cuGraphDestroy(graph)

    def _call(self, name: str, *arguments: object) -> Any:
        self._enter()
        return call(getattr(self._driver, name), *arguments)

    def _enter(self) -> None:
        if self._context is None:
            raise UnavailableError(
                "E_CUDA", "device: got a call after it was closed, expected none. Open it again."
            )
        call(self._driver.cuCtxSetCurrent, self._context)


def open_device() -> Device:
    """The first CUDA device; one for the whole process, which holds on to it.

    Raises:
        UnavailableError: ``E_MODULE``, no cuda-python; ``E_CUDA``, no driver or no device.
    """
    return _first_of(import_cuda())


@lru_cache(maxsize=4)
def _first_of(cuda: Cuda) -> Device:
    return Device(cuda)


def check_array(name: str, array: DeviceArray, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
    """`array`, if it is what a kernel will read.

    Raises:
        ValueError: Another dtype or shape.
    """
    if str(array.dtype) != dtype or tuple(array.shape) != shape:
        raise ValueError(f"{name}: got {shown(array)}, expected {dtype}[{_listed(shape)}].")
    return array


def shown(array: Array | DeviceArray) -> str:
    """``float32[1,3,250,256]``: how an array prints in a message, wherever it is."""
    return f"{array.dtype}[{_listed(array.shape)}]"


def _listed(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))
