"""Configuration of the reference model, in the schema of the official DiffJSCC files."""

from __future__ import annotations

import copy
from typing import Any, Final

_TRUNK: Final[dict[str, Any]] = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 64,
    "attention_resolutions": [4],
    "num_res_blocks": 1,
    "channel_mult": [1, 2, 2],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 32,
    "legacy": False,
}

_CONFIG: Final[dict[str, Any]] = {
    "target": "model.cldm.ControlLDM",
    # Not in the official schema: what the exporter makes the bundle's defaults.
    "receiver": {"sampler": "ddpm", "steps": 4, "start": "noise"},
    "params": {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "timesteps": 1000,
        "channels": 4,
        "conditioning_key": "crossattn",
        "control_key": "jpg",
        "scale_factor": 1.0,
        "use_ema": False,
        "use_lang": False,
        "only_mid_control": False,
        "control_stage_config": {
            "target": "model.cldm.ControlNet",
            "params": {
                **_TRUNK,
                "hint_channels": 4,
                "use_snr": True,
                "min_snr": 0,
                "snr_scale": 100,
            },
        },
        "unet_config": {
            "target": "model.cldm.ControlledUnetModel",
            "params": {**_TRUNK, "out_channels": 4},
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
                    "ch": 64,
                    "ch_mult": [1, 1, 1, 2],
                    "num_res_blocks": 0,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
            },
        },
        "preprocess_config": {
            "target": "model.deepjscc_cnn.DeepJSCC",
            "params": {
                "input_nc": 3,
                "ngf": 16,
                "max_ngf_E": 192,
                "max_ngf_D": 192,
                "n_downsample": 4,
                "norm": "batch",
                "C_channel": 16,
                "output_nc": 3,
                "n_blocks_E": 3,
                "n_blocks_D": 4,
                "SNR_low": 0,
                "SNR_high": 14,
                "loss_type": "MSE",
                "channel": "AWGN",
            },
        },
    },
}


def reference_config(scale_factor: float = 1.0) -> dict[str, Any]:
    """Returns the configuration; `scale_factor` times the latent has unit standard deviation.

    There is no `cond_stage_config`: the model has no text tower, and its context is one token of
    zeros.
    """
    config = copy.deepcopy(_CONFIG)
    config["params"]["scale_factor"] = scale_factor
    return config
