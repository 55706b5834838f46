"""Runs all kernels through the real cuda-python; prints what it did as JSON.

Not a test itself: test_bindings.py starts it where a stand-in takes libcuda's place.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from array_kernels import ArrayKernels
from jscc.kernels.advance.reference import advance
from jscc.kernels.null_space.reference import ddnm_shares, null_space
from jscc.kernels.philox_normal.reference import philox_normal
from jscc.kernels.to_uint8.reference import fix_colors, to_uint8
from jscc.kernels.unpack.reference import unpack
from jscc.runtime.device.bindings import import_cuda
from jscc.runtime.device.cubins import CubinCache
from jscc.runtime.device.device import Device
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.table import Row

ADDRESS = (5, 2**64 - 3, 3)
ROW = Row(t=9, a=0.9, b=0.3, c=-0.1, e=0.02, s=0.25, g=0.05, d=0.7)


def pairs(kernels):
    """Each kernel's result, and its reference's."""
    rng = np.random.default_rng(0)
    x, clean, one, two, grad, way = (
        rng.standard_normal((3, 16, 24)).astype(np.float32) for _ in range(6)
    )
    noise = philox_normal(*ADDRESS, x.size).reshape(x.shape)
    shares, symbols = ddnm_shares(0.7, 0.85, 0.1, 4), (x + 1j * clean).astype(np.complex64)
    erased = grad > 1
    yield "philox_normal", kernels.philox_normal(*ADDRESS, 1025), philox_normal(*ADDRESS, 1025)
    yield (
        "advance",
        kernels.advance(x, clean, one, two, ADDRESS, grad, way, ROW),
        advance(x, clean, one, two, noise, grad, way, ROW),
    )
    row = replace(ROW, e=0.0)
    got = kernels.null_space(x, clean, one, two, way, None, ADDRESS, grad, row, shares, 4)
    wanted = null_space(x, clean, one, two, way, None, noise, grad, row, shares, 4)
    yield "null_space", np.stack(got), np.stack(wanted)
    yield "unpack", kernels.unpack(symbols, 1j, erased), unpack(symbols, 1j, erased)
    fixed = fix_colors(x, clean)
    yield "to_uint8", kernels.to_uint8(x, "nearest", clean), to_uint8(fixed, "nearest")


def check_flow(device):
    """Whether copies, zeros, events and a captured graph do what they say."""
    flow = Flow(device)
    array = np.arange(6, dtype=np.float32)
    there, result = flow.take(array), flow.zeros((6,), np.float32)
    begun = flow.mark()
    graph = device.capture(flow.stream, lambda: flow.copy(result.pointer, there))
    found = [flow.bring(result)[0].any()]
    device.launch(graph, flow.stream)
    ended = flow.mark()
    found += [np.array_equal(flow.bring(result)[0], array), device.elapsed_ms(begun, ended) > 0]
    device.drop(graph)
    flow.settle()
    flow.close()
    return list(map(bool, found))


def main():
    """Twice, the second time from the cache."""
    cuda, same, notes = import_cuda(), [], []
    for _ in range(2):
        with Device(cuda) as device:
            loader = KernelLoader(cuda, device, CubinCache(Path(sys.argv[1])))
            same += [
                (name, got.dtype == wanted.dtype and got.tobytes() == wanted.tobytes())
                for name, got, wanted in pairs(ArrayKernels(device, loader))
            ]
            notes += loader.notes
            flows = check_flow(device)
    found = {"device": device.name, "same": same, "notes": notes, "flow": flows}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
