"""tegrastats: what a line of this program says of a Jetson, and its power as a counter.

NVIDIA's program prints one line per interval. Its fields depend on board, release and rights:

    05-16-2025 18:30:28             when, in whole seconds; not before JetPack 5
    RAM 2461/7620MB                 memory in use and there, in MiB for all it says
    CPU [19%@729,14%@729,off]       load and MHz of each core; cpu [19%,off]@729 in JetPack 3
    EMC_FREQ 4%@2133  EMC_FREQ 0%   of the memory controller
    GR3D_FREQ 0%@[305]  0%@76  @[314,314]   of the GPU, or of each of its clusters
    gpu@48.2C  CPU@35.8C/36.1C      a sensor, since JetPack 7 with its highest so far; -256C is off
    VDD_IN 5704mW/5690mW  POM_5V_IN 900/943   a rail's power now, its mean since the program's
                                    start, and since JetPack 7 the highest

Means and highest values go back to the program's start, so only the first numbers are taken.

NOTE: the program was never run here; tests have lines that others recorded.
"""

import re
import shutil
import subprocess
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from jscc.benchmarks.nvml import Samples

INTERVAL_MS = 1000  # of the program, unless it is told another
# Rails that carry everything; the others of the same board are parts of them.
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
# Fed by VIN_SYS_5V0, which is counted.
_INNER = ("VDDQ_VDD2_1V8AO",)
_UNCONNECTED = "NC"
# A constant, 50 or 100, on every board that names it (balena-os/balena-jetson issue 142).
_CONSTANT = "PMIC"
_OFF_C = -256.0
_SAMPLE_MS = 100
_TIMEOUT_S = 10.0

_STAMP = re.compile(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d ")
_RAM = re.compile(r"(?<!\S)RAM +(\d{1,8})/(\d{1,8})MB(?!\S)")
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]{1,40}) +(\d{1,8})(?:mW)?/\d{1,8}(?:mW)?(?![^\s/])")
_SENSOR = re.compile(r"(?<!\S)(\w{1,40})@(-?\d{1,4}(?:\.\d{1,6})?)C(?![^\s/])")
_CORES = re.compile(r"(?<!\S)(?:CPU|cpu) +\[[^\[\]]{1,4000}\](?:@\d{1,6})?")
_UNIT = re.compile(
    r"(?<!\S)(EMC|GR3D2?)(?:_FREQ)? +(?:(\d{1,3})%)?(?:@(?:\[([\d,]{1,99})\]|(\d{1,6})))?"
)


@dataclass(frozen=True)
class Sample:
    """One line.

    Attributes:
        at: The board's clock, without a zone; None where the line has no date.
        ram_mib: In use, and there.
        watts: Power of each rail.
        mhz: Highest clock of the ``CPU`` cores, the memory ``EMC`` and the GPU ``GR3D``.
        load: Of the same in percent, the mean of all cores that are on.
        celsius: Temperatures, of sensors that are on.
    """

    at: datetime | None
    ram_mib: tuple[int, int]
    watts: Mapping[str, float]
    mhz: Mapping[str, float]
    load: Mapping[str, float]
    celsius: Mapping[str, float]


def parse_line(line: str) -> Sample | None:
    """What a line says, or None if it is none of tegrastats' or is cut off before its memory."""
    ram, stamp = _RAM.search(line), _STAMP.match(line)
    if ram is None:
        return None
    try:
        at = None if stamp is None else datetime.strptime(stamp[0], "%m-%d-%Y %H:%M:%S ")
    except ValueError:  # such as month 13
        return None
    mhz, load = _clocks(line)
    found = ((name, float(value)) for name, value in _SENSOR.findall(line))
    return Sample(
        at=at,
        ram_mib=(int(ram[1]), int(ram[2])),
        watts={
            name: int(value) / 1e3 for name, value in _RAIL.findall(line) if name != _UNCONNECTED
        },
        mhz=mhz,
        load=load,
        celsius={n: value for n, value in found if n != _CONSTANT and value > _OFF_C},
    )


def is_printed(line: str) -> bool:
    """Whether a line is one of tegrastats', be it cut off."""
    return bool(_STAMP.match(line) or _RAM.search(line))


def whole(rails: Collection[str]) -> tuple[str, ...]:
    """Those of `rails` that together are the whole module, each part of it once."""
    carriers = tuple(name for name in rails if name in _WHOLE)
    return carriers or tuple(name for name in rails if name not in _INNER)


class TegrastatsCounter:
    """The module's power, by the program's own readings.

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
        line = self._line()
        sample = parse_line(line)
        if sample is None or not sample.watts:
            raise OSError(f"tegrastats: got {line[:80]!r}, expected a line with rails")
        return self._samples.add(
            {f"tegrastats {name}": sample.watts[name] for name in whole(sample.watts)}
        )

    def _line(self) -> str:
        """The first line of a fresh process, which goes on until it is stopped."""
        command = [self._program, "--interval", str(_SAMPLE_MS)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as process:
            limit = threading.Timer(_TIMEOUT_S, process.kill)
            limit.start()
            try:
                return process.stdout.readline() if process.stdout else ""
            finally:
                limit.cancel()
                process.kill()


def find_tegrastats(samples: Samples) -> TegrastatsCounter | None:
    """A counter that works, or None: no program, or it names no rail to this user."""
    program = shutil.which("tegrastats")
    if program is None:
        return None
    try:
        counter = TegrastatsCounter(program, samples)
        counter.read()
    except OSError:
        return None
    return counter


def _clocks(line: str) -> tuple[dict[str, float], dict[str, float]]:
    """Clocks and loads."""
    mhz: dict[str, float] = {}
    load: dict[str, float] = {}
    cores = _CORES.search(line)
    if cores is not None:
        loads = re.findall(r"(\d{1,3})%", cores[0])
        clocks = re.findall(r"@(\d{1,6})", cores[0])
        _put(load, "CPU", [sum(map(int, loads)) / len(loads)] if loads else [])
        _put(mhz, "CPU", map(int, clocks))
    for name, percent, clusters, clock in _UNIT.findall(line):
        unit = name.removesuffix("2")  # the second cluster of an Orin has its own field in some
        _put(load, unit, [float(percent)] if percent else [])
        _put(mhz, unit, [float(each) for each in (clusters or clock).split(",") if each])
    return mhz, load


def _put(into: dict[str, float], name: str, values: Iterable[float]) -> None:
    """Keep the highest value of `name`."""
    for value in values:
        into[name] = max(value, into.get(name, value))
