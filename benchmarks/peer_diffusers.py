"""Peer diffusers: the same step by diffusers' own UNet and ControlNet, with the same weights.

DiffJSCC's control module becomes a ``ControlNetModel`` exactly: its SNR enters as a class that is
embedded like a time step, and its first convolution, over latent and hint side by side, is the sum
of one over each, the second in the place of the embedding of the condition. The clean latent is
that of diffusers' own scheduler.

NOTE: diffusers is no dependency. It is imported when a network is made; only `load` needs torch
modules of this project, so that other environments can ask for `unet_config` and `control_config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jscc.benchmarks.peer_case import (
    BETAS,
    LATENT,
    MIN_SNR,
    SNR_SCALE,
    TIMESTEPS,
    TRUNKS,
    read_case,
    read_context,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from jscc.benchmarks.peer_case import Array, Case

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
    """Arguments of diffusers' ``UNet2DConditionModel``."""
    return {**_config(scale), "out_channels": LATENT, "up_block_types": _levels(scale, "Up")[::-1]}


def control_config(scale: str) -> dict[str, Any]:
    """Arguments of diffusers' ``ControlNetModel``."""
    return {**_config(scale), "class_embed_type": "timestep"}


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
            down, middle = control(
                latent, timestep, context, inputs["hint"], class_labels=label, return_dict=False
            )
            (noise,) = unet(
                latent,
                timestep,
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )
            made = scheduler.step(noise, int(timestep[0]), latent)
        return np.asarray(made.pred_original_sample.numpy(), np.float32)

    return step


def networks(case: Case) -> tuple[Any, Any]:
    """diffusers' ControlNet and UNet with the weights of our network."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    from jscc.benchmarks.peer_network import build
    from jscc.export.models.unet_names import diffusers_names

    scale = case.scale
    ours: Any = build(case)
    names = diffusers_names(ours.unet)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(scale))
        control = ControlNetModel(**control_config(scale))
        width = TRUNKS[scale]["model_channels"]
        setattr(control, _HINT, torch.nn.Conv2d(LATENT, width, 3, padding=1, bias=False))
    unet.load_state_dict(renamed(ours.unet.state_dict(), names), assign=True)
    weights = renamed(ours.control.state_dict(), names)
    both = weights.pop("conv_in.weight")
    weights["conv_in.weight"] = both[:, :LATENT].contiguous()
    weights[f"{_HINT}.weight"] = both[:, LATENT:].contiguous()
    control.load_state_dict(weights, assign=True)
    return control.eval().requires_grad_(False), unet.eval().requires_grad_(False)


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


def _config(scale: str) -> dict[str, Any]:
    trunk = TRUNKS[scale]
    widths = [trunk["model_channels"] * factor for factor in trunk["channel_mult"]]
    return {
        "in_channels": LATENT,
        "block_out_channels": widths,
        "down_block_types": _levels(scale, "Down"),
        "layers_per_block": trunk["num_res_blocks"],
        "cross_attention_dim": trunk["context_dim"],
        # NOTE: under this name diffusers counts heads.
        "attention_head_dim": [width // trunk["num_head_channels"] for width in widths],
        "transformer_layers_per_block": trunk["transformer_depth"],
        "use_linear_projection": True,
    }


def _levels(scale: str, way: str) -> list[str]:
    """The kind of block of each level, the highest resolution first."""
    trunk = TRUNKS[scale]
    attends = [
        2**level in trunk["attention_resolutions"] for level in range(len(trunk["channel_mult"]))
    ]
    return [f"{'CrossAttn' if each else ''}{way}Block2D" for each in attends]
