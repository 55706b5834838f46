"""The device's kernels with NumPy arrays in and out, as their references have them."""

import numpy as np

from jscc.runtime.device.flow import Flow
from jscc.runtime.device.kernels import DeviceKernels


class ArrayKernels:
    """Each call has a flow of its own, and gives everything back.

    Args:
        device: Runs them.
        loader: Compiles them.
    """

    def __init__(self, device, loader):
        self.device, self.kernels = device, DeviceKernels(loader)

    def run(self, name, results, *given):
        """Start `name` on arrays and numbers; what it leaves in arrays of `results`."""
        flow = Flow(self.device)
        try:
            there = [flow.empty(shape, dtype) for shape, dtype in results]
            fed = [flow.take(each) if isinstance(each, np.ndarray) else each for each in given]
            getattr(self.kernels, name)(flow, *there, *fed)
            return flow.bring(*there)
        finally:
            flow.close()

    def philox_normal(self, seed, frame, step, count):
        return self.run("philox_normal", [((count,), "float32")], (seed, frame, step))[0]

    def advance(self, x, *rest):
        return self.run("advance", [(x.shape, "float32")], x, *rest)[0]

    def null_space(self, x, *rest):
        return self.run("null_space", [(x.shape, "float32")] * 2, x, *rest)

    def unpack(self, symbols, *rest):
        shape = (2 * symbols.shape[0], *symbols.shape[1:])
        return self.run("unpack", [(shape, "float32")], symbols, *rest)[0]

    def to_uint8(self, image, *rest):
        return self.run("to_uint8", [((*image.shape[1:], 3), "uint8")], image, *rest)[0]
