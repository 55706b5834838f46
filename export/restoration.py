"""Restoration: the stages around a diffusion prior that every null-space system shares.

    received ─ decode ─▶ reconstruction ─ condition ─▶ target = A⁺A reconstruction ─┐
                                                                                    ▼
                       noise or initial ─▶ state ─▶ denoise ─▶ clean, direction ─▶ advance ─▶ state
                                                                                    × steps
                                                              state ─ render ─▶ image

The networks of the prior see images that span [-1, 1]; all else sees [0, 1].

NOTE: large images run tile by tile. Where tiles blend, pixels of one block of an average pooling
have different weights, so what A keeps is met there up to that difference, exactly elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jscc.export.extra import choice, number, whole
from jscc.export.models.nullspace import COMPAT, NullSpace, Operator
from jscc.export.priors import Estimate
from jscc.export.system import StageSpec
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import ImageContract
from jscc.runtime.manifest_loops import Loop, SamplerSpec
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from jscc.export.codecs import Codec
    from jscc.export.extra import Extra
    from jscc.export.priors import Prior
    from jscc.export.system import Options

IMAGE = ("batch", 3, "height", "width")
STATE = Port("state", "float32", IMAGE)
MASK = Port("mask", "float32", ("batch", 1, "height", "width"))
NUMBER = ("batch",)
RANGES = {"mask": (0.0, 1.0), "eta": (0.0, 1.0), "sigma_y": (0.0, 0.5)}
OVERLAP = 4  # a quarter of a tile is shared with each neighbour
OPTIONS = {
    "operator": "what is kept of what was received: identity, or avgpool:S, color[:R,G,B], mask "
    "joined by +",
    "compat": f"one of {', '.join(COMPAT)}",
    "eta": "share of new noise in each step, 0 to 1",
    "sigma_y": "noise in what is kept, of images in [0, 1]",
    "level": "where a received start begins: fixed (see --start-level), or as the snr says",
    "clip": "whether clean estimates are held to the range of images: no or yes",
    "tile": "edge of the tiles of large images, in pixels (the prior's training size)",
    "travel": "L,R: every stretch of L steps is run R times",
}


@dataclass(frozen=True)
class Zero:
    """What a null-space system is made of.

    Attributes:
        codec: What images are sent with.
        prior: What the lost part is drawn from.
        operator: What is kept of a received image.
        compat: One of `jscc.export.models.nullspace.COMPAT`.
        clip: Whether clean estimates are held to [-1, 1].
        extra: What the caller chose.
    """

    codec: Codec
    prior: Prior
    operator: Operator
    compat: str
    clip: bool
    extra: Extra

    @property
    def masked(self) -> tuple[Port, ...]:
        """The mask, where the operator wants one."""
        return (MASK,) if self.operator.masked else ()

    @property
    def start(self) -> str:
        """The received image as the networks see it: a name among `condition`'s outputs."""
        return "target" if self.operator == Operator() else "initial"

    @property
    def variant(self) -> str:
        """What this bundle is, for humans."""
        kept = self.extra.get("operator", "")
        compat = "" if self.compat == COMPAT[0] else f", {self.compat}"
        return f"{self.codec.variant}; prior {self.prior.variant}; A: {kept}{compat}"


class Condition(nn.Module):
    """Reconstruction in [0, 1] to the target of the null-space guide, and to itself in [-1, 1]."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, reconstruction: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        image = reconstruction * 2 - 1
        if self.operator == Operator():
            return (image,)
        return self.operator.project(image, mask), image


class Denoise(nn.Module):
    """One evaluation of the prior, corrected by what was received."""

    def __init__(self, zero: Zero) -> None:
        super().__init__()
        self.estimate = Estimate(zero.prior, clip=zero.clip)
        self.guide = NullSpace(zero.operator, zero.compat)

    def forward(
        self,
        state: Tensor,
        timestep: Tensor,
        alpha_bar_next: Tensor,
        noise: Tensor,
        eta: Tensor,
        sigma_y: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        clean, eps = self.estimate(state, timestep)
        guided: tuple[Tensor, Tensor] = self.guide(
            clean, eps, target, mask, alpha_bar_next, noise, eta, sigma_y
        )
        return guided


class Render(nn.Module):
    """State in [-1, 1] to image in [0, 1]."""

    def forward(self, state: Tensor) -> Tensor:
        return (state + 1) / 2


def zero_of(codec: Codec, prior: Prior, extra: Extra, defaults: Extra) -> Zero:
    """The parts and the options of a null-space system.

    Args:
        codec: What images are sent with.
        prior: What the lost part is drawn from.
        extra: What the caller chose, names of `OPTIONS`.
        defaults: What the system chooses instead.

    Raises:
        UsageError: ``E_OPTION``, a value that an option cannot take.
    """
    said = {**defaults, **extra}
    try:
        operator = Operator.parse(said["operator"])
    except ValueError as error:
        raise UsageError("E_OPTION", f"--option {error}") from None
    if operator.masked and MASK.name in {port.name for port in codec.encode.outputs}:
        raise UsageError(
            "E_OPTION",
            f"--option operator: got {said['operator']!r}, expected one without mask: this codec "
            "sends a mask of its own. Leave it out or use another codec.",
        )
    compat = choice(said, "compat", COMPAT)
    try:
        NullSpace(operator, compat)
    except ValueError as error:
        raise UsageError("E_OPTION", f"--option {error}") from None
    return Zero(codec, prior, operator, compat, choice(said, "clip", ("no", "yes")) == "yes", said)


def condition(zero: Zero) -> StageSpec:
    """The stage ``condition``: reconstruction[, mask] → target[, initial]."""
    names = ("target",) if zero.start == "target" else ("target", "initial")
    return StageSpec(
        name="condition",
        build=lambda: Condition(zero.operator),
        inputs=(Port("reconstruction", "float32", IMAGE), *zero.masked),
        outputs=tuple(Port(name, "float32", IMAGE) for name in names),
        ranges=RANGES,
    )


def denoise(zero: Zero) -> StageSpec:
    """The stage ``denoise``: state and what the step is about → clean, direction."""
    return StageSpec(
        name="denoise",
        build=lambda: Denoise(zero),
        inputs=denoise_inputs(zero),
        outputs=(Port("clean", "float32", IMAGE), Port("direction", "float32", IMAGE)),
        tiled=True,
        ranges=RANGES,
    )


def denoise_inputs(zero: Zero) -> tuple[Port, ...]:
    """What `Denoise.forward` takes, in order."""
    return (
        STATE,
        Port("timestep", "float32", NUMBER),
        Port("alpha_bar_next", "float32", NUMBER),
        Port("noise", "float32", IMAGE),
        Port("eta", "float32", NUMBER),
        Port("sigma_y", "float32", NUMBER),
        Port("target", "float32", IMAGE),
        *zero.masked,
    )


def render() -> StageSpec:
    """The stage ``render``: state → image."""
    return StageSpec(
        name="render",
        build=Render,
        inputs=(STATE,),
        outputs=(Port("image", "float32", IMAGE),),
    )


def contract(zero: Zero, short_edge: int, *strides: int) -> ImageContract:
    """How images are cut for the parts of `zero` and for networks of further `strides`.

    A tile is as large as the images that the prior was trained on, or what ``tile`` says.
    """
    multiple = math.lcm(zero.codec.multiple, zero.prior.stride, zero.operator.scale, *strides)
    wanted = whole(zero.extra, "tile", zero.prior.image_size, 8, 8192)
    tile = multiple * max(1, wanted // multiple)
    # Tiles begin at multiples of this, so that blocks and lattices of all parts stay whole.
    unit = math.lcm(zero.operator.scale, *strides)
    return ImageContract(
        multiple=multiple,
        short_edge=short_edge,
        rounding="nearest",
        tile=tile,
        overlap=unit * max(1, tile // OVERLAP // unit) if 2 * unit <= tile else 0,
        max_pixels=1 << 24,
        padding=zero.codec.padding,
    )


def loop_of(zero: Zero, options: Options, sampler: SamplerSpec) -> Loop:
    """The loop over ``denoise`` with the defaults that caller and system choose.

    Args:
        zero: The parts of the system.
        options: What the caller chose.
        sampler: What the system chooses instead.

    Raises:
        UsageError: ``E_OPTION``, a value that an option cannot take.
    """
    start = options.start or sampler.start
    level = sampler.start_level if options.start_level is None else options.start_level
    if choice(zero.extra, "level", ("fixed", "snr")) == "snr":
        level = None
    return Loop(
        state=STATE.name,
        start=zero.start,
        guide=None,
        schedule=zero.prior.schedule,
        sampler=replace(
            sampler,
            name=options.sampler or sampler.name,
            steps=options.steps or sampler.steps,
            start=start,
            start_level=level if start == "received" else None,
            travel=_travel(zero.extra),
        ),
        settings={
            "eta": number(zero.extra, "eta", 0.85, 0.0, 1.0),
            "sigma_y": number(zero.extra, "sigma_y", 0.0, 0.0, 10.0),
        },
    )


def _travel(extra: Extra) -> tuple[int, int]:
    length, comma, repeat = extra.get("travel", "1,1").partition(",")
    parts = {"length": length, "repeat": repeat}
    if not comma or not (length.isdigit() and repeat.isdigit()):
        raise UsageError(
            "E_OPTION",
            f"--option travel: got {extra['travel']!r}, expected L,R such as 10,3. Correct it.",
        )
    return whole(parts, "length", 1, 1, 1000), whole(parts, "repeat", 1, 1, 1000)
