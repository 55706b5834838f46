"""Compiler: CUDA C++ to the machine code of one device, by NVRTC."""

from typing import Any

from jscc.kernels.sources import OPTIONS
from jscc.runtime.device.bindings import call, failure_of
from jscc.runtime.errors import UnavailableError

_COMPILATION = "NVRTC_ERROR_COMPILATION"


def nvrtc_version(nvrtc: Any) -> str:
    """Such as ``13.0``.

    Raises:
        UnavailableError: ``E_CUDA``.
    """
    major, minor = call(nvrtc.nvrtcVersion)
    return f"{major}.{minor}"


def nvrtc_targets(nvrtc: Any) -> tuple[str, ...]:
    """Kinds of device that it compiles for, such as ``sm_90``.

    Raises:
        UnavailableError: ``E_CUDA``.
    """
    return tuple(f"sm_{each}" for each in call(nvrtc.nvrtcGetSupportedArchs))


def options_for(architecture: str) -> tuple[str, ...]:
    """What the compiler is told; `architecture` such as ``90``."""
    return (f"--gpu-architecture=sm_{architecture}", *OPTIONS)


def compile_source(nvrtc: Any, kernel: str, source: str, architecture: str) -> bytes:
    """The cubin of a source for one architecture.

    Args:
        nvrtc: The module ``cuda.bindings.nvrtc``.
        kernel: Names the source in messages.
        source: Needs no other file.
        architecture: Compute capability without its dot.

    Raises:
        UnavailableError: ``E_CUDA``; ``E_CUDA_ARCHITECTURE``, this compiler does not know the
            device; ``E_KERNEL``, the source does not compile; ``E_MEMORY``.
    """
    known = nvrtc_targets(nvrtc)
    if f"sm_{architecture}" not in known:
        raise UnavailableError(
            "E_CUDA_ARCHITECTURE",
            f"kernel {kernel!r}: got a device of architecture sm_{architecture}, expected one that "
            f"NVRTC {nvrtc_version(nvrtc)} knows: {', '.join(known)}. "
            "Install another nvidia-cuda-nvrtc.",
        )
    name = f"{kernel}.cu".encode()
    program = call(nvrtc.nvrtcCreateProgram, source.encode(), name, 0, [], [])
    try:
        options = [option.encode() for option in options_for(architecture)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            raise _failure(nvrtc, program, kernel, status)
        return _filled(nvrtc.nvrtcGetCUBIN, program, call(nvrtc.nvrtcGetCUBINSize, program))
    finally:
        call(nvrtc.nvrtcDestroyProgram, program)


def _failure(nvrtc: Any, program: Any, kernel: str, status: Any) -> UnavailableError:
    if status.name != _COMPILATION:
        return failure_of("nvrtcCompileProgram", status)
    log = _filled(nvrtc.nvrtcGetProgramLog, program, call(nvrtc.nvrtcGetProgramLogSize, program))
    lines = log.decode("utf-8", "replace").strip("\0 \n").splitlines()
    words = next((line for line in lines if "error" in line), "no log")
    return UnavailableError(
        "E_KERNEL",
        f"kernel {kernel!r}: got {words!r}, expected a source that compiles. Report it.",
    )


def _filled(fill: Any, program: Any, size: int) -> bytes:
    """What `fill` writes into a buffer of `size` bytes.

    NOTE: a bytearray, although the documentation shows bytes: those are not to be written to, and
    the interpreter shares the short ones.
    """
    buffer = bytearray(size)
    call(fill, program, buffer)
    return bytes(buffer)
