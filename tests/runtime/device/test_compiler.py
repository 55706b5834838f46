"""The compiler: its failures by name on a stand-in, and NVRTC itself where it is installed."""

import importlib.util

import pytest

from fake_cuda import ARCHITECTURES, Result, make_cuda
from jscc.kernels.report import ARCHITECTURES as SUPPORTED
from jscc.kernels.sources import KERNELS, entries_of, source_of
from jscc.runtime.device.bindings import import_cuda
from jscc.runtime.device.compiler import compile_source, nvrtc_version
from jscc.runtime.errors import UnavailableError


def test_the_log_names_what_is_wrong():
    nvrtc = make_cuda().nvrtc
    with pytest.raises(UnavailableError, match="identifier .x. is undefined") as caught:
        compile_source(nvrtc, "broken", "x", "90")
    assert caught.value.code == "E_KERNEL"
    assert nvrtc.programs[0].destroyed


@pytest.mark.parametrize("architecture", ["70", "130"])
def test_a_device_that_the_compiler_does_not_know_is_named(architecture):
    with pytest.raises(UnavailableError, match=f"got .* sm_{architecture}, .* sm_75, sm_80") as got:
        compile_source(make_cuda().nvrtc, "unpack", "x", architecture)
    assert got.value.code == "E_CUDA_ARCHITECTURE"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Result.NVRTC_ERROR_OUT_OF_MEMORY, "E_MEMORY"),
        (Result.NVRTC_ERROR_INVALID_OPTION, "E_CUDA"),
    ],
)
def test_other_failures_are_named(status, code, monkeypatch):
    nvrtc = make_cuda().nvrtc
    monkeypatch.setattr(nvrtc, "nvrtcCompileProgram", lambda prog, count, options: (status,))
    with pytest.raises(UnavailableError, match=f"got {status.name}, expected") as caught:
        compile_source(nvrtc, "unpack", "x", "90")
    assert caught.value.code == code


@pytest.fixture(scope="module")
def nvrtc():
    """NVRTC; it needs no device."""
    try:
        cuda = import_cuda()
        nvrtc_version(cuda.nvrtc)
    except UnavailableError as error:
        pytest.skip(f"no NVRTC here: {error}")
    return cuda.nvrtc


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SUPPORTED)
@pytest.mark.parametrize("kernel", KERNELS)
def test_nvrtc_compiles_every_kernel(nvrtc, kernel, architecture):
    cubin = compile_source(nvrtc, kernel, source_of(kernel), architecture)
    assert cubin.startswith(b"\x7fELF")
    for entry in entries_of(kernel):
        assert f".text.{entry}\0".encode() in cubin


def test_nvrtc_says_what_is_wrong(nvrtc):
    source = source_of("unpack").replace("symbol.re;", "symbol.real;", 1)
    with pytest.raises(UnavailableError, match="'unpack': got .*error: .*real") as caught:
        compile_source(nvrtc, "unpack", source, "90")
    assert caught.value.code == "E_KERNEL"
    assert "unpack/unpack.cu(" in caught.value.message


def test_the_stand_in_answers_like_nvrtc_13(nvrtc):
    if nvrtc_version(nvrtc) != "13.0":
        pytest.skip(f"recorded from 13.0, this is {nvrtc_version(nvrtc)}")
    fake = make_cuda().nvrtc
    assert nvrtc.nvrtcGetSupportedArchs()[1] == list(ARCHITECTURES)
    assert nvrtc_version(nvrtc) == nvrtc_version(fake)
    real = {each.name: each.value for each in nvrtc.nvrtcResult}
    assert {each.name: each.value for each in Result}.items() <= real.items()


def test_the_modules_are_looked_for_by_name():
    if importlib.util.find_spec("cuda") is not None:
        pytest.skip("cuda-python is installed here")
    with pytest.raises(UnavailableError, match="module 'cuda.bindings': got nothing") as caught:
        import_cuda()
    assert caught.value.code == "E_MODULE"
