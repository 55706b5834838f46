"""jscc doctor: what this machine can run, what is missing, and the command that adds it.

NOTE: every import that may be missing on the machine under examination waits for its check.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jscc.runtime.commands.options import add_engine, add_json, make_parser
from jscc.runtime.errors import JsccError
from jscc.runtime.jetson import Jetson
from jscc.runtime.machine import (
    Machine,
    Provider,
    describe_machine,
    probe_providers,
    software,
    version_of,
)
from jscc.runtime.terminal import INSTALL, pairs, say, say_json, table

OK, ABSENT, FAILED = "ok", "absent", "FAILED"
_PYTHON = (3, 10)
_DEVICE = ("numpy", "onnxruntime", "PIL")
_ENGINES = ("openvino",)  # what `--engine` offers beside the device's own
_HOST = ("torch", "onnx", "onnxscript", "safetensors")
_HOST_PYTHON = (3, 11)  # which PyPI's wheels of onnxruntime-gpu for aarch64 begin with, too
_ELSEWHERE = "export on another machine, with Python 3.11 or newer"
# Listed by the engine, but it calls a service on the network: nothing of a bundle runs there.
_REMOTE = ("AzureExecutionProvider",)
_KERNEL = "unpack"  # a small one
_UNAVAILABLE = 69


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: `OK`, `ABSENT` (only some uses need it) or `FAILED`.
        found: What was found.
        remedy: The command or step that helps; empty if nothing is wrong.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc doctor [--bundle B]``; 69 if a device could not receive here."""
    parser = make_parser("doctor", "Show what this machine can run and what is missing.")
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="run its self-test here too")
    add_engine(parser)
    add_json(parser)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    checks = [_python(), *map(_module, _DEVICE), *_providers(machine)]
    checks += [_optional(name, "needed for --engine") for name in _ENGINES]
    checks += [*_tensorrt(machine), _nvrtc()]
    checks += [_optional(name, "needed to export") for name in _HOST]
    if options.bundle is not None:
        checks.append(_selftest(options))
    if options.json:
        items = [dataclasses.asdict(check) for check in checks]
        say_json({"checks": items, "machine": dataclasses.asdict(machine), "software": software()})
    else:
        say(_text(machine, checks))
    return _UNAVAILABLE if any(check.state == FAILED for check in checks) else 0


def _text(machine: Machine, checks: Sequence[Check]) -> str:
    rows = [(check.name, check.state, check.found) for check in checks]
    wrong = [check for check in checks if check.remedy]
    parts = [software(), pairs(_machine(machine)), table(rows)]
    if wrong:
        remedies = {f"{check.name}:": check.remedy for check in wrong}
        parts.append("What to do\n" + pairs(remedies))
    return "\n\n".join(parts)


def _machine(machine: Machine) -> Mapping[str, str]:
    memory = "unknown"
    if machine.memory_mib is not None:
        memory = f"{machine.memory_mib} MiB, {machine.available_mib} MiB available"
    return {
        "system": f"{machine.system}, {machine.architecture}",
        "processor": machine.cpu,
        "threads": str(machine.threads),
        "instructions": " ".join(machine.features) or "unknown",
        "memory": memory,
        "NVIDIA device": "yes" if machine.nvidia else "none visible",
        **({} if machine.jetson is None else _jetson(machine.jetson)),
    }


def _jetson(jetson: Jetson) -> Mapping[str, str]:
    """The board, and what its speed depends on."""
    jetpack = "" if jetson.jetpack is None else f" (JetPack {jetson.jetpack})"
    pinned = {True: "pinned", False: "not pinned", None: "unknown"}[jetson.clocks_pinned]
    ranges = [
        f"{name} {low:g}" + f" to {high:g}" * (low != high)
        for name, (low, high) in jetson.clocks_mhz.items()
    ]
    return {
        "board": jetson.model or "a Jetson, which one is hidden",
        "Jetson Linux": f"{jetson.l4t}{jetpack}" if jetson.l4t else "unknown",
        "CUDA toolkit": jetson.cuda or "unknown",
        "power mode": jetson.power_mode or "unknown",
        "clocks": ", ".join([pinned, *(f"{each} MHz" for each in ranges)]),
    }


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _PYTHON:
        return Check("python", OK, version)
    wanted = ".".join(map(str, _PYTHON))
    return Check("python", FAILED, version, f"install Python {wanted} or newer")


def _optional(name: str, use: str) -> Check:
    """Whether a module that only some need is installed; it is looked up, not imported."""
    version = version_of(name)
    if version is not None:
        return Check(name, OK, version)
    exporting = name in _HOST and sys.version_info[:2] < _HOST_PYTHON
    return Check(name, ABSENT, use, _ELSEWHERE if exporting else INSTALL[name])


def _module(name: str) -> Check:
    """Whether a module imports."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        return Check(name, FAILED, f"{type(error).__name__}: {error}", INSTALL[name])
    return Check(name, OK, str(getattr(module, "__version__", "")))


def _providers(machine: Machine) -> list[Check]:
    """One check for each execution provider, and one for a device that no provider uses."""
    try:
        found = [provider for provider in probe_providers() if provider.name not in _REMOTE]
    except Exception as error:  # no engine, or a broken one; its own check names the remedy
        return [Check("providers", FAILED, f"{type(error).__name__}: {error}", "see onnxruntime")]
    checks = [_provider(provider) for provider in found]
    if machine.nvidia and not any(p.works and p.name.startswith("CUDA") for p in found):
        checks.append(Check("CUDA", ABSENT, "a device that no provider uses", _gpu(machine)))
    return checks


def _gpu(machine: Machine) -> str:
    """How a device of NVIDIA's is used. PyPI's wheels for aarch64 are for servers."""
    arm = machine.architecture == "aarch64" and sys.version_info[:2] < _HOST_PYTHON
    if machine.jetson is not None or arm:
        return "receive with --engine tensorrt; PyPI has no onnxruntime-gpu for this machine"
    return "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def _provider(provider: Provider) -> Check:
    name = provider.name.removesuffix("ExecutionProvider") + " provider"
    if provider.works:
        return Check(name, OK, "a session starts")
    state = FAILED if provider.name.startswith("CPU") else ABSENT
    return Check(name, state, provider.reason, "install its libraries, or do without it")


def _tensorrt(machine: Machine) -> list[Check]:
    """What `--engine tensorrt` and `jscc build` need: a library, and a device."""
    checks = []
    try:
        library = importlib.import_module("jscc.runtime.tensorrt.library").load_library()
        targets = ", ".join(library.targets())
        found = f"{library.named}, builds ahead for {targets}" if targets else library.named
        checks.append(Check("tensorrt", OK, found))
    except JsccError as error:
        broken = "got nothing" not in error.message
        found = _finding(error) if broken else "needed for --engine tensorrt and to build"
        checks.append(Check("tensorrt", ABSENT, found, _remedy(error)))
    except ModuleNotFoundError as error:
        checks.append(Check("tensorrt", ABSENT, f"module {error.name!r} is missing", "see above"))
    try:
        device = importlib.import_module("jscc.runtime.device.device").open_device()
        checks.append(Check("CUDA device", OK, f"{device.name}, {device.target}"))
    except JsccError as error:
        lack = _remedy(error) if machine.nvidia or error.code != "E_MODULE" else ""
        found = _finding(error) if machine.nvidia else "no NVIDIA device"
        checks.append(Check("CUDA device", ABSENT, found, lack))
    except ModuleNotFoundError as error:
        checks.append(Check("CUDA device", ABSENT, f"module {error.name!r} is missing"))
    return checks


def _nvrtc() -> Check:
    """Whether the compiler of the kernels compiles one; it needs no device."""
    name = "nvrtc"
    try:
        nvrtc = importlib.import_module("jscc.runtime.device.bindings").import_cuda().nvrtc
        compiler = importlib.import_module("jscc.runtime.device.compiler")
        targets = compiler.nvrtc_targets(nvrtc)
        source = importlib.import_module("jscc.kernels.sources").source_of(_KERNEL)
        compiler.compile_source(nvrtc, _KERNEL, source, targets[-1].removeprefix("sm_"))
        found = f"{compiler.nvrtc_version(nvrtc)}, compiles for {', '.join(targets)}"
        return Check(name, OK, found)
    except JsccError as error:
        broken = "got nothing" not in error.message
        found = _finding(error) if broken else "needed to compile kernels for a CUDA device"
        return Check(name, ABSENT, found, INSTALL["cuda"])
    except ModuleNotFoundError as error:
        return Check(name, ABSENT, f"module {error.name!r} is missing", "see above")


def _finding(error: JsccError) -> str:
    """What a message says was found."""
    return error.message.partition(", expected")[0]


def _remedy(error: JsccError) -> str:
    """What a message says to do."""
    return (
        error.message.partition(" installed. ")[2].removeprefix("Run: ")
        or (error.message.partition("driver. ")[2])
    )


def _selftest(options: argparse.Namespace) -> Check:
    """Whether a bundle decodes its own test here."""
    name = "bundle"
    try:
        engine = importlib.import_module("jscc.runtime.commands.engine")
        bundle = importlib.import_module("jscc.runtime.bundle").Bundle.open(options.bundle)
        if bundle.manifest.selftest is None:
            return Check(name, ABSENT, "verified, but it has no self-test", "export it again")
        names, threads = options.providers, options.threads
        with engine.load_receiver(
            bundle, names, threads, strict=False, engine=options.engine
        ) as receiver:
            found = f"verified, self-test passed in {receiver.where}"
            return Check(name, OK, f"{found}, sha256 {bundle.sha256[:16]}…")
    except JsccError as error:
        return Check(name, FAILED, str(error), "see the line above")
    except ModuleNotFoundError as error:
        return Check(name, FAILED, f"module {error.name!r} is missing", "see the lines above")
