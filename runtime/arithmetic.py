"""Arithmetic: what a reception computes between its stages, wherever its tensors are.

A program and its loops are written once over `Arithmetic`. On the host a tensor is a NumPy array;
`jscc.runtime.device.arithmetic` keeps them on a device, with the same results bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from jscc.kernels.advance.reference import advance
from jscc.runtime.noise import NoiseSource
from jscc.runtime.ports import Array
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.table import Row
from jscc.runtime.tiling import Tiling

T = TypeVar("T")


@dataclass(frozen=True)
class Mix:
    """One image's start: ``signal * start + noise * drawn``, without terms whose factor is zero."""

    signal: float
    noise: float


@dataclass(frozen=True)
class Terms(Generic[T]):
    """What a step's rows weigh besides state and noise; all like the state.

    Attributes:
        clean: Estimate of the clean state.
        clean_prev: That of the step before.
        clean_prev2: That of two steps before.
        grad: Gradient of the guide.
        direction: What else the way on is made of.
        target: What the guide pulls to where a row has a weight for a gradient and there is none:
            ``clean - target`` is it then.
    """

    clean: T | None = None
    clean_prev: T | None = None
    clean_prev2: T | None = None
    grad: T | None = None
    direction: T | None = None
    target: T | None = None


class Arithmetic(Protocol[T]):
    """The tensors of one reception; belongs to one call. Images are along their first axis."""

    def take(self, array: Array) -> T:
        """A host's array as a tensor."""

    def bring(self, tensor: T) -> Array:
        """A tensor as a host's array."""

    def cast(self, tensor: T, dtype: str) -> T:
        """The same numbers as another dtype."""

    def item(self, tensor: T, index: int) -> T:
        """One item along the first axis."""

    def repeated(self, tensor: T, count: int) -> T:
        """A tensor of one item as one of `count` times that item."""

    def length(self, tensor: T) -> int | None:
        """Items along the first axis; None for a tensor of no axes."""

    def zeros(self, shape: tuple[int, ...]) -> T:
        """float32 zeros."""

    def noise(self, shape: tuple[int, ...], number: int) -> T:
        """Normals, float32: draw `number` of each image, see `jscc.runtime.noise.NoiseSource`."""

    def start(
        self, shape: tuple[int, ...], start: T | None, mixes: Sequence[Mix], number: int
    ) -> T:
        """Where a loop begins, each image by its own mix with its draw `number`."""

    def advance(self, state: T, rows: Sequence[Row], terms: Terms[T], number: int) -> T:
        """The state after one step, each image by its own row with its draw `number`."""

    def ask(
        self, stage: Stage, tensors: Mapping[str, T], tiling: Tiling, trace: Trace
    ) -> dict[str, T]:
        """Run a stage once, and note it."""


class Brought(Mapping[str, Array], Generic[T]):
    """Tensors by name as a host's arrays, each brought when it is looked at."""

    def __init__(self, arithmetic: Arithmetic[T], tensors: Mapping[str, T]) -> None:
        self._arithmetic, self._tensors = arithmetic, tensors

    def __getitem__(self, name: str) -> Array:
        return self._arithmetic.bring(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass
class HostArithmetic:
    """NumPy's; see `Arithmetic`.

    Attributes:
        source: Where noise comes from; image i draws as number ``frame + i``.
        seed: Passed on to `source`.
        frame: Number of the first image.
    """

    source: NoiseSource
    seed: int
    frame: int
    _drawn: tuple[int, Array] | None = field(default=None, init=False)

    def take(self, array: Array) -> Array:
        """See `Arithmetic`."""
        return array

    def bring(self, tensor: Array) -> Array:
        """See `Arithmetic`."""
        return tensor

    def cast(self, tensor: Array, dtype: str) -> Array:
        """See `Arithmetic`."""
        return tensor.astype(dtype, copy=False)

    def item(self, tensor: Array, index: int) -> Array:
        """See `Arithmetic`."""
        part: Array = tensor[index]
        return part

    def repeated(self, tensor: Array, count: int) -> Array:
        """See `Arithmetic`."""
        return np.repeat(tensor, count, axis=0)

    def length(self, tensor: Array) -> int | None:
        """See `Arithmetic`."""
        return tensor.shape[0] if tensor.ndim else None

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """See `Arithmetic`."""
        return np.zeros(shape, np.float32)

    def noise(self, shape: tuple[int, ...], number: int) -> Array:
        """See `Arithmetic`; what was drawn last is kept, since a step may want it twice."""
        if self._drawn is None or self._drawn[0] != number:
            drawn = np.stack([self._draw(image, number, shape[1:]) for image in range(shape[0])])
            self._drawn = (number, drawn)
        return self._drawn[1]

    def start(
        self, shape: tuple[int, ...], start: Array | None, mixes: Sequence[Mix], number: int
    ) -> Array:
        """See `Arithmetic`."""
        state = np.zeros(shape, np.float32)
        for image, mix in zip(range(shape[0]), mixes, strict=True):
            if mix.signal and start is not None:
                state[image] += start[image] * np.float32(mix.signal)
            if mix.noise:
                state[image] += self._draw(image, number, shape[1:]) * np.float32(mix.noise)
        return state

    def advance(self, state: Array, rows: Sequence[Row], terms: Terms[Array], number: int) -> Array:
        """See `Arithmetic`."""
        after = np.empty(state.shape, np.float32)
        noise = self.noise(state.shape, number) if any(row.s for row in rows) else None
        for image, row in enumerate(rows):
            clean, grad = _item(terms.clean, image), _item(terms.grad, image)
            target = _item(terms.target, image)
            if grad is None and row.g and target is not None and clean is not None:
                grad = clean - target
            after[image] = advance(
                state[image].astype(np.float32, copy=False),
                clean,
                _item(terms.clean_prev, image),
                _item(terms.clean_prev2, image),
                _item(noise, image),
                grad,
                _item(terms.direction, image),
                row,
            )
        return after

    def ask(
        self, stage: Stage, tensors: Mapping[str, Array], tiling: Tiling, trace: Trace
    ) -> dict[str, Array]:
        """See `Arithmetic`."""
        return stage.run(tensors, tiling, trace)

    def _draw(self, image: int, number: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        return self.source.draw(self.seed, self.frame + image, number, shape)


def _item(tensors: Array | None, image: int) -> npt.NDArray[np.float32] | None:
    return None if tensors is None else tensors[image].astype(np.float32, copy=False)
