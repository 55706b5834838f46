"""INN guide: the stages that an invertible network adds to those of the null-space systems.

    state ─ prior ─ null space ─▶ clean ─ INN ─▶ c, d      c is thrown away, y stands in for it
                                    │            │
                                    │    y, d ─ INN⁻¹ ─▶ what the clean image should have been
                                    └───── ‖ · − · ‖ ─────┘ ─ reverse mode ─▶ grad

Chen, Yilmaz, You, Dragotti, Gündüz, "SING: Semantic Image Communications using Null-Space and
INN-Guided Diffusion Models", arXiv:2503.12484, algorithm 2. y is the received image, averaged down
to the size of the coarse part c. All of it is differentiated; y and the step's noise are constant.

NOTE: the norm is taken per image (per tile, where an image is cut). The paper does not say whether
it is squared. By default it is not, as in the code of INDIGO+ and DPS: its gradient then keeps
about the same length whatever the error is, that of the square grows with it. Nor does the paper
say zeta for each SNR: it may be one number or several, see `zeta_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.checkpoint import section
from jscc.export.codecs import codec_of
from jscc.export.extra import choice, number, whole
from jscc.export.gradient import Gradient
from jscc.export.models.commin import Commin
from jscc.export.models.inn import Inn
from jscc.export.priors import prior_of
from jscc.export.restoration import (
    IMAGE,
    NUMBER,
    OPTIONS,
    RANGES,
    STATE,
    Condition,
    Denoise,
    Zero,
    condition,
    contract,
    denoise,
    denoise_inputs,
    loop_of,
    render,
    zero_of,
)
from jscc.export.source import configured
from jscc.export.system import Plan, StageSpec
from jscc.runtime.errors import CheckpointError, UsageError
from jscc.runtime.manifest_loops import CURVE_LIMIT, LoopStep, SamplerSpec, is_curve
from jscc.runtime.ports import Port, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from jscc.export.extra import Extra
    from jscc.export.source import Config, WeightSource
    from jscc.export.system import Options

GUIDE_OPTIONS = {
    **OPTIONS,
    "zeta": "weight of the gradient, 0 or more; or SNR:WEIGHT,… with ascending SNRs in dB, linear "
    "in between, beyond the ends as there",
    "norm": "of the loss: l2 or squared",
    "guide": "inn, inn_cheap (the prior's own derivative left out) or none",
    "guide_every": "one of so many steps is guided",
    "coarse_weight": "weight of the coarse part's own error in the loss, 0 or more",
    "image_weight": "weight of the merged image's error in the loss, 0 or more",
}
DEFAULTS = {"operator": "avgpool:4", "clip": "yes"}
# The paper states neither steps nor zeta: these are this project's choice, for LPIPS at 1 and 10 dB
# on the middles of 16 held-out tiles with the reference weights, see held-out-inn*.json among the
# recorded results. A zeta of 5 has a little less still at 10 dB for 0.4 dB of PSNR, not at 1 dB;
# from 20 on the guide destroys the image.
SAMPLER = SamplerSpec(
    name="ddnm", steps=5, start="received", start_level=0.2, guidance=3.0, guide="inn"
)
GUIDES = {"inn": "guided", "inn_cheap": "guided_cheap"}
NORMS = ("l2", "squared")
_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], Inn | Commin]] = {
    "inn": Inn.from_config,
    "commin": Commin.from_config,
}


@dataclass(frozen=True)
class Guide:
    """An invertible network and how its loss is made.

    Attributes:
        build: Makes the network, weights loaded.
        stride: Pixels of the image per pixel of the coarse part.
        condition: The network's second input, or None.
        degradation: What that input always is, where it is no property of the link.
        weights: Of the coarse part's error and of the merged image's in the loss.
        norm: Of both errors, one of `NORMS`.
        variant: Which network this is, for humans.
    """

    build: Callable[[], nn.Module]
    stride: int
    condition: Port | None
    degradation: npt.NDArray[np.float32] | None
    weights: tuple[float, float]
    norm: str
    variant: str


class ConditionCoarse(nn.Module):
    """What `Condition` returns, and the reconstruction averaged to the coarse part's size."""

    def __init__(self, zero: Zero, stride: int) -> None:
        super().__init__()
        self.plain = Condition(zero.operator)
        self.stride = stride

    def forward(self, reconstruction: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        plain: tuple[Tensor, ...] = self.plain(reconstruction, mask)
        return (*plain, functional.avg_pool2d(reconstruction, self.stride))


class Consistency(nn.Module):
    """How far clean images are from what the invertible network makes of the received ones.

    Per image, ``coarse_weight ‖y − c‖ + image_weight ‖INN⁻¹(y, d) − x‖`` with (c, d) = INN(x);
    2-norms, images in [0, 1].

    Args:
        network: Splits and merges.
        weights: Of the two errors.
        squared: Whether the squares of the norms are meant.
    """

    def __init__(
        self, network: nn.Module, weights: tuple[float, float], *, squared: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.norm = _square if squared else _norm
        self.coarse_weight, self.image_weight = weights

    def forward(self, clean: Tensor, coarse: Tensor, told: Tensor | None) -> Tensor:
        image = (clean + 1) / 2
        own, details = self.network(image, told)
        loss = image.new_zeros(())
        if self.coarse_weight:
            loss = loss + self.coarse_weight * self.norm(coarse - own)
        if self.image_weight:
            merged = self.network.inverse(coarse, details, told)  # type: ignore[operator]
            loss = loss + self.image_weight * self.norm(merged - image)
        return loss


class GuidedLoss(nn.Module):
    """A denoising step with the loss of its clean estimate: loss per image, clean, direction."""

    def __init__(self, step: Denoise, consistency: Consistency, *, told: bool) -> None:
        super().__init__()
        self.step = step
        self.consistency = consistency
        self.told = told

    def forward(self, state: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        told = others[-1] if self.told else None
        *step, coarse = others[:-1] if self.told else others
        clean, direction = self.step(state, *step)
        return self.consistency(clean, coarse, told), clean, direction


class Detached(nn.Module):
    """A network that passes no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.network(state.detach(), timestep)
        return out.detach()


def _norm(difference: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return norm


def _square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).sum(dim=1)


def plan_of(
    source: WeightSource, options: Options, family: str, config: Config | None = None
) -> Plan:
    """Codec, null-space target, guided and plain steps, and the way back to images.

    Args:
        source: Weights of the roles ``codec``, ``prior`` and ``inn``.
        options: What the caller chose.
        family: Of the invertible network, ``inn`` or ``commin``.
        config: Of that network; by default what the source says of ``inn``.
    """
    codec = codec_of(source, section(source.config, "codec"), "codec.")
    prior = prior_of(source, section(source.config, "prior"), "prior.")
    zero = zero_of(codec, prior, options.extra, DEFAULTS)
    config = section(source.config, "inn") if config is None else config
    guide = guide_of(source, config, options, family)
    image = contract(zero, options.short_edge, guide.stride)
    signal, degradation = codec.signal, guide.degradation
    if guide.condition is not None and degradation is None and not signal.csi_inputs:
        signal = replace(signal, csi_inputs=("snr_db",))
    return Plan(
        variant=f"{zero.variant}; {guide.variant}",
        stages=(
            codec.encode,
            codec.decode,
            _condition(zero, guide),
            denoise(zero),
            guided(zero, guide, image.tile, cheap=False),
            guided(zero, guide, image.tile, cheap=True),
            render(),
        ),
        signal=signal,
        image=image,
        program=("decode", "condition", LoopStep("denoise"), "render"),
        loops={"denoise": replace(loop_of(zero, options, _sampler(options)), guides=GUIDES)},
        image_output="image",
        side_inputs=tuple(port.name for port in zero.masked),
        tensors={} if degradation is None else {"degradation": lambda: degradation},
    )


def guide_of(source: WeightSource, config: Config, options: Options, family: str) -> Guide:
    """The invertible network that `config` describes and the loss that `options` ask for.

    A network conditioned by a vector that is not made of the SNR, as the published ones are by
    their estimate of the degradation, is given the same vector for every image: ``degradation`` of
    the configuration, a list of numbers, or zeros.

    Raises:
        CheckpointError: ``E_CONFIG``, the configuration is another network's or incomplete.
        UsageError: ``E_OPTION``, a value that an option cannot take.
    """
    found = str(config.get("family", ""))
    if found != family:
        raise CheckpointError(
            "E_CONFIG",
            f"inn: got the family {found!r}, expected {family!r}. Give the checkpoint of such a "
            "network, or use the system that is made for this one.",
        )
    with torch.device("meta"):
        shape = configured(lambda: _FAMILIES[family](config))
    weights = (
        number(options.extra, "coarse_weight", 0.0, 0.0, 1e6),
        number(options.extra, "image_weight", 1.0, 0.0, 1e6),
    )
    port, degradation = _told(shape, config)
    norm = choice(options.extra, "norm", NORMS)
    size = sum(each.numel() for each in shape.parameters()) / 1e6
    return Guide(
        build=lambda: source.load(lambda: _FAMILIES[family](config), "inn."),
        stride=shape.stride,
        condition=port,
        degradation=degradation,
        weights=weights if any(weights) else (0.0, 1.0),
        norm=norm,
        variant=f"{family}, {size:.2f} M" + ("" if norm == NORMS[0] else f", {norm} norm"),
    )


def _told(
    shape: Inn | Commin, config: Config
) -> tuple[Port | None, npt.NDArray[np.float32] | None]:
    """What the network is conditioned by, and its value where that is the same for all images."""
    if isinstance(shape, Commin) or shape.config.snr_db_range is not None:
        return Port("snr_db", "float32", NUMBER), None
    width = shape.config.condition
    if not width:
        return None, None
    given = config.get("degradation", [0.0] * width)
    if not (
        isinstance(given, list)
        and len(given) == width
        and all(isinstance(value, int | float) for value in given)
    ):
        raise CheckpointError(
            "E_CONFIG",
            f"inn, degradation: got {str(given)[:60]!r}, expected {width} numbers. Correct the "
            "config.yaml.",
        )
    return Port("degradation", "float32", ("batch", width)), np.array([given], np.float32)


def zeta_of(extra: Extra) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The option ``zeta``: its largest value, and where it is said by SNR its points.

    Raises:
        UsageError: ``E_OPTION``, it is neither a number nor weights by ascending SNRs.
    """
    text = extra.get("zeta", "")
    if ":" not in text:
        return number(extra, "zeta", SAMPLER.guidance, 0.0, 1e6), ()
    try:
        points = tuple(
            (float(snr_db), float(weight))
            for snr_db, weight in (part.split(":") for part in text.split(","))
        )
    except ValueError:
        points = ()
    if not (points and is_curve(points)):
        raise UsageError(
            "E_OPTION",
            f"--option zeta: got {text!r}, expected a number or SNR:WEIGHT,… such as 1:3,7:1: at "
            f"most {CURVE_LIMIT}, ascending SNRs in dB, weights from 0 up. Correct it.",
        )
    return max(weight for _, weight in points), points


def _sampler(options: Options) -> SamplerSpec:
    extra = options.extra
    guide = choice(extra, "guide", (*GUIDES, "none"))
    weight, points = zeta_of(extra)
    return replace(
        SAMPLER,
        guidance=weight,
        guidance_by_snr=points,
        guide=None if guide == "none" else guide,
        guide_every=whole(extra, "guide_every", 1, 1, 1000),
    )


def _condition(zero: Zero, guide: Guide) -> StageSpec:
    """The stage ``condition`` of the null-space systems with ``coarse`` as a further output."""
    plain = condition(zero)
    return replace(
        plain,
        build=lambda: ConditionCoarse(zero, guide.stride),
        outputs=(*plain.outputs, _coarse(guide)),
    )


def _coarse(guide: Guide) -> Port:
    small = (f"height/{guide.stride}", f"width/{guide.stride}")
    return Port("coarse", "float32", ("batch", 3, *small))


def guided(zero: Zero, guide: Guide, tile: int, *, cheap: bool) -> StageSpec:
    """A stage that stands in for ``denoise`` on guided steps and returns ``grad`` too.

    Its graph is for one tile: with open sizes tracing a derivative takes five times as long.

    Args:
        zero: The null-space system.
        guide: What pulls.
        tile: Edge of a tile, in pixels.
        cheap: Whether the derivative of the prior's network is left out, and its cost.
    """
    told = () if guide.condition is None else (guide.condition,)
    inputs = (*denoise_inputs(zero), _coarse(guide), *told)
    outputs = (Port(name, "float32", IMAGE) for name in ("clean", "direction", "grad"))

    def build() -> nn.Module:
        step = Denoise(zero)
        if cheap:
            step.estimate.network = Detached(step.estimate.network)
        consistency = Consistency(guide.build(), guide.weights, squared=guide.norm != NORMS[0])
        loss = GuidedLoss(step, consistency, told=bool(told))
        return Gradient(loss, (STATE.name,), has_aux=True)

    sizes = {"batch": 1, "height": tile, "width": tile}
    return StageSpec(
        name=GUIDES["inn_cheap" if cheap else "inn"],
        build=build,
        inputs=tuple(_fixed(port, sizes) for port in inputs),
        outputs=tuple(_fixed(port, sizes) for port in outputs),
        gradients=("grad",),
        tiled=True,
        ranges={**RANGES, "coarse": (0.0, 1.0)},
    )


def _fixed(port: Port, sizes: Mapping[str, int]) -> Port:
    return Port(port.name, port.dtype, resolve(port, sizes))
