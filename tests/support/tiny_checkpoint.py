"""Tiny checkpoints in the published containers, made of seeded random weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from jscc.export.models.adm import Adm
from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.models.unet import Control, Unet

if TYPE_CHECKING:
    from pathlib import Path

CODEC: dict[str, Any] = {
    "target": "model.deepjscc_cnn.DeepJSCC",
    "params": {
        "input_nc": 3,
        "ngf": 4,
        "max_ngf_E": 16,
        "max_ngf_D": 12,
        "n_downsample": 4,
        "norm": "batch",
        "C_channel": 4,
        "output_nc": 3,
        "n_blocks_E": 1,
        "n_blocks_D": 1,
        "SNR_low": 0,
        "SNR_high": 14,
        "channel": "AWGN",
    },
}

# At the training size of 16 pixels, windows of 4 fit into the first stage's 8x8 positions only.
SWIN: dict[str, Any] = {
    "target": "model.deepjscc_swin.DeepJSCC_SWIN",
    "params": {
        "img_size_h": 16,
        "img_size_w": 16,
        "patch_size": 2,
        "in_chans": 3,
        "embed_dims": [8, 12],
        "embed_dims_d": [12, 8],
        "depths": [2, 2],
        "depths_d": [2, 2],
        "num_heads": [2, 3],
        "num_heads_d": [3, 2],
        "bottleneck_dim": 4,
        "window_size": 4,
        "mlp_ratio": 4.0,
        "SNR_low": 0,
        "SNR_high": 14,
        "channel": "AWGN",
    },
}

_NETWORK: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 8,
    "legacy": False,
}

LDM: dict[str, Any] = {
    "target": "model.cldm.ControlLDM",
    "params": {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "timesteps": 1000,
        "scale_factor": 0.5,
        "use_lang": False,
        "control_stage_config": {
            "target": "model.cldm.ControlNet",
            "params": {
                **_NETWORK,
                "hint_channels": 4,
                "use_snr": True,
                "min_snr": -5,
                "snr_scale": 100,
            },
        },
        "unet_config": {
            "target": "model.cldm.ControlledUnetModel",
            "params": {**_NETWORK, "out_channels": 4},
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "ddconfig": {
                    "double_z": True,
                    "z_channels": 4,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 32,
                    "ch_mult": [1, 1, 1, 1],
                    "num_res_blocks": 1,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
            },
        },
        "preprocess_config": CODEC,
    },
}


PRIOR: dict[str, Any] = {
    "family": "adm",
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 1],
    "attention_resolutions": [],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
    "image_size": 32,
}


def write_prior(folder: Path, **params: Any) -> Path:
    """Write ``model.ckpt`` and ``config.yaml`` of a pixel diffusion model; returns `folder`."""
    config = {**PRIOR, **params}
    network = _drawn(Adm.from_config(config), seed=7)
    return _write(folder, config, network.state_dict())


def write_codec(folder: Path, **params: Any) -> Path:
    """Write ``model.ckpt`` and ``config.yaml`` of a codec alone; returns `folder`."""
    config = copy.deepcopy(CODEC)
    config["params"].update(params)
    network = _drawn(DeepJscc.from_config(config["params"]), seed=1)
    return _write(folder, config, network.state_dict())


def write_control_ldm(folder: Path, config: dict[str, Any] = LDM) -> Path:
    """Write a whole ControlLDM whose condition encoder is a copy of the first stage's."""
    params = config["params"]
    first_stage = _drawn(
        Autoencoder.from_config(params["first_stage_config"]["params"]), seed=2
    ).state_dict()
    encoder = {
        key: value
        for key, value in first_stage.items()
        if key.startswith(("encoder.", "quant_conv."))
    }
    parts = {
        "preprocess_model.": _codec(params["preprocess_config"]),
        "control_model.": Control.from_config(params["control_stage_config"]["params"]),
        "model.diffusion_model.": Unet.from_config(params["unet_config"]["params"]),
    }
    weights = {f"first_stage_model.{key}": value for key, value in first_stage.items()}
    weights |= {f"cond_encoder.{key}": value for key, value in encoder.items()}
    for seed, (prefix, network) in enumerate(parts.items(), start=3):
        state = _drawn(network, seed).state_dict()
        weights |= {f"{prefix}{key}": value for key, value in state.items()}
    weights["betas"] = torch.linspace(0.1, 0.2, 1000)
    return _write(folder, config, weights)


def _codec(config: dict[str, Any]) -> nn.Module:
    """The codec of an official configuration."""
    family = DeepJscc if config["target"] == CODEC["target"] else DeepJsccSwin
    return family.from_config(config["params"])


def _drawn(network: nn.Module, seed: int) -> nn.Module:
    """Draw every weight, the zero-initialised ones too, at a scale that keeps signals alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(std=fan_in**-0.5, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(std=0.1, generator=generator)
    return network.eval()


def _write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"state_dict": weights, "epoch": 1, "global_step": 2}, folder / "model.ckpt")
    return folder
