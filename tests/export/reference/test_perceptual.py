"""LPIPS against the published distances of its example pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jscc.export.reference.perceptual import Lpips

FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "weights" / "lpips"


@pytest.fixture(scope="module")
def lpips():
    if not FOLDER.exists():
        pytest.skip(f"the LPIPS weights are not here: {FOLDER}")
    return Lpips(FOLDER)


def read(name):
    pixels = np.array(Image.open(FOLDER / "reference" / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("name", ["ex_p0", "ex_p1"])
def test_reproduces_the_published_distances(lpips, name):
    expected = json.loads((FOLDER / "reference" / "expected.json").read_text())["alex"]
    distance = lpips(read(name), read("ex_ref"))
    assert distance.tolist() == pytest.approx([expected[f"ex_ref-{name}"]], abs=1e-4)


def test_gradients_reach_the_first_picture_only(lpips):
    pictures = [torch.zeros(1, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64)]
    pictures[1].requires_grad_()
    lpips(*pictures).sum().backward()
    assert float(pictures[0].grad.abs().sum()) > 0
    assert pictures[1].grad is None
    assert not list(lpips.parameters())
