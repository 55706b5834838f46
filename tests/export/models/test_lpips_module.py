"""LPIPS as a module reproduces the published distances and takes the published names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from jscc.export.load import load_into
from jscc.export.models.lpips import Lpips, config_of

WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights" / "lpips"
FILES = ("alexnet_features.fp16.safetensors", "lpips_v0.1_alex_heads.safetensors")


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    if not WEIGHTS.is_dir():
        pytest.skip(f"no LPIPS weights at {WEIGHTS}")
    tensors = {key: value for name in FILES for key, value in load_file(WEIGHTS / name).items()}
    assert config_of({key: tuple(value.shape) for key, value in tensors.items()}) == {}
    return load_into(Lpips(), tensors, where="lpips").eval().requires_grad_(False)


def picture(name: str) -> Tensor:
    pixels = np.asarray(Image.open(WEIGHTS / "reference" / name).convert("RGB"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def test_published_distances(lpips: Lpips) -> None:
    expected = json.loads((WEIGHTS / "reference" / "expected.json").read_text())["alex"]
    reference = picture("ex_ref.png")
    for name in ("ex_p0", "ex_p1"):
        distance = float(lpips(picture(f"{name}.png"), reference)[0])
        assert distance == pytest.approx(expected[f"ex_ref-{name}"], abs=5e-4)


def test_the_gradient_is_finite_where_pictures_agree(lpips: Lpips) -> None:
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    lpips(flat, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_other_weights_are_not_taken_for_it() -> None:
    assert config_of({"features.0.weight": (64, 3, 11, 11)}) is None
