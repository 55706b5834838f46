"""Energy: the counters of made-up machines, and the reason where a machine has none."""

import os
import sys
import threading
import types

import pytest

from jscc.benchmarks import energy, nvml
from jscc.benchmarks.energy import (
    NOTHING,
    InaCounter,
    Integral,
    Meter,
    RaplCounter,
    find_counters,
    make_meter,
)
from jscc.benchmarks.report import energy_line


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """This machine's own device is out of it."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml.shutil, "which", lambda name: None)


def zone(root, folder, name, energy_uj=0, range_uj=1_000_000):
    at = root / "class" / "powercap" / folder
    at.mkdir(parents=True)
    (at / "name").write_text(f"{name}\n")
    (at / "energy_uj").write_text(f"{energy_uj}\n")
    (at / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return at


def monitor(root, number, rails, chip="ina3221"):
    """A sensor; each rail is (label, millivolts, milliamperes)."""
    at = root / "class" / "hwmon" / f"hwmon{number}"
    at.mkdir(parents=True)
    (at / "name").write_text(f"{chip}\n")
    for index, (label, volts, amperes) in enumerate(rails, 1):
        (at / f"in{index}_label").write_text(f"{label}\n")
        (at / f"in{index}_input").write_text(f"{volts}\n")
        (at / f"curr{index}_input").write_text(f"{amperes}\n")
    (at / "in7_label").write_text("sum of shunt voltages\n")
    return at


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


def test_rapl_counts_microjoules_and_goes_on_after_its_range(tmp_path):
    at = zone(tmp_path, "intel-rapl:0", "package-0", energy_uj=900_000)
    counter = RaplCounter({"rapl package-0": at})
    assert counter.read() == {"rapl package-0": 0}
    (at / "energy_uj").write_text("950000\n")
    assert counter.read()["rapl package-0"] == pytest.approx(0.05)
    (at / "energy_uj").write_text("30000\n")  # 50 000 to the end of the range, 30 000 beyond
    assert counter.read()["rapl package-0"] == pytest.approx(0.13)


def test_rapl_takes_every_part_once(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    (counter,), reason = find_counters(gpu=False, root=tmp_path)
    assert set(counter.read()) == {"rapl package-0", "rapl package-1", "rapl dram-0"}
    assert reason == ""


def test_a_counter_for_root_only_is_a_reason(tmp_path, monkeypatch):
    at = zone(tmp_path, "intel-rapl:0", "package-0")
    (at / "energy_uj").chmod(0)
    if os.access(at / "energy_uj", os.R_OK):  # root reads everything

        def refuse(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(energy, "_whole", refuse)
    assert find_counters(gpu=False, root=tmp_path) == (
        (),
        "energy: intel-rapl:0 may be read by root only; run as root",
    )


def test_power_is_summed_by_trapezoids():
    clock = Clock()
    integral = Integral(clock)
    integral.add({"a": 10.0})
    clock.now = 2.0
    integral.add({"a": 20.0})
    clock.now = 3.0
    assert integral.add({"a": 20.0}) == {"a": 2 * 15 + 20}


def test_a_jetson_is_counted_by_its_rails(tmp_path):
    monitor(
        tmp_path,
        3,
        [("VDD_GPU_SOC", 20_000, 500), ("VDD_CPU_CV", 20_000, 250), ("VIN_SYS_5V0", 5000, 1000)],
    )
    monitor(tmp_path, 4, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200)])
    monitor(tmp_path, 5, [("VDD_GPU_SOC", 1, 1)], chip="other")
    (counter,), _ = find_counters(gpu=True, root=tmp_path)
    clock = Clock()
    counter = InaCounter(counter._rails, clock)
    counter.read()
    clock.now = 2.0
    assert counter.read() == {
        "ina3221 VDD_GPU_SOC": 20.0,
        "ina3221 VDD_CPU_CV": 10.0,
        "ina3221 VIN_SYS_5V0": 10.0,
    }


def test_a_rail_that_carries_everything_is_counted_alone(tmp_path):
    at = monitor(tmp_path, 0, [("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 500)])
    (at / "curr2_input").write_text("nothing\n")
    (counter,), _ = find_counters(gpu=False, root=tmp_path)
    assert set(counter.read()) == {"ina3221 VDD_IN"}


class Failure(Exception):
    """What NVIDIA's library raises."""


def library(*, total, power_mw=30_000):
    """A made-up pynvml; `total` gives millijoules, or is None where the device cannot tell."""

    def energy_mj(device):
        if total is None:
            raise Failure("Not Supported")
        return total.pop(0)

    return types.SimpleNamespace(
        NVMLError=Failure,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=energy_mj,
        nvmlDeviceGetPowerUsage=lambda device: power_mw,
    )


def test_nvml_counts_millijoules(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library(total=[5000, 6000, 7500]))
    (counter,), reason = find_counters(gpu=True, root=tmp_path)
    assert reason == ""
    assert counter.read() == {"nvml gpu-0": 1.0}
    assert counter.read() == {"nvml gpu-0": 2.5}


def test_nvml_without_a_counter_is_sampled():
    clock = Clock()
    counter = nvml.NvmlCounter(library(total=None), Integral(clock))
    counter.read()
    clock.now = 0.5
    assert counter.read() == {"nvml gpu-0": 15.0}


def test_nvidia_smi_stands_in(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 40.5\n")
    program.chmod(0o755)
    monkeypatch.setattr(nvml.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(nvml, "_TIMEOUT_S", 120)
    (counter,), _ = find_counters(gpu=True, root=tmp_path / "sys")
    clock = Clock()
    counter = nvml.SmiCounter(counter._program, Integral(clock))
    counter.read()
    clock.now = 2.0
    assert counter.read() == {"nvidia-smi gpu-0": 81.0}
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    with pytest.raises(OSError, match=r"nvidia-smi: .*N/A"):
        counter.read()
    assert find_counters(gpu=True, root=tmp_path / "sys")[0] == ()


def test_a_gpu_that_does_not_work_is_not_counted(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0")
    counters, reason = find_counters(gpu=True, root=tmp_path)
    assert len(counters) == 1
    assert reason == "energy: the GPU has no counter, only the processor is in it"
    assert len(find_counters(gpu=False, root=tmp_path)[0]) == 1


def test_a_machine_without_counters_says_so(tmp_path):
    with make_meter(gpu=False, root=tmp_path) as meter:
        pass
    found = meter.per_image(10)
    assert found == {"joules_per_image": None, "watts": None, "parts": {}, "reason": NOTHING}
    assert energy_line(found) == "energy: this machine has no counter"


def test_the_meter_gives_what_its_block_used(tmp_path):
    at = zone(tmp_path, "intel-rapl:0", "package-0", energy_uj=100_000)
    clock = Clock()
    with Meter(*find_counters(gpu=False, root=tmp_path), clock) as meter:
        (at / "energy_uj").write_text("700000\n")
        clock.now = 2.0
    found = meter.per_image(3)
    assert meter.seconds == 2
    assert found["joules_per_image"] == pytest.approx(0.2)
    assert found["watts"] == pytest.approx(0.3)
    assert found["parts"] == {"rapl package-0": 0.6}
    assert "0.2 J per image" in energy_line(found)
    assert "(rapl package-0, whoever used it)" in energy_line(found)


def test_the_meter_reads_as_often_as_a_counter_wants():
    class Often:
        interval_s = 0.001
        reads = 0
        fifth = threading.Event()

        def read(self):
            self.reads += 1
            if self.reads == 5:
                self.fifth.set()
            return {"a": 2.0 * self.reads}

    counter = Often()
    with Meter([counter], "", lambda: float(counter.reads)) as meter:  # 2 W, then, and exact
        assert counter.fifth.wait(60)
    assert meter.seconds >= 4
    assert meter.per_image(1)["watts"] == pytest.approx(2)


class Slow:
    """A source of 10 W, of which every sample takes a while."""

    def __init__(self, clock, name="a", interval_s=3600.0):
        self.clock, self.name, self.interval_s = clock, name, interval_s
        self.integral = Integral(clock)
        self.reads = 0

    def read(self):
        self.clock.now += 0.15
        self.reads += 1
        return self.integral.add({self.name: 10.0})


@pytest.mark.parametrize("work_s", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("names", ["a", "ab"])
def test_the_time_that_a_reading_takes_is_not_the_block_s(work_s, names):
    clock = Clock()
    with Meter([Slow(clock, name) for name in names], "", clock) as meter:
        clock.now += work_s
    found = meter.per_image(1)
    assert meter.seconds == pytest.approx(work_s)
    watts = 10 * len(names)
    assert (found["watts"], found["joules_per_image"]) == pytest.approx((watts, watts * work_s))


class Late(Slow):
    """Its second sample ends only after the meter has looked at the clock for the last time."""

    def __init__(self, clock):
        super().__init__(clock, interval_s=0.0005)
        self.under_way, self.block_over = threading.Event(), threading.Event()

    def read(self):
        if self.reads == 1:
            self.under_way.set()
            assert self.block_over.wait(60)
        return super().read()


def test_a_reading_under_way_at_the_end_is_waited_for_and_not_counted():
    clock = Clock()
    counter = Late(clock)

    def look():
        now = clock.now
        if counter.under_way.is_set() and threading.current_thread() is threading.main_thread():
            counter.block_over.set()
        return now

    with Meter([counter], "", look) as meter:
        clock.now += 1.0
        assert counter.under_way.wait(60)
    assert meter.seconds == pytest.approx(1.0)
    assert meter.per_image(1)["watts"] == pytest.approx(10)
    assert counter.reads == 2


def test_a_counter_that_fails_on_the_way_gives_nothing(tmp_path):
    at = zone(tmp_path, "intel-rapl:0", "package-0")
    with make_meter(gpu=False, root=tmp_path) as meter:
        (at / "energy_uj").write_text("?\n")
    found = meter.per_image(3)
    assert found["joules_per_image"] is None
    assert found["reason"] == (
        "energy: the counter failed (energy_uj: got '?', expected a whole number)"
    )
