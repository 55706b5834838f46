"""The real cuda-python on a stand-in for libcuda, with cubins that NVRTC itself has made."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fake_cuda import Attribute, CaptureMode, FakeDriver, FakeNvrtc, Status
from host_kernels import FLAGS
from jscc.kernels.sources import KERNELS, entries_of
from jscc.runtime.device.bindings import Cuda, call, failure_of, import_cuda
from jscc.runtime.device.device import Device
from jscc.runtime.errors import UnavailableError

HERE = Path(__file__).parent
LAUNCH = """
#include <cstring>
#include <utility>

template <class A>
static A take(void *from) {
    A argument;
    std::memcpy(&argument, from, sizeof argument);
    return argument;
}

template <class... A, std::size_t... I>
static void launch_with(void (*entry)(A...), void **from, std::index_sequence<I...>) {
    entry(take<A>(from[I])...);
}

template <class... A>
static void launch(void (*entry)(A...), void **from) {
    launch_with(entry, from, std::index_sequence_for<A...>());
}
"""


@pytest.fixture(scope="module")
def bindings():
    """Both modules of cuda-python; none of them opens a library yet."""
    try:
        return {
            name: importlib.import_module(f"cuda.bindings.{name}") for name in ("driver", "nvrtc")
        }
    except ImportError:
        pytest.skip("cuda-python is not installed here")


@pytest.fixture(scope="module")
def stand_in(bindings, host):
    """A folder with a libcuda.so.1 that runs the kernels on this host."""
    built = []
    for kernel in KERNELS:
        calls = [
            f'extern "C" void launch_{entry}(void **from) {{ launch({entry}, from); }}\n'
            for entry in entries_of(kernel)
        ]
        built.append(host.build(f"{kernel}", LAUNCH + "".join(calls)))
        host.libraries[kernel, "launched"] = None  # the next build has another name
    library = host.folder / "libcuda.so.1"
    names = ", ".join(f'"{path}"' for path in built)
    defined = [f"-DKERNELS={names}", f'-DSELF="{library}"']
    source = HERE / "libcuda_stand_in.cpp"
    subprocess.run(["g++", *FLAGS, *defined, "-o", library, source, "-ldl"], check=True)
    return host.folder


def check_all(cache, libraries=""):
    """Run every kernel in a process of its own, twice, and return the device's name."""
    paths = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run(
        [sys.executable, HERE / "bindings_check.py", cache],
        env={"PATH": os.defpath, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["notes"] == []
    assert found["flow"] == [False, True, True]
    order = ("philox_normal", "advance", "null_space", "unpack", "to_uint8")
    assert found["same"] == [[name, True] for name in order] * 2
    assert len(list(cache.iterdir())) == len(KERNELS)
    return found["device"]


def test_every_kernel_runs_through_the_real_bindings(stand_in, tmp_path):
    assert check_all(tmp_path / "cache", str(stand_in)) == "stand-in"


@pytest.mark.gpu
def test_every_kernel_runs_on_a_device(tmp_path):
    try:
        with Device(import_cuda()) as device:
            name = device.name
    except UnavailableError as error:
        pytest.skip(f"no device here: {error}")
    assert check_all(tmp_path / "cache") == name


@pytest.mark.parametrize(("fake", "module"), [(FakeDriver, "driver"), (FakeNvrtc, "nvrtc")])
def test_the_stand_ins_functions_are_the_real_ones(bindings, fake, module):
    functions = [name for name in vars(fake) if re.match(r"(cu|nvrtc)[A-Z]", name)]
    assert len(functions) > 8
    for name in functions:
        real = getattr(bindings[module], name)
        declared = re.match(rf"{name}\((.*?)\)", real.__doc__.splitlines()[0])[1]
        names = [re.split(r"[ :]", each.strip()) for each in split(declared)]
        ours = list(inspect.signature(getattr(fake, name)).parameters)[1:]
        assert [bare(words) for words in names] == ours


def split(declared):
    """Parameters; commas inside brackets are none of theirs."""
    return [each for each in re.split(r",(?![^\[]*\])", declared) if each.strip()]


def bare(words):
    """``unsigned int Flags`` and ``attrib not None : …`` to the name alone."""
    types = {"unsigned", "long", "int", "size_t", "char", "void_ptr"}
    return next(word.strip("*") for word in words if word.strip("*") not in types)


def test_numbers_of_statuses_and_attributes_are_the_real_ones(bindings):
    driver = bindings["driver"]
    for ours, real in (
        (Status, driver.CUresult),
        (Attribute, driver.CUdevice_attribute),
        (CaptureMode, driver.CUstreamCaptureMode),
    ):
        assert {each.name: each.value for each in ours}.items() <= {
            each.name: each.value for each in real
        }.items()


def one(status, *values):
    def function():
        return (status, *values)

    return function


def test_a_call_returns_what_follows_its_status():
    assert call(one(Status.CUDA_SUCCESS)) is None
    assert call(one(Status.CUDA_SUCCESS, 7)) == 7
    assert call(one(Status.CUDA_SUCCESS, 13, 0)) == (13, 0)


@pytest.mark.parametrize(
    ("status", "code"),
    [(Status.CUDA_ERROR_OUT_OF_MEMORY, "E_MEMORY"), (Status.CUDA_ERROR_NOT_FOUND, "E_CUDA")],
)
def test_a_status_that_is_not_success_is_raised(status, code):
    with pytest.raises(UnavailableError, match=f"function: got {status.name}, expected") as caught:
        call(one(status, None))
    assert caught.value.code == code
    assert failure_of("f", status).code == code


def test_a_library_that_is_missing_is_named():
    def cuInit():
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # as cuda-python 13.0 says it

    message = "cuInit: got 'Failed to dlopen libcuda.so.1', expected a CUDA device and its driver. "
    with pytest.raises(UnavailableError, match=message) as caught:
        call(cuInit)
    assert caught.value.code == "E_CUDA"
    assert caught.value.message.endswith("Install NVIDIA's driver, or receive on the CPU.")


@pytest.mark.parametrize("older", [False, True])
def test_the_modules_names_until_cuda_python_12_6_are_known(monkeypatch, older):
    names = (
        ("cuda.cuda", "cuda.nvrtc") if older else ("cuda.bindings.driver", "cuda.bindings.nvrtc")
    )
    for name in ("cuda.cuda", "cuda.nvrtc", "cuda.bindings.driver", "cuda.bindings.nvrtc"):
        monkeypatch.setitem(sys.modules, name, name if name in names else None)
    assert import_cuda() == Cuda(*names)


def test_bindings_that_do_not_load_are_told_from_none(monkeypatch):
    def broken(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("jscc.runtime.device.bindings.importlib.import_module", broken)
    message = "module 'cuda.bindings': got ImportError 'libcuda.so.1: cannot open"
    with pytest.raises(UnavailableError, match=message) as caught:
        import_cuda()
    assert caught.value.code == "E_MODULE"
