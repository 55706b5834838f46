"""Energy: joules that this machine's own counters give for a piece of work, where it has any.

Sources, found below ``/sys`` or by NVIDIA's library or program:

ina3221     current and voltage of a Jetson's rails
tegrastats  the same by NVIDIA's program, where those files are elsewhere or hidden
rapl        energy of Intel's and AMD's processors: their packages, and memory where it is apart
nvml        energy or power of an NVIDIA device, counted only when it is what runs

All of them count the whole part, whoever uses it: idle power and other programs included.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from jscc.benchmarks.nvml import find_nvml
from jscc.benchmarks.tegrastats import find_tegrastats, whole

Clock = Callable[[], float]

SYS = Path("/sys")
NOTHING = "energy: this machine has no counter"
_SAMPLE_S = 0.05
_WRAP_S = 10.0


class Counter(Protocol):
    """Counts the energy of parts of this machine."""

    @property
    def interval_s(self) -> float:
        """How often `read` has to be called at least."""

    def read(self) -> Mapping[str, float]:
        """Energy of each part since the first call, in joules.

        Raises:
            OSError: The counter is gone.
        """


class Integral:
    """Energy out of samples of power, by trapezoids."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, float]] = {}
        self._joules: dict[str, float] = {}

    def add(self, watts: Mapping[str, float]) -> Mapping[str, float]:
        """Take a sample of each part's power in watts; the joules up to now."""
        now = self._clock()
        for name, value in watts.items():
            before, power = self._last.get(name, (now, value))
            joules = (now - before) * (power + value) / 2
            self._joules[name] = self._joules.get(name, 0.0) + joules
            self._last[name] = (now, value)
        return dict(self._joules)


class RaplCounter:
    """Running Average Power Limit: counters of microjoules that begin again at their range.

    Args:
        zones: Folder of each zone by name.
    """

    interval_s = _WRAP_S

    def __init__(self, zones: Mapping[str, Path]) -> None:
        self._zones = zones
        self._ranges = {name: _whole(at / "max_energy_range_uj") for name, at in zones.items()}
        self._last: dict[str, int] = {}
        self._joules = dict.fromkeys(zones, 0.0)

    def read(self) -> Mapping[str, float]:
        """See `Counter`."""
        for name, folder in self._zones.items():
            value = _whole(folder / "energy_uj")
            used = value - self._last.get(name, value)
            if used < 0:
                used += self._ranges[name]
            self._joules[name] += used / 1e6
            self._last[name] = value
        return dict(self._joules)


class InaCounter:
    """INA3221 sensors: voltage times current of each rail, sampled.

    Args:
        rails: Files with millivolts and milliamperes of each rail.
        clock: In seconds.
    """

    interval_s = _SAMPLE_S

    def __init__(
        self, rails: Mapping[str, tuple[Path, Path]], clock: Clock = time.monotonic
    ) -> None:
        self._rails = rails
        self._integral = Integral(clock)

    def read(self) -> Mapping[str, float]:
        """See `Counter`."""
        watts = {
            name: _whole(volts) * _whole(amperes) / 1e6
            for name, (volts, amperes) in self._rails.items()
        }
        return self._integral.add(watts)


@dataclass(frozen=True)
class Reading:
    """What a counter said, and when."""

    at: float
    joules: Mapping[str, float]


class Meter:
    """Counts what is used while its block runs.

    A reading may be a process of its own that takes longer than the block, and one may be under
    way when the block ends. So what is used at either end is interpolated between the readings
    around it.

    Args:
        counters: To read; none are there on many machines.
        reason: Why there are none, or what they leave out.
        clock: In seconds; that of the counters.
    """

    def __init__(
        self, counters: Sequence[Counter], reason: str, clock: Clock = time.monotonic
    ) -> None:
        self._counters = counters
        self._reason = reason
        self._clock = clock
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[OSError] = []
        self._readings: list[list[Reading]] = [[] for _ in counters]
        self._parts: dict[str, float] = {}
        self._began = self._ended = 0.0

    @property
    def seconds(self) -> float:
        """How long the block ran."""
        return self._ended - self._began

    def __enter__(self) -> "Meter":
        self._stop.clear()
        self._readings = [[] for _ in self._counters]
        pairs = list(zip(self._counters, self._readings, strict=True))
        self._threads = [
            threading.Thread(target=self._watch, args=pair, daemon=True) for pair in pairs
        ]
        for counter, readings in reversed(pairs):
            self._read(counter, readings)
        self._began = self._clock()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()  # first, so that at most one reading of each is later than the end
        self._ended = self._clock()
        for thread in self._threads:
            thread.join()
        for counter, readings in zip(self._counters, self._readings, strict=True):
            if readings[-1].at <= self._ended:
                self._read(counter, readings)
            before = _between(readings[0], readings[1], self._began)
            after = _between(readings[-2], readings[-1], self._ended)
            for name, joules in after.items():
                self._parts[name] = joules - before.get(name, 0.0)

    def per_image(self, images: float) -> dict[str, object]:
        """What was used for each of `images`, for a result.

        Returns:
            ``joules_per_image``, the mean of ``watts``, joules by part and a reason; the first two
            are None where nothing could be counted.
        """
        joules = sum(self._parts.values())
        if not self._parts or self._errors or not (images > 0 and self.seconds > 0):
            failed = f"energy: the counter failed ({self._errors[0]})" if self._errors else ""
            reason = failed or self._reason or NOTHING
            return {"joules_per_image": None, "watts": None, "parts": {}, "reason": reason}
        return {
            "joules_per_image": joules / images,
            "watts": joules / self.seconds,
            "parts": {name: round(value, 4) for name, value in self._parts.items()},
            "reason": self._reason,
        }

    def _watch(self, counter: Counter, readings: list[Reading]) -> None:
        while not self._stop.wait(counter.interval_s):
            self._read(counter, readings)

    def _read(self, counter: Counter, readings: list[Reading]) -> None:
        """Read once more; only the first two and the last two are kept."""
        try:
            joules = counter.read()
        except OSError as error:
            self._errors.append(error)
            joules = {}
        readings.append(Reading(self._clock(), joules))
        del readings[2:-2]


def _between(first: Reading, second: Reading, at: float) -> Mapping[str, float]:
    """What a counter would have said at a time between two readings."""
    span = second.at - first.at
    share = (at - first.at) / span if span else 1.0
    return {
        name: joules - (1 - share) * (joules - first.joules.get(name, 0.0))
        for name, joules in second.joules.items()
    }


def make_meter(*, gpu: bool, root: Path = SYS) -> Meter:
    """A meter of what this machine can count.

    Args:
        gpu: Whether the work is done by a device of NVIDIA's.
        root: Where the system's files are.
    """
    counters, reason = find_counters(gpu=gpu, root=root)
    return Meter(counters, reason)


def find_counters(*, gpu: bool, root: Path = SYS) -> tuple[tuple[Counter, ...], str]:
    """The counters of this machine, and why there are none or what they leave out."""
    rails = _rails(root / "class" / "hwmon")
    if rails:  # of the whole module, its GPU included
        return (InaCounter(rails),), ""
    module = find_tegrastats(Integral(time.monotonic))
    if module is not None:
        return (module,), ""
    counters: list[Counter] = []
    zones, reason = _zones(root / "class" / "powercap")
    if zones:
        counters.append(RaplCounter(zones))
    if gpu:
        device = find_nvml(Integral(time.monotonic))
        if device is None:
            reason = "energy: the GPU has no counter" + (
                ", only the processor is in it" * bool(zones)
            )
        else:
            counters.append(device)
    return tuple(counters), reason if reason or counters else NOTHING


def _zones(folder: Path) -> tuple[dict[str, Path], str]:
    """Packages and their memory, which no package contains; and why they cannot be read."""
    found: dict[str, Path] = {}
    for path in sorted(
        folder.glob("intel-rapl:*")
    ):  # AMD's too; intel-rapl-mmio: is the same again
        name = _text(path / "name")
        if name.startswith("package"):
            found[f"rapl {name}"] = path
        elif name == "dram":
            package = path.name.split(":")[1]
            found[f"rapl dram-{package}"] = path
    for name, path in found.items():
        try:
            _whole(path / "energy_uj"), _whole(path / "max_energy_range_uj")
        except PermissionError:
            return {}, f"energy: {path.name} may be read by root only; run as root"
        except OSError as error:
            return {}, f"energy: {name} cannot be read ({error})"
    return found, ""


def _rails(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Rails of INA3221 sensors that together are the whole, each part once."""
    found: dict[str, tuple[Path, Path]] = {}
    for monitor in sorted(folder.glob("hwmon*")):
        if _text(monitor / "name") != "ina3221":
            continue
        for number in (1, 2, 3):  # those above are shunt voltages and their sum
            label = _text(monitor / f"in{number}_label")
            files = monitor / f"in{number}_input", monitor / f"curr{number}_input"
            if label not in ("", "NC") and all(_readable(file) for file in files):
                found[label] = files
    return {f"ina3221 {label}": found[label] for label in whole(found)}


def _readable(path: Path) -> bool:
    try:
        _whole(path)
    except OSError:  # a rail that is not populated
        return False
    return True


def _whole(path: Path) -> int:
    """The whole number in a file of the system.

    Raises:
        OSError: There is none, also where something else is in it.
    """
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise OSError(f"{path.name}: got {text[:40]!r}, expected a whole number") from None


def _text(path: Path) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
