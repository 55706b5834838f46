"""Program: the stages of a bundle run in order over named tensors. Knows no system.

Each stage reads its input ports from the named tensors and writes its output ports back; a loop
does so once per step with its state and ``timestep`` added, and leaves its state behind.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import Backend, Session
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UsageError
from jscc.runtime.loop import LoopPlan, run_loop
from jscc.runtime.manifest import LoopStep, StageEntry
from jscc.runtime.noise import NoiseSource
from jscc.runtime.ports import Array, Port, resolve
from jscc.runtime.tiling import Tiling, run_tiled

Supply = Callable[[str, Mapping[str, Array]], Array | None]

TIMESTEP = "timestep"


@dataclass(frozen=True)
class Stage:
    """One stage of a bundle, loaded."""

    name: str
    entry: StageEntry
    session: Session

    def run(self, arrays: Mapping[str, Array], tiling: Tiling, trace: "Trace") -> dict[str, Array]:
        """Run once, tile by tile where the stage allows and the image is larger than a tile."""
        begun = time.perf_counter()
        tiles = tiling.count if self.entry.tiled else 1
        if tiles > 1:
            ports = self.entry.inputs, self.entry.outputs
            results = run_tiled(self.session.run, *ports, arrays, tiling)
        else:
            results = self.session.run(arrays)
        trace.tiles[self.name] = tiles
        trace.add(self.name, begun)
        return results


@dataclass
class Trace:
    """What one run did; belongs to one call."""

    tiles: dict[str, int] = field(default_factory=dict)
    times_ms: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, begun: float) -> None:
        """Add the time since `begun` (of ``time.perf_counter``) to `name`."""
        elapsed = 1e3 * (time.perf_counter() - begun)
        self.times_ms[name] = self.times_ms.get(name, 0.0) + elapsed


@dataclass(frozen=True)
class Run:
    """What one run of a program is given.

    Attributes:
        sizes: ``batch``, and ``height`` and ``width`` of the padded image.
        tiling: Of that image.
        plans: What each loop does, by stage.
        noise: Where the loops' noise comes from.
        seed: Passed on to `noise`.
        frame: Number of the first image.
        supply: Asked for a side input that is not among the tensors.
    """

    sizes: Mapping[str, int]
    tiling: Tiling
    plans: Mapping[str, LoopPlan]
    noise: NoiseSource
    seed: int
    frame: int
    supply: Supply


@dataclass(frozen=True)
class Program:
    """The receiver's stages and the constants that they read."""

    steps: tuple[str | LoopStep, ...]
    stages: Mapping[str, Stage]
    states: Mapping[str, str]
    constants: Mapping[str, Array]

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked of the backend and not done."""
        texts = [text for stage in self.stages.values() for text in stage.session.fallbacks]
        return tuple(texts)

    @property
    def providers(self) -> dict[str, str]:
        """What each stage runs on."""
        return {name: stage.session.provider for name, stage in self.stages.items()}

    def execute(self, given: Mapping[str, Array], run: Run, trace: Trace) -> dict[str, Array]:
        """Run all steps and return every named tensor."""
        tensors: dict[str, Array] = {**self.constants, **given}
        for step in self.steps:
            name = step.loop if isinstance(step, LoopStep) else step
            stage = self.stages[name]
            own = {TIMESTEP, self.states[name]} if isinstance(step, LoopStep) else set()
            ports = [port for port in stage.entry.inputs if port.name not in own]
            arrays = {port.name: _feed(port, tensors, run) for port in ports}
            if isinstance(step, LoopStep):
                tensors[self.states[name]] = self._loop(stage, arrays, tensors, run, trace)
            else:
                tensors.update(stage.run(arrays, run.tiling, trace))
        return tensors

    def _loop(
        self,
        stage: Stage,
        arrays: Mapping[str, Array],
        tensors: Mapping[str, Array],
        run: Run,
        trace: Trace,
    ) -> Array:
        state = self.states[stage.name]
        ports = {port.name: port for port in stage.entry.inputs}
        clean = stage.entry.outputs[0].name
        plan = run.plans[stage.name]

        def denoise(
            latent: npt.NDArray[np.float32], levels: npt.NDArray[np.float32]
        ) -> npt.NDArray[np.float32]:
            fed: dict[str, Array] = {**arrays, state: latent}
            if TIMESTEP in ports:
                fed[TIMESTEP] = levels.astype(ports[TIMESTEP].dtype)
            return stage.run(fed, run.tiling, trace)[clean].astype(np.float32, copy=False)

        return run_loop(
            plan,
            denoise,
            shape=resolve(ports[state], run.sizes),
            start=_named(tensors, plan.start_tensor if plan.start == "received" else None),
            guide=_named(tensors, plan.guide_tensor if plan.guidance else None),
            noise=run.noise,
            seed=run.seed,
            frame=run.frame,
        )


def load_stages(bundle: Bundle, names: Iterable[str], backend: Backend) -> dict[str, Stage]:
    """Load the stages called `names`.

    Raises:
        BundleError: ``E_GRAPH_LOAD`` and what else the backend raises.
        UnavailableError: ``E_EP_MISSING``, ``E_MEMORY``.
    """
    stages = {}
    for name in names:
        entry = bundle.manifest.stages[name]
        session = backend.load(name, entry, bundle.graph(name), bundle.external(name))
        stages[name] = Stage(name, entry, session)
    return stages


def load_program(bundle: Bundle, backend: Backend) -> Program:
    """Load what the receiver runs; see `load_stages`."""
    manifest = bundle.manifest
    names = [step.loop if isinstance(step, LoopStep) else step for step in manifest.program]
    stages = load_stages(bundle, names, backend)
    read = {port.name for stage in stages.values() for port in stage.entry.inputs}
    constants = {name: bundle.tensor(name) for name in manifest.tensors if name in read}
    states = {name: loop.state for name, loop in manifest.loops.items()}
    return Program(manifest.program, stages, states, constants)


def _feed(port: Port, tensors: dict[str, Array], run: Run) -> Array:
    """The array for `port`; one item is repeated for every image of the batch."""
    array = tensors.get(port.name)
    if array is None:
        array = run.supply(port.name, tensors)
    if array is None:
        raise UsageError(
            "E_SIDE",
            f"side: got no {port.name!r}, expected {port}. Give it with the symbols, "
            "or give the receiver a captioner.",
        )
    batch = run.sizes["batch"]
    if port.shape and port.shape[0] == "batch" and array.shape[:1] == (1,) and batch > 1:
        array = np.repeat(array, batch, axis=0)
    tensors[port.name] = array
    return array


def _named(tensors: Mapping[str, Array], name: str | None) -> npt.NDArray[np.float32] | None:
    return None if name is None else tensors[name].astype(np.float32, copy=False)
