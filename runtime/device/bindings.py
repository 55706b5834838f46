"""Bindings: NVIDIA's cuda-python, whose every function returns a status first.

NOTE: nothing in this folder was ever executed on a device. It is written to cuda-python's
documented interface and tried with NVRTC itself, which needs none, on a stand-in for the driver.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jscc.runtime.errors import UnavailableError
from jscc.runtime.jetson import install_cuda

_MODULES = (  # the second until cuda-python 12.6
    ("cuda.bindings.driver", "cuda.bindings.nvrtc"),
    ("cuda.cuda", "cuda.nvrtc"),
)
_ALLOCATES = "cuMemAlloc"
_NO_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_OUT_OF_MEMORY")
_DRIVER = "a CUDA device and its driver. Install NVIDIA's driver, or receive on the CPU."


@dataclass(frozen=True)
class Cuda:
    """The two libraries, or what stands in for them.

    Attributes:
        driver: The module ``cuda.bindings.driver``.
        nvrtc: The module ``cuda.bindings.nvrtc``.
    """

    driver: Any
    nvrtc: Any


def import_cuda() -> Cuda:
    """cuda-python as it is installed; the libraries behind it are opened by their first call.

    Raises:
        UnavailableError: ``E_MODULE``, it is not installed, or does not load.
    """
    got = "nothing"
    for names in _MODULES:
        try:
            return Cuda(*map(importlib.import_module, names))
        except ModuleNotFoundError as error:
            reason: Exception = error
        except Exception as error:  # a broken installation raises anything
            got, reason = f"{type(error).__name__} {_words(error)!r}", error
            break
    raise UnavailableError(
        "E_MODULE",
        f"module 'cuda.bindings': got {got}, expected it installed. Run: {install_cuda()}",
    ) from reason


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function` returns behind its status: nothing, one value or a tuple.

    Raises:
        UnavailableError: ``E_CUDA``, it fails or its library is missing; ``E_MEMORY``, too little
            memory.
    """
    name = getattr(function, "__name__", str(function))
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:  # the library itself, or the function in it, is not there
        raise _broken(name, repr(_words(error) or type(error).__name__)) from error
    if int(status):
        wanted = f" for {arguments[0]} bytes" if name == _ALLOCATES else ""
        raise failure_of(name, status, wanted)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _words(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def failure_of(name: str, status: Any, wanted: str = "") -> UnavailableError:
    """The error for a `status` that is not success.

    Args:
        name: Of the function that returned it.
        status: As cuda-python has it.
        wanted: What memory was asked for, in words.
    """
    word = getattr(status, "name", str(status))
    if word not in _NO_MEMORY:
        return _broken(name, word)
    return UnavailableError(
        "E_MEMORY",
        f"{name}: got {word}{wanted}, expected enough memory. Receive fewer or smaller images at "
        "once.",
    )


def check_driver(driver: Any, version: int) -> None:
    """Hold the driver to the bindings; both versions as CUDA writes them.

    Raises:
        UnavailableError: ``E_CUDA``, the driver is older than the bindings.
    """
    served, bound = version // 1000, int(getattr(driver, "CUDA_VERSION", 0)) // 1000
    if 0 < served < bound:
        raise UnavailableError(
            "E_CUDA",
            f"cuDriverGetVersion: got {version} from a driver for CUDA {served}, expected one for "
            f"CUDA {bound}, as cuda-bindings has it, or an older cuda-bindings for this driver. "
            f"Run: pip install 'cuda-bindings=={served}.*'",
        )


def no_device() -> UnavailableError:
    """The error for a driver without a device."""
    return _broken("cuDeviceGetCount", "0 devices")


def _broken(name: str, got: str) -> UnavailableError:
    expected = _DRIVER
    if name.startswith("nvrtc"):
        expected = f"NVIDIA's compiler. Run {install_cuda()}, or receive on the CPU."
    return UnavailableError("E_CUDA", f"{name}: got {got}, expected {expected}")
