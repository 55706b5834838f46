"""Device arithmetic: a reception's tensors stay on the device, from its symbols to its pixels.

What is started is done in order, while the host goes on to the next; nothing waits before the end.
Noise is drawn where it is added, by its address.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jscc.runtime.arithmetic import Mix, Terms
from jscc.runtime.backends.base import DeviceSession
from jscc.runtime.device.device import DeviceArray
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.kernels import DeviceKernels, Term
from jscc.runtime.ports import Array
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.table import Row
from jscc.runtime.tiling import Tiling

_DIFFERENCE = Row(t=None, a=1.0, b=0.0, d=-1.0)  # of the state and what stands for the direction


@dataclass
class DeviceArithmetic:
    """See `jscc.runtime.arithmetic.Arithmetic`; tensors are never written to once they are there.

    Attributes:
        flow: What goes on.
        kernels: Of its device.
        sizes: ``batch``, and ``height`` and ``width`` of the padded image, and ``planes``.
        seed: Of the noise.
        frame: Number of the first image.
    """

    flow: Flow
    kernels: DeviceKernels
    sizes: Mapping[str, int]
    seed: int
    frame: int
    _marks: list[tuple[str, Any, Any]] = field(default_factory=list, init=False)

    def take(self, array: Array) -> DeviceArray:
        """See `Arithmetic`."""
        return self.flow.take(array)

    def bring(self, tensor: DeviceArray) -> Array:
        """See `Arithmetic`; waits."""
        return self.flow.bring(tensor)[0]

    def cast(self, tensor: DeviceArray, dtype: str) -> DeviceArray:
        """See `Arithmetic`.

        Raises:
            ValueError: It is another dtype already; no kernel casts.
        """
        if str(tensor.dtype) != dtype:
            raise ValueError(f"cast: got {tensor.dtype}, expected {dtype}.")
        return tensor

    def item(self, tensor: DeviceArray, index: int) -> DeviceArray:
        """See `Arithmetic`."""
        return tensor.item(index)

    def repeated(self, tensor: DeviceArray, count: int) -> DeviceArray:
        """See `Arithmetic`."""
        result = self.flow.empty((count, *tensor.shape[1:]), tensor.dtype)
        for index in range(count):
            self.flow.copy(result.item(index).pointer, tensor)
        return result

    def length(self, tensor: DeviceArray) -> int | None:
        """See `Arithmetic`."""
        return tensor.shape[0] if tensor.shape else None

    def zeros(self, shape: tuple[int, ...]) -> DeviceArray:
        """See `Arithmetic`."""
        return self.flow.zeros(shape, np.float32)

    def noise(self, shape: tuple[int, ...], number: int) -> DeviceArray:
        """See `Arithmetic`."""
        normals = self.flow.empty(shape, np.float32)
        for image in range(shape[0]):
            self.kernels.philox_normal(self.flow, normals.item(image), self._at(image, number))
        return normals

    def start(
        self, shape: tuple[int, ...], start: DeviceArray | None, mixes: Sequence[Mix], number: int
    ) -> DeviceArray:
        """See `Arithmetic`."""
        state = self.flow.empty(shape, np.float32)
        for image, mix in enumerate(mixes):
            row = Row(t=None, a=0.0 if start is None else mix.signal, b=0.0, s=mix.noise)
            self._advance(state, image, number, row, start, Terms())
        return state

    def advance(
        self, state: DeviceArray, rows: Sequence[Row], terms: Terms[DeviceArray], number: int
    ) -> DeviceArray:
        """See `Arithmetic`."""
        after = self.flow.empty(state.shape, np.float32)
        for image, row in enumerate(rows):
            self._advance(after, image, number, row, state, terms)
        return after

    def ask(
        self, stage: Stage, tensors: Mapping[str, DeviceArray], tiling: Tiling, trace: Trace
    ) -> dict[str, DeviceArray]:
        """See `Arithmetic`; its time is known when all is done, see `tell_times`."""
        assert isinstance(stage.session, DeviceSession)
        begun = self.flow.mark()
        results = stage.session.run_there(tensors, self.sizes, self.flow)
        self._marks.append((stage.name, begun, self.flow.mark()))
        trace.tiles[stage.name] = stage.tiles(tiling)
        return results

    def tell_times(self, trace: Trace) -> None:
        """Say how long each stage took on the device, once the flow was waited for."""
        for name, begun, ended in self._marks:
            trace.add_ms(name, self.flow.device.elapsed_ms(begun, ended))
        self._marks.clear()

    def _advance(
        self,
        after: DeviceArray,
        image: int,
        number: int,
        row: Row,
        state: Term,
        terms: Terms[DeviceArray],
    ) -> None:
        """Carry one image over one step."""
        clean, target = _item(terms.clean, image), _item(terms.target, image)
        grad = _item(terms.grad, image)
        address = self._at(image, number)
        if grad is None and row.g and target is not None and clean is not None:
            grad = self.flow.empty(clean.shape, np.float32)
            self.kernels.advance(
                self.flow, grad, clean, None, None, None, address, None, target, _DIFFERENCE
            )
        self.kernels.advance(
            self.flow,
            after.item(image),
            _item(state, image),
            clean,
            _item(terms.clean_prev, image),
            _item(terms.clean_prev2, image),
            address,
            grad,
            _item(terms.direction, image),
            row,
        )

    def _at(self, image: int, number: int) -> tuple[int, int, int]:
        return self.seed, self.frame + image, number


def _item(tensor: Term, image: int) -> Term:
    return None if tensor is None else tensor.item(image)
