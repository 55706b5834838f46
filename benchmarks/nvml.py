"""NVML: energy of an NVIDIA device, by ``pynvml`` where it is installed, else by ``nvidia-smi``."""

import importlib
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Protocol

_QUERY = ("--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0")
_TIMEOUT_S = 10


class Samples(Protocol):
    """Sums samples of power up; `jscc.benchmarks.energy.Integral`."""

    def add(self, watts: Mapping[str, float]) -> Mapping[str, float]:
        """Take a sample in watts; the joules up to now."""


class NvmlCounter:
    """The first device, by its counter of millijoules, or by its power where it has none.

    Args:
        library: The module ``pynvml``, initialised.
        samples: For devices without a counter.
    """

    interval_s = 0.05

    def __init__(self, library: Any, samples: Samples) -> None:
        self._library = library
        self._device = library.nvmlDeviceGetHandleByIndex(0)
        self._samples = samples
        self._first: int | None = None

    def read(self) -> Mapping[str, float]:
        """See `jscc.benchmarks.energy.Counter`."""
        try:
            millijoules = int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device))
        except self._library.NVMLError:
            return self._sampled()
        if self._first is None:
            self._first = millijoules
        return {"nvml gpu-0": (millijoules - self._first) / 1e3}

    def _sampled(self) -> Mapping[str, float]:
        try:
            milliwatts = float(self._library.nvmlDeviceGetPowerUsage(self._device))
        except self._library.NVMLError as error:
            raise OSError(str(error)) from error
        return self._samples.add({"nvml gpu-0": milliwatts / 1e3})


class SmiCounter:
    """The first device, by the power that the program ``nvidia-smi`` prints.

    Args:
        program: Its path.
        samples: Sums them up.
    """

    interval_s = 1.0  # each sample is a process of its own

    def __init__(self, program: str, samples: Samples) -> None:
        self._program = program
        self._samples = samples

    def read(self) -> Mapping[str, float]:
        """See `jscc.benchmarks.energy.Counter`."""
        try:
            ran = subprocess.run(
                [self._program, *_QUERY],
                capture_output=True,
                check=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
            watts = float(ran.stdout.split()[0])
        except (subprocess.SubprocessError, ValueError, IndexError) as error:
            raise OSError(f"nvidia-smi: {error}") from error
        return self._samples.add({"nvidia-smi gpu-0": watts})


def find_nvml(samples: Samples) -> NvmlCounter | SmiCounter | None:
    """A counter of the first device that works, or None."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        library = None
    if library is not None:
        try:
            library.nvmlInit()
            counter = NvmlCounter(library, samples)
            counter.read()
        except (OSError, library.NVMLError):
            pass
        else:
            return counter
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        smi = SmiCounter(program, samples)
        smi.read()
    except OSError:
        return None
    return smi
