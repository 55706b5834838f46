"""Machine: facts that can be checked against the system's own, and providers that really start."""

import os
import platform

import numpy as np
import onnxruntime as ort
import pytest

from jscc.runtime import machine
from jscc.runtime.machine import (
    available_threads,
    describe_machine,
    peak_rss_mib,
    probe_model,
    probe_providers,
    software,
    version_of,
)

linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")


def test_the_machine_is_described():
    found = describe_machine()
    assert found.architecture == platform.machine()
    assert found.cpu
    assert 1 <= found.threads <= (os.cpu_count() or 1)
    assert found.threads == available_threads()


@linux
def test_memory_and_its_peak():
    found = describe_machine()
    assert found.memory_mib is not None
    assert found.available_mib is not None
    assert 0 < found.available_mib <= found.memory_mib
    before = peak_rss_mib()
    block = np.ones(2**25, np.float64)  # 256 MiB, touched
    after = peak_rss_mib()
    del block
    assert before is not None
    assert after is not None
    assert after >= 256
    assert peak_rss_mib() >= after - 8  # the kernel counts in batches


def test_a_container_s_limits_count(monkeypatch):
    files = {
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/memory.max": f"{512 << 20}\n",
        "/sys/fs/cgroup/memory.current": f"{100 << 20}\n",
        "/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
        "/proc/cpuinfo": "model name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni zzz\n",
    }
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    found = describe_machine()
    assert (found.threads, found.memory_mib, found.available_mib) == (2, 512, 412)
    assert (found.cpu, found.features) == ("A CPU", ("avx2", "avx512_vnni"))


def test_an_unknown_machine_is_described_too(monkeypatch):
    monkeypatch.setattr(machine, "_text", lambda path: "")
    found = describe_machine()
    assert (found.memory_mib, found.available_mib, found.features) == (None, None, ())
    assert peak_rss_mib() is None


def test_the_probe_is_a_model_that_runs():
    session = ort.InferenceSession(probe_model(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.array([3.5], np.float32)})
    assert result.tolist() == [3.5]


def test_the_cpu_provider_starts():
    (cpu,) = [p for p in probe_providers() if p.name == "CPUExecutionProvider"]
    assert cpu.works
    assert cpu.reason == ""


def test_a_provider_that_is_not_there_does_not_pass_for_one(capfd):
    """The engine makes a CPU session instead, with a mere warning."""
    for provider in probe_providers(["NopeExecutionProvider", "QNNExecutionProvider"]):
        assert not provider.works
        assert provider.reason
    assert capfd.readouterr().out == ""


def test_versions():
    assert version_of("numpy") == np.__version__
    assert version_of("no-such-distribution-of-anyone") is None
    assert software().startswith("jscc-edge ")
