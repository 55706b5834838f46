"""Program: the stages of a bundle run in order over named tensors. Knows no system.

Each stage reads its input ports from the named tensors and writes its output ports back; a loop
does so once per step with its state, its knobs and what the step is about added, and leaves its
state behind. A descent leaves what it renders.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np

from jscc.runtime.arithmetic import Arithmetic, Brought, HostArithmetic, T
from jscc.runtime.backends.base import Backend
from jscc.runtime.bundle import Bundle
from jscc.runtime.descent import DescentPlan, Scene, run_descent
from jscc.runtime.errors import UsageError
from jscc.runtime.fixed import FixedSession, open_entry
from jscc.runtime.loop import Answer, LoopPlan, Question, run_loop
from jscc.runtime.manifest import Manifest
from jscc.runtime.manifest_loops import Descent, LoopStep
from jscc.runtime.noise import NoiseSource
from jscc.runtime.ports import Array, Port, resolve
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.tiling import Tiling

Supply = Callable[[str, Mapping[str, Array]], Array | None]

STEP_INPUTS = ("timestep", "alpha_bar", "alpha_bar_next", "noise")  # of a loop's stage


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
        arithmetic = HostArithmetic(run.noise, run.seed, run.frame)
        return self.carry(arithmetic, given, run, trace, until)

    def carry(
        self,
        arithmetic: Arithmetic[T],
        given: Mapping[str, Array | T],
        run: Run,
        trace: Trace,
        until: str | None = None,
    ) -> dict[str, T]:
        """The same by `arithmetic`; of what is given those that were read are among the tensors."""
        course = _Course(self, arithmetic, {**self.constants, **given}, run, trace)
        for step in self.steps:
            if until in course.tensors:
                break
            course.take_step(step)
        return course.tensors


class _Course(Generic[T]):
    """One run of a program."""

    def __init__(
        self,
        program: Program,
        arithmetic: Arithmetic[T],
        given: Mapping[str, Array | T],
        run: Run,
        trace: Trace,
    ) -> None:
        self._program = program
        self._arithmetic = arithmetic
        self._given = given
        self._run = run
        self._trace = trace
        self.tensors: dict[str, T] = {}

    def take_step(self, step: str | LoopStep) -> None:
        """Run a stage, a loop or a descent."""
        name = step.loop if isinstance(step, LoopStep) else step
        if name in self._program.descents:
            self._descend(name)
        elif isinstance(step, LoopStep):
            self.tensors[self._program.states[name]] = self._loop(name)
        else:
            stage = self._program.stages[name]
            self.tensors.update(
                self._ask(stage, {port.name: self._feed(port) for port in stage.entry.inputs})
            )

    def _ask(self, stage: Stage, tensors: Mapping[str, T]) -> dict[str, T]:
        return self._arithmetic.ask(stage, tensors, self._run.tiling, self._trace)

    def _loop(self, name: str) -> T:
        """Run a loop and return its last state."""
        run, stages, arithmetic = self._run, self._program.stages, self._arithmetic
        state, plan = self._program.states[name], run.plans[name]
        plain = stages[name]
        guided = plain if plan.guide_stage is None else stages[plan.guide_stage]
        ports = {port.name: port for stage in (guided, plain) for port in stage.entry.inputs}
        own = {state, *STEP_INPUTS, *plan.settings}
        given = {port.name: self._feed(port) for port in ports.values() if port.name not in own}
        for setting, value in plan.settings.items():
            given[setting] = arithmetic.take(np.full(run.sizes["batch"], value, np.float32))
        shape = resolve(ports[state], run.sizes)

        def denoise(question: Question[T]) -> Answer[T]:
            stage = guided if question.guided else plain
            fed = {
                port.name: given[port.name]
                if port.name in given
                else self._told(question, port, state, shape)
                for port in stage.entry.inputs
            }
            return self._answer(stage, self._ask(stage, fed))

        pulled = any(path.guidance for path in plan.paths)
        last = run_loop(
            plan,
            denoise,
            arithmetic,
            shape=shape,
            start=self._named(plan.start_tensor if plan.start == "received" else None),
            guide=self._named(plan.guide_tensor if pulled else None),
        )
        return arithmetic.cast(last, ports[state].dtype)

    def _told(self, question: Question[T], port: Port, state: str, shape: tuple[int, ...]) -> T:
        """What a stage may ask of a step; the noise is zero where none is drawn."""
        if port.name == state:
            told = question.state
        elif port.name == "noise":
            told = self._arithmetic.zeros(shape) if question.draw is None else question.draw()
        else:
            told = getattr(question, port.name)
        return self._arithmetic.cast(told, port.dtype)

    def _answer(self, stage: Stage, results: Mapping[str, T]) -> Answer[T]:
        """What a loop's stage returned: its first output, and others by their names."""
        cast = self._arithmetic.cast
        grad, direction = (
            cast(results[name], "float32") if name in results else None
            for name in ("grad", "direction")
        )
        return Answer(cast(results[stage.entry.outputs[0].name], "float32"), grad, direction)

    def _descend(self, name: str) -> None:
        """Run a descent, on the host; its tensors are what it renders."""
        run, stages = self._run, self._program.stages
        descent = self._program.descents[name]
        entries = {stage: stages[stage].entry for stage in descent.stages}
        ports = [port for entry in entries.values() for port in entry.inputs]
        own = {*descent.variables, *descent.settings}
        arrays = {
            port.name: self._arithmetic.bring(self._feed(port))
            for port in ports
            if port.name not in own
        }
        scene = Scene(arrays, run.tiling, run.sizes["batch"], run.noise, run.seed, run.frame)

        def ask(stage: str, fed: Mapping[str, Array]) -> dict[str, Array]:
            return stages[stage].run(fed, run.tiling, self._trace)

        plan = run.descents[name]
        rendered, self._trace.losses[name] = run_descent(descent, plan, entries, ask, scene)
        self.tensors.update(
            {port: self._arithmetic.take(array) for port, array in rendered.items()}
        )

    def _feed(self, port: Port) -> T:
        """The tensor for `port`; one item is repeated for every image of the batch."""
        tensor, batch = self._find(port), self._run.sizes["batch"]
        one = port.shape[:1] == ("batch",) and self._arithmetic.length(tensor) == 1
        if one and batch > 1:
            tensor = self._arithmetic.repeated(tensor, batch)
        self.tensors[port.name] = tensor
        return tensor

    def _find(self, port: Port) -> T:
        tensor = self._known(port.name)
        if tensor is not None:
            return tensor
        array = self._run.supply(port.name, Brought(self._arithmetic, self.tensors))
        if array is None:
            raise UsageError(
                "E_SIDE",
                f"side: got no {port.name!r}, expected {port}. Give it with the symbols, "
                "or give the receiver a captioner.",
            )
        return self._arithmetic.take(array)

    def _known(self, name: str) -> T | None:
        """A tensor that is there, or was given."""
        if name not in self.tensors and name in self._given:
            given = self._given[name]
            self.tensors[name] = (
                self._arithmetic.take(given) if isinstance(given, np.ndarray) else given
            )
        return self.tensors.get(name)

    def _named(self, name: str | None) -> T | None:
        tensor = None if name is None else self._known(name)
        return None if tensor is None else self._arithmetic.cast(tensor, "float32")


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
