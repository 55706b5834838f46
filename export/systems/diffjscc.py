"""DiffJSCC: a latent diffusion model repaints what a DeepJSCC codec received.

Yang, Liu, Wang, Kim, "Diffusion-Aided Joint Source Channel Coding For High Realism Wireless Image
Transmission", arXiv:2404.17736.

    received ─ decode ─▶ reconstruction ─ condition ─▶ hint ─┐
                              │              context_kv ─────┤
                              │     ┌─────────────────────▶ denoise ─▶ clean ┐  × steps
                              │     └──────────── advance ◀──────────────────┘
                              └──────────────────────────▶ render ─▶ image

The control module and the UNet are one graph. The context (text) is constant over the steps, so
the keys and values of every cross-attention are computed once and enter as one tensor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.checkpoint import section
from jscc.export.codecs import codec_of
from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.text import TextTower
from jscc.export.models.tiny_autoencoder import (
    FACTOR,
    TinyShape,
    tiny_decoder,
    tiny_encoder,
    tiny_shape,
)
from jscc.export.models.unet import Control, Unet
from jscc.export.source import configured
from jscc.export.system import Options, Plan, StageSpec, System
from jscc.export.tensor_file import OpenFile
from jscc.export.tokenizer import tokenize
from jscc.runtime.errors import CheckpointError, UsageError
from jscc.runtime.manifest import ImageContract
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.ports import Port
from jscc.runtime.schedule import schedule_from
from jscc.runtime.trust import strict_json

if TYPE_CHECKING:
    from jscc.export.source import Config, WeightSource

TOKENS = 77
WAVELET_LEVELS = 5
JSON_LIMIT = 1 << 16  # bytes
UNET = "model.diffusion_model."
# In published files, without influence on the penultimate layer's output.
TEXT_UNUSED = ("attn_mask", "visual.*", "text_projection", "logit_scale", "transformer.resblocks.*")
# Ancestral sampling from noise with 50 steps is what the method's authors evaluate with.
SAMPLER = SamplerSpec(name="ddpm", steps=50, start="noise", start_level=None, guidance=0.0)


class Condition(nn.Module):
    """Reconstruction in [0,1] to the scaled posterior mode of one or two encoders."""

    def __init__(self, encoders: tuple[Autoencoder, ...], scale: float) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.scale = scale

    def forward(self, reconstruction: Tensor) -> tuple[Tensor, ...]:
        image = reconstruction * 2 - 1
        modes = []
        for encoder in self.encoders:
            moments = encoder.moments(image)  # type: ignore[operator]
            modes.append(self.scale * moments.chunk(2, dim=1)[0])
        return tuple(modes)


class TinyCondition(nn.Module):
    """Reconstruction in [0,1] to the scaled latent of a tiny encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, reconstruction: Tensor) -> Tensor:
        latent: Tensor = self.encoder(reconstruction)
        return latent


class Denoise(nn.Module):
    """One evaluation of control module and UNet, turned into the clean latent.

    clean = sqrt(1/abar_t) latent - sqrt(1/abar_t - 1) eps (Ho et al., arXiv:2006.11239, eq. 15
    solved for x_0); both factors are gathered by the timestep from float64-made tables.
    """

    recip: Tensor
    recipm1: Tensor

    def __init__(self, control: Control, unet: Unet, abar: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.control = control
        self.unet = unet
        self.split = [unet.context_width, control.context_width]
        recip, recipm1 = np.sqrt(1 / abar), np.sqrt(1 / abar - 1)
        self.register_buffer("recip", torch.from_numpy(recip.astype(np.float32)))
        self.register_buffer("recipm1", torch.from_numpy(recipm1.astype(np.float32)))

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        hint: Tensor,
        context_kv: Tensor,
        snr_db: Tensor | None = None,
    ) -> Tensor:
        unet_kv, control_kv = torch.split(context_kv, self.split, dim=-1)
        residuals = self.control(latent, hint, timestep, snr_db, control_kv)
        eps = self.unet(latent, timestep, unet_kv, residuals)
        index = timestep.to(torch.int64)
        recip = self.recip[index].reshape(-1, 1, 1, 1)
        recipm1 = self.recipm1[index].reshape(-1, 1, 1, 1)
        clean: Tensor = recip * latent - recipm1 * eps
        return clean


class Prompt(nn.Module):
    """Context to the keys and values of every cross-attention, UNet first."""

    def __init__(self, control: Control, unet: Unet) -> None:
        super().__init__()
        self.control = control
        self.unet = unet

    def forward(self, context: Tensor) -> Tensor:
        kv = (self.unet.project_context(context), self.control.project_context(context))
        return torch.cat(kv, dim=-1)


class Decode(nn.Module):
    """Scaled latent to image in [0,1] by the decoder of a first stage."""

    def __init__(self, autoencoder: Autoencoder, scale: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.reciprocal = 1 / scale

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = (self.autoencoder.decode(latent * self.reciprocal).float() + 1) / 2
        return image


class Render(nn.Module):
    """Latent to image in [0,1], its low frequencies taken from the reconstruction."""

    blur: Tensor

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        row = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(row, row) / 16
        self.register_buffer("blur", kernel.expand(3, 1, 3, 3).clone())

    def forward(self, latent: Tensor, reconstruction: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(latent)
        return decoded - self.low(decoded) + self.low(reconstruction)

    def low(self, image: Tensor) -> Tensor:
        """The low band: blurred with the binomial 3×3 kernel, dilated 1, 2, 4, 8 and 16.

        The high band of the à-trous decomposition is the sum of what each blur removed, which
        telescopes to the image minus this.
        """
        for level in range(WAVELET_LEVELS):
            reach = 2**level
            padded = functional.pad(image, (reach,) * 4, mode="replicate")
            image = functional.conv2d(padded, self.blur, groups=3, dilation=reach)
        return image


def plan(source: WeightSource, options: Options) -> Plan:
    """Codec, condition encoder, fused denoiser and renderer of a ControlLDM checkpoint."""
    params = _params(source.config)
    if options.text == "fixed" and "cond_stage_config" not in params:
        raise UsageError(
            "E_TEXT",
            "--text: got 'fixed', expected 'none' or 'side': this checkpoint has no text tower. "
            "Leave the prompt out.",
        )
    codec = codec_of(source, section(params, "preprocess_config"), "preprocess_model.")
    geometry = _Geometry(params)
    tiny = _tiny(source, geometry) if options.vae == "tiny" else None
    guide = "hint" if tiny is not None or _same_encoders(source) else "target"
    stages = [codec.encode, codec.decode, _condition(source, params, geometry, guide, tiny)]
    program: list[str | LoopStep] = ["decode", "condition", LoopStep("denoise"), "render"]
    tensors = {}
    if options.text == "side":
        stages.append(_prompt(source, params))
        program.insert(1, "prompt")
    else:
        tensors["context_kv"] = lambda: _constant_context(source, params, options)
    tokens = _tokens(params, options)
    stages += [
        _denoise(source, params, geometry, tokens),
        _render(source, params, geometry, tiny),
    ]
    multiple = math.lcm(codec.multiple, geometry.factor * geometry.unet_stride)
    return Plan(
        variant="DiffJSCC" if tiny is None else "DiffJSCC, tiny autoencoder",
        stages=tuple(stages),
        signal=codec.signal,
        image=ImageContract(
            multiple=multiple,
            short_edge=options.short_edge,
            rounding="truncate",
            tile=multiple * max(1, 512 // multiple),
            overlap=multiple * max(1, 64 // multiple),
            max_pixels=1 << 24,
        ),
        program=tuple(program),
        loops={"denoise": _loop(params, options, guide)},
        image_output="image",
        tensors=tensors,
        side_inputs=("context",) if options.text == "side" else (),
    )


class _Geometry:
    """How latent and UNet scale with the image."""

    def __init__(self, params: Config) -> None:
        first_stage = section(params, "first_stage_config.params.ddconfig")
        unet = section(params, "unet_config.params")
        self.factor = 2 ** (len(first_stage["ch_mult"]) - 1)
        self.unet_stride = 2 ** (len(unet["channel_mult"]) - 1)
        shape = ("batch", int(unet["in_channels"]), f"height/{self.factor}", f"width/{self.factor}")
        self.latent = shape
        self.image = ("batch", 3, "height", "width")


def _params(config: Config) -> Config:
    got = str(config.get("family", config.get("target", "nothing")))
    if got != "model.cldm.ControlLDM":
        raise CheckpointError(
            "E_CKPT_CONFIG",
            f"config: got {got!r}, expected the target 'model.cldm.ControlLDM'. "
            "Give the config.yaml of a DiffJSCC checkpoint and no --codec, or use --model deepjscc "
            "for a codec.",
        )
    return section(config, "params")


def _same_encoders(source: WeightSource) -> bool:
    """Whether the condition encoder is the first stage's encoder, as in the published files."""
    return all(
        source.same(f"cond_encoder.{part}.", f"first_stage_model.{part}.")
        for part in ("encoder", "quant_conv")
    )


def _loop(params: Config, options: Options, guide: str) -> Loop:
    kind, first = "scaled_linear", float(params["linear_start"])
    schedule = ScheduleSpec(
        kind=kind,
        first=first,
        last=float(params["linear_end"]),
        timesteps=int(params["timesteps"]),
    )
    start = options.start or SAMPLER.start
    sampler = SamplerSpec(
        name=options.sampler or SAMPLER.name,
        steps=options.steps or SAMPLER.steps,
        start=start,
        start_level=options.start_level if start == "received" else None,
        guidance=0.0,
    )
    return Loop(state="latent", start=guide, guide=guide, schedule=schedule, sampler=sampler)


def _encoder(source: WeightSource, params: Config, prefix: str) -> Autoencoder:
    def build() -> Autoencoder:
        autoencoder = Autoencoder.from_config(section(params, "first_stage_config.params"))
        del autoencoder.decoder, autoencoder.post_quant_conv
        return autoencoder

    return source.load(build, prefix, ignore=("decoder.*", "post_quant_conv.*", "loss.*"))


def _decoder(source: WeightSource, params: Config) -> Autoencoder:
    def build() -> Autoencoder:
        autoencoder = Autoencoder.from_config(section(params, "first_stage_config.params"))
        del autoencoder.encoder, autoencoder.quant_conv
        return autoencoder

    return source.load(build, "first_stage_model.", ignore=("encoder.*", "quant_conv.*", "loss.*"))


def _networks(source: WeightSource, params: Config) -> tuple[Control, Unet]:
    control = section(params, "control_stage_config.params")
    unet = section(params, "unet_config.params")
    return (
        source.load(lambda: Control.from_config(control), "control_model."),
        source.load(lambda: Unet.from_config(unet), UNET),
    )


def _tiny(source: WeightSource, geometry: _Geometry) -> TinyShape:
    """What the tiny autoencoder is like; of random weights, as TAESD.

    Raises:
        CheckpointError: ``E_CKPT_SHAPE``, its latents are not those of the diffusion model.
    """
    latent = int(geometry.latent[1])
    shapes = source.shapes("tiny.")
    shape = tiny_shape(shapes, "--tiny") if shapes else TinyShape(latent)
    if shape.latent != latent or geometry.factor != FACTOR:
        raise CheckpointError(
            "E_CKPT_SHAPE",
            f"--tiny: got an autoencoder of {shape.latent} latent planes, {FACTOR} pixels each, "
            f"expected {latent} planes of {geometry.factor}, as the diffusion model has them. "
            "Take the tiny autoencoder of that model.",
        )
    return shape


def _condition(
    source: WeightSource, params: Config, geometry: _Geometry, guide: str, tiny: TinyShape | None
) -> StageSpec:
    prefixes = ("cond_encoder.",) if guide == "hint" else ("cond_encoder.", "first_stage_model.")
    names = ("hint",) if guide == "hint" else ("hint", "target")
    scale = float(params["scale_factor"])

    def build() -> nn.Module:
        if tiny is not None:
            return TinyCondition(source.load(lambda: tiny_encoder(tiny), "tiny.encoder."))
        return Condition(tuple(_encoder(source, params, prefix) for prefix in prefixes), scale)

    return StageSpec(
        name="condition",
        build=build,
        inputs=(Port("reconstruction", "float32", geometry.image),),
        outputs=tuple(Port(name, "float32", geometry.latent) for name in names),
        tiled=True,
    )


def _prompt(source: WeightSource, params: Config) -> StageSpec:
    width = int(section(params, "unet_config.params")["context_dim"])
    return StageSpec(
        name="prompt",
        build=lambda: Prompt(*_networks(source, params)),
        inputs=(Port("context", "float32", ("batch", TOKENS, width)),),
        outputs=(Port("context_kv", "float32", ("batch", TOKENS, _kv_width(params))),),
    )


def _unet(config: Config) -> tuple[str, Unet]:
    """What a LoRA changes; the control module was trained apart from the UNet and stays."""
    return UNET, Unet.from_config(section(_params(config), "unet_config.params"))


def _kv_width(params: Config) -> int:
    """Width of ``context_kv``: keys and values of every cross-attention of both networks."""
    with torch.device("meta"):
        unet = configured(lambda: Unet.from_config(section(params, "unet_config.params")))
        control = configured(
            lambda: Control.from_config(section(params, "control_stage_config.params"))
        )
    return unet.context_width + control.context_width


def _denoise(source: WeightSource, params: Config, geometry: _Geometry, tokens: int) -> StageSpec:
    def build() -> Denoise:
        spec = _loop(params, Options(), "hint").schedule
        return Denoise(*_networks(source, params), schedule_from(spec).alphas_cumprod)

    inputs = [
        Port("latent", "float32", geometry.latent),
        Port("timestep", "float32", ("batch",)),
        Port("hint", "float32", geometry.latent),
        Port("context_kv", "float32", ("batch", tokens, _kv_width(params))),
    ]
    if section(params, "control_stage_config.params").get("use_snr", False):
        inputs.append(Port("snr_db", "float32", ("batch",)))
    return StageSpec(
        name="denoise",
        build=build,
        inputs=tuple(inputs),
        outputs=(Port("clean", "float32", geometry.latent),),
        tiled=True,
    )


def _render(
    source: WeightSource, params: Config, geometry: _Geometry, tiny: TinyShape | None
) -> StageSpec:
    def build() -> Render:
        if tiny is not None:
            return Render(source.load(lambda: tiny_decoder(tiny), "tiny.decoder."))
        return Render(Decode(_decoder(source, params), float(params["scale_factor"])))

    return StageSpec(
        name="render",
        build=build,
        inputs=(
            Port("latent", "float32", geometry.latent),
            Port("reconstruction", "float32", geometry.image),
        ),
        outputs=(Port("image", "float32", geometry.image),),
        tiled=True,
    )


def _tokens(params: Config, options: Options) -> int:
    return TOKENS if options.text == "side" or "cond_stage_config" in params else 1


def _text_config(arch: str, folder: Path) -> Config | None:
    """``text_cfg`` of the OpenCLIP configuration that `arch` names, if it lies in `folder`."""
    path = folder / f"{arch}.json"
    if not arch or Path(arch).name != arch or not path.is_file():
        return None
    file = OpenFile(path)
    tree = strict_json(file.read(0, min(file.size, JSON_LIMIT)), limit=JSON_LIMIT)
    return section(tree if isinstance(tree, dict) else {}, "text_cfg")


def _constant_context(
    source: WeightSource, params: Config, options: Options
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``context_kv`` of a text that is known now; a zero context where there is no tower."""
    with torch.no_grad():
        if "cond_stage_config" not in params:
            context = torch.zeros(1, 1, int(section(params, "unet_config.params")["context_dim"]))
        else:
            settings = section(params, "cond_stage_config").get("params") or {}
            text_cfg = _text_config(str(settings.get("arch", "")), source.folder)
            tower = source.load(
                lambda: TextTower.from_config(settings, text_cfg),
                "cond_stage_model.model.",
                ignore=TEXT_UNUSED,
            )
            context = tower(torch.from_numpy(tokenize([options.prompt])))
        kv: np.ndarray[Any, np.dtype[np.float32]] = (
            Prompt(*_networks(source, params))(context).float().numpy()
        )
    return kv


SYSTEM = System(
    paper="Diffusion-Aided Joint Source Channel Coding For High Realism Wireless Image "
    "Transmission, arXiv:2404.17736",
    plan=plan,
    roles={"": "diffjscc"},
    autoencoders=("full", "tiny"),
    prefixes=(
        "preprocess_model.",
        "cond_encoder.",
        "first_stage_model.",
        "cond_stage_model.",
        "control_model.",
        UNET,
    ),
    # Left by training and evaluation: the sampler's tables, the captioner, the metric.
    ignored=(
        "betas",
        "logvar",
        "alphas_cumprod*",
        "sqrt_*",
        "log_one_minus_alphas_cumprod",
        "posterior_*",
        "blip_model.*",
        "lpips_metric.*",
        "model_ema.*",
    ),
    unet=_unet,
)
