"""Program: the stages of a bundle run in order over named tensors. Knows no system.

Each stage reads its input ports from the named tensors and writes its output ports back; a loop
does so once per step with its state, its knobs and what the step is about added, and leaves its
state behind. A descent leaves what it renders.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import Backend, Session
from jscc.runtime.bundle import Bundle
from jscc.runtime.descent import DescentPlan, Scene, run_descent
from jscc.runtime.errors import UsageError
from jscc.runtime.fixed import FixedSession, open_entry
from jscc.runtime.loop import Answer, LoopPlan, Question, run_loop
from jscc.runtime.manifest import Manifest, StageEntry
from jscc.runtime.manifest_loops import Descent, LoopStep
from jscc.runtime.noise import NoiseSource
from jscc.runtime.ports import Array, Port, resolve
from jscc.runtime.tiling import Tiling, run_tiled

Supply = Callable[[str, Mapping[str, Array]], Array | None]

STEP_INPUTS = ("timestep", "alpha_bar", "alpha_bar_next", "noise")  # of a loop's stage


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
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
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
        descents: What each descent does, by name.
        noise: Where the loops' noise comes from.
        seed: Passed on to `noise`.
        frame: Number of the first image.
        supply: Asked for a side input that is not among the tensors.
    """

    sizes: Mapping[str, int]
    tiling: Tiling
    plans: Mapping[str, LoopPlan]
    descents: Mapping[str, DescentPlan]
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
    descents: Mapping[str, Descent]
    constants: Mapping[str, Array]

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked of the backend and not done; once what goes for several stages."""
        texts = [text for stage in self.stages.values() for text in stage.session.fallbacks]
        return tuple(dict.fromkeys(texts))

    @property
    def providers(self) -> dict[str, str]:
        """What each stage runs on."""
        return {name: stage.session.provider for name, stage in self.stages.items()}

    def execute(
        self, given: Mapping[str, Array], run: Run, trace: Trace, until: str | None = None
    ) -> dict[str, Array]:
        """Run all steps, or those up to the tensor `until`, and return every named tensor."""
        tensors: dict[str, Array] = {**self.constants, **given}
        for step in self.steps:
            if until in tensors:
                break
            name = step.loop if isinstance(step, LoopStep) else step
            if name in self.descents:
                tensors.update(self._descend(name, tensors, run, trace))
                continue
            if isinstance(step, LoopStep):
                tensors[self.states[name]] = self._loop(name, tensors, run, trace)
                continue
            stage = self.stages[name]
            arrays = {port.name: _feed(port, tensors, run) for port in stage.entry.inputs}
            tensors.update(stage.run(arrays, run.tiling, trace))
        return tensors

    def _loop(self, name: str, tensors: dict[str, Array], run: Run, trace: Trace) -> Array:
        """Run a loop and return its last state."""
        state, plan = self.states[name], run.plans[name]
        plain = self.stages[name]
        guided = plain if plan.guide_stage is None else self.stages[plan.guide_stage]
        ports = {port.name: port for stage in (guided, plain) for port in stage.entry.inputs}
        own = {state, *STEP_INPUTS, *plan.settings}
        given = {
            port.name: _feed(port, tensors, run) for port in ports.values() if port.name not in own
        }
        for setting, value in plan.settings.items():
            given[setting] = np.full(run.sizes["batch"], value, np.float32)

        def denoise(question: Question) -> Answer:
            stage = guided if question.guided else plain
            told = {state: question.state, **_step_inputs(question)}
            fed = {
                port.name: told[port.name].astype(port.dtype, copy=False)
                if port.name in told
                else given[port.name]
                for port in stage.entry.inputs
            }
            return _answer(stage, stage.run(fed, run.tiling, trace))

        pulled = any(path.guidance for path in plan.paths)
        return run_loop(
            plan,
            denoise,
            shape=resolve(ports[state], run.sizes),
            start=_named(tensors, plan.start_tensor if plan.start == "received" else None),
            guide=_named(tensors, plan.guide_tensor if pulled else None),
            noise=run.noise,
            seed=run.seed,
            frame=run.frame,
        )

    def _descend(
        self, name: str, tensors: dict[str, Array], run: Run, trace: Trace
    ) -> dict[str, Array]:
        """Run a descent and return what it renders."""
        descent = self.descents[name]
        entries = {stage: self.stages[stage].entry for stage in descent.stages}
        ports = [port for entry in entries.values() for port in entry.inputs]
        own = {*descent.variables, *descent.settings}
        arrays = {port.name: _feed(port, tensors, run) for port in ports if port.name not in own}
        scene = Scene(arrays, run.tiling, run.sizes["batch"], run.noise, run.seed, run.frame)

        def ask(stage: str, fed: Mapping[str, Array]) -> dict[str, Array]:
            return self.stages[stage].run(fed, run.tiling, trace)

        plan = run.descents[name]
        rendered, trace.losses[name] = run_descent(descent, plan, entries, ask, scene)
        return rendered


def load_stages(bundle: Bundle, names: Iterable[str], backend: Backend) -> dict[str, Stage]:
    """Load the stages called `names`.

    Raises:
        BundleError: ``E_GRAPH_LOAD`` and what else the backend raises.
        UnavailableError: ``E_EP_MISSING``, ``E_MEMORY``.
    """
    stages = {}
    symbols = _symbols(bundle.manifest)
    for name in names:
        entry = bundle.manifest.stages[name]
        session = backend.load(name, entry, bundle.graph(name), bundle.external(name))
        opened, sizes = open_entry(entry, symbols.get(name, {}))
        if sizes:
            session = FixedSession(session, opened.inputs, opened.outputs, sizes)
        stages[name] = Stage(name, opened, session)
    return stages


def _symbols(manifest: Manifest) -> dict[str, dict[str, Port]]:
    """For each guide's stage, whose graph may be for one size, the ports of its tensors elsewhere.

    A gradient is like the state.
    """
    guides = {guide for loop in manifest.loops.values() for guide in loop.guides.values()}
    known = {
        port.name: port
        for name, stage in manifest.stages.items()
        if name not in guides
        for port in (*stage.inputs, *stage.outputs)
    }
    return {
        guide: {**known, "grad": known[loop.state]}
        for loop in manifest.loops.values()
        for guide in loop.guides.values()
    }


def load_program(bundle: Bundle, backend: Backend) -> Program:
    """Load what the receiver runs; see `load_stages`."""
    manifest = bundle.manifest
    stages = load_stages(bundle, manifest.receiver_stages, backend)
    read = {port.name for stage in stages.values() for port in stage.entry.inputs}
    constants = {name: bundle.tensor(name) for name in manifest.tensors if name in read}
    states = {name: loop.state for name, loop in manifest.loops.items()}
    return Program(manifest.program, stages, states, manifest.descents, constants)


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


def _step_inputs(question: Question) -> dict[str, Array]:
    """What a stage may ask of a step, by port name; the noise is zero where none is drawn."""
    noise = np.zeros_like(question.state) if question.noise is None else question.noise
    arrays = (question.timestep, question.alpha_bar, question.alpha_bar_next, noise)
    return dict(zip(STEP_INPUTS, arrays, strict=True))


def _answer(stage: Stage, results: Mapping[str, Array]) -> Answer:
    """What a loop's stage returned: its first output, and others by their names."""
    floats = {name: array.astype(np.float32, copy=False) for name, array in results.items()}
    clean = floats[stage.entry.outputs[0].name]
    return Answer(clean, floats.get("grad"), floats.get("direction"))


def _named(tensors: Mapping[str, Array], name: str | None) -> npt.NDArray[np.float32] | None:
    return None if name is None else tensors[name].astype(np.float32, copy=False)
