"""LPIPS against published distances (real weights) and against torch (random weights)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from alexnet_weights import random_weights
from jscc.calibration.lpips import CONVOLUTIONS, LPIPS_FILES, Lpips, load_lpips
from jscc.runtime.errors import DataError, ImageError

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights" / "lpips"


def image(height: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="the trained LPIPS weights are not beside the repo"
)
@pytest.mark.parametrize("pair", ["ex_ref-ex_p0", "ex_ref-ex_p1"])
def test_published_distances(pair):
    lpips = load_lpips(WEIGHTS)
    folder = WEIGHTS / "reference"
    first, second = (np.array(Image.open(folder / f"{name}.png")) for name in pair.split("-"))
    expected = json.loads((folder / "expected.json").read_text())["alex"][pair]
    assert lpips(first, second) == pytest.approx(expected, abs=5e-4)


def torch_distance(weights, first, second) -> float:
    """LPIPS as its authors wrote it, on torch's operators."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    f = torch.nn.functional
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    x = torch.from_numpy(np.stack([first, second]).transpose(0, 3, 1, 2)).float() / 127.5 - 1
    x, total = (x - shift) / scale, 0.0
    for index, layer in enumerate(CONVOLUTIONS):
        if layer.pooled:
            x = f.max_pool2d(x, 3, 2)
        x = f.conv2d(
            x, w[f"{layer.name}.weight"], w[f"{layer.name}.bias"], layer.stride, layer.padding
        )
        x = f.relu(x)
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        gap = (unit[0] - unit[1]).square()[None]
        total += float(f.conv2d(gap, w[f"alex.lin{index}.model.1.weight"]).mean())
    return total


@pytest.mark.parametrize("size", [(31, 31), (64, 64), (70, 97), (128, 45)])
def test_agrees_with_torch(size):
    weights = random_weights()
    first, second = image(*size), image(*size, seed=2)
    expected = torch_distance(weights, first, second)
    assert Lpips(weights)(first, second) == pytest.approx(expected, rel=1e-5)


def test_of_equal_images_is_zero():
    assert Lpips(random_weights())(image(40, 50), image(40, 50)) == 0


def test_features_of_the_reference_can_be_kept():
    lpips = Lpips(random_weights())
    first, second = image(64, 40), image(64, 40, seed=2)
    kept = lpips.features(first)
    assert lpips.between(kept, lpips.features(second)) == lpips(first, second)


def test_small_images_are_refused():
    with pytest.raises(ImageError, match="got 30x64 pixels, expected at least 31"):
        Lpips(random_weights()).features(image(30, 64))


def test_sizes_must_match():
    with pytest.raises(ImageError, match="got 64x41 pixels, expected 64x40 like"):
        Lpips(random_weights())(image(64, 40), image(64, 41))


def test_weights_are_read_from_two_files(tmp_path):
    weights = random_weights()
    for index, name in enumerate(LPIPS_FILES):
        part = {k: v for k, v in weights.items() if k.startswith("alex") == bool(index)}
        save_file(part, tmp_path / name)
    first, second = image(40, 40), image(40, 40, seed=2)
    assert load_lpips(tmp_path)(first, second) == Lpips(weights)(first, second)


def test_a_missing_tensor_is_named():
    weights = random_weights()
    del weights["alex.lin3.model.1.weight"]
    with pytest.raises(DataError, match=r"got no 'alex\.lin3\.model\.1\.weight'") as caught:
        Lpips(weights)
    assert caught.value.code == "E_METRIC_WEIGHTS"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"got No such file.* for 'alexnet_features") as caught:
        load_lpips(tmp_path)
    assert caught.value.code == "E_METRIC_WEIGHTS"


def test_a_damaged_file_is_named(tmp_path):
    for name in LPIPS_FILES:
        (tmp_path / name).write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match=r"for 'alexnet_features\.fp16\.safetensors', expected a s"):
        load_lpips(tmp_path)
