"""Adm: published outputs and names, and a configuration read off the shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jscc.export.models.adm import Adm
from jscc.export.models.adm_config import AdmConfig, config_of

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = SHARED / "golden" / "guided-diffusion-tiny"
TOLERANCE = 2e-5  # of the golden's README

golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")

TINY: dict[str, Any] = {
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "attention_resolutions": [2],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def on_meta(params: dict[str, Any]) -> Adm:
    with torch.device("meta"):
        return Adm.from_config(params)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    state = torch.load(GOLDEN / "model_fp16.pt", weights_only=True)
    return {name: tensor.float() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(GOLDEN / "unet_io.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def loaded(weights: dict[str, torch.Tensor], *, new_order: bool) -> Adm:
    """The golden network, its configuration read off the shapes but for what these cannot tell."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    given = json.loads((GOLDEN / "config.json").read_text())
    found = config_of(shapes)
    assert found is not None
    network = on_meta({**found, **given, "use_new_attention_order": new_order})
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


@golden
@pytest.mark.parametrize("order", ["legacy", "new"])
def test_outputs_are_the_published_ones(weights, vectors, order):
    network = loaded(weights, new_order=order == "new")
    out = network(torch.from_numpy(vectors["x_t"]), torch.from_numpy(vectors["t"]))
    expected = torch.from_numpy(vectors[f"out.{order}_attention_order"])
    assert (out - expected).abs().max() <= TOLERANCE
    other = torch.from_numpy(
        vectors["out.new_attention_order" if order == "legacy" else "out.legacy_attention_order"]
    )
    assert (out - other).abs().max() > 100 * TOLERANCE


@golden
def test_the_timestep_is_embedded_as_published(weights, vectors):
    embedded = loaded(weights, new_order=False).sinusoid(torch.from_numpy(vectors["t"]))
    assert np.abs(embedded.numpy() - vectors["timestep_embedding"]).max() <= 1e-6


@golden
def test_the_gradient_is_the_published_one(weights, vectors):
    x = torch.from_numpy(vectors["x_t"]).requires_grad_()
    out = loaded(weights, new_order=False)(x, torch.from_numpy(vectors["t"]))
    (out[:, :3] * torch.from_numpy(vectors["vjp_cotangent_eps"])).sum().backward()
    expected = torch.from_numpy(vectors["vjp_x_t.legacy_attention_order"])
    assert x.grad is not None
    assert (x.grad - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "params",
    [
        {**TINY, "resblock_updown": False, "use_scale_shift_norm": False, "out_channels": 3},
        {**TINY, "num_res_blocks": [1, 2], "channel_mult": [2, 4]},
    ],
)
def test_shapes_tell_the_configuration(params):
    """All but the heads, which have a default."""
    network = on_meta(params)
    found = config_of(shapes_of(network))
    assert found is not None
    heads = {"num_heads": 4, "num_head_channels": 64}
    assert found.items() >= heads.items()
    assert AdmConfig.from_params({**found, "num_head_channels": 16}, "adm") == (
        AdmConfig.from_params({**params, "num_heads": 4}, "adm")
    )
    assert shapes_of(on_meta(found)) == shapes_of(network)


def test_another_network_is_none_of_these():
    assert config_of({"conv_in.weight": (32, 3, 3, 3)}) is None
    shapes = shapes_of(on_meta(TINY))
    unet = {**shapes, "input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight": (64, 64)}
    assert config_of(unet) is None


def test_widths_that_are_no_multiples_of_32_have_fewer_groups():
    network = Adm.from_config({**TINY, "model_channels": 48, "num_head_channels": 32})
    groups = {module.num_groups for module in network.modules() if hasattr(module, "num_groups")}
    assert groups == {16, 32}
    assert network.stride == 2
    assert network(torch.zeros(1, 3, 4, 6), torch.tensor([3])).shape == (1, 6, 4, 6)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"model_channels": None}, "model_channels: got None, expected a positive integer"),
        ({"channel_mult": 4}, "channel_mult: got 4, expected a list"),
        ({"num_res_blocks": [1]}, "got 1 numbers, expected 2"),
        ({"num_head_channels": 24}, "got attention of width 64, expected a multiple of 24"),
        ({"learn_sigma": False}, "out_channels: got 6, expected 3"),
        ({"out_channels": 5}, "out_channels: got 5, expected 3 or 6"),
        ({"num_classes": 10}, "num_classes: got 10, expected None"),
        ({"resblock_updown": 1}, "resblock_updown: got 1, expected true or false"),
        ({"layers": 3}, "got unknown key 'layers'"),
    ],
)
def test_what_cannot_be_built_says_why(change, shown):
    with pytest.raises(ValueError, match=shown):
        on_meta({**TINY, **change})
