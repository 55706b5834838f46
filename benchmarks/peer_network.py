"""Peer network: the torch network of a peer case, and the graph that is made of it.

Graph and network have the same weights because both are drawn from the case's seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jscc.benchmarks.peer_case import (
    BETAS,
    LATENT,
    STAGE,
    STEERING,
    TIMESTEPS,
    Array,
    Arrays,
    Case,
    trunk,
    write_case,
)
from jscc.export.lower import Sizes, lower
from jscc.export.proof import examples
from jscc.export.source import RandomSource
from jscc.export.system import Options, Plan, StageSpec, find


def config(scale: str) -> dict[str, Any]:
    """The configuration of a ControlLDM with this trunk, in the official schema."""
    both = trunk(scale)
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
            "linear_start": BETAS[0],
            "linear_end": BETAS[1],
            "timesteps": TIMESTEPS,
            "scale_factor": 0.18215,
            "control_stage_config": {"params": {**both, **STEERING}},
            "unet_config": {"params": {**both, "out_channels": LATENT}},
            "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": autoencoder}},
            "cond_stage_config": {"params": {"layer": "penultimate"}},
            "preprocess_config": {"target": "model.deepjscc_cnn.DeepJSCC", "params": codec},
        },
    }


def spec(case: Case) -> StageSpec:
    """The denoise stage exactly as the exporter plans it, with random weights."""
    return next(stage for stage in _plan(case).stages if stage.name == STAGE)


def build(case: Case) -> nn.Module:
    """The network in torch."""
    return spec(case).build().eval().requires_grad_(False)


def prepare(case: Case, folder: Path) -> None:
    """Write the case into `folder`: lowered and proved like any export, and its inputs drawn."""
    stage = spec(case)
    fixed = None if case.any_size else (case.height, case.width)
    lowered = lower(stage, folder, Sizes(64, fixed), "fp32")
    sizes = {"batch": 1, "height": case.height, "width": case.width}
    inputs = examples(stage.inputs, sizes, case.seed)
    context, inputs["context_kv"] = _context(case)
    flops = count_flops(build(case), inputs)
    write_case(case, lowered.entry, inputs, context, flops, folder)


def count_flops(network: nn.Module, inputs: Arrays) -> int:
    """FLOPs of matrix products and convolutions in one call; nothing is computed.

    A product and the sum that follows it are two. Attention counts as its two products.

    NOTE: on a CPU, PyTorch's fused attention would count as nothing; on "meta" it is not fused.
    """
    network = network.to("meta")
    tensors = [torch.from_numpy(array).to("meta") for array in inputs.values()]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*tensors)
    return int(counter.get_total_flops())


def _plan(case: Case, text: str = "none") -> Plan:
    source = RandomSource(config(case.scale), Path(), case.seed)
    return find("diffjscc").plan(source, Options(text=text))


def _context(case: Case) -> tuple[Array, Array]:
    """A random context, and the keys and values that both networks make of it."""
    prompt = next(stage for stage in _plan(case, "side").stages if stage.name == "prompt")
    inputs = examples(prompt.inputs, {"batch": 1}, case.seed)
    with torch.no_grad():
        made = prompt.build().eval()(*(torch.from_numpy(array) for array in inputs.values()))
    (context,) = inputs.values()
    return context, np.asarray(made.numpy(), np.float32)
