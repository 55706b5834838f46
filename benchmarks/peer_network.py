"""Peer network: the torch network of a peer case, and the graph that is made of it.

Graph and network have the same weights because both are drawn from the case's seed.
"""

from pathlib import Path
from typing import Any

from torch import nn

from jscc.benchmarks.peer_case import STAGE, Case, write_case
from jscc.export.lower import Sizes, lower
from jscc.export.proof import examples
from jscc.export.source import RandomSource
from jscc.export.system import Options, StageSpec, find

_TRANSFORMER = {"use_spatial_transformer": True, "use_linear_in_transformer": True}
# Stable Diffusion 2.1's widths, and widths that a test can afford.
TRUNKS: dict[str, dict[str, Any]] = {
    "full": {
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_head_channels": 64,
        "transformer_depth": 1,
        "context_dim": 1024,
    },
    "small": {
        "model_channels": 32,
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "channel_mult": [1],
        "num_head_channels": 16,
        "transformer_depth": 1,
        "context_dim": 16,
    },
}


def config(scale: str) -> dict[str, Any]:
    """The configuration of a ControlLDM with this trunk, in the official schema."""
    trunk = {"in_channels": 4, **_TRANSFORMER, **TRUNKS[scale]}
    steering = {"hint_channels": 4, "use_snr": True, "min_snr": 0, "snr_scale": 100}
    autoencoder = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    }
    codec = {
        "input_nc": 3,
        "ngf": 64,
        "max_ngf_E": 384,
        "max_ngf_D": 384,
        "n_downsample": 4,
        "norm": "batch",
        "C_channel": 16,
        "output_nc": 3,
        "n_blocks_E": 4,
        "n_blocks_D": 4,
        "SNR_low": 0,
        "SNR_high": 14,
        "channel": "AWGN",
    }
    return {
        "target": "model.cldm.ControlLDM",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "control_stage_config": {"params": {**trunk, **steering}},
            "unet_config": {"params": {**trunk, "out_channels": 4}},
            "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": autoencoder}},
            "cond_stage_config": {"params": {"layer": "penultimate"}},
            "preprocess_config": {"target": "model.deepjscc_cnn.DeepJSCC", "params": codec},
        },
    }


def spec(case: Case) -> StageSpec:
    """The denoise stage exactly as the exporter plans it, with random weights."""
    source = RandomSource(config(case.scale), Path(), case.seed)
    plan = find("diffjscc").plan(source, Options())
    return next(stage for stage in plan.stages if stage.name == STAGE)


def build(case: Case) -> nn.Module:
    """The network in torch."""
    return spec(case).build().eval().requires_grad_(False)


def prepare(case: Case, folder: Path) -> None:
    """Write the case into `folder`: lowered and proved like any export, and its inputs drawn."""
    stage = spec(case)
    fixed = None if case.any_size else (case.height, case.width)
    lowered = lower(stage, folder, Sizes(64, fixed), "fp32")
    sizes = {"batch": 1, "height": case.height, "width": case.width}
    write_case(case, lowered.entry, examples(stage.inputs, sizes, case.seed), folder)
