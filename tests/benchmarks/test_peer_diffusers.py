"""diffusers: what published files call our layers, and its own networks with our weights."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from jscc.benchmarks import peer_optimum
from jscc.benchmarks.peer_case import Case, read_case
from jscc.benchmarks.peer_diffusers import (
    control_arguments,
    control_config,
    load,
    renamed,
    unet_arguments,
    unet_config,
)

pytest.importorskip("torch", reason="torch is not installed")

import torch

from jscc.benchmarks.peer_network import build, config, prepare
from jscc.export.checkpoint import read_config, section
from jscc.export.models.unet import Control, Unet
from jscc.export.models.unet_config import ControlConfig, UnetConfig
from jscc.export.models.unet_names import diffusers_names
from jscc.export.roles import config_path, reference_folder

# ``stabilityai/stable-diffusion-2-1``, unet/config.json.
PUBLISHED = {
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "use_linear_projection": True,
}


@pytest.fixture(scope="module")
def full():
    """Our two networks at full size, without memory for their weights."""
    params = config("full")["params"]
    with torch.device("meta"):
        unet = Unet.from_config(params["unet_config"]["params"])
        control = Control.from_config(params["control_stage_config"]["params"])
    return unet, control


def test_the_configuration_is_the_published_one():
    ours = unet_config("full")
    assert {name: ours[name] for name in PUBLISHED} == PUBLISHED
    assert control_config("full")["down_block_types"] == PUBLISHED["down_block_types"]


def networks_of(config):
    """Both networks' sections of an official configuration."""
    parts = section(config, "params")
    return tuple(dict(parts[f"{name}_config"]["params"]) for name in ("control_stage", "unet"))


def arguments_of(control, unet):
    return (
        control_arguments(ControlConfig.from_params(control, "control")),
        unet_arguments(UnetConfig.from_params(unet, "unet")),
    )


def test_the_published_architecture_maps_to_the_published_arguments():
    control, unet = arguments_of(
        *networks_of(read_config(config_path("architecture:diffjscc_c16")))
    )
    assert {name: unet[name] for name in PUBLISHED} == PUBLISHED
    assert control["class_embed_type"] == "timestep"
    assert "out_channels" not in control


def test_the_reference_trunk_maps_level_by_level():
    """Three levels of one block, of which the lowest resolution alone attends."""
    config = read_config(reference_folder("diffjscc") / "config.yaml")
    control, unet = arguments_of(*networks_of(config))
    assert unet["block_out_channels"] == [64, 128, 128]
    assert unet["attention_head_dim"] == [2, 4, 4]  # heads, each 32 wide
    assert unet["layers_per_block"] == 1
    assert unet["down_block_types"] == ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"]
    assert unet["up_block_types"] == ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]
    assert unet["cross_attention_dim"] == control["cross_attention_dim"] == 32


def test_heads_may_be_counted_and_projections_be_convolutions():
    """As in Stable Diffusion 1, whose unet/config.json says 8 and no linear projection."""
    control, unet = networks_of(config("full"))
    for params in (control, unet):
        params.update(num_heads=8, num_head_channels=-1, use_linear_in_transformer=False)
    control.update(use_snr=False)
    theirs, trunk = arguments_of(control, unet)
    assert trunk["attention_head_dim"] == [8, 8, 8, 8]
    assert trunk["use_linear_projection"] is False
    assert "class_embed_type" not in theirs


def test_levels_of_different_depth_are_more_than_a_controlnet_can():
    control, unet = networks_of(config("full"))
    for params in (control, unet):
        params["num_res_blocks"] = [1, 2, 2, 2]
    unet = unet_arguments(UnetConfig.from_params(unet, "unet"))
    assert unet["layers_per_block"] == [1, 2, 2, 2]
    with pytest.raises(ValueError, match=r"got \[1, 2, 2, 2\], expected one number for all"):
        control_arguments(ControlConfig.from_params(control, "control"))


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("input_blocks.1.0.in_layers.0", "down_blocks.0.resnets.0.norm1"),
        ("input_blocks.4.0.out_layers.0", "down_blocks.1.resnets.0.norm2"),
        ("input_blocks.1.1.norm", "down_blocks.0.attentions.0.norm"),
        (
            "input_blocks.1.1.transformer_blocks.0.norm1",
            "down_blocks.0.attentions.0.transformer_blocks.0.norm1",
        ),
        ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("output_blocks.5.1.norm", "up_blocks.1.attentions.2.norm"),
        ("output_blocks.2.0.skip_connection", "up_blocks.0.resnets.2.conv_shortcut"),
        ("out.0", "conv_norm_out"),
    ],
)
def test_layers_have_the_published_names(full, own, theirs):
    unet, _ = full
    weights = unet.state_dict()
    found = renamed({f"{own}.weight": weights[f"{own}.weight"]}, diffusers_names(unet))
    assert list(found) == [f"{theirs}.weight"]


def test_every_weight_of_both_networks_has_a_name_of_its_own(full):
    unet, control = full
    names = diffusers_names(unet)
    for network in full:
        found = renamed(network.state_dict(), names)
        assert len(found) == len(network.state_dict())
    found = renamed(control.state_dict(), names)
    assert {f"controlnet_down_blocks.{n}.weight" for n in range(12)} < set(found)
    assert {"controlnet_mid_block.bias", "class_embedding.linear_2.weight"} < set(found)


def test_a_layer_that_diffusers_does_not_know_is_named(full):
    with pytest.raises(LookupError, match="layer 'else.where': got no block"):
        renamed({"else.where.weight": None}, diffusers_names(full[0]))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed"
)
@pytest.mark.filterwarnings("ignore")  # what diffusers warns of is its own
def test_diffusers_computes_the_same_step(tmp_path):
    case = Case("small", 128, 192)
    prepare(case, tmp_path)
    inputs = read_case(tmp_path)[2]
    with torch.no_grad():
        ours = build(case)(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    theirs = load(tmp_path, 1)()
    assert np.abs(theirs - ours).max() < 1e-5 * np.abs(ours).max()


@pytest.mark.parametrize(
    ("known", "residuals", "reason"),
    [
        (("unet-2d-condition",), (), "controlnet is not; the graph of its UNet reads sample and"),
        (("unet-2d-condition", "controlnet"), ("down_residuals",), ""),
    ],
)
def test_optimum_is_asked_for_both_networks(monkeypatch, known, residuals, reason):
    class TasksManager:
        @staticmethod
        def get_exporter_config_constructor(exporter, *, library_name, task, model_type):
            if model_type not in known:
                raise KeyError(f"{model_type} is not. Open an issue.")
            inputs = dict.fromkeys(("sample", *residuals))
            return lambda settings: types.SimpleNamespace(inputs=inputs)

    for name in ("optimum", "optimum.exporters", "optimum.exporters.onnx"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    configs = types.ModuleType("optimum.exporters.onnx.model_configs")
    monkeypatch.setitem(sys.modules, configs.__name__, configs)
    tasks = types.ModuleType("optimum.exporters.tasks")
    tasks.TasksManager = TasksManager
    monkeypatch.setitem(sys.modules, tasks.__name__, tasks)
    assert peer_optimum.ask("small")["reason"].startswith(reason)
    assert bool(peer_optimum.ask("small")["reason"]) == bool(reason)
