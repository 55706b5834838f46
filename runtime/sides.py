"""Sides: what reaches the receiver beside the symbols, digitally.

A bundle names its *side inputs*. Those that its transmitter returns behind the planes, such as a
scale or a mask, belong to one image: they go along with its symbols, also in files, and are few
numbers. The others are the host's own, such as a description of the image.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import Manifest, Signal
from jscc.runtime.ports import Array, Port, describe, resolve

Floats = npt.NDArray[np.float32]

ENCODE = "encode"  # the transmitter's stage; all others are the receiver's
MAX_SIDE_VALUES = 4096  # of all side outputs for one image
MAX_SIDE_OUTPUTS = 8


def planes_allowed(signal: Signal) -> tuple[int, ...]:
    """How many planes an image may be sent as."""
    return signal.rates or (signal.planes,)


def side_outputs(manifest: Manifest) -> tuple[Port, ...]:
    """What the transmitter returns beside the planes; nothing where it is not in the bundle."""
    encode = manifest.stages.get(ENCODE)
    return () if encode is None else encode.outputs[1:]


def host_sides(manifest: Manifest) -> tuple[str, ...]:
    """The side inputs that the transmitter does not give."""
    sent = {port.name for port in side_outputs(manifest)}
    return tuple(name for name in manifest.side_inputs if name not in sent)


def side_port(manifest: Manifest, name: str) -> Port | None:
    """The receiver's first input port called `name`."""
    stages = (stage for key, stage in manifest.stages.items() if key != ENCODE)
    ports = (port for stage in stages for port in stage.inputs)
    return next((port for port in ports if port.name == name), None)


def check_sides(
    manifest: Manifest, given: Mapping[str, Array], sizes: Mapping[str, int], *, captioned: bool
) -> None:
    """Hold side inputs to what the bundle wants.

    Args:
        manifest: Of the bundle.
        given: Arrays by name, for all images together or one for all of them.
        sizes: Of the ports' symbols.
        captioned: Whether the host's own may be left out.

    Raises:
        UsageError: ``E_SIDE``: names, shapes or dtypes are others, or a value is not finite.
    """
    wanted = set(manifest.side_inputs)
    needed = wanted - set(host_sides(manifest)) if captioned else wanted
    if set(given) - wanted or needed - set(given):
        raise UsageError(
            "E_SIDE",
            f"side: got {', '.join(sorted(given)) or 'none'}, expected "
            f"{', '.join(sorted(wanted)) or 'none'}. Give these and no others.",
        )
    for name, array in given.items():
        port = side_port(manifest, name)
        if port is not None:
            _check_side(port, array, sizes)


def _check_side(port: Port, array: object, sizes: Mapping[str, int]) -> None:
    shape = resolve(port, sizes)
    shapes = (shape, (1, *shape[1:])) if port.shape[:1] == ("batch",) else (shape,)
    if not (
        isinstance(array, np.ndarray) and str(array.dtype) == port.dtype and array.shape in shapes
    ):
        wanted = f"{port.dtype}[{','.join(map(str, shape))}]"
        raise UsageError(
            "E_SIDE",
            f"side {port.name!r}: got {describe(array)}, expected {wanted}. Give what came with "
            "these symbols.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(
            "E_SIDE",
            f"side {port.name!r}: got values that are not finite, expected finite ones. "
            "Receive them again.",
        )


def flatten_side(side: Mapping[str, Array]) -> dict[str, Floats]:
    """One image's side values as files carry them: a row of float32 each."""
    return {name: array.astype(np.float32).reshape(-1) for name, array in side.items()}


def shape_side(manifest: Manifest, flat: Mapping[str, Floats]) -> dict[str, Array]:
    """What `flatten_side` made flat, in the shape that the receiver takes for one image.

    Names that the bundle does not know, and rows of another length, stay as they are: `check_sides`
    refuses them.
    """
    shaped: dict[str, Array] = {}
    for name, row in flat.items():
        port = side_port(manifest, name)
        sizes = () if port is None else port.shape[1:]
        whole = [size for size in sizes if isinstance(size, int)]
        fits = len(whole) == len(sizes) and math.prod(whole) == row.size
        shaped[name] = row.reshape(1, *whole) if fits else row
    return shaped
