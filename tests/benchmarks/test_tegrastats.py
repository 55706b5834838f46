"""tegrastats: lines of real boards, and the program as a counter of energy."""

from datetime import datetime

import pytest

import tegrastats_lines as lines
from jscc.benchmarks import energy, tegrastats
from jscc.benchmarks.energy import Integral, find_counters
from jscc.benchmarks.tegrastats import TegrastatsCounter, find_tegrastats, parse_line, whole


@pytest.mark.parametrize(
    ("line", "ram", "watts"),
    [
        (lines.TX1_OLD, (3607, 3983), {}),
        (lines.NANO, (534, 3964), {"POM_5V_IN": 1.022, "POM_5V_GPU": 0, "POM_5V_CPU": 0.204}),
        (
            lines.AGX_XAVIER,
            (721, 31927),
            {"GPU": 0, "CPU": 0.311, "SOC": 0.932, "CV": 0, "VDDRQ": 0.621, "SYS5V": 1.482},
        ),
        (
            lines.XAVIER_NX,
            (4412, 7772),
            {"VDD_IN": 4.067, "VDD_CPU_GPU_CV": 0.738, "VDD_SOC": 1.353},
        ),
        (  # NC is not connected
            lines.AGX_ORIN_5,
            (4321, 62801),
            {
                "VDD_GPU_SOC": 2.34,
                "VDD_CPU_CV": 0.39,
                "VIN_SYS_5V0": 4.025,
                "VDDQ_VDD2_1V8AO": 0.301,
            },
        ),
        (  # the power now, not the mean that follows it
            lines.ORIN_NX,
            (6982, 7620),
            {"VDD_IN": 17.946, "VDD_CPU_GPU_CV": 8.896, "VDD_SOC": 3.923},
        ),
        (
            lines.AGX_ORIN,
            (2448, 62840),
            {"VDD_GPU_SOC": 4.94, "VDD_CPU_CV": 0.988, "VIN_SYS_5V0": 4.442},
        ),
        (
            lines.THOR,
            (9091, 125811),
            {"VDD_GPU": 4.925, "VDD_CPU_SOC_MSS": 7.953, "VIN_SYS_5V0": 6.667},
        ),
    ],
)
def test_memory_and_rails(line, ram, watts):
    sample = parse_line(line)
    assert sample.ram_mib == ram
    assert sample.watts == watts


@pytest.mark.parametrize(
    ("line", "mhz", "load"),
    [
        (
            lines.TX1_OLD,
            {"CPU": 1734, "EMC": 1600, "GR3D": 76},
            {"CPU": 23.25, "EMC": 1, "GR3D": 39},
        ),
        (  # the mean of the cores that are on
            lines.TX2,
            {"CPU": 345, "EMC": 1600, "GR3D": 624},
            {"CPU": 1, "EMC": 4, "GR3D": 0},
        ),
        (
            lines.ORIN_NX,
            {"CPU": 1984, "EMC": 3199, "GR3D": 713},
            {"CPU": 559 / 6, "EMC": 18, "GR3D": 84},
        ),
        (
            lines.AGX_ORIN_ROOT,
            {"CPU": 2201, "EMC": 2133, "GR3D": 305},
            {"CPU": 209 / 12, "EMC": 1, "GR3D": 0},
        ),
        (lines.AGX_ORIN, {"CPU": 2201}, {"CPU": 0, "GR3D": 0}),
        (lines.THOR, {"CPU": 972, "EMC": 3200, "GR3D": 314}, {"CPU": 23.5, "EMC": 7}),
    ],
)
def test_clocks_and_loads(line, mhz, load):
    sample = parse_line(line)
    assert sample.mhz == mhz
    assert sample.load == pytest.approx(load)


def test_temperatures_are_of_sensors_that_are_on():
    nano = parse_line(lines.NANO).celsius  # without PMIC, which never changes
    assert nano == {"PLL": 34, "CPU": 36.5, "GPU": 36, "AO": 39.5, "thermal": 36.25}
    off = parse_line(lines.AGX_ORIN_5).celsius
    assert set(off) == {"CPU", "Tboard", "SOC2", "Tdiode", "SOC0", "tj", "SOC1"}
    assert parse_line(lines.THOR).celsius["cpu"] == 34.312
    assert max(parse_line(lines.ORIN_NX).celsius.values()) == 65.562


def test_the_time_is_month_first_and_missing_in_jetpack_4():
    assert parse_line(lines.ORIN_NX).at == datetime(2025, 5, 15, 18, 30, 28)
    assert parse_line(lines.NANO).at is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\0" * 100,
        "NVRM: Xid (PCI:0000:01:00): 79",
        "soc1@64.7C VDD_IN 17946mW/15710mW VDD_SOC 3923mW/3515mW",
        lines.ORIN_NX[:33],  # RAM 6982/7620
        lines.ORIN_NX.replace("05-15", "15-05"),
        "PROGRAM 1/2MB",
    ],
)
def test_what_is_no_line_of_it(line):
    assert parse_line(line) is None


def test_a_line_that_is_cut_off_has_what_it_shows():
    cut = lines.ORIN_NX[: lines.ORIN_NX.index("/15710mW")]
    assert parse_line(cut).watts == {}
    cut = lines.ORIN_NX[: lines.ORIN_NX.index("710mW")]
    assert parse_line(cut).watts == {"VDD_IN": 17.946}


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        (lines.NANO, {"POM_5V_IN"}),
        (lines.TX2, {"VDD_IN"}),
        (lines.AGX_XAVIER, {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),
        (lines.AGX_ORIN_5, {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
        (lines.ORIN_NX, {"VDD_IN"}),
    ],
)
def test_the_whole_has_each_part_once(line, rails):
    assert set(whole(parse_line(line).watts)) == rails


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that prints a line and goes on, as the real one does."""
    path = tmp_path / "tegrastats"
    monkeypatch.setattr(tegrastats, "_TIMEOUT_S", 120)
    monkeypatch.setattr(
        tegrastats.shutil, "which", lambda name: {"tegrastats": str(path)}.get(name)
    )

    def install(text):
        path.write_text(f'#!/bin/sh\n[ "$1" = --interval ] || exit 1\n{text}\n')
        path.chmod(0o755)
        return path

    return install


def test_the_program_is_a_counter(program):
    path = program(f"echo '{lines.ORIN_NX}'; exec sleep 60")
    clock = Clock()
    counter = TegrastatsCounter(str(path), Integral(clock))
    assert counter.read() == {"tegrastats VDD_IN": 0}
    clock.now = 2.0
    assert counter.read() == pytest.approx({"tegrastats VDD_IN": 2 * 17.946})


def test_a_program_that_tells_no_power_fails_and_is_not_taken(program):
    path = program(f"echo '{lines.TX1_OLD}'; exec sleep 60")
    with pytest.raises(OSError, match=r"^tegrastats: got 'RAM 3607.*, expected a line with rails"):
        TegrastatsCounter(str(path), Integral(Clock())).read()
    assert find_tegrastats(Integral(Clock())) is None
    program("exit 1")
    assert find_tegrastats(Integral(Clock())) is None


def test_a_program_that_says_nothing_is_stopped(program, monkeypatch):
    monkeypatch.setattr(tegrastats, "_TIMEOUT_S", 0.05)
    program("exec sleep 600")
    assert find_tegrastats(Integral(Clock())) is None


def test_it_counts_where_the_rails_are_hidden(program, tmp_path):
    program(f"echo '{lines.NANO}'; exec sleep 60")
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (counter,), reason = find_counters(gpu=True, root=tmp_path / "sys")
    assert (type(counter), reason) == (TegrastatsCounter, "")


def test_the_rails_themselves_come_first(program, tmp_path):
    program(f"echo '{lines.NANO}'; exec sleep 60")
    sensor = tmp_path / "class/hwmon/hwmon0"
    sensor.mkdir(parents=True)
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1000"}
    for name, text in files.items():
        (sensor / name).write_text(text)
    (counter,), _ = find_counters(gpu=True, root=tmp_path)
    assert isinstance(counter, energy.InaCounter)
