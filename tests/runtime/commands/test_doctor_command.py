"""jscc doctor: what it says is so, what is missing has a remedy, the status tells programs."""

import importlib
import json
import platform
import re
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from fake_cuda import ARCHITECTURES, FakeDriver, FakeNvrtc, Result
from jetson_root import NANO, ORIN_NANO, make_root
from jscc.runtime import jetson, machine
from jscc.runtime.commands import doctor
from jscc.runtime.machine import Provider
from jscc.runtime.tensorrt import library


def checks(ran):
    return {check["name"]: check for check in ran.json["checks"]}


def test_a_machine_that_can_receive(jscc):
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    found = checks(ran)
    assert found["python"]["found"] == platform.python_version()
    assert found["numpy"]["found"] == np.__version__
    assert found["onnxruntime"]["found"] == ort.__version__
    assert found["CPU provider"]["state"] == "ok"
    assert ran.json["machine"]["threads"] >= 1


def test_the_text_says_the_same(jscc):
    ran = jscc("doctor")
    assert ran.status == 0
    for words in (np.__version__, ort.__version__, "CPU provider", "processor", "MiB available"):
        assert words in ran.out


@pytest.mark.parametrize("module", ["numpy", "onnxruntime", "PIL"])
def test_a_missing_package_has_a_remedy(jscc, monkeypatch, module):
    real = importlib.import_module

    def without(name):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    ran = jscc("doctor", "--json")
    assert ran.status == 69
    check = checks(ran)[module]
    assert check["state"] == "FAILED"
    assert check["found"] == f"ModuleNotFoundError: No module named {module!r}"
    assert check["remedy"].startswith("pip install ")
    ran = jscc("doctor")
    assert f"{module}:" in ran.out[ran.out.index("What to do") :]


def test_it_answers_where_nothing_is_installed():
    """In a process of its own, whose imports of packages from PyPI fail, numpy's too."""
    code = """
import sys
for name in ("numpy", "onnxruntime", "PIL", "cuda", "tensorrt", "openvino"):
    sys.modules[name] = None
from jscc.__main__ import main
sys.exit(main(["doctor", "--json"]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (69, "")
    found = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    for name in ("numpy", "onnxruntime", "PIL"):
        assert found[name]["state"] == "FAILED"
        assert found[name]["remedy"].startswith("pip install ")
    assert found["providers"]["state"] == "FAILED"
    assert found["python"]["state"] == "ok"


def test_what_only_exporting_needs_is_no_failure(jscc, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    check = checks(ran)["torch"]
    assert (check["state"], check["remedy"]) == ("absent", "pip install 'jscc-edge[export]'")


def test_nothing_that_only_exporting_needs_is_imported(jscc, monkeypatch):
    real = importlib.import_module
    imported = []
    monkeypatch.setattr(
        importlib, "import_module", lambda name: imported.append(name) or real(name)
    )
    jscc("doctor")
    assert "torch" not in imported


def test_an_old_python(jscc, monkeypatch):
    monkeypatch.setattr(doctor, "_PYTHON", (9, 9))
    ran = jscc("doctor", "--json")
    assert ran.status == 69
    assert checks(ran)["python"]["remedy"] == "install Python 9.9 or newer"


def test_providers_that_do_not_start(jscc, monkeypatch):
    found = (
        Provider("CPUExecutionProvider", True, ""),
        Provider("CUDAExecutionProvider", False, "no driver"),
        Provider("AzureExecutionProvider", True, ""),
    )
    monkeypatch.setattr(doctor, "probe_providers", lambda: found)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    assert checks(ran)["CUDA provider"]["state"] == "absent"
    assert checks(ran)["CUDA provider"]["found"] == "no driver"
    assert "Azure provider" not in checks(ran)


def test_a_device_that_no_provider_uses(jscc, monkeypatch):
    monkeypatch.setattr(machine, "_NVIDIA", (sys.executable,))
    cpu = (Provider("CPUExecutionProvider", True, ""),)
    monkeypatch.setattr(doctor, "probe_providers", lambda: cpu)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    remedy = checks(ran)["CUDA"]["remedy"]
    assert remedy == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def install_nvrtc(monkeypatch, nvrtc):
    """Let imports find this NVRTC; None for no cuda-python."""
    driver = nvrtc and FakeDriver(devices=0)
    for name, module in (("driver", driver), ("nvrtc", nvrtc)):
        monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", module)


def test_the_compiler_of_kernels(jscc, monkeypatch):
    nvrtc = FakeNvrtc()
    install_nvrtc(monkeypatch, nvrtc)
    check = checks(jscc("doctor", "--json"))["nvrtc"]
    known = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
    assert (check["state"], check["remedy"]) == ("ok", "")
    assert check["found"] == f"13.0, compiles for {known}"
    (program,) = nvrtc.programs  # it did compile one
    assert b"JSCC_KERNEL unpack(" in program.source


def test_no_compiler_of_kernels_is_no_failure(jscc, monkeypatch):
    install_nvrtc(monkeypatch, None)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    check = checks(ran)["nvrtc"]
    assert (check["state"], check["remedy"]) == ("absent", "pip install 'jscc-edge[cuda]'")
    assert check["found"] == "needed to compile kernels for a CUDA device"


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("function", "answer", "words"),
    [
        (  # as cuda-bindings 13.5 says it without a library, and with a file that is none
            "nvrtcGetSupportedArchs",
            lambda: raise_(
                RuntimeError(
                    'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so'
                    ".13 or libnvrtc.so.12\n  listdir('/usr/lib'):"
                )
            ),
            'got \'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: ',
        ),
        (
            "nvrtcGetSupportedArchs",
            lambda: raise_(RuntimeError("Failed to dlopen libnvrtc.so.13: file too short")),
            "got 'Failed to dlopen libnvrtc.so.13: file too short'",
        ),
        (  # as NVRTC 13.5 answers without libnvrtc-builtins.so beside it
            "nvrtcCompileProgram",
            lambda *given: (Result.NVRTC_ERROR_BUILTIN_OPERATION_FAILURE,),
            "nvrtcCompileProgram: got NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
        ),
    ],
)
def test_a_compiler_of_kernels_that_does_not_work(jscc, monkeypatch, function, answer, words):
    """The CPU goes on, so that is said in one line and is no failure."""
    nvrtc = FakeNvrtc()
    monkeypatch.setattr(nvrtc, function, answer)
    install_nvrtc(monkeypatch, nvrtc)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    check = checks(ran)["nvrtc"]
    assert (check["state"], check["remedy"]) == ("absent", "pip install 'jscc-edge[cuda]'")
    assert words in check["found"]
    assert "\n" not in check["found"]
    told = jscc("doctor").out
    assert "nvrtc:" in told[told.index("What to do") :]


def test_bindings_that_do_not_load(jscc, monkeypatch):
    real = importlib.import_module

    def broken(name):
        if name == "cuda.bindings.driver":
            raise ValueError("numpy.dtype size changed\nmore")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    check = checks(ran)["nvrtc"]
    assert check["state"] == "absent"
    assert check["found"] == "module 'cuda.bindings': got ValueError 'numpy.dtype size changed'"


def test_the_real_compiler_of_kernels(jscc):
    """NVRTC needs no device."""
    bindings = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    try:
        _, major, minor = bindings.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"no NVRTC here: {error}")
    check = checks(jscc("doctor", "--json"))["nvrtc"]
    assert check["state"] == "ok"
    assert check["found"].startswith(f"{major}.{minor}, compiles for sm_")


def test_the_self_test_of_a_bundle(jscc, codec, shared_bundles):
    ran = jscc("doctor", "--bundle", codec, "--json")
    assert ran.status == 0
    assert checks(ran)["bundle"]["state"] == "ok"
    found = checks(ran)["bundle"]["found"]
    assert re.search(r"self-test passed in onnxruntime [\d.]+ \(cpu\), ", found)
    ran = jscc("doctor", "--bundle", shared_bundles["diffusion"].path, "--json")
    assert ran.status == 0
    assert checks(ran)["bundle"]["state"] == "absent"


def test_a_self_test_that_fails(jscc, codec, monkeypatch):
    monkeypatch.setattr("jscc.runtime.selftest.psnr_db", lambda image, expected: 3.0)
    ran = jscc("doctor", "--bundle", codec, "--json")
    assert ran.status == 69
    assert checks(ran)["bundle"]["state"] == "FAILED"
    assert "[E_SELFTEST]" in checks(ran)["bundle"]["found"]


def test_a_damaged_bundle(jscc, codec_bundle):
    (codec_bundle.path / "SOURCE.md").write_text("changed")
    ran = jscc("doctor", "--bundle", codec_bundle.path, "--json")
    assert ran.status == 69
    assert "SOURCE.md: got " in checks(ran)["bundle"]["found"]


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Makes this machine a Jetson on which nothing of NVIDIA's is installed."""
    real = importlib.import_module

    def without(name, package=None):
        if name.partition(".")[0] in ("tensorrt", "tensorrt_rtx", "cuda"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    def make(files=ORIN_NANO):
        monkeypatch.setattr(jetson, "ROOT", make_root(tmp_path / "board", files))
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        monkeypatch.setattr(machine, "_NVIDIA", (sys.executable,))
        monkeypatch.setattr(importlib, "import_module", without)
        cpu = (Provider("CPUExecutionProvider", True, ""),)
        monkeypatch.setattr(doctor, "probe_providers", lambda: cpu)

    library.load_library.cache_clear()
    yield make
    library.load_library.cache_clear()


def test_a_jetson_says_what_its_speed_depends_on(jscc, board):
    board()
    text = jscc("doctor").out
    for line in (
        "board          NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "Jetson Linux   36.4.4 (JetPack 6)",
        "CUDA toolkit   12.6",
        "power mode     MAXN_SUPER",
        "clocks         not pinned, cpu0 729.6 to 1728 MHz, cpu4 729.6 to 1728 MHz, "
        "17000000.gpu 306 to 1020 MHz",
    ):
        assert f"\n{line}\n" in text
    assert jscc("doctor", "--json").json["machine"]["jetson"]["power_mode"] == "MAXN_SUPER"


def test_pinned_clocks_are_one_number(jscc, board):
    board(NANO)
    text = jscc("doctor").out
    assert "\nclocks         pinned, cpu0 1479 MHz, 57000000.gpu 921.6 MHz\n" in text


def test_a_jetson_that_hides_all_says_so(jscc, board):
    board({"proc/sys/kernel/osrelease": "5.15.148-tegra\n"})
    text = jscc("doctor").out
    assert "\nboard          a Jetson, which one is hidden\n" in text
    assert "\npower mode     unknown\n" in text
    assert "\nclocks         unknown\n" in text


def test_other_machines_have_no_board(jscc):
    ran = jscc("doctor")
    assert "power mode" not in ran.out
    assert jscc("doctor", "--json").json["machine"]["jetson"] is None


@pytest.mark.parametrize(
    ("files", "bindings"), [(ORIN_NANO, "'cuda-python==12.6.*'"), (NANO, "'jscc-edge[cuda]'")]
)
def test_a_jetson_is_told_what_is_right_there(jscc, board, files, bindings):
    board(files)
    ran = jscc("doctor", "--json")
    assert ran.status == 0
    found = checks(ran)
    assert found["CUDA"]["remedy"] == (
        "receive with --engine tensorrt; PyPI has no onnxruntime-gpu for this machine"
    )
    assert found["tensorrt"]["remedy"] == (
        "sudo apt install python3-libnvinfer, and make the environment with "
        "/usr/bin/python3 -m venv --system-site-packages"
    )
    assert found["CUDA device"]["remedy"] == f"pip install {bindings}"
    remedies = " ".join(check["remedy"] for check in ran.json["checks"])
    assert "onnxruntime-gpu && " not in remedies
    assert "jscc-edge[tensorrt" not in remedies


@pytest.mark.parametrize("oldest", [(9, 9), (3, 10)])
def test_other_arm_machines_are_not_told_what_has_no_wheel(jscc, board, monkeypatch, oldest):
    """PyPI has onnxruntime-gpu for aarch64 since Python 3.11, and TensorRT for RTX not at all."""
    board({})
    monkeypatch.setattr(doctor, "_HOST_PYTHON", oldest)
    found = checks(jscc("doctor", "--json"))
    assert ("pip install onnxruntime-gpu" in found["CUDA"]["remedy"]) == (oldest == (3, 10))
    assert found["tensorrt"]["remedy"] == "pip install 'jscc-edge[tensorrt]'"


def test_exporting_is_for_another_machine_where_python_is_too_old(jscc, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    monkeypatch.setattr(doctor, "_HOST_PYTHON", (9, 9))
    found = checks(jscc("doctor", "--json"))
    for name in ("torch", "onnx", "onnxscript", "safetensors"):
        assert found[name]["remedy"] == "export on another machine, with Python 3.11 or newer"
    assert found["openvino"]["remedy"] == "pip install 'jscc-edge[openvino]'"
