"""A device is opened, described, shared by threads and given back."""

import threading

import numpy as np
import pytest

from fake_cuda import Status, make_cuda
from jscc.runtime.device.device import Device
from jscc.runtime.errors import UnavailableError


def test_it_says_what_it_is():
    with Device(make_cuda(capability=(12, 0), name=b"Fake B1", version=13010)) as device:
        assert (device.architecture, device.name) == ("120", "Fake B1")
        assert device.driver_version == "13010"


def test_without_a_device_it_says_so():
    cuda = make_cuda()
    cuda.driver.failures["cuInit"] = Status.CUDA_ERROR_NO_DEVICE
    with pytest.raises(UnavailableError, match="cuInit: got CUDA_ERROR_NO_DEVICE") as caught:
        Device(cuda)
    assert caught.value.code == "E_CUDA"


@pytest.mark.parametrize("ordinal", [-1, 1])
def test_devices_are_counted(ordinal):
    with pytest.raises(UnavailableError, match=f"got number {ordinal}, expected one of 1 from 0"):
        Device(make_cuda(), ordinal)


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_arrays_come_back_as_they_went(shape):
    cuda = make_cuda()
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with Device(cuda) as device:
        there = device.upload(array)
        assert there.size == array.size
        assert np.array_equal(device.download(there), array)
        device.free(there)
    assert cuda.driver.blocks == {}


def test_rows_that_are_not_contiguous_are_copied_right():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with Device(make_cuda()) as device:
        assert np.array_equal(device.download(device.upload(array)), array)


def test_another_thread_may_use_it():
    """The driver's context belongs to a thread."""
    found = []
    with Device(make_cuda()) as device:
        there = device.upload(np.ones(3, np.float32))
        thread = threading.Thread(target=lambda: found.append(device.download(there)))
        thread.start()
        thread.join()
    assert np.array_equal(found[0], np.ones(3))


def test_once_closed_it_does_nothing_more():
    cuda = make_cuda()
    device = Device(cuda)
    device.close()
    device.close()
    assert cuda.driver.retained == 0
    with pytest.raises(UnavailableError, match="got a call after it was closed"):
        device.empty((3,), np.float32)
