"""Machine: the processor, memory and engine that this process really has.

Only the standard library is needed, so it answers on a machine where nothing else is installed.
"""

import importlib
import os
import platform
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jscc.runtime.jetson import Jetson, describe_jetson

# Instruction sets that change how fast a graph runs; others are left out.
_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
_NVIDIA = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")

# y = Identity(x), float32[1]: the smallest ONNX model, to see whether a provider really starts.
_PROBE_NODE = b"\x0a\x01x\x12\x01y\x22\x08Identity"


@dataclass(frozen=True)
class Machine:
    """What the process may use.

    Attributes:
        system: Kernel and its version.
        architecture: Such as ``x86_64`` or ``aarch64``.
        cpu: Model name of the processor.
        threads: Logical processors this process may use.
        features: Instruction sets, of those that matter here.
        memory_mib: Memory of the machine or of the container, whichever is less; None if unknown.
        available_mib: What is left of it now; None if unknown.
        nvidia: Whether an NVIDIA device is visible.
        jetson: The board, if it is one of these.
    """

    system: str
    architecture: str
    cpu: str
    threads: int
    features: tuple[str, ...]
    memory_mib: int | None
    available_mib: int | None
    nvidia: bool
    jetson: Jetson | None


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime and whether a session really starts on it."""

    name: str
    works: bool
    reason: str


def describe_machine() -> Machine:
    """Look at this machine."""
    cpuinfo = _text("/proc/cpuinfo")
    flags = set(re.findall(r"\S+", _field(cpuinfo, "flags") or _field(cpuinfo, "Features")))
    board = _text("/proc/device-tree/model").strip("\0 \n")
    cpu = _field(cpuinfo, "model name") or board or platform.processor() or platform.machine()
    total, available = _memory()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=cpu,
        threads=available_threads(),
        features=tuple(name for name in _FEATURES if name in flags),
        memory_mib=total,
        available_mib=available,
        nvidia=any(os.path.exists(path) for path in _NVIDIA),
        jetson=describe_jetson(),
    )


def available_threads() -> int:
    """Logical processors this process may use, by affinity and by the container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        count = min(count, max(1, -(-int(quota) // int(period))))
    return count


def peak_rss_mib() -> float | None:
    """Most resident memory that this process has had, in MiB; None if the system cannot tell.

    The kernel's ``VmHWM``, not ``ru_maxrss``: that one starts from the parent's peak.
    """
    value = _field(_text("/proc/self/status"), "VmHWM")
    return int(value.split()[0]) / 1024 if value else None


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def software() -> str:
    """The name and version that files made here carry."""
    return f"jscc-edge {version_of('jscc-edge') or '(not installed)'}"


def probe_providers(names: Sequence[str] | None = None) -> tuple[Provider, ...]:
    """Start a session on each provider, of those that the engine was built with by default.

    The engine falls back to the CPU with no more than a warning, so what it says it has proves
    nothing.
    """
    engine = importlib.import_module("onnxruntime")
    found = []
    for name in engine.get_available_providers() if names is None else names:
        options = engine.SessionOptions()
        options.log_severity_level = 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                session = engine.InferenceSession(  # its own fallback would print to stdout
                    probe_model(), options, providers=[name], enable_fallback=False
                )
                first = session.get_providers()[0]
                reason = "" if first == name else f"the engine fell back to {first}"
            except Exception as error:  # every provider has exceptions of its own
                reason = (str(error).splitlines() or [type(error).__name__])[0]
        found.append(Provider(name, not reason, reason))
    return tuple(found)


def probe_model() -> bytes:
    """The bytes of the smallest ONNX model, float32[1] to float32[1]."""
    shape = b"\x0a\x02\x08\x01"
    tensor = b"\x08\x01" + _message(2, shape)
    kind = _message(2, _message(1, tensor))
    graph = _message(1, _PROBE_NODE) + _message(2, b"probe")
    graph += _message(11, _message(1, b"x") + kind) + _message(12, _message(1, b"y") + kind)
    return b"\x08\x08" + _message(7, graph) + _message(8, b"\x10\x11")


def _message(field: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content


def _memory() -> tuple[int | None, int | None]:
    """Total and available MiB."""
    meminfo = _text("/proc/meminfo")
    total = _kib(_field(meminfo, "MemTotal"))
    available = _kib(_field(meminfo, "MemAvailable"))
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    used = _text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit():
        total = min(total or int(limit) >> 20, int(limit) >> 20)
        if used.isdigit():
            left = max(0, int(limit) - int(used)) >> 20
            available = min(available if available is not None else left, left)
    return total, available


def _kib(value: str) -> int | None:
    return int(value.split()[0]) // 1024 if value else None


def _field(text: str, name: str) -> str:
    """The value of the first ``name: value`` line."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _text(path: str) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
