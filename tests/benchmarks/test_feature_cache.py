"""jscc bench feature-cache: the whole network where nothing is kept, and less of it where it is."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import tiny_bundle
import tiny_checkpoint
import tiny_convolutions
from alexnet_weights import random_weights
from jscc.__main__ import main
from jscc.benchmarks.feature_cache import Cache, settings
from jscc.calibration.lpips import LPIPS_FILES
from jscc.export.models.unet import Control, Unet
from jscc.export.systems.diffjscc import Denoise

PARTS = tiny_checkpoint.LDM["params"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = Denoise(
        Control.from_config(PARTS["control_stage_config"]["params"]),
        Unet.from_config(PARTS["unet_config"]["params"]),
        np.linspace(0.999, 0.01, 1000),
    )
    for parameter in module.parameters():  # zero convolutions too must have something to say
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


def inputs(network, timestep):
    rng = torch.Generator().manual_seed(timestep)
    latent, hint = (torch.randn(1, 4, 8, 8, generator=rng) for _ in range(2))
    kv = torch.randn(1, 3, sum(network.split), generator=rng)
    return latent, torch.tensor([float(timestep)]), hint, kv, torch.tensor([7.0])


@pytest.fixture
def cached(network):
    """A `Cache` of these attributes, and the network that keeps its features in it."""

    def make(**attributes):
        cache = Cache(**attributes)
        return cache, cache.wrap(copy.deepcopy(network))

    return make


def test_with_nothing_kept_it_is_the_network_itself(network, cached):
    cache, denoise = cached(every=1, depth=1)
    for timestep in (900, 500, 20):
        arrays = inputs(network, timestep)
        torch.testing.assert_close(denoise(*arrays), network(*arrays))
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [3, 0]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_kept_of_the_same_input_is_what_it_would_be(network, cached, depth):
    """Asked the same again a little later, the inner features are those of before."""
    cache, denoise = cached(every=2, depth=depth)
    arrays = inputs(network, 500)
    whole = denoise(*arrays)
    again = (arrays[0], arrays[1] - 1e-3, *arrays[2:])
    torch.testing.assert_close(denoise(*again), whole, atol=1e-3, rtol=1e-3)
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [1, 1]


def test_a_part_is_not_the_whole(network, cached):
    _, denoise = cached(every=2, depth=1)
    denoise(*inputs(network, 900))
    arrays = inputs(network, 500)
    assert not torch.allclose(denoise(*arrays), network(*arrays), atol=1e-3)


def test_every_image_begins_with_a_whole_step(network, cached):
    cache, denoise = cached(every=3, depth=1)
    for timestep in (900, 500, 900, 500, 100, 10):
        denoise(*inputs(network, timestep))
    assert [len(cache.seconds[kind]) for kind in (True, False)] == [3, 3]


@pytest.fixture
def words(tmp_path):
    """A command but for its bundle; LPIPS weights and a picture are there."""
    weights, images = tmp_path / "weights", tmp_path / "images"
    for folder in (weights, images):
        folder.mkdir()
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    for name, pixels in tiny_convolutions.photos(1, 64, 64).items():
        Image.fromarray(pixels).save(images / name)
    return ["--images", str(images), "--lpips-weights", str(weights)]


def measure(bundle, *words):
    return main(["bench", "feature-cache", str(bundle), *map(str, words)])


def test_another_system_is_refused(tmp_path, words, capsys):
    bundle = tiny_bundle.write_codec(tmp_path / "codec.jscc").path
    assert measure(bundle, *words) != 0
    assert "expected 'diffjscc'" in capsys.readouterr().err


@pytest.mark.exhaustive  # an export of the reference weights
def test_the_whole_command(tmp_path, words, capsys):
    bundle, result = tmp_path / "d.jscc", tmp_path / "r.json"
    assert main(["export", "--model", "diffjscc", "-o", str(bundle)]) == 0
    words += ["--every", "1,2", "--threads", 1, "--json", result, "--force"]
    assert measure(bundle, *words, "--steps", "4,2") == 0
    assert "cost, whole steps" in capsys.readouterr().out
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert [(row["whole_steps"], row["part_steps"]) for row in rows] == [
        (4, 0),
        (2, 2),
        (2, 0),
        (1, 1),
    ]
    assert [row["cost"] for row in rows if row["every"] == 1] == [4, 2]
    assert measure(bundle, *words, "--steps", "2", "--depth", "99") != 0
    assert "--depth: got 99" in capsys.readouterr().err
    large = tmp_path / "large"
    large.mkdir()
    Image.fromarray(tiny_convolutions.photos(1, 64, 600)["0.png"]).save(large / "wide.png")
    assert measure(bundle, *words, "--images", large) != 0
    assert "wide.png: got 64x600, expected sides of at most" in capsys.readouterr().err


def test_what_would_be_the_same_is_measured_once():
    pairs = [(3, 1), (3, 2), (3, 3), (2, 1), (2, 2), (1, 1)]
    assert settings((3, 2, 1), (1, 2, 3)) == pairs
    assert settings((2,), (5,)) == [(2, 2)]
