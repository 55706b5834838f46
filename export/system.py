"""System: one published method, and the Plan of stages that a checkpoint of it lowers to."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from jscc.export import systems
from jscc.export.models.unet import Unet
from jscc.export.source import Config, WeightSource
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import ImageContract, Signal
from jscc.runtime.manifest_loops import Descent, Loop, LoopStep
from jscc.runtime.ports import Port

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class StageSpec:
    """One graph to be: a torch module behind declared ports.

    Attributes:
        name: Stage name, the word of the program.
        build: Makes the module, weights loaded, in eval mode; called once, when its turn comes,
            so that only one stage is in memory at a time.
        inputs: Ports that the module's ``forward`` takes, in order.
        outputs: Ports that it returns, in order.
        tolerance: Largest difference to torch allowed, relative to the output's peak.
        gradients: Outputs that are gradients: see `jscc.export.proof.prove`.
        tiled: Whether the runtime may run the stage on tiles of a large image.
        ranges: For inputs that may not be any number, by name, the least and the largest value
            that examples of them take.
        rates: Values of the symbol ``planes`` in the ports, and of the input ``rate`` with it.
        counted: Whether to trace the stage with height and width counted in multiples, which is
            faster where the network divides them over and over: see `jscc.export.counted`.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tolerance: float = 1e-4
    gradients: tuple[str, ...] = ()
    tiled: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rates: tuple[int, ...] = ()
    counted: bool = False

    def __post_init__(self) -> None:
        """Refuse gradients that are no outputs.

        Raises:
            ValueError: With their names.
        """
        outputs = [port.name for port in self.outputs]
        unknown = [name for name in self.gradients if name not in outputs]
        if unknown:
            raise ValueError(
                f"gradients: got {unknown[0]!r}, expected outputs, of {', '.join(outputs)}."
            )


@dataclass(frozen=True)
class Plan:
    """What a checkpoint becomes: stages, stored tensors and the program over them.

    Attributes:
        variant: What distinguishes this bundle among those of its system, for humans.
        stages: In the order in which they are lowered.
        tensors: Constants of the program, each computed when asked for.
        signal: Contract of the symbols.
        image: Contract of the images.
        program: Stage names and loops, as in the manifest.
        loops: The loops' settings by stage name.
        image_output: Named tensor that is the received image.
        side_inputs: Named tensors that the host provides at run time.
        descents: The descents' settings by the name that the program gives them.
    """

    variant: str
    stages: tuple[StageSpec, ...]
    signal: Signal
    image: ImageContract
    program: tuple[str | LoopStep, ...]
    image_output: str
    tensors: Mapping[str, Callable[[], npt.NDArray[np.float32]]] = field(default_factory=dict)
    loops: Mapping[str, Loop] = field(default_factory=dict)
    side_inputs: tuple[str, ...] = ()
    descents: Mapping[str, Descent] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the caller may choose about an export.

    Attributes:
        text: ``none`` (empty prompt), ``fixed`` (`prompt`, encoded now) or ``side`` (a context
            given at run time).
        prompt: The prompt of ``fixed``.
        vae: Which autoencoder encodes and renders: ``full``, the checkpoint's own, or ``tiny``.
        short_edge: Images whose short edge is below this are enlarged before they are sent, in
            pixels; 0 sends every image as it is.
        sampler: Default sampler stored in the bundle.
        steps: Default number of steps.
        start: Default start of the loop, ``noise`` or ``received``.
        start_level: Default noise level of a ``received`` start, as a fraction of the schedule.
        extra: What this system alone lets choose, name → value, see `System.options`.
    """

    text: str = "none"
    prompt: str = ""
    vae: str = "full"
    short_edge: int = 0
    sampler: str | None = None
    steps: int | None = None
    start: Literal["noise", "received"] | None = None
    start_level: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """One published method.

    Attributes:
        paper: Title and arXiv id.
        plan: Reads the checkpoint's configuration and says what becomes of it.
        roles: The networks it is made of, and for each the folder below ``export/reference`` of
            the weights that are taken where none are given. A system of one network has one role
            with no name. With several, ``source.config`` is a configuration per role, and the
            names of a role's weights begin with ``ROLE.``.
        prefixes: Of a checkpoint with an official configuration: where the weights that the
            stages take lie; anything else in it is an error unless `ignored` names it.
        ignored: Key patterns of published checkpoints that no stage needs.
        banks: Roles that may have several networks, one a file, and the family of each, see
            `jscc.export.bank`.
        options: What the caller may choose of this system alone (`Options.extra`), name →
            values and default, for humans.
        autoencoders: What ``--vae`` may be; empty where there is no choice.
        unet: Builds the diffusion UNet of a configuration, and says what the names of its weights
            begin with, where ``--lora`` may change one.
    """

    paper: str
    plan: Callable[[WeightSource, Options], Plan]
    roles: Mapping[str, str]
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    banks: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    unet: Callable[[Config], tuple[str, Unet]] | None = None
    autoencoders: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """The systems at hand, found by listing `jscc.export.systems`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(systems.__path__)))


def find(name: str) -> System:
    """The system called `name`.

    Raises:
        UsageError: ``E_MODEL``, there is none of that name.
    """
    if name not in names():
        raise UsageError(
            "E_MODEL", f"--model: got {name!r}, expected one of {', '.join(names())}. Pick one."
        )
    system = importlib.import_module(f"{systems.__name__}.{name}").SYSTEM
    if not isinstance(system, System):
        raise TypeError(f"{name}.SYSTEM: got {type(system).__name__}, expected System.")
    return system
