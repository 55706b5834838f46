"""jscc bench feature-cache: the whole network where nothing is kept, and less of it where it is."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import tiny_bundle
import tiny_convolutions
from alexnet_weights import random_weights
from jscc.__main__ import main
from jscc.benchmarks.feature_cache import Cache, add_arguments
from jscc.calibration.lpips import LPIPS_FILES
from jscc.export.models.unet import Control, Unet
from jscc.export.systems.diffjscc import Denoise

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 8,
    "legacy": False,
}
CONTROL = {k: v for k, v in UNET.items() if k != "out_channels"} | {"hint_channels": 4}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = Denoise(
        Control.from_config(CONTROL), Unet.from_config(UNET), np.linspace(0.999, 0.01, 1000)
    )
    for parameter in module.parameters():  # zero convolutions too must have something to say
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


def inputs(network, timestep):
    rng = torch.Generator().manual_seed(timestep)
    latent, hint = (torch.randn(1, 4, 8, 8, generator=rng) for _ in range(2))
    kv = torch.randn(1, 3, sum(network.split), generator=rng)
    return latent, torch.tensor([float(timestep)]), hint, kv


def test_with_nothing_kept_it_is_the_network_itself(network):
    cache = Cache(every=1, depth=1)
    for timestep in (900, 500, 20):
        arrays = inputs(network, timestep)
        torch.testing.assert_close(cache.denoise(network, *arrays), network(*arrays))
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [3, 0]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_kept_of_the_same_input_is_what_it_would_be(network, depth):
    """Asked the same again a little later, the inner features are those of before."""
    cache = Cache(every=2, depth=depth)
    arrays = inputs(network, 500)
    whole = cache.denoise(network, *arrays)
    again = (arrays[0], arrays[1] - 1e-3, *arrays[2:])
    torch.testing.assert_close(cache.denoise(network, *again), whole, atol=1e-3, rtol=1e-3)
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [1, 1]


def test_a_part_is_not_the_whole(network):
    cache = Cache(every=2, depth=1)
    cache.denoise(network, *inputs(network, 900))
    arrays = inputs(network, 500)
    assert not torch.allclose(cache.denoise(network, *arrays), network(*arrays), atol=1e-3)


def test_every_image_begins_with_a_whole_step(network):
    cache = Cache(every=3, depth=1)
    for timestep in (900, 500, 900, 500, 100, 10):
        cache.denoise(network, *inputs(network, timestep))
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [3, 3]


def parse(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*map(str, words)])


def test_another_system_is_refused(tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    images = tmp_path / "images"
    images.mkdir()
    for name, pixels in tiny_convolutions.photos(1).items():
        Image.fromarray(pixels).save(images / name)
    bundle = tiny_bundle.write_codec(tmp_path / "codec.jscc").path
    words = ["bench", "feature-cache", bundle, "--images", images, "--lpips-weights", weights]
    assert main([*map(str, words)]) != 0
    assert "expected 'diffjscc'" in capsys.readouterr().err


@pytest.mark.exhaustive  # an export of the reference weights
def test_the_whole_command(tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    images = tmp_path / "images"
    images.mkdir()
    for name, pixels in tiny_convolutions.photos(1, 64, 64).items():
        Image.fromarray(pixels).save(images / name)
    bundle, result = tmp_path / "d.jscc", tmp_path / "r.json"
    assert main(["export", "--model", "diffjscc", "-o", str(bundle)]) == 0
    words = ["bench", "feature-cache", bundle, "--images", images, "--lpips-weights", weights]
    words += ["--steps", "4,2", "--every", "1,2", "--threads", 1, "--json", result]
    assert main([*map(str, words)]) == 0
    assert "cost, whole steps" in capsys.readouterr().out
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert [(row["whole_steps"], row["part_steps"]) for row in rows] == [
        (4, 0),
        (2, 2),
        (2, 0),
        (1, 1),
    ]
    assert [row["cost"] for row in rows if row["every"] == 1] == [4, 2]
    words[words.index("4,2")] = "2"
    assert main([*map(str, words), "--depth", "99", "--force"]) != 0
    assert "--depth: got 99" in capsys.readouterr().err
