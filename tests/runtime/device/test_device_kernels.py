"""The device's kernels, on a stand-in for the driver, against their references: bit for bit.

Only the driver is not real: packing, grids, memory and order are what a device would get.
"""

from dataclasses import replace

import numpy as np
import pytest

from array_kernels import ArrayKernels
from fake_cuda import Status, make_cuda
from jscc.kernels.advance.reference import advance
from jscc.kernels.null_space.reference import Shares, ddnm_shares, null_space
from jscc.kernels.philox_normal.reference import philox_normal
from jscc.kernels.to_uint8.reference import ROUNDINGS, fix_colors, to_uint8
from jscc.kernels.unpack.reference import unpack
from jscc.runtime.device.device import Device
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.errors import UnavailableError
from jscc.runtime.table import Row

ADDRESS = (5, 1 << 40, 3)
ROW = Row(t=9, a=0.9, b=0.3, c=-0.1, e=0.02, s=0.25, g=0.05, d=0.7)
TERMS = ("x", "clean", "clean_prev", "clean_prev2", "grad", "direction")
LETTERS = dict(zip(TERMS, "abcegd", strict=True))


@pytest.fixture
def cuda(host):
    return make_cuda(host)


@pytest.fixture
def kernels(cuda):
    """All memory has to be given back by the end."""
    with Device(cuda) as device:
        yield ArrayKernels(device, KernelLoader(cuda, device))
    assert (cuda.driver.blocks, cuda.driver.streams) == ({}, {})
    assert cuda.driver.retained == 0


def fields(names, shape, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name in names}


def same(got, wanted):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025])
def test_philox_normal(kernels, cuda, count):
    same(kernels.philox_normal(*ADDRESS, count), philox_normal(*ADDRESS, count))
    blocks = -(-count // 1024)  # 256 threads, four numbers each
    assert cuda.driver.launches == ([("philox_normal", blocks, 256)] if count else [])


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 7), (1,)])
def test_advance(kernels, shape):
    f = fields(TERMS, shape)
    noise = philox_normal(*ADDRESS, int(np.prod(shape))).reshape(shape)
    given = [f[name] for name in TERMS]
    got = kernels.advance(*given[:4], ADDRESS, *given[4:], ROW)
    same(got, advance(*given[:4], noise, *given[4:], ROW))


@pytest.mark.parametrize("name", TERMS[1:])
def test_advance_without_a_term(kernels, name):
    f = {**fields(TERMS, (4, 8)), name: None}
    given = [f[each] for each in TERMS]
    row = replace(ROW, **{LETTERS[name]: 0.0})
    noise = philox_normal(*ADDRESS, 32).reshape(4, 8)
    got = kernels.advance(*given[:4], ADDRESS, *given[4:], row)
    same(got, advance(*given[:4], noise, *given[4:], row))
    with pytest.raises(ValueError, match=f"advance: got no {name}, expected one: its factor is"):
        kernels.advance(*given[:4], ADDRESS, *given[4:], ROW)


@pytest.mark.parametrize("wrong", [np.zeros((4, 9), np.float32), np.zeros((4, 8))])
def test_a_term_of_another_shape_or_type_is_refused(kernels, wrong):
    f = fields(TERMS, (4, 8))
    message = r"advance: clean: got float\d+\[4,[89]\], expected float32\[4,8\]"
    with pytest.raises(ValueError, match=message):
        kernels.advance(f["x"], wrong, None, None, ADDRESS, None, None, Row(t=1, a=1.0, b=1.0))


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize(
    "shares", [Shares(0.8, 0.3, 0.2, 0.5, project_noise=True), ddnm_shares(0.7, 0.85, 0.0, 4)]
)
def test_null_space(kernels, scale, shares):
    names = ("x", "estimate", "eps", "target", "clean_prev", "clean_prev2", "grad")
    f = fields(names, (3, 8, 16))
    noise = philox_normal(*ADDRESS, 384).reshape(3, 8, 16)
    given = [f[name] for name in names]
    got = kernels.null_space(*given[:6], ADDRESS, given[6], ROW, shares, scale)
    wanted = null_space(*given[:6], noise, given[6], ROW, shares, scale)
    for one, other in zip(got, wanted, strict=True):
        same(one, other)


def test_null_space_refuses_what_its_reference_refuses(kernels):
    image = np.zeros((3, 6, 8), np.float32)
    shares, row = Shares(1.0, 0.0, 0.5), Row(t=1, a=0.0, b=1.0, d=1.0)
    with pytest.raises(ValueError, match=r"null_space: got 6x8 pixels .* the scale 4"):
        kernels.null_space(image, image, None, image, None, None, ADDRESS, None, row, shares, 4)
    with pytest.raises(ValueError, match="null_space: got no eps, expected one: its factor is 0.5"):
        kernels.null_space(image, image, None, image, None, None, ADDRESS, None, row, shares, 2)


@pytest.mark.parametrize("gain", [None, 0.5 - 2j, 3 + 1j])
@pytest.mark.parametrize("erasing", [False, True])
def test_unpack(kernels, gain, erasing):
    f = fields(("re", "im"), (4, 5, 7))
    symbols = (f["re"] + 1j * f["im"]).astype(np.complex64)
    erased = f["re"] > 1 if erasing else None
    same(kernels.unpack(symbols, gain, erased), unpack(symbols, gain, erased))


def test_unpack_refuses_other_types_and_shapes(kernels):
    symbols = np.zeros((2, 3), np.complex64)
    with pytest.raises(ValueError, match=r"got complex128\[2,3\], expected complex64\[2,3\]"):
        kernels.unpack(symbols.astype(np.complex128))
    with pytest.raises(ValueError, match=r"erased: got bool\[3,2\], expected bool\[2,3\]"):
        kernels.unpack(symbols, None, np.zeros((3, 2), bool))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("size", [(16, 24), (33, 5)])
def test_to_uint8(kernels, rounding, size):
    f = fields(("image", "other"), (3, *size))
    same(kernels.to_uint8(f["image"], rounding), to_uint8(f["image"], rounding))
    fixed = fix_colors(f["image"], f["other"])
    same(kernels.to_uint8(f["image"], rounding, f["other"]), to_uint8(fixed, rounding))


def test_to_uint8_refuses_other_roundings_and_shapes(kernels):
    image = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="got 'floor', expected truncate or nearest"):
        kernels.to_uint8(image, "floor")
    with pytest.raises(ValueError, match=r"image: got float32\[1,4,4\], expected float32\[3,4,4\]"):
        kernels.to_uint8(image[:1], "nearest")
    with pytest.raises(ValueError, match=r"other: got float32\[3,2,4\], expected float32\[3,4,4\]"):
        kernels.to_uint8(image, "nearest", image[:, :2])


@pytest.mark.parametrize(
    ("address", "shown"),
    [((-1, 0, 0), "seed=-1"), ((0, 1 << 64, 0), f"frame={1 << 64}"), ((0, 0, -2), "step=-2")],
)
def test_addresses_are_64_bits(kernels, address, shown):
    with pytest.raises(ValueError, match=f"philox_normal: got {shown}, expected 0 to"):
        kernels.philox_normal(*address, 4)


@pytest.mark.parametrize(
    ("function", "status", "code"),
    [
        ("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, "E_MEMORY"),
        ("cuMemcpyHtoDAsync", Status.CUDA_ERROR_INVALID_VALUE, "E_CUDA"),
        ("cuLaunchKernel", Status.CUDA_ERROR_INVALID_VALUE, "E_CUDA"),
        ("cuStreamSynchronize", Status.CUDA_ERROR_ILLEGAL_ADDRESS, "E_CUDA"),
    ],
)
def test_a_failure_is_named_and_leaves_no_memory_behind(kernels, cuda, function, status, code):
    image = np.zeros((3, 4, 4), np.float32)
    kernels.to_uint8(image, "nearest")
    cuda.driver.failures[function] = status
    with pytest.raises(UnavailableError, match=f"{function}: got {status.name}") as caught:
        kernels.to_uint8(image, "nearest")
    assert caught.value.code == code
    assert cuda.driver.blocks == {}
    same(kernels.to_uint8(image, "nearest"), to_uint8(image, "nearest"))


def test_memory_that_is_not_taken_back_does_not_keep_the_rest(kernels, cuda):
    """Nor the result, which is there."""
    image = np.zeros((3, 4, 4), np.float32)
    cuda.driver.failures["cuMemFree"] = Status.CUDA_ERROR_INVALID_VALUE
    same(kernels.to_uint8(image, "nearest"), to_uint8(image, "nearest"))
    assert cuda.driver.failures == {}
    assert cuda.driver.blocks == {}
