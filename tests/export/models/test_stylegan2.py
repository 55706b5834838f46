"""The generator has the published names, shapes and sizes, and starts from any of its blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from jscc.export.models.stylegan2 import (
    Generator,
    blur_kernel,
    config_of,
    latent_of,
    moments,
    truncate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = Path(__file__).resolve().parents[4] / "shared" / "keys" / "jscc_codecs.txt"
PUBLISHED = {
    256: (30_034_338, 135),
    512: (30_276_583, 153),
    1024: (30_370_060, 171),
}  # parameters, tensors
CHANNELS = (8, 8, 6, 4)


def published(size: int) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the rosinality generator of `size` pixels."""
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    text = KEYS.read_text().split(f"# rosinality StyleGAN2 Generator({size},512,8)")[1]
    rows = re.findall(r"^(\w[\w.]+) \(([\d, ]+)\)$", text.split("=====")[0], re.MULTILINE)
    return {key: tuple(int(part) for part in shape.split(",") if part) for key, shape in rows}


@pytest.fixture(scope="module")
def small() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = Generator(CHANNELS, 12, 2)
    for name, parameter in network.named_parameters():
        if name.endswith("noise.weight"):
            parameter.data.fill_(0.3)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_names_and_shapes_are_the_published_ones(size: int) -> None:
    shapes = published(size)
    assert len(shapes) == PUBLISHED[size][1]
    config = config_of(shapes)
    assert config is not None
    with torch.device("meta"):
        network = Generator.from_config(config)
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[size][0]
    assert network.size == size


def test_the_configuration_is_read_back(small: Generator) -> None:
    config = config_of({key: tuple(value.shape) for key, value in small.state_dict().items()})
    assert config is not None
    assert config["channels"] == list(CHANNELS)
    assert Generator.from_config(config).noise_edges == (4, 8, 8, 16, 16, 32, 32)
    assert config_of({"features.0.weight": (64, 3, 11, 11)}) is None


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="got channels \\[\\]"):
        Generator([], 8, 2)


def test_a_batch_is_its_images_one_by_one(small: Generator) -> None:
    """The styles of one image do not touch another's."""
    latent = torch.randn(3, small.latents, 12, generator=torch.Generator().manual_seed(0))
    together = small(latent)
    for index in range(3):
        torch.testing.assert_close(small(latent[index : index + 1])[0], together[index])


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_start_in_the_middle_continues_the_features(small: Generator, start: int) -> None:
    """From the features of the block below the same features follow; only colours are missing."""
    latent = torch.randn(2, small.latents, 12, generator=torch.Generator().manual_seed(1))
    _, whole = small.run(latent)
    _, rest = small.run(latent, features=whole[start - 1], start=start)
    assert len(rest) == small.blocks - start
    for got, expected in zip(rest, whole[start:], strict=True):
        torch.testing.assert_close(got, expected)


def test_a_start_behind_the_end_is_refused(small: Generator) -> None:
    latent = torch.zeros(1, small.latents, 12)
    with pytest.raises(ValueError, match="start: got 4"):
        small.run(latent, features=torch.zeros(1, 4, 32, 32), start=4)


def test_demodulated_outputs_do_not_see_the_size_of_the_style(small: Generator) -> None:
    """Scaling all of a style scales nothing behind a demodulated convolution."""
    conv = small.convs[1].conv
    conv_input = torch.randn(1, CHANNELS[1], 8, 8, generator=torch.Generator().manual_seed(2))
    style = torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    bias = conv.modulation.bias
    scaled = torch.nn.functional.linear(style, conv.modulation.weight * conv.modulation.gain)
    once = conv(conv_input, style)
    conv.modulation.bias = torch.nn.Parameter(bias + 2 * (scaled[0] + bias))  # three times as large
    try:
        torch.testing.assert_close(conv(conv_input, style), once, rtol=1e-4, atol=1e-5)
    finally:
        conv.modulation.bias = torch.nn.Parameter(bias)


def test_enlarging_keeps_flat_colours(small: Generator) -> None:
    """The low-pass has gain 1 at frequency 0 once zeros stand between the samples."""
    assert float(blur_kernel().sum()) == pytest.approx(4)
    flat = torch.full((1, 3, 6, 6), 0.7)
    enlarged = small.to_rgbs[0].upsample(flat)
    assert enlarged.shape[-1] == 12
    torch.testing.assert_close(enlarged[..., 2:-2, 2:-2], torch.full((1, 3, 8, 8), 0.7))


def test_truncation_ends_at_the_mean() -> None:
    w, mean = torch.randn(2, 5), torch.randn(5)
    torch.testing.assert_close(truncate(w, mean, 0.0), mean.expand(2, -1))
    torch.testing.assert_close(truncate(w, mean, 1.0), w)


def test_moments_describe_the_latents_before_their_activation(small: Generator) -> None:
    """Undoing the activation of mapped z, and doing it to Gaussians, are inverse to each other."""
    mean, std = moments(small, 500, seed=0)
    again = moments(small, 500, seed=0)
    torch.testing.assert_close((mean, std), again, rtol=0, atol=0)
    z = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    w = small.map(z)
    gaussian = (torch.where(w < 0, w * 5, w) - mean) / std
    assert float(gaussian.mean(0).abs().max()) < 1e-4
    assert float((gaussian.std(0) - 1).abs().max()) < 1e-4
    torch.testing.assert_close(latent_of(gaussian, mean, std), w, rtol=1e-4, atol=1e-5)
