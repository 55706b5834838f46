"""Collect: receive images over a grid of SNRs and time steps and measure what the layers meet.

The activations of a receiver move with the SNR of what it decodes and with the time step of its
loop, so both are swept: each image is sent and received at every SNR, and each reception runs
through the time steps of the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from jscc.calibration.air import Received, frame_of, meet_channel
from jscc.calibration.extremes import add_extremes, extremes
from jscc.calibration.half import half_tensors
from jscc.calibration.layers import layers_of
from jscc.calibration.probe import Probe
from jscc.calibration.ranges import Cell, Ranges
from jscc.runtime.channel import pass_through
from jscc.runtime.errors import UnavailableError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from jscc.runtime.bundle import Bundle
    from jscc.runtime.ports import Array

Image = npt.NDArray[np.uint8]
StageRanges = dict[str, dict[str, Ranges]]  # by stage and tensor


@dataclass(frozen=True)
class Grid:
    """What is received to measure by.

    Attributes:
        snrs_db: Of the channel; every image meets each of them.
        steps: Of loops; None for the bundle's own number.
        channel: One of `jscc.calibration.air.CHANNELS`.
        seed: Of channel noise and sampler.
    """

    snrs_db: tuple[float, ...]
    steps: int | None = None
    channel: str = "awgn"
    seed: int = 0


@dataclass(frozen=True)
class Airing:
    """One image as it was sent and as it arrived.

    Attributes:
        name: Of the image.
        image: uint8[height, width, 3].
        received: What arrived.
    """

    name: str
    image: Image
    received: Received


@dataclass
class Collected:
    """What a collection measured.

    Attributes:
        ranges: By stage and tensor.
        receptions: How many images were received, each SNR counted.
        evaluations: How often each stage ran.
        timesteps: Those that the loops visited.
    """

    ranges: StageRanges = field(default_factory=dict)
    receptions: int = 0
    evaluations: dict[str, int] = field(default_factory=dict)
    timesteps: set[float] = field(default_factory=set)


def send_all(
    transmitter: Transmitter, images: Mapping[str, Image], grid: Grid
) -> tuple[Airing, ...]:
    """Send every image over every channel of the grid."""
    airings = []
    for name, image in images.items():
        for snr_db in grid.snrs_db:
            csi, rng = meet_channel(grid.channel, name, snr_db, grid.seed)
            symbols, side = transmitter.send_with_side(image, csi=csi)
            arrived = pass_through(symbols, csi, rng=rng)
            size = (image.shape[0], image.shape[1])
            received = Received(arrived, csi, size, grid.seed, frame_of(name), side)
            airings.append(Airing(name, image, received))
    return tuple(airings)


def receive(receiver: Receiver, airing: Airing, grid: Grid) -> Image:
    """What `receiver` makes of it."""
    r = airing.received
    return receiver.receive(
        r.symbols,
        r.csi,
        seed=r.seed,
        frame=r.frame,
        size=r.size,
        side=r.side,
        steps=grid.steps,
    )[0]


def collect(
    bundle: Bundle,
    stages: Sequence[str],
    airings: Sequence[Airing],
    grid: Grid,
    *,
    everything: bool = False,
    threads: int | None,
    progress: Callable[[str], None],
) -> Collected:
    """Receive `airings` and measure what the layers of `stages` read and return.

    Args:
        bundle: In full precision.
        stages: Those to measure; the others just run.
        airings: What arrived.
        grid: How it is received.
        everything: Measure every tensor that could become float16, its extremes only: all of them
            at once would take more memory than anything else that calibration does.
        threads: Of the engine.
        progress: Told of each reception.

    Raises:
        UnavailableError: ``E_RUN``, a tensor is not finite.
        JsccError: What receiving raises; nothing is passed over.
    """
    collected = Collected()
    now: dict[str, float] = {}

    def expose(stage: str, model: ir.Model) -> tuple[str, ...]:
        if stage not in stages:
            return ()
        watched = watched_tensors(model)
        if everything:
            watched = dict.fromkeys((*half_tensors(model), *watched))
        collected.ranges[stage] = {name: Ranges(axis) for name, axis in watched.items()}
        return add_extremes(model, watched) if everything else tuple(watched)

    def tell(stage: str, fed: Mapping[str, Array], tensors: Mapping[str, Array]) -> None:
        step = float(np.ravel(fed["timestep"])[0]) if "timestep" in fed else None
        cell: Cell = (now["snr_db"], step)
        if step is not None:
            collected.timesteps.add(step)
        collected.evaluations[stage] = collected.evaluations.get(stage, 0) + 1
        for name, ranges in collected.ranges[stage].items():
            array = extremes(name, tensors) if everything else tensors[name]
            _note(ranges, array, cell, stage, name)

    receiver = Receiver(bundle, backend=Probe(expose, tell, threads), selftest=False)
    for airing in airings:
        now["snr_db"] = airing.received.csi.snr_db
        receive(receiver, airing, grid)
        collected.receptions += 1
        progress("collected")
    return collected


def watched_tensors(model: ir.Model) -> dict[str, int | None]:
    """What layers read, with the axis of its features, and what they return."""
    watched: dict[str, int | None] = {}
    layers = layers_of(model)
    for layer in layers:
        watched[str(layer.input.name)] = layer.feature_axis
    for layer in layers:
        watched.setdefault(str(layer.output.name), None)
    return watched


def _note(ranges: Ranges, array: Array, cell: Cell, stage: str, name: str) -> None:
    try:
        ranges.add(array.astype(np.float32, copy=False), cell)
    except ValueError as error:
        raise UnavailableError(
            "E_RUN",
            f"stage {stage!r}, tensor {name!r} at {cell[0]:g} dB: got {error}, expected finite "
            "values. The bundle itself is broken; export it again.",
        ) from error
