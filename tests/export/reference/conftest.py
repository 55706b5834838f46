"""A finished reference model as small as its classes allow, and pictures, for what learns of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.reference.config import reference_config
from jscc.export.reference.diffusion import Denoiser
from jscc.export.reference.teacher import AUTOENCODER, CODEC, DENOISER, Teacher
from jscc.export.reference.tiles import Tiles

if TYPE_CHECKING:
    from torch import Tensor, nn


@pytest.fixture(scope="session")
def small_teacher() -> Teacher:
    """Random weights, the same each time; every layer changes what comes out."""
    config = reference_config(scale_factor=0.8)
    params = config["params"]
    codec = {"ngf": 4, "max_ngf_E": 8, "max_ngf_D": 8, "n_blocks_E": 1, "n_blocks_D": 1}
    params["preprocess_config"]["params"] |= codec | {"C_channel": 4}
    params["first_stage_config"]["params"]["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 1, 1]}
    for name in ("unet_config", "control_stage_config"):
        params[name]["params"] |= {"model_channels": 32, "channel_mult": [1, 1], "context_dim": 8}
        params[name]["params"] |= {"attention_resolutions": [2], "num_head_channels": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {
            **_official(DeepJscc.from_config(params["preprocess_config"]["params"]), CODEC),
            **_official(
                Autoencoder.from_config(params["first_stage_config"]["params"]), AUTOENCODER
            ),
            **_official(Denoiser(params), DENOISER),
        }
    return Teacher(tensors, params, torch.device("cpu"))


def _official(module: nn.Module, prefixes: dict[str, str]) -> dict[str, Tensor]:
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return {
        official + name.removeprefix(own): value
        for own, official in prefixes.items()
        for name, value in module.state_dict().items()
        if name.startswith(own)
    }


@pytest.fixture(scope="session")
def smooth_tiles() -> Tiles:
    """Three pictures to train on and one to judge by."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((4, 3, 5, 5), np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bicubic").clamp(0, 1)
    tiles = (fine * 255).round().to(torch.uint8)
    return Tiles(tiles[:3], tiles[3:])
