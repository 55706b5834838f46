"""Flow: a stream, and the memory of what goes on in it."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from jscc.runtime.device.device import Device, DeviceArray
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array


class Guest(Protocol):
    """Something that serves one flow at a time."""

    def settle(self) -> None:
        """Let another flow have it; this one has ended."""

    def close(self) -> None:
        """Give back what it holds; nothing of it goes on."""


G = TypeVar("G", bound=Guest)


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
        self._guests: dict[Hashable, Guest] = {}
        self._events: list[Any] = []

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

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """An array of zeros.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        array = self.empty(shape, dtype)
        self.device.clear(array.pointer, array.nbytes, self.stream)
        return array

    def copy(self, to: int, array: DeviceArray) -> None:
        """Copy an array to another place on the device.

        Raises:
            UnavailableError: ``E_CUDA``.
        """
        self.device.copy(to, array.pointer, array.nbytes, self.stream)

    def mark(self) -> Any:
        """An event at this place, for `Device.elapsed_ms`, until the flow has ended.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        self._events.append(self.device.mark(self.stream))
        return self._events[-1]

    def host(self, key: Hashable, make: Callable[[], G]) -> G:
        """The guest called `key`, made where there is none yet; it stays until the flow has ended.

        Raises:
            JsccError: What `make` raises.
        """
        if key not in self._guests:
            self._guests[key] = make()
        guest: G = self._guests[key]  # type: ignore[assignment]
        return guest

    def dismiss(self, key: Hashable) -> None:
        """Wait, and close a guest that is of no use any more."""
        with suppress(UnavailableError):
            self.wait()
        self._guests.pop(key).close()

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

    def settle(self) -> None:
        """Wait for the end, and let guests go.

        Raises:
            UnavailableError: ``E_CUDA``, also what went wrong in something started before.
        """
        self.wait()
        guests, self._guests = self._guests, {}
        for guest in guests.values():
            guest.settle()
        self._forget()

    def close(self) -> None:
        """Wait, and give everything back; its arrays are not to be used again."""
        with suppress(UnavailableError):
            self.wait()
        self._read.clear()
        guests, self._guests = self._guests, {}
        for guest in guests.values():
            guest.close()
        self._forget()
        sizes, self._sizes = self._sizes, {}
        self._free.clear()
        for address in sizes:
            with suppress(UnavailableError):  # the others are to go as well
                self.device.free(address)
        with suppress(UnavailableError):
            self.device.destroy(self.stream)

    def _forget(self) -> None:
        events, self._events = self._events, []
        for event in events:
            with suppress(UnavailableError):
                self.device.forget(event)

    def _take_back(self, address: int) -> None:
        if address in self._sizes:
            self._free.setdefault(self._sizes[address], []).append(address)
