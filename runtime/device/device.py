"""Device: one CUDA device, its memory and what is started on it."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.kernels.sources import THREADS, Parameter
from jscc.runtime.device.bindings import Cuda, call
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array, describe

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
    """An array in the device's memory, which `Device.free` gives back.

    Attributes:
        pointer: Its address there.
        shape: Outermost axis first; rows are contiguous.
        dtype: As NumPy's.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class Device:
    """One device, in use until it is closed.

    Threads may share it: each call makes its context the thread's own.

    Args:
        cuda: The libraries.
        ordinal: Which device, from 0.

    Raises:
        UnavailableError: ``E_CUDA``, no driver, or no such device; ``E_MEMORY``.
    """

    def __init__(self, cuda: Cuda, ordinal: int = 0) -> None:
        driver = cuda.driver
        self._driver = driver
        call(driver.cuInit, 0)
        count = int(call(driver.cuDeviceGetCount))
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
        self.driver_version = str(int(call(driver.cuDriverGetVersion)))
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._number)

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

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array of anything.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        self._enter()
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        pointer = int(call(self._driver.cuMemAlloc, max(size, 1)))
        return DeviceArray(pointer, tuple(shape), kind)

    def upload(self, array: Array) -> DeviceArray:
        """A copy of `array`.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        rows = np.require(array, requirements="C")
        copy = self.empty(array.shape, array.dtype)
        try:
            if rows.nbytes:
                call(self._driver.cuMemcpyHtoD, copy.pointer, rows.ctypes.data, rows.nbytes)
        except BaseException:
            self.free(copy)
            raise
        return copy

    def download(self, array: DeviceArray) -> Array:
        """A copy here; waits for all that was started before.

        Raises:
            UnavailableError: ``E_CUDA``, also what went wrong in something started before.
        """
        self._enter()
        copy = np.empty(array.shape, array.dtype)
        call(self._driver.cuCtxSynchronize)
        if copy.nbytes:
            call(self._driver.cuMemcpyDtoH, copy.ctypes.data, array.pointer, copy.nbytes)
        return copy

    def free(self, array: DeviceArray) -> None:
        """Give its memory back; it is not to be used again."""
        self._enter()
        call(self._driver.cuMemFree, array.pointer)

    def load(self, cubin: bytes) -> Any:
        """A module of compiled kernels, until the device is closed.

        Raises:
            UnavailableError: ``E_CUDA``, it does not suit the device; ``E_MEMORY``.
        """
        self._enter()
        return call(self._driver.cuModuleLoadData, cubin)

    def function(self, module: Any, name: str) -> Any:
        """An entry of a module.

        Raises:
            UnavailableError: ``E_CUDA``, it has none of that name.
        """
        self._enter()
        return call(self._driver.cuModuleGetFunction, module, name.encode())

    def start(
        self, function: Any, parameters: Sequence[Parameter], values: Sequence[Value], work: int
    ) -> None:
        """Start an entry; it may still be running on return.

        Args:
            function: As `function` gave it.
            parameters: What it takes.
            values: One for each; pointers as addresses, 0 for none.
            work: How many threads have something to do.

        Raises:
            UnavailableError: ``E_CUDA``.
        """
        if work < 1:
            return
        self._enter()
        blocks = min(-(-work // THREADS), _MOST_BLOCKS)
        kinds = tuple(_TYPES[parameter.kind] for parameter in parameters)
        packed = (tuple(values), kinds)
        launch, grid, block = self._driver.cuLaunchKernel, (blocks, 1, 1), (THREADS, 1, 1)
        call(launch, function, *grid, *block, 0, 0, packed, 0)

    def _enter(self) -> None:
        if self._context is None:
            raise UnavailableError(
                "E_CUDA", "device: got a call after it was closed, expected none. Open it again."
            )
        call(self._driver.cuCtxSetCurrent, self._context)


def check_array(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    """`array`, if it is what a kernel will read.

    Raises:
        ValueError: Another dtype or shape.
    """
    got = describe(array)
    expected = f"{dtype}[{','.join(map(str, shape))}]"
    if got != expected:
        raise ValueError(f"{name}: got {got}, expected {expected}.")
    return array
