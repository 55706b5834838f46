"""Reception on a device: symbols up, pixels down, nothing between.

It needs an engine for every stage that runs, an image of one tile, noise by its address and kernels
that compile. Where any of that is missing the host computes between the stages, and says why.

NOTE: never executed on a device; see `jscc.runtime.device.bindings`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import DeviceSession
from jscc.runtime.device.arithmetic import DeviceArithmetic
from jscc.runtime.device.device import DeviceArray
from jscc.runtime.device.station import Station
from jscc.runtime.errors import UnavailableError
from jscc.runtime.fixed import FixedSession
from jscc.runtime.manifest_loops import LoopStep
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.ports import Array
from jscc.runtime.program import Program, Run
from jscc.runtime.stage import Stage, Trace

WHAT = "what lies between the stages"

Symbols = npt.NDArray[np.complex64]
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Received:
    """What comes down.

    Attributes:
        pixels: uint8[batch, height, width, 3] of the padded images.
        flags: uint32[batch, 2], see `jscc.kernels.to_uint8.reference.flags_of`.
    """

    pixels: Pixels
    flags: Flags


@dataclass(frozen=True)
class Reception:
    """One run of a program that may stay on a device.

    Attributes:
        program: What to run.
        station: Where.
        run: What it is given.
        image: The tensor that becomes pixels, and that it ends with.
    """

    program: Program
    station: Station
    run: Run
    image: str

    def reason_for_host(self) -> str:
        """Why it cannot stay there; empty where it can.

        Engines are built for its sizes where there are none yet.

        Raises:
            BundleError: ``E_GRAPH_PORTS``, ``E_GRAPH_EXTERNAL``.
            UnavailableError: ``E_MEMORY``, there is too little for the engines of a batch.
        """
        if type(self.run.noise) is not PhiloxNoise:
            return "the noise is the caller's own"
        for name in self.program.descents:
            return f"{name!r} is a descent"
        return next(filter(None, self._reasons()), "")

    def _reasons(self) -> Iterator[str]:
        """What may speak against it, the cheapest to know first; empty where it does not."""
        stages = tuple(_stages(self.program, self.run, self.image))
        for stage in stages:
            yield _reason_of_stage(stage, self.run)
        yield _reason_of_dtypes(self.program, stages, self.run, self.image)
        for stage in stages:
            yield _reason_of_engine(stage, self.run)
        yield self.station.unfit()

    def receive(
        self,
        symbols: Sequence[tuple[Symbols, complex | None]],
        given: Mapping[str, Array],
        rounding: str,
        trace: Trace,
    ) -> Received:
        """Run it there.

        Args:
            symbols: Of each image, with what equalisation divides them by.
            given: Further tensors by name.
            rounding: Of the pixels.
            trace: Where stages and times are noted.

        Raises:
            UnavailableError: ``E_MEMORY``; ``E_RUN``, the device or an engine fails.
        """
        run, station = self.run, self.station
        try:
            with station.flow() as flow:
                arithmetic = DeviceArithmetic(flow, station.kernels, run.sizes, run.seed, run.frame)
                planes = _unpacked(arithmetic, symbols)
                fed: dict[str, Array | DeviceArray] = {**given, "received": planes}
                tensors = self.program.carry(arithmetic, fed, run, trace, self.image)
                down = flow.bring(*_pixels(arithmetic, tensors[self.image], rounding))
                arithmetic.tell_times(trace)
        except UnavailableError as error:
            if error.code != "E_CUDA":
                raise
            got = error.message.partition(", expected")[0].replace(": got ", " ")
            raise UnavailableError(
                "E_RUN",
                f"reception on {station.device.name}: got {got}, expected it to run. "
                "Try onnxruntime; if it stays, update NVIDIA's driver.",
            ) from error
        pixels, flags = down
        return Received(pixels.astype(np.uint8, copy=False), flags.astype(np.uint32, copy=False))


def find_reception(program: Program, run: Run, image: str) -> Reception | None:
    """The reception on the device of the program's stages; None where all are the CPU's."""
    for stage in program.stages.values():
        session = stage.session
        inner = session.session if isinstance(session, FixedSession) else session
        if isinstance(inner, DeviceSession):
            return Reception(program, inner.station, run, image)
    return None


def _stages(program: Program, run: Run, image: str) -> Iterator[Stage]:
    """What a run asks, until the tensor `image` is there."""
    for step in program.steps:
        name = step.loop if isinstance(step, LoopStep) else step
        if name not in program.stages:
            continue  # a descent
        yield program.stages[name]
        if isinstance(step, LoopStep):
            guide = run.plans[name].guide_stage
            if guide is not None:
                yield program.stages[guide]
        elif image in {port.name for port in program.stages[name].entry.outputs}:
            return


def _reason_of_stage(stage: Stage, run: Run) -> str:
    if isinstance(stage.session, FixedSession):
        return f"stage {stage.name!r} takes one size only"
    if not isinstance(stage.session, DeviceSession):
        return f"stage {stage.name!r} runs on the CPU"
    tiles = stage.tiles(run.tiling)
    return f"stage {stage.name!r} runs on {tiles} tiles" if tiles > 1 else ""


def _reason_of_engine(stage: Stage, run: Run) -> str:
    assert isinstance(stage.session, DeviceSession)
    return stage.session.reason_for_host(run.sizes)


def _reason_of_dtypes(program: Program, stages: tuple[Stage, ...], run: Run, image: str) -> str:
    """Loops and pixels are float32; no kernel casts."""
    states = {program.states[name]: run.plans[name] for name in run.plans}
    single = {image, "noise", "grad", "direction", *states}
    for plan in states.values():
        single |= {name for name in (plan.start_tensor, plan.guide_tensor) if name is not None}
    single |= {
        stage.entry.outputs[0].name
        for stage in stages
        if states.keys() & {port.name for port in stage.entry.inputs}
    }
    for stage in stages:
        for port in (*stage.entry.inputs, *stage.entry.outputs):
            if port.name in single and port.dtype != "float32":
                return f"stage {stage.name!r} has {port.name!r} in {port.dtype}"
    return ""


def _unpacked(
    arithmetic: DeviceArithmetic, symbols: Sequence[tuple[Symbols, complex | None]]
) -> DeviceArray:
    """The planes of all images, equalised."""
    flow = arithmetic.flow
    received = flow.take(np.stack([each for each, _ in symbols]))
    count, half, *grid = received.shape
    planes = flow.empty((count, 2 * half, *grid), np.float32)
    for index, (_, divisor) in enumerate(symbols):
        arithmetic.kernels.unpack(flow, planes.item(index), received.item(index), divisor)
    return planes


def _pixels(
    arithmetic: DeviceArithmetic, images: DeviceArray, rounding: str
) -> tuple[DeviceArray, DeviceArray]:
    flow = arithmetic.flow
    count, _, height, width = images.shape
    pixels = flow.empty((count, height, width, 3), np.uint8)
    flags = flow.zeros((count, 2), np.uint32)
    for index in range(count):
        image, shown, told = images.item(index), pixels.item(index), flags.item(index)
        arithmetic.kernels.to_uint8(flow, shown, image, rounding, None, told)
    return pixels, flags
