"""Descent: variables searched for the least loss, by Adam on the gradients that a stage returns.

    variables = normals;  for each round:  variables += before(variables)
                                           gradients = stage(variables, what was received)
                                           variables = on_sphere(adam(variables, gradients))
    image = render(variables)

Every tile of every image is a search of its own: variables belong to a tile, and what was received
is cut and, where the image is smaller than a tile, mirrored. What a run does is decided before
anything is computed (`plan_descent`). Nothing here knows what the variables are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jscc.runtime.choices import Choices
from jscc.runtime.errors import ImageError, UsageError
from jscc.runtime.fixed import filled
from jscc.runtime.manifest import StageEntry
from jscc.runtime.manifest_loops import Descent
from jscc.runtime.noise import NoiseSource
from jscc.runtime.ports import Array, Port
from jscc.runtime.tiling import Tiling, run_tiled

Floats = npt.NDArray[np.float32]
Variables = Mapping[str, Floats]
RunStage = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]  # stage, arrays -> outputs

LOSS = "loss"
GRADIENT = "grad_"  # before the name of a variable: the output that is the loss's gradient
LEARNING_RATE = "learning_rate"  # the setting that replaces every round's
FLOOR = 1e-9  # under the root of a length


@dataclass(frozen=True)
class DescentPlan:
    """What one run of a descent will do.

    Attributes:
        steps: Of each round.
        learning_rates: Of each round, the largest.
        settings: Knobs by the name of the port that they are fed to.
        first_draw: Number of the first variable's normals, see `NoiseSource`.
    """

    steps: tuple[int, ...]
    learning_rates: tuple[float, ...]
    settings: Mapping[str, float]
    first_draw: int


@dataclass(frozen=True)
class Scene:
    """What a descent is run on.

    Attributes:
        arrays: Named tensors that the stages read, images first.
        tiling: Of the image.
        images: How many there are.
        noise: Where the variables' first values come from.
        seed: Passed on to `noise`.
        frame: Number of the first image.
    """

    arrays: Mapping[str, Array]
    tiling: Tiling
    images: int
    noise: NoiseSource
    seed: int
    frame: int


@dataclass
class Adam:
    """Adaptive moments (Kingma, Ba, "Adam", arXiv 1412.6980, algorithm 1), in float32.

    Attributes:
        betas: Decay of the first and of the second moment.
        epsilon: Added to the root of the second moment.
        first: First moments by variable.
        second: Second moments by variable.
        count: Steps so far.
    """

    betas: tuple[float, float]
    epsilon: float
    first: dict[str, Floats] = field(default_factory=dict)
    second: dict[str, Floats] = field(default_factory=dict)
    count: int = 0

    def step(self, variables: Variables, gradients: Variables, rate: float) -> dict[str, Floats]:
        """The variables one step further; those without a gradient stay."""
        self.count += 1
        beta1, beta2 = self.betas
        stride = rate / (1.0 - beta1**self.count)
        spread = math.sqrt(1.0 - beta2**self.count)
        moved = dict(variables)
        for name, gradient in gradients.items():
            zero = np.zeros_like(gradient)
            first = self.first.get(name, zero)
            first = first + (gradient - first) * np.float32(1.0 - beta1)
            second = self.second.get(name, zero) * np.float32(beta2)
            second = second + gradient * gradient * np.float32(1.0 - beta2)
            self.first[name], self.second[name] = first, second
            scale = np.sqrt(second) / np.float32(spread) + np.float32(self.epsilon)
            moved[name] = variables[name] - np.float32(stride) * (first / scale)
        return moved


def plan_descent(descent: Descent, choices: Choices, number: int) -> DescentPlan:
    """Decide what a run does.

    Args:
        descent: What the bundle says.
        choices: What the caller asks; ``steps`` counts those of all rounds.
        number: Of the descent in the program, after the loops.

    Raises:
        UsageError: ``E_STEPS``, fewer steps than rounds; ``E_SETTING``, a value that is not finite,
            or a learning rate below 0.
    """
    defaults = [each.steps for each in descent.rounds]
    steps = tuple(defaults) if choices.steps is None else share(choices.steps, defaults)
    for name in (LEARNING_RATE, *descent.settings):
        value = choices.settings.get(name, 0.0)
        if not math.isfinite(value) or (name == LEARNING_RATE and value < 0.0):
            expected = "a number from 0 up" if name == LEARNING_RATE else "a finite number"
            raise UsageError(
                "E_SETTING", f"setting {name}: got {value}, expected {expected}. Correct it."
            )
    rates = [choices.settings.get(LEARNING_RATE, each.learning_rate) for each in descent.rounds]
    settings = {
        name: choices.settings.get(name, default) for name, default in descent.settings.items()
    }
    return DescentPlan(steps, tuple(rates), settings, number << 32)


def share(total: int, defaults: Sequence[int]) -> tuple[int, ...]:
    """`total` steps over the rounds, one each and the others in proportion to the defaults.

    Raises:
        UsageError: ``E_STEPS``, there are fewer than rounds.
    """
    if total < len(defaults):
        raise UsageError(
            "E_STEPS",
            f"steps: got {total}, expected {len(defaults)} or more, one for each round. "
            "Ask for more.",
        )
    spare = total - len(defaults)
    exact = [spare * steps / sum(defaults) for steps in defaults]
    shares = [math.floor(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_rest[: spare - sum(shares)]:
        shares[index] += 1
    return tuple(1 + steps for steps in shares)


def ramp(step: int, steps: int, rise: float, fall: float) -> float:
    """Factor of the learning rate: a linear rise, then 1, then half a cosine down.

    Args:
        step: From 0.
        steps: Of the round.
        rise: Share of the round in which it rises from 0; 0 for none.
        fall: Share of the round, at its end, in which it falls.
    """
    done = step / steps
    down = 1.0 if fall == 0.0 else min(1.0, (1.0 - done) / fall)
    up = 1.0 if rise == 0.0 else min(1.0, done / rise)
    return (0.5 - 0.5 * math.cos(math.pi * down)) * up


def lengths(variables: Variables, descent: Descent) -> dict[str, Floats]:
    """The lengths that the variables on spheres have to keep."""
    return {
        name: _length(variables[name], spec.sphere)
        for name, spec in descent.variables.items()
        if spec.sphere and name in variables
    }


def on_sphere(variables: Variables, kept: Variables, descent: Descent) -> dict[str, Floats]:
    """The variables, those on spheres brought back to the lengths `kept`."""
    scaled = dict(variables)
    for name, length in kept.items():
        axes = descent.variables[name].sphere
        scaled[name] = variables[name] * (length / _length(variables[name], axes))
    return scaled


def run_descent(
    descent: Descent,
    plan: DescentPlan,
    stages: Mapping[str, StageEntry],
    run: RunStage,
    scene: Scene,
) -> tuple[dict[str, Array], tuple[float, ...]]:
    """Search the variables of every tile of every image.

    Args:
        descent: What the bundle says.
        plan: What to do.
        stages: What the manifest says of its stages by name; shapes are those of one tile.
        run: Runs one of them.
        scene: What to run on.

    Returns:
        What the `render` stage returns, by port, as whole images; and each image's least loss of
        the last round, the mean over its tiles.

    Raises:
        ImageError: ``E_DECODE_NONFINITE``, the loss is not finite at any step of a round.
    """
    search = _Search(descent, plan, stages, run, scene)
    images = [search.image(index) for index in range(scene.images)]
    joined = {name: np.concatenate([each[name] for each, _ in images]) for name in images[0][0]}
    return joined, tuple(loss for _, loss in images)


@dataclass(frozen=True)
class _Search:
    """The descent of one run."""

    descent: Descent
    plan: DescentPlan
    stages: Mapping[str, StageEntry]
    run: RunStage
    scene: Scene

    def image(self, index: int) -> tuple[dict[str, Array], float]:
        """One image, tile by tile: what is rendered, and the mean loss."""
        given, rendered = self._given(), self.stages[self.descent.render].outputs
        edge = int(rendered[0].shape[-1])
        inputs = tuple(_whole(port, edge) for port in given)
        arrays = {port.name: _of_image(self.scene.arrays[port.name], index) for port in given}
        losses: list[float] = []

        def tile(cut: Mapping[str, Array]) -> dict[str, Array]:
            whole = {port.name: filled(cut[port.name], _static(port)) for port in given}
            variables, loss = self._descend(whole, self._normals(index, len(losses)))
            losses.append(loss)
            shown = self._ask(self.descent.render, whole, variables)
            height, width = self.scene.tiling.height.tile, self.scene.tiling.width.tile
            return {port.name: shown[port.name][..., :height, :width] for port in rendered}

        outputs = tuple(_whole(port, edge) for port in rendered)
        return run_tiled(tile, inputs, outputs, arrays, self.scene.tiling), _mean(losses)

    def _descend(self, given: Mapping[str, Array], variables: Variables) -> tuple[Variables, float]:
        """All rounds of one tile: the variables that are rendered, and their loss."""
        loss = math.nan
        rounds = self.descent.rounds
        plans = zip(rounds, self.plan.steps, self.plan.learning_rates, strict=True)
        for number, (each, steps, rate) in enumerate(plans, start=1):
            if each.before is not None:
                made = self._ask(each.before, given, variables)
                variables = {**variables, **made}
            last, best, loss = self._round(each.gradient, given, variables, steps, rate)
            ended = number == len(rounds) and self.descent.keep == "best"
            variables = best if ended else last
        return variables, loss

    def _round(
        self, stage: str, given: Mapping[str, Array], variables: Variables, steps: int, rate: float
    ) -> tuple[Variables, Variables, float]:
        """One round: the last variables, those of the least loss, and that loss.

        The loss of the last variables themselves is never computed: that would be another step.
        """
        descent = self.descent
        adam = Adam(descent.betas, descent.epsilon)
        kept = lengths(variables, descent)
        best, least = variables, math.inf
        for step in range(steps):
            answers = self._ask(stage, given, variables)
            loss = float(answers.pop(LOSS).ravel()[0])
            if loss < least:
                best, least = variables, loss
            gradients = {name.removeprefix(GRADIENT): each for name, each in answers.items()}
            factor = ramp(step, steps, descent.rise, descent.fall)
            variables = on_sphere(adam.step(variables, gradients, rate * factor), kept, descent)
        if not math.isfinite(least):
            raise ImageError(
                "E_DECODE_NONFINITE",
                f"stage {stage!r}: got no finite loss in {steps} steps, expected one from finite "
                "symbols. Try a bundle of higher precision or another provider.",
            )
        return variables, best, least

    def _ask(
        self, stage: str, given: Mapping[str, Array], variables: Variables
    ) -> dict[str, Floats]:
        """Run a stage on whichever of the tensors it reads."""
        at_hand: dict[str, Array] = {**given, **variables}
        for name, value in self.plan.settings.items():
            at_hand[name] = np.array([value], np.float32)
        fed = {port.name: at_hand[port.name] for port in self.stages[stage].inputs}
        answers = self.run(stage, fed)
        return {name: each.astype(np.float32, copy=False) for name, each in answers.items()}

    def _ports(self) -> dict[str, Port]:
        """Every input of the descent's stages, by name."""
        return {port.name: port for stage in self.stages.values() for port in stage.inputs}

    def _given(self) -> tuple[Port, ...]:
        """What the stages read that is neither a variable nor a setting."""
        own = {*self.descent.variables, *self.plan.settings}
        return tuple(port for name, port in self._ports().items() if name not in own)

    def _normals(self, image: int, tile: int) -> Variables:
        """The variables that begin as normals, for one tile."""
        scene, ports = self.scene, self._ports()
        names = [name for name, spec in self.descent.variables.items() if spec.start == "normal"]
        first = self.plan.first_draw + tile * len(names)
        return {
            name: scene.noise.draw(scene.seed, scene.frame + image, first + index, _static(port))
            for index, name in enumerate(sorted(names))
            for port in (ports[name],)
        }


def _static(port: Port) -> tuple[int, ...]:
    return tuple(int(dim) for dim in port.shape)


def _whole(port: Port, edge: int) -> Port:
    """The port of the whole image that tiles of `edge` pixels for `port` are cut from."""
    if len(port.shape) != 4:
        return port
    rows = edge // int(port.shape[-1])
    suffix = f"/{rows}" if rows > 1 else ""
    return Port(port.name, port.dtype, (*port.shape[:2], f"height{suffix}", f"width{suffix}"))


def _of_image(array: Array, index: int) -> Array:
    """One image's part; what is there once serves all."""
    return array if len(array) == 1 else array[index : index + 1]


def _length(array: Floats, axes: int) -> Floats:
    """Euclidean length over the last `axes` axes, which stay with size 1."""
    over = tuple(range(array.ndim - axes, array.ndim))
    square: Floats = np.sum(array * array, axis=over, keepdims=True, dtype=np.float32)
    length: Floats = np.sqrt(square + np.float32(FLOOR))
    return length


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)
