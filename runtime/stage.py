"""Stage: one graph of a bundle, loaded; and what its runs are remembered by."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jscc.runtime.backends.base import Session
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array
from jscc.runtime.tiling import Tiling, run_tiled


@dataclass(frozen=True)
class Stage:
    """One stage of a bundle, loaded."""

    name: str
    entry: StageEntry
    session: Session

    def run(self, arrays: Mapping[str, Array], tiling: Tiling, trace: "Trace") -> dict[str, Array]:
        """Run once, tile by tile where the stage allows and the image is larger than a tile."""
        begun = time.perf_counter()
        tiles = self.tiles(tiling)
        if tiles > 1:
            ports = self.entry.inputs, self.entry.outputs
            results = run_tiled(self.session.run, *ports, arrays, tiling)
        else:
            results = self.session.run(arrays)
        trace.tiles[self.name] = tiles
        trace.add(self.name, begun)
        return results

    def tiles(self, tiling: Tiling) -> int:
        """How many runs of its graph one run takes."""
        return tiling.count if self.entry.tiled else 1


@dataclass
class Trace:
    """What one run did; belongs to one call."""

    tiles: dict[str, int] = field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    times_ms: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, begun: float) -> None:
        """Add the time since `begun` (of ``time.perf_counter``) to `name`."""
        self.add_ms(name, 1e3 * (time.perf_counter() - begun))

    def join(self, other: "Trace") -> None:
        """Take over what a part of the run did."""
        self.tiles.update(other.tiles)
        self.losses.update(other.losses)
        for name, elapsed_ms in other.times_ms.items():
            self.add_ms(name, elapsed_ms)

    def add_ms(self, name: str, elapsed_ms: float) -> None:
        """Add so many milliseconds to `name`."""
        self.times_ms[name] = self.times_ms.get(name, 0.0) + elapsed_ms
