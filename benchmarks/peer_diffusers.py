"""Peer diffusers: diffusers' own UNet and ControlNet with our weights, and a step of theirs.

DiffJSCC's control module becomes a ``ControlNetModel`` exactly: its SNR enters as a class that is
embedded like a time step, and its first convolution, over latent and hint side by side, is the sum
of one over each, the second in the place of the embedding of the condition. The clean latent of a
step is that of diffusers' own scheduler.

NOTE: diffusers is no dependency. It is imported when a network is made; only `load` and `convert`
need torch modules of this project, so that other environments can ask for the arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jscc.benchmarks.peer_case import (
    BETAS,
    LATENT,
    MIN_SNR,
    SNR_SCALE,
    STEERING,
    TIMESTEPS,
    read_case,
    read_context,
    trunk,
)
from jscc.export.models.unet_config import ControlConfig, UnetConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from jscc.benchmarks.peer_case import Array, Case
    from jscc.export.models.unet import Control, Unet

# Norms, and layers of the networks' ends, that have no matrix or are not in the UNet.
_NORMS = {"in_layers.0": "norm1", "out_layers.0": "norm2"}
_ENDS = {
    "out.0": "conv_norm_out",
    "snr_embed.0": "class_embedding.linear_1",
    "snr_embed.2": "class_embedding.linear_2",
    "middle_block_out.0": "controlnet_mid_block",
}
_HINT = "controlnet_cond_embedding"


def unet_config(scale: str) -> dict[str, Any]:
    """Arguments of diffusers' ``UNet2DConditionModel`` for the case of this scale."""
    return unet_arguments(
        UnetConfig.from_params({**trunk(scale), "out_channels": LATENT}, "unet_config")
    )


def control_config(scale: str) -> dict[str, Any]:
    """Arguments of diffusers' ``ControlNetModel`` for the case of this scale."""
    return control_arguments(
        ControlConfig.from_params({**trunk(scale), **STEERING}, "control_stage_config")
    )


def unet_arguments(config: UnetConfig) -> dict[str, Any]:
    """Arguments with which diffusers' ``UNet2DConditionModel`` is our `Unet` of `config`."""
    return {
        **_arguments(config),
        "out_channels": config.out_channels,
        "up_block_types": _levels(config, "Up")[::-1],
    }


def control_arguments(config: ControlConfig) -> dict[str, Any]:
    """Arguments with which diffusers' ``ControlNetModel`` is our `Control` of `config`.

    Its embedding of the condition is another, see `convert`.

    Raises:
        ValueError: Its levels have different numbers of blocks, which a ``ControlNetModel`` cannot.
    """
    blocks = [count for _, count in config.trunk.levels]
    if len(set(blocks)) > 1:
        raise ValueError(
            f"control_stage_config.num_res_blocks: got {blocks}, expected one number for all "
            "levels, as diffusers' ControlNetModel has it. Run this network on another engine."
        )
    embedded = {"class_embed_type": "timestep"} if config.use_snr else {}
    return {**_arguments(config.trunk), **embedded}


def load(folder: Path, threads: int) -> Callable[[], Array]:
    """The case in `folder` as a step of diffusers."""
    import torch
    from diffusers import DDPMScheduler

    torch.set_num_threads(threads)
    case, _, arrays = read_case(folder)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    context = torch.from_numpy(read_context(folder))
    label = SNR_SCALE * inputs["snr_db"] - MIN_SNR
    latent, timestep = inputs["latent"], inputs["timestep"]
    control, unet = networks(case)
    scheduler = DDPMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
    )

    def step() -> Array:
        with torch.no_grad():
            noise = find_noise(control, unet, latent, timestep, context, inputs["hint"], label)
            made = scheduler.step(noise, int(timestep[0]), latent)
        return np.asarray(made.pred_original_sample.numpy(), np.float32)

    return step


def find_noise(
    control: Any,
    unet: Any,
    latent: Tensor,
    timestep: Tensor,
    context: Tensor,
    hint: Tensor,
    label: Tensor | None,
) -> Tensor:
    """The noise that diffusers' ControlNet and UNet find in `latent`, like it.

    Args:
        control: ``ControlNetModel``.
        unet: ``UNet2DConditionModel``.
        latent: float32[batch, planes, rows, columns].
        timestep: float32[batch].
        context: float32[1 or batch, tokens, width].
        hint: Like the latent.
        label: What stands for the SNR, float32[batch]; None where none is told.
    """
    down, middle = control(latent, timestep, context, hint, class_labels=label, return_dict=False)
    (noise,) = unet(
        latent,
        timestep,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )
    found: Tensor = noise
    return found


def networks(case: Case) -> tuple[Any, Any]:
    """diffusers' ControlNet and UNet with the weights of our network."""
    from jscc.benchmarks.peer_network import build

    ours: Any = build(case)
    return convert(ours.control, ours.unet)


def convert(control: Control, unet: Unet) -> tuple[Any, Any]:
    """diffusers' ``ControlNetModel`` and ``UNet2DConditionModel`` with the weights of ours.

    Where a weight is the same there and here, both share its memory. The ControlNet takes the hint
    as its condition, and ``snr_scale * snr_db - min_snr`` as its class where it is told the SNR.

    Raises:
        ValueError: diffusers has no such network.
    """
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    from jscc.export.models.unet_names import diffusers_names

    latent, width = unet.config.in_channels, control.config.trunk.model_channels
    names = diffusers_names(unet)
    with torch.device("meta"):
        their_unet = UNet2DConditionModel(**unet_arguments(unet.config))
        their_control = ControlNetModel(**control_arguments(control.config))
        hint = torch.nn.Conv2d(control.config.hint_channels, width, 3, padding=1, bias=False)
        setattr(their_control, _HINT, hint)
    their_unet.load_state_dict(renamed(unet.state_dict(), names), assign=True)
    weights = renamed(control.state_dict(), names)
    both = weights.pop("conv_in.weight")
    weights["conv_in.weight"] = both[:, :latent].contiguous()
    weights[f"{_HINT}.weight"] = both[:, latent:].contiguous()
    their_control.load_state_dict(weights, assign=True)
    return their_control.eval().requires_grad_(False), their_unet.eval().requires_grad_(False)


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """`weights` of a UNet or a control module under the keys that diffusers has.

    Args:
        weights: State of the module.
        names: What `jscc.export.models.unet_names.diffusers_names` says of the UNet's layers.

    Raises:
        LookupError: A layer is known by no other name.
    """
    blocks = dict(_blocks(names))
    known = {**names, **_ENDS}
    found = {}
    for key, tensor in weights.items():
        layer, _, parameter = key.rpartition(".")
        name = known.get(layer) or _in_block(layer, blocks)
        found[f"{name}.{parameter}"] = tensor
    return found


def _blocks(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Own and diffusers name of every block that has norms, from those of one of its layers."""
    for own, theirs in names.items():
        for inside, outside in (("in_layers.2", "conv1"), ("proj_in", "proj_in")):
            if own.endswith(f".{inside}"):
                yield own.removesuffix(inside), theirs.removesuffix(outside)


def _in_block(layer: str, blocks: Mapping[str, str]) -> str:
    """diffusers' name of a norm, or of a convolution of the control module."""
    first, _, rest = layer.partition(".")
    if first == "zero_convs":
        return f"controlnet_down_blocks.{rest.partition('.')[0]}"
    for own, theirs in blocks.items():
        if layer.startswith(own):
            inside = layer.removeprefix(own)
            return theirs + _NORMS.get(inside, inside)
    raise LookupError(f"layer {layer!r}: got no block of it, expected one. Convert it by hand.")


def _arguments(config: UnetConfig) -> dict[str, Any]:
    """What both of diffusers' networks take."""
    widths = [width for width, _ in config.levels]
    blocks = [count for _, count in config.levels]
    return {
        "in_channels": config.in_channels,
        "block_out_channels": widths,
        "down_block_types": _levels(config, "Down"),
        "layers_per_block": blocks[0] if len(set(blocks)) == 1 else blocks,
        "cross_attention_dim": config.context_dim,
        # NOTE: under this name diffusers counts heads.
        "attention_head_dim": [config.heads(width) for width in widths],
        "transformer_layers_per_block": config.transformer_depth,
        "use_linear_projection": config.linear_in_transformer,
    }


def _levels(config: UnetConfig, way: str) -> list[str]:
    """The kind of block of each level, the highest resolution first."""
    return [f"{'CrossAttn' if attends else ''}{way}Block2D" for attends in config.attention]
