"""Kernels: the hand-written ones, on arrays of a device, as their references say.

What a reference takes as noise is drawn here, by its address. Results are meant to be the
reference's bits; see `jscc.runtime.device.bindings` for what was tried and what was not.
"""

from collections.abc import Mapping

import numpy as np

from jscc.kernels.advance.reference import Coefficients
from jscc.kernels.null_space.reference import Shares
from jscc.kernels.sources import entries_of
from jscc.kernels.to_uint8.reference import REACHES, ROUNDINGS
from jscc.runtime.device.device import DeviceArray, Value, check_array
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.loader import KernelLoader

Term = DeviceArray | None
Address = tuple[int, int, int]  # seed, frame and step of noise

_LETTERS = ("a", "b", "c", "e", "s", "g", "d")
_RECEIVERS = ("advance", "philox_normal", "to_uint8", "unpack")  # what a reception may start


class DeviceKernels:
    """The kernels of one device; each is started in a flow and writes into arrays at hand.

    Every call raises what `KernelLoader.function` and `Flow` raise.

    Args:
        loader: Compiles them.
    """

    def __init__(self, loader: KernelLoader) -> None:
        self._loader = loader

    @property
    def notes(self) -> tuple[str, ...]:
        """Why compiled kernels were not kept or not found; see `KernelLoader.notes`."""
        return self._loader.notes

    def prepare(self) -> None:
        """Have all that a reception starts, compiled if need be."""
        for kernel in _RECEIVERS:
            for entry in entries_of(kernel):
                self._loader.function(kernel, entry)

    def philox_normal(self, flow: Flow, normals: DeviceArray, address: Address) -> None:
        """See `jscc.kernels.philox_normal.reference.philox_normal`; fills float32 `normals`."""
        values = {"normals": normals.pointer, "count": normals.size}
        values |= _address("philox_normal", address)
        self._start(flow, "philox_normal", values, -(-normals.size // 4))

    def advance(
        self,
        flow: Flow,
        after: DeviceArray,
        x: Term,
        clean: Term,
        clean_prev: Term,
        clean_prev2: Term,
        address: Address,
        grad: Term,
        direction: Term,
        row: Coefficients,
    ) -> None:
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
        pointers = _pointers("advance", terms, after.shape)
        values = {"after": after.pointer, **pointers, **_row(row), "count": after.size}
        values |= _address("advance", address)
        self._start(flow, "advance", values, -(-after.size // 4))

    def null_space(
        self,
        flow: Flow,
        after: DeviceArray,
        corrected: DeviceArray,
        x: Term,
        estimate: DeviceArray,
        eps: Term,
        target: DeviceArray,
        clean_prev: Term,
        clean_prev2: Term,
        address: Address,
        grad: Term,
        row: Coefficients,
        shares: Shares,
        scale: int,
    ) -> None:
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
        pointers = _pointers("null_space", terms, estimate.shape)
        values = {"after": after.pointer, "corrected": corrected.pointer, **pointers}
        values |= {**_row(row), **_shares(shares), **_address("null_space", address)}
        values |= {"scale": scale, "planes": planes, "height": height, "width": width}
        self._start(flow, "null_space", values, estimate.size // (scale * scale))

    def unpack(
        self,
        flow: Flow,
        planes: DeviceArray,
        symbols: DeviceArray,
        gain: complex | None = None,
        erased: Term = None,
    ) -> None:
        """See `jscc.kernels.unpack.reference.unpack`; fills float32 `planes`.

        Raises:
            ValueError: Not complex64, or `erased` is not bool or has another shape.
        """
        check_array("unpack: symbols", symbols, "complex64", symbols.shape)
        given = np.complex64(1 if gain is None else gain)
        values: dict[str, Value] = {
            "planes": planes.pointer,
            "symbols": symbols.pointer,
            "erased": 0,
            "gain_re": float(given.real),
            "gain_im": float(given.imag),
            "divide": int(gain is not None),
            "count": symbols.size,
        }
        if erased is not None:
            values["erased"] = check_array("unpack: erased", erased, "bool", symbols.shape).pointer
        self._start(flow, "unpack", values, symbols.size)

    def to_uint8(
        self,
        flow: Flow,
        pixels: DeviceArray,
        image: DeviceArray,
        rounding: str,
        other: Term = None,
        flags: Term = None,
    ) -> None:
        """See `jscc.kernels.to_uint8.reference`: ``to_uint8``, of ``fix_colors`` with `other`.

        `flags`, uint32[2] of zeros, become what ``flags_of`` says of the same.

        Raises:
            ValueError: Another rounding or shape.
        """
        if rounding not in ROUNDINGS:
            raise ValueError(f"to_uint8: got {rounding!r}, expected {' or '.join(ROUNDINGS)}.")
        height, width = image.shape[-2:]
        shape = (3, height, width)
        check_array("to_uint8: image", image, "float32", shape)
        low = None
        if other is not None:
            check_array("to_uint8: other", other, "float32", shape)
            low = self._low_band(flow, other, image)
        values = {
            "pixels": pixels.pointer,
            "flags": 0 if flags is None else flags.pointer,
            "image": image.pointer,
            "correction": 0 if low is None else low.pointer,
            "reach": REACHES[-1],
            "nearest": int(rounding == "nearest"),
            "height": height,
            "width": width,
        }
        self._start(flow, "to_uint8", values, height * width)

    def _low_band(self, flow: Flow, image: DeviceArray, minus: DeviceArray) -> DeviceArray:
        """All blurs of a difference but the last, which `to_uint8` does on the way."""
        planes, height, width = image.shape
        subtracted = minus.pointer
        for reach in REACHES[:-1]:
            blurred = flow.empty(image.shape, "float32")
            values = {"blurred": blurred.pointer, "image": image.pointer, "minus": subtracted}
            values |= {"reach": reach, "planes": planes, "height": height, "width": width}
            self._start(flow, "to_uint8", values, image.size, entry="blur")
            image, subtracted = blurred, 0
        return image

    def _start(
        self,
        flow: Flow,
        kernel: str,
        values: Mapping[str, Value],
        work: int,
        *,
        entry: str | None = None,
    ) -> None:
        name = entry or kernel
        parameters = entries_of(kernel)[name]
        function = self._loader.function(kernel, name)
        ordered = [values[parameter.name] for parameter in parameters]
        flow.device.start(function, parameters, ordered, work, flow.stream)


def _pointers(
    kernel: str, terms: Mapping[str, tuple[Term, float]], shape: tuple[int, ...]
) -> dict[str, Value]:
    """Addresses of the terms whose factor is not zero, 0 for the others."""
    pointers: dict[str, Value] = dict.fromkeys(terms, 0)
    for name, (term, factor) in terms.items():
        if np.float32(factor) == 0:
            continue
        if term is None:
            raise ValueError(f"{kernel}: got no {name}, expected one: its factor is {factor}.")
        pointers[name] = check_array(f"{kernel}: {name}", term, "float32", shape).pointer
    return pointers


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
