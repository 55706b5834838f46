"""The converter of NVlabs networks against a small implementation of their synthesis.

The implementation below is written from the conventions of StyleGAN2-ADA (weights of one image
scaled, demodulated and run as one convolution; zeros between samples, then a filter), not from this
package's generator.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jscc.export import nvlabs
from jscc.export.checkpoint import load_into, read_checkpoint
from jscc.export.models.stylegan2 import Generator, config_of
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = Path(__file__).resolve().parents[3] / "shared" / "keys" / "jscc_codecs.txt"
CHANNELS = {4: 6, 8: 5, 16: 4}
WIDTH = 7
LAYERS = 3


def ada_state() -> dict[str, Tensor]:
    """Random weights by ADA's names; the filter is lopsided, so that turning it shows."""
    drawn = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn)

    taps = torch.outer(torch.tensor([1.0, 3.0, 4.0, 1.0]), torch.tensor([2.0, 3.0, 3.0, 1.0]))
    state = {"mapping.w_avg": normal(WIDTH)}
    for layer in range(LAYERS):
        state[f"mapping.fc{layer}.weight"] = normal(WIDTH, WIDTH) / 0.01
        state[f"mapping.fc{layer}.bias"] = normal(WIDTH) * 10
    below = CHANNELS[4]
    for edge, planes in CHANNELS.items():
        block = f"synthesis.b{edge}"
        state[f"{block}.resample_filter"] = taps / taps.sum()
        if edge == 4:
            state[f"{block}.const"] = normal(planes, 4, 4)
        for name, inputs in (("conv0", below), ("conv1", planes)):
            if edge == 4 and name == "conv0":
                continue
            layer = f"{block}.{name}"
            state[f"{layer}.weight"] = normal(planes, inputs, 3, 3)
            state[f"{layer}.bias"] = normal(planes)
            state[f"{layer}.noise_strength"] = normal(1)[0]
            state[f"{layer}.noise_const"] = normal(edge, edge)
            state[f"{layer}.resample_filter"] = taps / taps.sum()
            state[f"{layer}.affine.weight"] = normal(inputs, WIDTH)
            state[f"{layer}.affine.bias"] = 1 + 0.3 * normal(inputs)
        state[f"{block}.torgb.weight"] = normal(3, planes, 1, 1)
        state[f"{block}.torgb.bias"] = normal(3)
        state[f"{block}.torgb.affine.weight"] = normal(planes, WIDTH)
        state[f"{block}.torgb.affine.bias"] = 1 + 0.3 * normal(planes)
        below = planes
    return state


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """True convolution of every plane with `kernel`: the kernel is turned round."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    out = functional.conv2d(planes, kernel.flip(0, 1)[None, None])
    return out.reshape(*x.shape[:2], *out.shape[-2:])


def with_zeros(x: Tensor) -> Tensor:
    """Every sample followed by a zero, along both axes."""
    out = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[..., ::2, ::2] = x
    return out


def ada_layer(state: Mapping[str, Tensor], name: str, x: Tensor, w: Tensor) -> Tensor:
    """One convolution of ADA for one image: modulate, demodulate, (enlarge,) noise, activate."""
    weight = state[f"{name}.weight"]
    affine = state[f"{name}.affine.weight"] / math.sqrt(WIDTH)
    styles = affine @ w + state[f"{name}.affine.bias"]
    kernel = weight * styles[None, :, None, None]
    kernel = kernel * torch.rsqrt(kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
    if name.endswith("conv0"):
        # True convolution of the samples with zeros in between; 3 + 1 rows before, 2 after, of
        # which the kernel and the filter take 2 + 3.
        wide = functional.pad(with_zeros(x), (3, 2, 3, 2))
        wide = functional.conv2d(wide, kernel.flip(2, 3))
        x = 4 * convolve(wide, state[f"{name}.resample_filter"])
    else:
        x = functional.conv2d(x, kernel, padding=1)
    x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
    x = x + state[f"{name}.bias"][None, :, None, None]
    return functional.leaky_relu(x, 0.2) * math.sqrt(2)


def ada_colours(state: Mapping[str, Tensor], name: str, x: Tensor, w: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    affine = state[f"{name}.affine.weight"] / math.sqrt(WIDTH)
    styles = (affine @ w + state[f"{name}.affine.bias"]) / math.sqrt(weight.shape[1])
    image = functional.conv2d(x, weight * styles[None, :, None, None])
    return image + state[f"{name}.bias"][None, :, None, None]


def ada_image(state: Mapping[str, Tensor], w: Tensor) -> Tensor:
    """ADA's skip synthesis of one w for all layers, stored noise."""
    x = state["synthesis.b4.const"][None]
    image: Tensor | None = None
    for edge in CHANNELS:
        block = f"synthesis.b{edge}"
        if edge > 4:
            x = ada_layer(state, f"{block}.conv0", x, w)
        x = ada_layer(state, f"{block}.conv1", x, w)
        colours = ada_colours(state, f"{block}.torgb", x, w)
        if image is not None:
            padded = functional.pad(with_zeros(image), (2, 1, 2, 1))
            colours = colours + 4 * convolve(padded, state[f"{block}.resample_filter"])
        image = colours
    assert image is not None
    return image


def ada_map(state: Mapping[str, Tensor], z: Tensor) -> Tensor:
    x = z * torch.rsqrt(z.square().mean() + 1e-8)
    for layer in range(LAYERS):
        weight = state[f"mapping.fc{layer}.weight"] * (0.01 / math.sqrt(WIDTH))
        x = functional.leaky_relu(weight @ x + 0.01 * state[f"mapping.fc{layer}.bias"], 0.2)
        x = x * math.sqrt(2)
    return x


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return ada_state()


@pytest.fixture(scope="module")
def generator(state: dict[str, Tensor]) -> Generator:
    converted = nvlabs.convert(state)
    config = config_of({name: tuple(tensor.shape) for name, tensor in converted.items()})
    assert config is not None
    network = Generator.from_config(config)
    return load_into(network, converted, where="ada", ignore=("latent_avg",)).eval()


def test_the_same_w_of_z(state: dict[str, Tensor], generator: Generator) -> None:
    z = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(generator.map(z[None])[0], ada_map(state, z))


@pytest.mark.parametrize("seed", [2, 3])
def test_the_same_image(state: dict[str, Tensor], generator: Generator, seed: int) -> None:
    w = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    expected = ada_image(state, w)
    image = generator(generator.spread(w[None])).detach()
    assert expected.shape == (1, 3, 16, 16)
    gap = float((image - expected).abs().max() / expected.abs().max())
    assert gap < 1e-5


def test_published_names_fill_a_whole_generator() -> None:
    """Every tensor of a real network finds its place, and none is missing."""
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    text = KEYS.read_text().split("stylegan2-ada-pytorch G_ema res 256")[1].split("=====")[0]
    rows = re.findall(r"^(\w[\w.]+) \(([\d, ]*)\)$", text, re.MULTILINE)
    assert len(rows) == 144
    with torch.device("meta"):
        state = {
            name: torch.empty([int(part) for part in shape.split(",") if part])
            for name, shape in rows
        }
        converted = nvlabs.convert(state)
        config = config_of({name: tuple(tensor.shape) for name, tensor in converted.items()})
        assert config is not None
        wanted = Generator.from_config(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    average = shapes.pop("latent_avg")
    assert shapes == {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    assert average == (512,)


@pytest.mark.parametrize(
    "name",
    [
        "mapping.embed.weight",  # labels
        "synthesis.b8.skip.weight",  # resnet
        "synthesis.b6.conv1.weight",  # no power of two
        "synthesis.b4.conv0.weight",
        "synthesis.b8.const",
        "synthesis.b8.conv0.gain",
        "synthesis.b8.torgb.gain",
        "synthesis.input.freqs",  # StyleGAN3
    ],
)
def test_what_has_no_place_is_refused(state: dict[str, Tensor], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"got weights {name}") as caught:
        nvlabs.convert({**state, name: torch.zeros(1)})
    assert caught.value.code == "E_CKPT_LAYOUT"


def test_no_generator_is_refused() -> None:
    with pytest.raises(CheckpointError, match="got weights only mapping.fc0.bias"):
        nvlabs.convert({"mapping.fc0.bias": torch.zeros(2)})


@pytest.mark.parametrize("name", ["network.safetensors", "network.pt"])
def test_the_command_by_the_repositorys_own_loader(
    state: dict[str, Tensor], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the repository; what is written is read by the exporter's reader."""
    torch.save(state, tmp_path / "state.pt")
    (tmp_path / "legacy.py").write_text(
        "import types, torch\n"
        "def load_network_pkl(file):\n"
        "    state = torch.load(file, weights_only=True)\n"
        "    return {'G_ema': types.SimpleNamespace(state_dict=lambda: state)}\n"
    )
    out = tmp_path / name
    assert nvlabs.main([str(tmp_path / "state.pt"), str(out), "--repo", str(tmp_path)]) == 0
    assert "tensors" in capsys.readouterr().out
    tensors = read_checkpoint(out).tensors
    expected = nvlabs.convert(state)
    assert set(tensors) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=0)


def test_a_folder_without_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nvlabs.main(["a.pkl", "b.pt", "--repo", str(tmp_path)]) == 2
    assert "E_REPO" in capsys.readouterr().err
