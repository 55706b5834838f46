"""InverseJSCC: a generator's picture is searched that would have been received like this one.

Erdemir, Tung, Dragotti, Gündüz, "Generative Joint Source-Channel Coding for Semantic Image
Transmission", arXiv:2211.13772; searched layer by layer as in Daras, Dean, Jalal, Dimakis,
"Intermediate Layer Optimization for Inverse Problems using Deep Generative Models",
arXiv:2102.07364.

    received ─ decode ─▶ reconstruction ─────────────────────────────┐
                                                                     ▼
    latent, noises ─▶ generator ─▶ picture ─ encode ─ decode ─▶ MSE + LPIPS ─▶ gradients
          ▲                                                                       │
          └───────────────── Adam, on spheres, × steps × rounds ◀─────────────────┘

Round r begins at block r of the generator: the features that block r - 1 made become a variable,
the colours of the blocks below are left out, and of the noise maps the first 5 + 2r move. Each
tile is a picture of the generator's size. Layers, steps and weights of the first paper are not
public; the defaults are the second's, whose geodesic term and l1 projections are left out. The
codec is passed without channel noise, its power normalised on the tile alone.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jscc.export.codecs import codec_of
from jscc.export.extra import choice, number, whole
from jscc.export.gradient import Gradient
from jscc.export.models.inversion import (
    LPIPS_WEIGHT,
    RECONSTRUCTION,
    Loss,
    Moments,
    Pool,
    Same,
    Show,
    Through,
)
from jscc.export.models.lpips import SMALLEST, Lpips
from jscc.export.models.stylegan2 import BASE, Generator, moments
from jscc.export.source import configured
from jscc.export.system import Options, Plan, StageSpec, System
from jscc.runtime.descent import share
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import ImageContract
from jscc.runtime.manifest_loops import Descent, LoopStep, Round, Variable
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from torch import nn

    from jscc.export.codecs import Codec
    from jscc.export.source import WeightSource

CODEC, GENERATOR, LPIPS = "codec", "generator", "lpips"
STEPS = (50, 50, 25, 25)  # of rounds 0 to 3
FIRST_NOISES = 5  # noise maps that move in round 0; two more in each later one
LEARNING_RATE = 0.1
RISE, FALL = 0.05, 0.75
SAMPLES, SEED = 10_000, 0  # of the latents' moments, where no file gives them
KNOWN = ("image", "received", "snr_db", "gain")  # all that a codec may ask for here
BESIDE = ("latent_avg", "mean", "std")  # what lies beside a generator's weights
LOSS = "loss"
OPERATOR = re.compile(r"pool:([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Layout:
    """The ports of one round's stages.

    Attributes:
        generator: For its sizes alone.
        block: Where the round begins.
        csi: What the codec is told, by port name.
        weighted: Whether LPIPS is part of the loss.
    """

    generator: Generator
    block: int
    csi: tuple[str, ...]
    weighted: bool

    @property
    def variables(self) -> tuple[Port, ...]:
        """Latent, the noise maps from this block on and, in all rounds but the first, features."""
        generator, edges = self.generator, self.generator.noise_edges
        noises = range(max(0, 2 * self.block - 1), len(edges))
        return (
            Port("latent", "float32", (1, generator.latents, generator.style_dim)),
            *(_port(f"noise_{number}", 1, edges[number]) for number in noises),
            *((self.features,) if self.block else ()),
        )

    @property
    def features(self) -> Port:
        """What the block before this round's made."""
        below = self.block - 1
        return _port(f"features_{self.block}", self.generator.channels[below], BASE << below)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Of the gradient stage."""
        known = {"snr_db": Port("snr_db", "float32", (1,)), "gain": Port("gain", "float32", (1, 2))}
        image = _port(RECONSTRUCTION, 3, self.generator.size)
        weight = (Port(LPIPS_WEIGHT, "float32", (1,)),) if self.weighted else ()
        return (*self.variables, image, *(known[name] for name in self.csi), *weight)

    @property
    def moved(self) -> tuple[Port, ...]:
        """The variables that the round moves."""
        still = {f"noise_{number}" for number in range(FIRST_NOISES + 2 * self.block, 100)}
        return tuple(port for port in self.variables if port.name not in still)

    @property
    def gradients(self) -> tuple[Port, ...]:
        """Outputs of the gradient stage."""
        moved = (Port(f"grad_{port.name}", "float32", port.shape) for port in self.moved)
        return (Port(LOSS, "float32", (1,)), *moved)


def _port(name: str, planes: int, edge: int) -> Port:
    return Port(name, "float32", (1, planes, edge, edge))


@dataclass(frozen=True)
class _Parts:
    """What the plan is made from.

    Attributes:
        source: Of all weights.
        codec: Of the link.
        generator: For its sizes alone.
        pool: Factor of the operator that stands in for the codec; 0 for the codec itself.
        perceptual: Whether there are LPIPS weights.
    """

    source: WeightSource
    codec: Codec
    generator: Generator
    pool: int
    perceptual: bool

    def layout(self, block: int) -> Layout:
        """Ports of the round that begins at `block`."""
        asked = {port.name for port in (*self.codec.encode.inputs, *self.codec.decode.inputs)}
        csi = () if self.pool else tuple(name for name in ("snr_db", "gain") if name in asked)
        return Layout(self.generator, block, csi, self.perceptual)

    def show(self, block: int, *, features: bool = False) -> Show:
        """The generator from `block` on, its weights loaded."""
        config, source, prefix = self.source.config[GENERATOR], self.source, f"{GENERATOR}."
        network = source.load(lambda: Generator.from_config(config), prefix, ignore=BESIDE)
        if source.shapes(prefix).keys() >= {"mean", "std"}:
            fit = source.load(lambda: Moments(network.style_dim), prefix, ignore=("*",))
        else:
            fit = Moments(network.style_dim)
            fit.mean, fit.std = moments(network, SAMPLES, SEED)
        return Show(network, fit, block, features=features)

    def loss(self, layout: Layout) -> nn.Module:
        """The loss of one round and its gradients."""
        operator: nn.Module = Pool(self.pool)
        if not self.pool:
            encode, decode = self.codec.encode, self.codec.decode
            sent, heard = ([port.name for port in each.inputs] for each in (encode, decode))
            operator = Through(encode.build(), decode.build(), sent, heard)
        lpips = self.source.load(Lpips, f"{LPIPS}.") if self.perceptual else None
        names = [port.name for port in layout.inputs]
        prepare = operator if self.pool else Same()
        loss = Loss(self.show(layout.block), operator, prepare, names, lpips)
        moved = [port.name for port in layout.moved]
        return Gradient(loss, moved, has_aux=True, names=names)


def plan(source: WeightSource, options: Options) -> Plan:
    """Codec, a gradient stage per round, and what leads from one round to the next."""
    parts = _parts(source, options)
    most = min(len(STEPS), parts.generator.blocks - 1)
    count = whole(options.extra, "rounds", most, 1, most)
    layouts = [parts.layout(block) for block in range(count)]
    stages = [parts.codec.encode, parts.codec.decode, _gradient(parts, layouts[0])]
    for before, after in itertools.pairwise(layouts):
        stages += [_carry(parts, before, after), _gradient(parts, after)]
    stages.append(_render(parts, layouts[-1]))
    size = parts.generator.size
    return Plan(
        variant=_variant(parts, count),
        stages=tuple(stages),
        signal=parts.codec.signal,
        image=ImageContract(
            multiple=parts.codec.multiple,
            short_edge=options.short_edge,
            rounding="nearest",
            tile=size,
            overlap=size // 8,
            max_pixels=1 << 24,
            padding=parts.codec.padding,
        ),
        program=("decode", LoopStep("invert")),
        image_output="image",
        descents={"invert": _descent(parts, layouts, options)},
    )


def _parts(source: WeightSource, options: Options) -> _Parts:
    """Codec and generator, held to each other."""
    config = source.config
    codec = codec_of(source, config[CODEC], f"{CODEC}.")
    with torch.device("meta"):
        generator = configured(lambda: Generator.from_config(config[GENERATOR]))
    asked = {port.name for port in (*codec.encode.inputs, *codec.decode.inputs)}
    if not asked <= set(KNOWN):
        raise UsageError(
            "E_CODEC",
            f"--checkpoint {CODEC}: got a codec that asks for {', '.join(sorted(asked))}, expected "
            f"only {', '.join(KNOWN)}: a rate or side information has no place in the search. "
            "Take another codec.",
        )
    if generator.blocks < 2 or generator.size % codec.multiple:
        raise UsageError(
            "E_TILE",
            f"--checkpoint {GENERATOR}: got pictures of {generator.size} pixels, expected 8 or "
            f"more, a multiple of the codec's {codec.multiple}. Take another codec or generator.",
        )
    pool = _pool(options, generator.size)
    compared = generator.size // max(pool, 1)
    if LPIPS in config and compared < SMALLEST:
        raise UsageError(
            "E_TILE",
            f"--checkpoint {LPIPS}: got pictures of {compared} pixels to compare, expected "
            f"{SMALLEST} or more. Leave LPIPS out, or take a larger generator.",
        )
    return _Parts(source, codec, generator, pool, perceptual=LPIPS in config)


def _pool(options: Options, size: int) -> int:
    """The factor of ``through=pool:N``, 0 for ``through=codec``."""
    text = options.extra.get("through", CODEC)
    found = OPERATOR.fullmatch(text)
    factor = int(found[1]) if found else 0
    if text != CODEC and not (factor and size % factor == 0):
        raise UsageError(
            "E_OPTION",
            f"--option through: got {text!r}, expected {CODEC}, or pool:N where N divides {size}. "
            "Correct it.",
        )
    return factor


def _descent(parts: _Parts, layouts: list[Layout], options: Options) -> Descent:
    """Rounds and variables; rows of the latent and whole noise maps keep their lengths."""
    defaults = STEPS[: len(layouts)]
    steps = defaults if options.steps is None else share(options.steps, defaults)
    rate = number(options.extra, "learning_rate", LEARNING_RATE, 0.0, 1e3)
    variables: dict[str, Variable] = {}
    for layout in layouts:
        variables |= {port.name: Variable("normal", 2) for port in layout.variables}
        if layout.block:
            variables[layout.features.name] = Variable("stage", 0)
    return Descent(
        variables={**variables, "latent": Variable("normal", 1)},
        rounds=tuple(
            Round(f"gradient_{block}", count, rate, f"carry_{block}" if block else None)
            for block, count in enumerate(steps)
        ),
        render="render",
        keep="best" if choice(options.extra, "keep", ("best", "last")) == "best" else "last",
        rise=RISE,
        fall=FALL,
        betas=(0.9, 0.999),
        epsilon=1e-8,
        settings={LPIPS_WEIGHT: 1.0} if parts.perceptual else {},
    )


def _gradient(parts: _Parts, layout: Layout) -> StageSpec:
    return StageSpec(
        name=f"gradient_{layout.block}",
        build=lambda: parts.loss(layout),
        inputs=layout.inputs,
        outputs=layout.gradients,
        gradients=tuple(port.name for port in layout.gradients if port.name != LOSS),
    )


def _carry(parts: _Parts, before: Layout, after: Layout) -> StageSpec:
    return StageSpec(
        name=f"carry_{after.block}",
        build=lambda: parts.show(before.block, features=True),
        inputs=before.variables,
        outputs=(after.features,),
    )


def _render(parts: _Parts, layout: Layout) -> StageSpec:
    return StageSpec(
        name="render",
        build=lambda: parts.show(layout.block),
        inputs=layout.variables,
        outputs=(_port("image", 3, parts.generator.size),),
    )


def _variant(parts: _Parts, count: int) -> str:
    operator = f"average pooling by {parts.pool}" if parts.pool else f"codec {parts.codec.variant}"
    loss = "MSE + LPIPS" if parts.perceptual else "MSE alone (no LPIPS weights were given)"
    size = parts.generator.size
    return f"InverseJSCC, StyleGAN2 {size}x{size}, {count} rounds, {loss}, through {operator}"


SYSTEM = System(
    paper="Generative Joint Source-Channel Coding for Semantic Image Transmission, "
    "arXiv:2211.13772",
    plan=plan,
    roles={CODEC: "af-96", GENERATOR: "stylegan2", LPIPS: ""},
    options={
        "rounds": "how many, 1 to 4 and less than the generator's blocks; default 4",
        "learning_rate": f"the largest of every round; default {LEARNING_RATE}",
        "through": f"what the search goes through: {CODEC} (default), or pool:N, average pooling",
        "keep": "which variables of the last round are rendered: best (default) or last",
    },
)
