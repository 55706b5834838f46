"""Loader: kernels as a device runs them, compiled on first use and found again later."""

import hashlib
import threading
from typing import Any

from jscc.kernels.sources import entries_of, source_of
from jscc.runtime.device.bindings import Cuda
from jscc.runtime.device.compiler import compile_source, nvrtc_version, options_for
from jscc.runtime.device.cubins import CubinCache, CubinKey, reason_of
from jscc.runtime.device.device import Device
from jscc.runtime.errors import JsccError


class KernelLoader:
    """Kernels of one device, each compiled or read once; threads may share it.

    Args:
        cuda: The libraries.
        device: Runs them.
        cache: Where they are kept; None compiles them each time.
    """

    def __init__(self, cuda: Cuda, device: Device, cache: CubinCache | None = None) -> None:
        self._cuda = cuda
        self._device = device
        self._cache = cache
        self._lock = threading.Lock()
        self._functions: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the cache was of no use, for the record; nothing where it was or was empty."""
        return tuple(self._notes)

    def function(self, kernel: str, entry: str) -> Any:
        """An entry, ready to start.

        Raises:
            UnavailableError: ``E_CUDA``, ``E_CUDA_ARCHITECTURE``, ``E_KERNEL``, ``E_MEMORY``.
        """
        with self._lock:
            if kernel not in self._functions:
                module = self._module(kernel)
                self._functions[kernel] = {
                    name: self._device.function(module, name) for name in entries_of(kernel)
                }
            return self._functions[kernel][entry]

    def _module(self, kernel: str) -> Any:
        source = source_of(kernel)
        key = self._key(kernel, source)
        module = self._kept(key)
        if module is not None:
            return module
        cubin = compile_source(self._cuda.nvrtc, kernel, source, key.architecture)
        module = self._device.load(cubin)  # what is kept did load once
        if self._cache is not None:
            try:
                self._cache.keep(key, cubin)
            except JsccError as error:
                self._note(error)
        return module

    def _note(self, error: JsccError) -> None:
        """Say once what goes for every kernel."""
        if (reason := reason_of(error)) not in self._notes:
            self._notes.append(reason)

    def _kept(self, key: CubinKey) -> Any:
        """The module in the cache; None, with a note if something is wrong, where there is none."""
        if self._cache is None:
            return None
        try:
            cubin = self._cache.find(key)
            return None if cubin is None else self._device.load(cubin)
        except JsccError as error:
            self._note(error)
            return None

    def _key(self, kernel: str, source: str) -> CubinKey:
        return CubinKey(
            kernel=kernel,
            source_sha256=hashlib.sha256(source.encode()).hexdigest(),
            options=options_for(self._device.architecture),
            architecture=self._device.architecture,
            nvrtc=nvrtc_version(self._cuda.nvrtc),
            driver=self._device.driver_version,
            device=self._device.name,
        )
