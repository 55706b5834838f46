"""TensorRT CUDA: a device's memory and streams, through cuda-python.

NOTE: written to cuda-python's documentation; of it only the import and the answers of a machine
without a driver were tried. Nothing here was ever executed on a device; tests have a fake.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jscc.runtime.errors import UnavailableError
from jscc.runtime.jetson import install_cuda
from jscc.runtime.ports import Array

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_OLD_DRIVER = "cudaErrorInsufficientDriver"
_MAJOR, _MINOR = "cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # the second until cuda-python 12.6


@dataclass(frozen=True)
class Device:
    """The first CUDA device.

    Attributes:
        api: cuda-python's module of the CUDA runtime.
        name: As its maker calls it.
        target: Its compute capability, such as ``sm_87``.
    """

    api: Any
    name: str
    target: str

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)

    def check(self) -> None:
        """Hold the device to still answer; some faults of a run leave it to this process for good.

        Raises:
            UnavailableError: ``E_CUDA``.
        """
        try:
            self._call("cudaDeviceSynchronize")
        except UnavailableError as error:
            if error.code != "E_CUDA":
                return
            got = error.message.partition(": got ")[2].partition(", expected")[0]
            raise UnavailableError(
                "E_CUDA",
                f"device {self.name!r}: got {got}, expected it to go on. Start the program again, "
                "and receive on the CPU if it stays.",
            ) from error

    def wait(self, stream: Any) -> None:
        """Wait for all that was given to `stream`."""
        self._call("cudaStreamSynchronize", stream)

    def destroy(self, stream: Any) -> None:
        """Give a stream back."""
        self.api.cudaStreamDestroy(stream)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device.

        Raises:
            UnavailableError: ``E_MEMORY``.
        """
        return int(self._call("cudaMalloc", max(1, size)))

    def free(self, addresses: Iterable[int]) -> None:
        """Give memory back."""
        for address in addresses:
            self.api.cudaFree(address)

    def upload(self, address: int, array: Array, stream: Any) -> None:
        """Copy a contiguous array to the device; it must live until `wait`."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: Array, address: int, stream: Any) -> None:
        """Copy from the device into a contiguous array, which is filled after `wait`."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind, stream)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: Any) -> None:
        if size:
            self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self.api, name, *arguments)


@dataclass
class Buffers:
    """Device memory by tensor; kept from run to run, made anew where it is too small."""

    device: Device
    _held: dict[str, tuple[int, int]] = field(default_factory=dict)

    def at_least(self, name: str, size: int) -> int:
        """The address of `size` bytes or more.

        Raises:
            UnavailableError: ``E_MEMORY``.
        """
        address, held = self._held.get(name, (0, -1))
        if size > held:
            if address:
                del self._held[name]
                self.device.free([address])
            address = self.device.allocate(size)
            self._held[name] = (address, size)
        return address

    def close(self) -> None:
        """Give all of it back."""
        self.device.free(address for address, _ in self._held.values())
        self._held.clear()


def call(api: Any, name: str, *arguments: Any) -> Any:
    """What the function `name` returns besides its status.

    Raises:
        UnavailableError: ``E_MEMORY``; ``E_CUDA``, anything else.
    """
    try:
        status, *values = getattr(api, name)(*arguments)
    except RuntimeError as error:  # cuda-python finds its library at the first call
        words = " ".join(str(error).split())[:300]
        raise _broken(name, repr(words)) from error
    if int(status):
        word = getattr(status, "name", str(status))
        if word == _OUT_OF_MEMORY:
            wanted = f" for {arguments[0]} bytes" if name == "cudaMalloc" else ""
            raise UnavailableError(
                "E_MEMORY",
                f"{name}: got {word}{wanted}, expected enough memory on the device. "
                "Receive fewer or smaller images at once.",
            )
        raise (_too_old(api, name) if word == _OLD_DRIVER else None) or _broken(name, word)
    return values[0] if values else None


def _broken(name: str, got: str) -> UnavailableError:
    return UnavailableError(
        "E_CUDA",
        f"{name}: got {got}, expected a CUDA device and its driver. Install NVIDIA's driver, or "
        "receive on the CPU.",
    )


def _too_old(api: Any, name: str) -> UnavailableError | None:
    """The error for a driver older than the bindings; None where there is no driver at all."""
    versions = []
    for each in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
        status, version = getattr(api, each)()
        versions.append(0 if int(status) else int(version))
    driver, bindings = (version // 1000 for version in versions)
    if not 0 < driver < bindings:
        return None
    return UnavailableError(
        "E_CUDA",
        f"{name}: got {_OLD_DRIVER} from a driver for CUDA {driver}, expected one for CUDA "
        f"{bindings}, as cuda-bindings has it, or an older cuda-bindings for this driver. "
        f"Run: pip install 'cuda-bindings=={driver}.*'",
    )


def open_device() -> Device:
    """The first CUDA device.

    Raises:
        UnavailableError: ``E_MODULE``, no cuda-python; ``E_CUDA``, no driver or no device.
    """
    api = _import_api()
    if not call(api, "cudaGetDeviceCount"):
        raise _broken("cudaGetDeviceCount", "0 devices")
    properties = call(api, "cudaGetDeviceProperties", 0)
    name = properties.name
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    major, minor = (
        call(api, "cudaDeviceGetAttribute", getattr(api.cudaDeviceAttr, attribute), 0)
        for attribute in (_MAJOR, _MINOR)
    )
    return Device(api, text.strip("\0 "), f"sm_{major}{minor}")


def _import_api() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error
        except Exception as error:  # a library without its driver raises anything
            raise _broken(f"module {name!r}", f"{type(error).__name__} {str(error)!r}") from error
    raise UnavailableError(
        "E_MODULE",
        f"module 'cuda.bindings': got nothing, expected it installed. Run: {install_cuda()}",
    ) from missing
