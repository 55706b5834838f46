"""The runtime on a device: an environment with numpy, ONNX Runtime and Pillow, nothing else.

The dependencies lie inside the developer's environment, once per interpreter and content of
``.requirements/device.txt``; each run makes a fresh environment on top of them.
"""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import tegrastats_lines
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / ".requirements" / "device.txt"
CHECK = Path(__file__).with_name("device_check.py")
# The oldest Python that a supported device has (JetPack 6), and the one that runs the tests.
INTERPRETERS = ("python3.10", sys.executable)
FOREIGN = (
    *("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "scipy", "triton"),
    *("huggingface_hub", "yaml", "rich", "openvino"),
)

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Device:
    """An environment with the device's dependencies and this package's wheel."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, without the developer's settings."""
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def install(python: str, *arguments: str) -> None:
    """Let the developer's pip install for another interpreter, so that a device needs none."""
    quiet = ("install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *quiet, *arguments], check=True
    )


def interpreter(name: str) -> str:
    """The path of a Python outside any virtual environment that really starts, or skip."""
    if name == sys.executable:
        return str(Path(sys.base_prefix) / "bin" / "python3")
    found = shutil.which(name)
    if found is None or subprocess.run([found, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"{name} is not on this machine")
    return found


def dependencies(python: str) -> Path:
    """A folder with the pinned dependencies for that interpreter, filled once."""
    key = hashlib.sha256(PINS.read_bytes() + python.encode()).hexdigest()[:16]
    folder = Path(sys.prefix) / "device" / key
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            made = Path(work, "site")
            install(python, "--no-compile", "--target", str(made), "-r", str(PINS))
            with contextlib.suppress(OSError):  # another run was faster
                made.rename(folder)
    return folder


@pytest.fixture(scope="module", params=INTERPRETERS, ids=lambda name: Path(name).name)
def device(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Device:
    """A virtual environment with the dependencies in reach and this package's wheel."""
    python = interpreter(request.param)
    folder = tmp_path_factory.mktemp("device")
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies(python)}\n")
    install(str(folder / "bin" / "python"), "--no-deps", "--no-index", str(wheel))
    return Device(folder)


def test_the_runtime_needs_nothing_else(device, tmp_path, record_property):
    ran = device.run("python", "-I", "-W", "error", CHECK, *FOREIGN, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    findings = json.loads(ran.stdout)
    assert findings["foreign"] == []
    assert str(device.folder) in findings["origin"]
    sources = {
        ".".join(("jscc", *path.relative_to(ROOT).with_suffix("").parts))
        for folder in ("runtime", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    }
    named = {name.removesuffix(".__init__") for name in sources} - {"jscc.runtime", "jscc.kernels"}
    assert set(findings["modules"]) == named
    for name in ("python", "import_ms", "installed_mib"):
        record_property(name, findings[name])
    sys.stdout.write(
        f"Python {findings['python']}: import {findings['import_ms']} ms, "
        f"installed {findings['installed_mib']} MiB\n"
    )


def test_doctor_reports(device, tmp_path):
    ran = device.run("jscc", "doctor", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "onnxruntime" in ran.stdout


@pytest.mark.parametrize("command", [("jscc", "export"), ("jscc-export",)])
def test_export_says_what_is_missing(device, command, tmp_path):
    ran = device.run(*command, "--model", "diffjscc", "-o", "x.jscc", cwd=tmp_path)
    assert ran.returncode == 69
    assert "torch" in ran.stderr or "rich" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_picture_crosses_the_radio(device, shared_bundles, tmp_path):
    """Transmitter, channel and a receiver with a diffusion loop, as on the host."""
    codec, diffusion = (str(shared_bundles[name].path) for name in ("codec", "diffusion"))
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    np.save(tmp_path / "context.npy", np.ones((1, 2, 5), np.float32))
    commands = (
        f"send {codec} photo.png -o sent.sigmf-meta",
        "channel sent.sigmf-meta --snr 9 --seed 1 -o heard.sigmf-meta",
        f"receive {codec} heard.sigmf-meta -o decoded.png",
        "channel sent.sigmf-meta --snr 9 --seed 1 -o heard.npy",
        f"receive {diffusion} heard.npy --snr 9 --size 24x40 --context context.npy -o drawn.png",
    )
    for command in commands:
        ran = device.run("jscc", *command.split(), cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    for name, bundle in (("decoded", codec), ("drawn", diffusion)):
        there = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
        here = receive_here(Path(bundle), tmp_path / "heard.npy").astype(int)
        assert np.abs(there - here).max() <= 1  # rounding; ONNX Runtime versions differ


def test_a_device_measures_itself(device, shared_bundles, tmp_path):
    """README.md, "Jetson": neither command needs more than the device has."""
    codec = shared_bundles["codec"].path
    ran = device.run(
        *("jscc", "bench", codec, "--size", "24x40", "--runs", "1", "--json", "bench.json"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored["latency_ms"]["end_to_end"]["p50"] > 0
    (tmp_path / "power.log").write_text("\n".join(tegrastats_lines.AGX_ORIN_THREE))
    ran = device.run("jscc", "bench", "tegrastats", "power.log", "--interval", "1000", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "26.08 J" in ran.stdout


def receive_here(path: Path, symbols: Path) -> npt.NDArray[np.uint8]:
    """The picture that this environment receives from the same symbols."""
    bundle = Bundle.open(path)
    side = {"context": np.ones((1, 2, 5), np.float32)} if bundle.manifest.side_inputs else None
    received = np.load(symbols)
    picture, _ = Receiver(bundle).receive(received, Csi(9.0), seed=0, size=(24, 40), side=side)
    return picture
