"""A device is opened, described, shared by threads and given back."""

import threading

import numpy as np
import pytest

from fake_cuda import Status, make_cuda
from jscc.runtime.device.device import Device
from jscc.runtime.device.flow import Flow
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


@pytest.mark.parametrize("version", [12080, 13000, 14020])
def test_a_driver_older_than_the_bindings_is_named_with_the_bindings_that_fit(version):
    """Within one number of CUDA, and beyond, older bindings go on."""
    cuda = make_cuda(version=version)
    if version > 13000 - 1:
        Device(cuda).close()
        return
    message = "got 12080 from a driver for CUDA 12, expected one for CUDA 13, as cuda-bindings has"
    with pytest.raises(UnavailableError, match=message) as caught:
        Device(cuda)
    assert caught.value.code == "E_CUDA"
    assert str(caught.value).endswith("Run: pip install 'cuda-bindings==12.*' [E_CUDA]")


def test_bytes_are_those_of_an_allocation():
    message = "^cuMemAlloc: got CUDA_ERROR_OUT_OF_MEMORY for 77 bytes, expected enough memory. "
    with Device(make_cuda(memory=0)) as device:
        with pytest.raises(UnavailableError, match=message) as caught:
            device.allocate(77)
        assert caught.value.code == "E_MEMORY"


@pytest.fixture
def cuda():
    return make_cuda()


@pytest.fixture
def flow(cuda):
    """All that it holds has to be given back by its end."""
    with Device(cuda) as device:
        flow = Flow(device)
        yield flow
        flow.close()
    assert (cuda.driver.blocks, cuda.driver.streams, cuda.driver.captured) == ({}, {}, {})


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_arrays_come_back_as_they_went(flow, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    there = flow.take(array)
    assert (there.size, there.nbytes) == (array.size, array.nbytes)
    assert np.array_equal(flow.bring(there)[0], array)


def test_rows_that_are_not_contiguous_are_copied_right(flow):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(flow.bring(flow.take(array))[0], array)


def test_an_item_is_a_part_of_its_array(flow):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    item = flow.take(array).item(1).item(2)
    taken = flow.take(np.zeros(24, np.float32))  # not in the memory that the item is in
    assert np.array_equal(flow.bring(item)[0], array[1, 2])
    assert not flow.bring(taken)[0].any()


def test_memory_that_nobody_holds_serves_again_and_in_order(flow, cuda):
    """What was given to the stream before still finds what it is to read."""
    copies = []
    for number in range(4):
        there = flow.take(np.full(8, number, np.float32))
        copies.append(flow.empty((8,), np.float32))
        flow.device.copy(copies[-1].pointer, there.pointer, there.nbytes, flow.stream)
        del there
    assert [each[0] for each in flow.bring(*copies)] == [0, 1, 2, 3]
    assert len(cuda.driver.blocks) == 5


def test_another_thread_may_use_it(flow):
    """The driver's context belongs to a thread."""
    found = []
    there = flow.take(np.ones(3, np.float32))
    thread = threading.Thread(target=lambda: found.extend(flow.bring(there)))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], np.ones(3))


def doubled(flow, there, result):
    """Give a copy forth and back to the flow's stream."""
    device, size = flow.device, there.nbytes
    device.copy(result.pointer, there.pointer, size, flow.stream)


def test_a_graph_does_again_what_it_was_captured_from(flow, cuda):
    device, there = flow.device, flow.take(np.ones(3, np.float32))
    result = flow.take(np.zeros(3, np.float32))
    graph = device.capture(flow.stream, lambda: doubled(flow, there, result))
    assert not flow.bring(result)[0].any()  # nothing of it has run
    for number in (2, 3):
        array = np.full(3, number, np.float32)
        device.upload(there.pointer, array, flow.stream)
        device.launch(graph, flow.stream)
        assert np.array_equal(flow.bring(result)[0], array)
    device.drop(graph)
    assert (cuda.driver.replays, cuda.driver.captured) == (2, {})


@pytest.mark.parametrize("where", ["Begin", "inside", "End", "Instantiate"])
def test_a_capture_that_fails_leaves_a_stream_that_works(flow, cuda, where):
    device, there = flow.device, flow.take(np.ones(3, np.float32))
    result = flow.take(np.zeros(3, np.float32))
    name = {
        "inside": "cuMemcpyDtoDAsync",
        "Instantiate": "cuGraphInstantiate",
    }.get(where, f"cuStream{where}Capture")
    cuda.driver.failures[name] = Status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(UnavailableError, match=f"{name}: got CUDA_ERROR_STREAM_CAPTURE_INV"):
        device.capture(flow.stream, lambda: doubled(flow, there, result))
    assert (cuda.driver.capturing, cuda.driver.captured) == ({}, {})
    doubled(flow, there, result)
    assert np.array_equal(flow.bring(result)[0], np.ones(3))


def test_the_time_between_two_places_of_a_stream(flow, cuda):
    begun = flow.device.mark(flow.stream)
    ended = flow.device.mark(flow.stream)
    flow.wait()
    assert flow.device.elapsed_ms(begun, ended) > 0
    for event in (begun, ended):
        flow.device.forget(event)
    assert cuda.driver.events == {}


def test_once_closed_it_does_nothing_more():
    cuda = make_cuda()
    device = Device(cuda)
    device.close()
    device.close()
    assert cuda.driver.retained == 0
    with pytest.raises(UnavailableError, match="got a call after it was closed"):
        device.empty((3,), np.float32)
