"""Kernels: the hand-written ones on a device, NumPy arrays in and out, as their references say.

What a reference takes as noise is drawn here, by its address. Results are meant to be the
reference's bits; see `jscc.runtime.device.bindings` for what was tried and what was not.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from jscc.kernels.advance.reference import Coefficients
from jscc.kernels.null_space.reference import Shares
from jscc.kernels.sources import entries_of
from jscc.kernels.to_uint8.reference import REACHES, ROUNDINGS
from jscc.runtime.device.device import Device, DeviceArray, Value, check_array
from jscc.runtime.device.loader import KernelLoader
from jscc.runtime.errors import UnavailableError
from jscc.runtime.ports import Array

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.complex64]
Mask = npt.NDArray[np.bool_]
Address = tuple[int, int, int]  # seed, frame and step of noise

_LETTERS = ("a", "b", "c", "e", "s", "g", "d")


class DeviceKernels:
    """The kernels of one device.

    Every call raises what `KernelLoader.function` and `Device` raise.

    Args:
        device: Runs them.
        loader: Compiles them.
    """

    def __init__(self, device: Device, loader: KernelLoader) -> None:
        self._device = device
        self._loader = loader

    def philox_normal(self, seed: int, frame: int, step: int, count: int) -> Floats:
        """See `jscc.kernels.philox_normal.reference.philox_normal`."""
        with self._memory() as memory:
            normals = memory.empty((count,), "float32")
            values = {"normals": normals.pointer, "count": count}
            values |= _address("philox_normal", (seed, frame, step))
            self._start("philox_normal", values, -(-count // 4))
            return self._device.download(normals).astype(np.float32, copy=False)

    def advance(
        self,
        x: Floats,
        clean: Floats | None,
        clean_prev: Floats | None,
        clean_prev2: Floats | None,
        address: Address,
        grad: Floats | None,
        direction: Floats | None,
        row: Coefficients,
    ) -> Floats:
        """See `jscc.kernels.advance.reference.advance`; `address` in place of the noise.

        Raises:
            ValueError: A term is absent although its factor is not zero, or has another shape.
        """
        terms = {
            "x": (x, row.a),
            "clean": (clean, row.b),
            "clean_prev": (clean_prev, row.c),
            "clean_prev2": (clean_prev2, row.e),
            "grad": (grad, row.g),
            "direction": (direction, row.d),
        }
        with self._memory() as memory:
            pointers = memory.upload_terms("advance", terms, x.shape)
            after = memory.empty(x.shape, "float32")
            values = {"after": after.pointer, **pointers, **_row(row), "count": x.size}
            values |= _address("advance", address)
            self._start("advance", values, -(-x.size // 4))
            return self._device.download(after).astype(np.float32, copy=False)

    def null_space(
        self,
        x: Floats,
        estimate: Floats,
        eps: Floats | None,
        target: Floats,
        clean_prev: Floats | None,
        clean_prev2: Floats | None,
        address: Address,
        grad: Floats | None,
        row: Coefficients,
        shares: Shares,
        scale: int,
    ) -> tuple[Floats, Floats]:
        """See `jscc.kernels.null_space.reference.null_space`; `address` in place of the noise.

        Raises:
            ValueError: `scale` does not divide height and width; a term is absent although its
                factor is not zero, or has another shape.
        """
        planes, height, width = estimate.shape
        if scale < 1 or height % scale or width % scale:
            raise ValueError(
                f"null_space: got {height}x{width} pixels (height x width), expected multiples of "
                f"the scale {scale}."
            )
        terms = {
            "x": (x, row.a),
            "estimate": (estimate, 1.0),
            "eps": (eps, shares.old if np.float32(row.d) else 0.0),
            "target": (target, 1.0),
            "clean_prev": (clean_prev, row.c),
            "clean_prev2": (clean_prev2, row.e),
            "grad": (grad, row.g),
        }
        with self._memory() as memory:
            pointers = memory.upload_terms("null_space", terms, estimate.shape)
            after = memory.empty(estimate.shape, "float32")
            corrected = memory.empty(estimate.shape, "float32")
            values = {"after": after.pointer, "corrected": corrected.pointer, **pointers}
            values |= {**_row(row), **_shares(shares), **_address("null_space", address)}
            values |= {"scale": scale, "planes": planes, "height": height, "width": width}
            self._start("null_space", values, estimate.size // (scale * scale))
            results = [self._device.download(each) for each in (after, corrected)]
        first, second = (each.astype(np.float32, copy=False) for each in results)
        return first, second

    def unpack(
        self, symbols: Symbols, gain: complex | None = None, erased: Mask | None = None
    ) -> Floats:
        """See `jscc.kernels.unpack.reference.unpack`.

        Raises:
            ValueError: Not complex64, or `erased` has another shape.
        """
        check_array("unpack: symbols", symbols, "complex64", symbols.shape)
        given = np.complex64(1 if gain is None else gain)
        with self._memory() as memory:
            planes = memory.empty((2 * symbols.shape[0], *symbols.shape[1:]), "float32")
            values: dict[str, Value] = {
                "planes": planes.pointer,
                "symbols": memory.upload(symbols),
                "erased": 0,
                "gain_re": float(given.real),
                "gain_im": float(given.imag),
                "divide": int(gain is not None),
                "count": symbols.size,
            }
            if erased is not None:
                check_array("unpack: erased", erased, "bool", symbols.shape)
                values["erased"] = memory.upload(erased.astype(np.uint8))
            self._start("unpack", values, symbols.size)
            return self._device.download(planes).astype(np.float32, copy=False)

    def to_uint8(self, image: Floats, rounding: str, other: Floats | None = None) -> Pixels:
        """See `jscc.kernels.to_uint8.reference`: ``to_uint8``, of ``fix_colors`` with `other`.

        Raises:
            ValueError: Another rounding or shape.
        """
        if rounding not in ROUNDINGS:
            raise ValueError(f"to_uint8: got {rounding!r}, expected {' or '.join(ROUNDINGS)}.")
        height, width = image.shape[-2:]
        shape = (3, height, width)
        check_array("to_uint8: image", image, "float32", shape)
        with self._memory() as memory:
            pixels = memory.empty((height, width, 3), "uint8")
            drawn, low = memory.upload(image), 0
            if other is not None:
                check_array("to_uint8: other", other, "float32", shape)
                low = self._low_band(memory, memory.upload(other), drawn, shape)
            values = {
                "pixels": pixels.pointer,
                "image": drawn,
                "correction": low,
                "reach": REACHES[-1],
                "nearest": int(rounding == "nearest"),
                "height": height,
                "width": width,
            }
            self._start("to_uint8", values, height * width)
            return self._device.download(pixels).astype(np.uint8, copy=False)

    def _low_band(
        self, memory: "_Memory", image: int, minus: int, shape: tuple[int, int, int]
    ) -> int:
        """All blurs of a difference but the last, which `to_uint8` does on the way."""
        buffers = [memory.empty(shape, "float32").pointer for _ in range(2)]
        planes, height, width = shape
        for index, reach in enumerate(REACHES[:-1]):
            blurred = buffers[index % 2]
            values = {"blurred": blurred, "image": image, "minus": minus, "reach": reach}
            values |= {"planes": planes, "height": height, "width": width}
            self._start("to_uint8", values, planes * height * width, entry="blur")
            image, minus = blurred, 0
        return image

    def _start(
        self, kernel: str, values: Mapping[str, Value], work: int, *, entry: str | None = None
    ) -> None:
        name = entry or kernel
        parameters = entries_of(kernel)[name]
        function = self._loader.function(kernel, name)
        ordered = [values[parameter.name] for parameter in parameters]
        self._device.start(function, parameters, ordered, work)

    @contextmanager
    def _memory(self) -> Iterator["_Memory"]:
        memory = _Memory(self._device)
        try:
            yield memory
        finally:
            memory.free()


class _Memory:
    """Arrays of one call."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._arrays: list[DeviceArray] = []

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        self._arrays.append(self._device.empty(shape, dtype))
        return self._arrays[-1]

    def upload(self, array: Array) -> int:
        self._arrays.append(self._device.upload(array))
        return self._arrays[-1].pointer

    def upload_terms(
        self,
        kernel: str,
        terms: Mapping[str, tuple[Floats | None, float]],
        shape: tuple[int, ...],
    ) -> dict[str, Value]:
        """Addresses of the terms whose factor is not zero, 0 for the others."""
        pointers: dict[str, Value] = dict.fromkeys(terms, 0)
        for name, (term, factor) in terms.items():
            if np.float32(factor) == 0:
                continue
            if term is None:
                raise ValueError(f"{kernel}: got no {name}, expected one: its factor is {factor}.")
            pointers[name] = self.upload(check_array(f"{kernel}: {name}", term, "float32", shape))
        return pointers

    def free(self) -> None:
        for array in self._arrays:
            with suppress(UnavailableError):  # the others are to go as well
                self._device.free(array)


def _row(row: Coefficients) -> dict[str, Value]:
    return {letter: float(np.float32(getattr(row, letter))) for letter in _LETTERS}


def _shares(shares: Shares) -> dict[str, Value]:
    names = {"gap": shares.gap, "fresh": shares.fresh, "old": shares.old, "inside": shares.inside}
    factors: dict[str, Value] = {
        f"{name}_share": float(np.float32(factor)) for name, factor in names.items()
    }
    return {**factors, "project_noise": int(shares.project_noise)}


def _address(kernel: str, address: Address) -> dict[str, int]:
    values = dict(zip(("seed", "frame", "step"), address, strict=True))
    for name, value in values.items():
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{kernel}: got {name}={value}, expected 0 to 2**64 - 1.")
    return values
