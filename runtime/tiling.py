"""Tiling: a stage run on overlapping tiles, so that memory follows the tile, not the image.

Where tiles overlap their outputs are blended by linear ramps whose weights sum to 1. All tiles of
an image have one shape, so an engine sees few shapes: a tile that would stick out is moved back.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from jscc.runtime.ports import Array, Port, resolve, split_dim

Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Arrays]
Floats = npt.NDArray[np.float32]

AXES = ("height", "width")


@dataclass(frozen=True)
class Axis:
    """How one edge of an image is cut, in pixels.

    Attributes:
        length: Of the edge.
        tile: Of one tile; at most `length`.
        starts: Where the tiles begin, ascending; the first at 0, the last ends at `length`.
    """

    length: int
    tile: int
    starts: tuple[int, ...]

    @lru_cache(maxsize=64)  # noqa: B019 - an Axis is a few numbers; asked again in every step
    def weights(self, divisor: int) -> tuple[Floats, ...]:
        """Each tile's weights along this edge, float32[tile / divisor]; they sum to 1 everywhere.

        Args:
            divisor: Pixels per element.
        """
        tile, length = self.tile // divisor, self.length // divisor
        starts = [start // divisor for start in self.starts]
        ramps = [_ramp(starts, index, tile) for index in range(len(starts))]
        total = np.zeros(length, np.float64)
        for start, ramp in zip(starts, ramps, strict=True):
            total[start : start + tile] += ramp
        shares = []
        for start, ramp in zip(starts, ramps, strict=True):
            share = (ramp / total[start : start + tile]).astype(np.float32)
            share.flags.writeable = False
            shares.append(share)
        return tuple(shares)


@dataclass(frozen=True)
class Tiling:
    """How an image is cut along both edges."""

    height: Axis
    width: Axis

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.height.starts) * len(self.width.starts)


def cut(length: int, tile: int, overlap: int, align: int) -> Axis:
    """Cut an edge into equal tiles that overlap by `overlap` or more, spread evenly.

    Args:
        length: Edge of the image, a multiple of `align`.
        tile: Edge of a tile, a multiple of `align`; 0 or more than `length` for one piece.
        overlap: What neighbours share at least, a multiple of `align`, less than `tile`.
        align: Tiles begin at multiples of this.
    """
    if not 0 < tile < length:
        return Axis(length, length, (0,))
    count = math.ceil((length - overlap) / (tile - overlap))
    room = (length - tile) // align
    starts = tuple(align * (index * room // (count - 1)) for index in range(count))
    return Axis(length, tile, starts)


def tile_image(height: int, width: int, *, tile: int, overlap: int, multiple: int) -> Tiling:
    """Cut an image whose edges are multiples of `multiple`; see `cut`."""
    align = math.gcd(multiple, overlap)
    return Tiling(cut(height, tile, overlap, align), cut(width, tile, overlap, align))


def run_tiled(
    run: Run, inputs: tuple[Port, ...], outputs: tuple[Port, ...], arrays: Arrays, tiling: Tiling
) -> dict[str, Array]:
    """Run a stage tile by tile and blend what it returns.

    Args:
        run: The stage.
        inputs: Its input ports; those with ``height`` or ``width`` are cut, the others are
            handed to every tile whole.
        outputs: Its output ports, all of them floating point.
        arrays: The whole inputs.
        tiling: Of an image with the inputs' size.
    """
    batch = _batch(inputs, arrays)
    sizes = {"batch": batch, "height": tiling.height.length, "width": tiling.width.length}
    blended = {port.name: np.zeros(resolve(port, sizes), np.float32) for port in outputs}
    for row, top in enumerate(tiling.height.starts):
        for column, left in enumerate(tiling.width.starts):
            corner = {"height": top, "width": left}
            tile = {
                port.name: np.ascontiguousarray(arrays[port.name][_window(port, corner, tiling)])
                for port in inputs
            }
            results = run(tile)
            for port in outputs:
                result: Floats = results[port.name].astype(np.float32, copy=False)
                window = _window(port, corner, tiling)
                blended[port.name][window] += result * _weight(port, tiling, row, column)
    return {port.name: blended[port.name].astype(port.dtype, copy=False) for port in outputs}


def _ramp(starts: list[int], index: int, tile: int) -> npt.NDArray[np.float64]:
    """1 inside a tile, falling linearly over what it shares with its neighbours."""
    ramp = np.ones(tile, np.float64)
    if index > 0:
        shared = starts[index - 1] + tile - starts[index]
        if shared > 0:
            ramp[:shared] *= (np.arange(shared) + 0.5) / shared
    if index + 1 < len(starts):
        shared = starts[index] + tile - starts[index + 1]
        if shared > 0:
            ramp[tile - shared :] *= (shared - np.arange(shared) - 0.5) / shared
    return ramp


def _batch(inputs: tuple[Port, ...], arrays: Arrays) -> int:
    """The number of images in `arrays`."""
    for port in inputs:
        if port.shape and port.shape[0] == "batch":
            return int(arrays[port.name].shape[0])
    return 1


def _window(port: Port, corner: Mapping[str, int], tiling: Tiling) -> tuple[slice, ...]:
    """What of `port` belongs to the tile at `corner`."""
    lengths = {"height": tiling.height.tile, "width": tiling.width.tile}
    window = []
    for dim in port.shape:
        symbol, divisor = split_dim(dim) if isinstance(dim, str) else ("", 1)
        if symbol in AXES:
            start = corner[symbol] // divisor
            window.append(slice(start, start + lengths[symbol] // divisor))
        else:
            window.append(slice(None))
    return tuple(window)


def _weight(port: Port, tiling: Tiling, row: int, column: int) -> Floats:
    """The weights of one tile, of a shape that broadcasts with the port's."""
    weight = np.ones((1,) * len(port.shape), np.float32)
    for position, dim in enumerate(port.shape):
        symbol, divisor = split_dim(dim) if isinstance(dim, str) else ("", 1)
        if symbol in AXES:
            axis, index = (tiling.height, row) if symbol == "height" else (tiling.width, column)
            shape = [1] * len(port.shape)
            shape[position] = -1
            weight = weight * axis.weights(divisor)[index].reshape(shape)
    return weight
