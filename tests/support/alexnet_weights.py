"""Random weights in the shapes of LPIPS on AlexNet, for tests without the trained ones."""

import numpy as np

from jscc.calibration.lpips import CONVOLUTIONS

SHAPES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {}
    for index, (layer, (after, before, size)) in enumerate(zip(CONVOLUTIONS, SHAPES, strict=True)):
        scale = (before * size * size) ** -0.5
        kernel = rng.normal(0, scale, (after, before, size, size))
        weights[f"{layer.name}.weight"] = kernel.astype(np.float32)
        weights[f"{layer.name}.bias"] = rng.normal(0, 0.1, after).astype(np.float32)
        head = rng.random((1, after, 1, 1)).astype(np.float32)
        weights[f"alex.lin{index}.model.1.weight"] = head
    return weights
