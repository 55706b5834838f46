"""Fixed: a graph that was made for one image at a time or for tiles of one size only.

To the rest of the runtime such a stage looks like any other: batches are run image by image, and
where an image is smaller than a tile it is mirrored to the tile's size and what comes out is cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from jscc.runtime.backends.base import Session
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Dim, Port, resolve, split_dim

BATCH = "batch"


def open_entry(entry: StageEntry, known: Mapping[str, Port]) -> tuple[StageEntry, dict[str, int]]:
    """`entry` with symbols for the sizes that its graph has fixed, and these sizes.

    Args:
        entry: What the manifest says of the stage.
        known: By name, ports of the same tensors elsewhere, which have the symbols.
    """
    sizes: dict[str, int] = {}
    inputs = tuple(_open(port, known.get(port.name), sizes) for port in entry.inputs)
    outputs = tuple(_open(port, known.get(port.name), sizes) for port in entry.outputs)
    return replace(entry, inputs=inputs, outputs=outputs), sizes


def _open(port: Port, known: Port | None, sizes: dict[str, int]) -> Port:
    if known is None or len(known.shape) != len(port.shape):
        return port
    shape: list[Dim] = []
    for dim, symbolic in zip(port.shape, known.shape, strict=True):
        if isinstance(dim, int) and isinstance(symbolic, str):
            symbol, divisor = split_dim(symbolic)
            if sizes.setdefault(symbol, dim * divisor) == dim * divisor:
                shape.append(symbolic)
                continue
        shape.append(dim)
    return Port(port.name, port.dtype, tuple(shape))


@dataclass(frozen=True)
class FixedSession:
    """A session for one image, or one size of tile, that takes others too.

    Attributes:
        session: What it runs.
        inputs: Its input ports with symbols.
        outputs: Its output ports with symbols.
        sizes: What these symbols are in the graph: ``batch`` 1, or ``height`` and ``width``.
    """

    session: Session
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: Mapping[str, int]

    @property
    def provider(self) -> str:
        """As the session underneath."""
        return self.session.provider

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """As the session underneath."""
        return self.session.fallbacks

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once, or once for each image."""
        if BATCH not in self.sizes:
            return self._run(arrays)
        batched = [port.name for port in self.inputs if port.shape[:1] == (BATCH,)]
        count = len(arrays[batched[0]]) if batched else 1
        results = [
            self._run(
                {
                    name: array[index : index + 1] if name in batched else array
                    for name, array in arrays.items()
                }
            )
            for index in range(count)
        ]
        return {
            port.name: np.concatenate([result[port.name] for result in results])
            for port in self.outputs
        }

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        real = dict(self.sizes)
        for port in self.inputs:
            for dim, length in zip(port.shape, arrays[port.name].shape, strict=True):
                if isinstance(dim, str):
                    symbol, divisor = split_dim(dim)
                    real[symbol] = length * divisor
        wanted = {**real, **self.sizes}
        fed = {port.name: filled(arrays[port.name], resolve(port, wanted)) for port in self.inputs}
        results = self.session.run(fed)
        return {port.name: _cut(results[port.name], resolve(port, real)) for port in self.outputs}


def filled(array: Array, shape: tuple[int, ...]) -> Array:
    """`array` mirrored at its ends to `shape`."""
    missing = [(0, want - got) for want, got in zip(shape, array.shape, strict=True)]
    return np.pad(array, missing, mode="symmetric") if array.shape != shape else array


def _cut(array: Array, shape: tuple[int, ...]) -> Array:
    """The first items of `array` along each axis."""
    return array[tuple(slice(length) for length in shape)]
