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

_NO_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_OUT_OF_MEMORY")


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
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    except Exception as error:  # a broken installation raises anything
        got = "nothing"
        if not isinstance(error, ModuleNotFoundError):
            got = f"{type(error).__name__} {_first_line(error)!r}"
        raise UnavailableError(
            "E_MODULE",
            f"module 'cuda.bindings': got {got}, expected it installed. Run: {install_cuda()}",
        ) from error
    return Cuda(driver, nvrtc)


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
        words = _first_line(error) or type(error).__name__
        raise UnavailableError(
            "E_CUDA",
            f"{name}: got {words!r}, expected NVIDIA's libraries. Install the driver and run "
            f"{install_cuda()}, or receive on the CPU.",
        ) from error
    if int(status):
        raise failure_of(name, status)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def failure_of(name: str, status: Any) -> UnavailableError:
    """The error for a `status` that is not success."""
    word = getattr(status, "name", str(status))
    if word in _NO_MEMORY:
        return UnavailableError(
            "E_MEMORY",
            f"{name}: got {word}, expected enough memory. Receive fewer or smaller images at once.",
        )
    return UnavailableError(
        "E_CUDA", f"{name}: got {word}, expected success. Run on the CPU, and update the driver."
    )
