"""Station: a device with its kernels and the flows of the receptions on it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from jscc.runtime.device.cubins import CubinCache
from jscc.runtime.device.device import Device
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.kernels import DeviceKernels
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.errors import JsccError


class Station:
    """What receptions on one device share; threads may share it, each with a flow of its own.

    Args:
        device: Where they are.
        kernels: Of that device.
    """

    def __init__(self, device: Device, kernels: DeviceKernels) -> None:
        self.device = device
        self.kernels = kernels
        self._idle: list[Flow] = []
        self._lock = threading.Lock()
        self._unfit: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record says of its kernels; see `KernelLoader.notes`."""
        return self.kernels.notes

    def unfit(self) -> str:
        """Why its kernels cannot be started; empty where they can.

        Tried once, and again where memory was short.
        """
        with self._lock:
            if self._unfit is None:
                try:
                    self.kernels.prepare()
                except JsccError as error:
                    if error.code == "E_MEMORY":
                        return str(error)
                    self._unfit = str(error)
                else:
                    self._unfit = ""
            return self._unfit

    @contextmanager
    def flow(self) -> Iterator[Flow]:
        """A flow for one reception, with memory of those before; it has ended behind this.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_MEMORY``.
        """
        with self._lock:
            flow = self._idle.pop() if self._idle else None
        flow = flow or Flow(self.device)
        try:
            yield flow
            flow.settle()
        except BaseException:
            flow.close()  # what it holds may be what there is too little of
            self.shrink()
            raise
        with self._lock:
            self._idle.append(flow)

    def shrink(self) -> None:
        """Give back what no reception is using."""
        with self._lock:
            idle, self._idle = self._idle, []
        for flow in idle:
            flow.close()


@lru_cache(maxsize=4)
def station_of(device: Device, folder: Path) -> Station:
    """The station of a device whose compiled kernels are kept in `folder`; one per process."""
    return Station(device, DeviceKernels(KernelLoader(device.cuda, device, CubinCache(folder))))
