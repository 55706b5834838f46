"""Perceptual distance: LPIPS v0.1 on AlexNet features, differentiable.

Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang, "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924, equation 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pathlib import Path

SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
# (index in the features, stride, padding, pooled before)
LAYERS: Final = (
    (0, 4, 2, False),
    (3, 1, 2, True),
    (6, 1, 1, True),
    (8, 1, 1, False),
    (10, 1, 1, False),
)
FEATURES_FILE: Final = "alexnet_features.fp16.safetensors"
HEADS_FILE: Final = "lpips_v0.1_alex_heads.safetensors"


class Lpips(nn.Module):
    """Distance [B] of two pictures [B,3,H,W] in [-1,1]."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        features, heads = load_file(folder / FEATURES_FILE), load_file(folder / HEADS_FILE)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        for depth, (index, *_) in enumerate(LAYERS):
            self.register_buffer(f"weight{depth}", features[f"features.{index}.weight"].float())
            self.register_buffer(f"bias{depth}", features[f"features.{index}.bias"].float())
            self.register_buffer(f"head{depth}", heads[f"alex.lin{depth}.model.1.weight"].float())

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(reference)
        total = torch.zeros(len(image), device=image.device)
        for depth, (got, want) in enumerate(zip(self._features(image), wanted, strict=True)):
            error = (got - want).square()
            total = (
                total
                + functional.conv2d(error, self.get_buffer(f"head{depth}"))
                .mean(dim=(1, 2, 3))
                .float()
            )
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        x = (image - self.get_buffer("shift")) / self.get_buffer("scale")
        taps = []
        for depth, (_, stride, padding, pooled) in enumerate(LAYERS):
            x = functional.max_pool2d(x, 3, 2) if pooled else x
            weight, bias = self.get_buffer(f"weight{depth}"), self.get_buffer(f"bias{depth}")
            x = functional.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))
            taps.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return taps
