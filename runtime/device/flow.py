"""Flow: a stream, and the memory of what goes on in it."""

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.device.device import Device, DeviceArray
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array


class Flow:
    """One thread's work on a device, in order; other flows go on beside it.

    An array's memory serves another one as soon as nobody holds the array any more: whatever reads
    it was given to the stream before whatever writes it next.

    Args:
        device: Where it is.

    Raises:
        UnavailableError: ``E_CUDA``, ``E_MEMORY``.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream: Any = device.stream()
        self._sizes: dict[int, int] = {}  # of all its memory, by address
        self._free: dict[int, list[int]] = {}  # addresses that nobody holds, by size
        self._read: list[Array] = []  # what copies may still be reading on the host

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array of anything, until nobody holds it.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        wanted = DeviceArray(0, tuple(shape), np.dtype(dtype))
        free = self._free.get(wanted.nbytes)
        if free:
            address = free.pop()
        else:
            address = self.device.allocate(wanted.nbytes)
            self._sizes[address] = wanted.nbytes
        array = DeviceArray(address, wanted.shape, wanted.dtype)
        weakref.finalize(array, self._take_back, address).atexit = False
        return array

    def take(self, array: Array) -> DeviceArray:
        """A copy of `array` on the device.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        rows = np.require(array, requirements="C")
        copy = self.empty(rows.shape, rows.dtype)
        self._read.append(rows)
        self.device.upload(copy.pointer, rows, self.stream)
        return copy

    def bring(self, *arrays: DeviceArray) -> tuple[Array, ...]:
        """Copies on the host; waits for all that was started before.

        Raises:
            UnavailableError: ``E_CUDA``, also what went wrong in something started before.
        """
        copies = tuple(np.empty(array.shape, array.dtype) for array in arrays)
        try:
            for copy, array in zip(copies, arrays, strict=True):
                self.device.download(copy, array.pointer, self.stream)
        finally:
            self.wait()  # nobody may write to the copies once they are given up
        return copies

    def wait(self) -> None:
        """Wait for all that was started.

        Raises:
            UnavailableError: ``E_CUDA``, also what went wrong in it.
        """
        self.device.wait(self.stream)
        self._read.clear()

    def close(self) -> None:
        """Wait, and give everything back; its arrays are not to be used again."""
        with suppress(UnavailableError):
            self.wait()
        sizes, self._sizes = self._sizes, {}
        self._free.clear()
        for address in sizes:
            with suppress(UnavailableError):  # the others are to go as well
                self.device.free(address)
        with suppress(UnavailableError):
            self.device.destroy(self.stream)

    def _take_back(self, address: int) -> None:
        if address in self._sizes:
            self._free.setdefault(self._sizes[address], []).append(address)
