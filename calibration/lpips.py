"""LPIPS: learned perceptual distance of two images, in numpy.

Its trained weights are not part of this package; `load_lpips` reads them from a folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jscc.calibration.metrics import Image, check_image, check_pair
from jscc.runtime.errors import DataError, ImageError

Planes = npt.NDArray[np.float32]
Features = tuple[Planes, ...]


@dataclass(frozen=True)
class Convolution:
    """One convolution of AlexNet's features; a 3x3 max pooling of stride 2 may go before it."""

    name: str
    stride: int
    padding: int
    pooled: bool


CONVOLUTIONS = (
    Convolution("features.0", stride=4, padding=2, pooled=False),
    Convolution("features.3", stride=1, padding=2, pooled=True),
    Convolution("features.6", stride=1, padding=1, pooled=True),
    Convolution("features.8", stride=1, padding=1, pooled=False),
    Convolution("features.10", stride=1, padding=1, pooled=False),
)
LPIPS_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
LPIPS_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
LPIPS_FILES = ("alexnet_features.fp16.safetensors", "lpips_v0.1_alex_heads.safetensors")
LPIPS_MIN_SIDE = 31


class Lpips:
    """Learned perceptual distance, version 0.1 on AlexNet; 0 where equal, lower is closer.

    Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang, "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924, eq. 1.

    Args:
        weights: ``features.N.weight``/``.bias`` (torchvision's names) and
            ``alex.linN.model.1.weight``.

    Raises:
        DataError: ``E_METRIC_WEIGHTS``, a tensor is missing.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        wanted = [f"{c.name}.{part}" for c in CONVOLUTIONS for part in ("weight", "bias")]
        wanted += [f"alex.lin{i}.model.1.weight" for i in range(len(CONVOLUTIONS))]
        missing = [name for name in wanted if name not in weights]
        if missing:
            raise DataError(
                "E_METRIC_WEIGHTS",
                f"LPIPS weights: got no {missing[0]!r}, expected AlexNet features and the v0.1 "
                f"heads. Take {LPIPS_FILES[0]} and {LPIPS_FILES[1]}.",
            )
        self._weights = {name: weights[name].astype(np.float32) for name in wanted}

    def features(self, image: Image) -> Features:
        """Normalised activations of the five convolutions, each [position, feature].

        Raises:
            ImageError: ``E_METRIC``, not uint8 RGB or a side is below `LPIPS_MIN_SIDE`.
        """
        taps = []
        for planes in self.activations(image):
            norm = np.sqrt(np.sum(planes * planes, axis=2, keepdims=True))
            taps.append((planes / (norm + np.float32(1e-10))).reshape(-1, planes.shape[2]))
        return tuple(taps)

    def activations(self, image: Image) -> Features:
        """What AlexNet's five convolutions return, rectified, each [row, column, feature].

        Raises:
            ImageError: ``E_METRIC``, not uint8 RGB or a side is below `LPIPS_MIN_SIDE`.
        """
        check_image("lpips", image)
        if min(image.shape[:2]) < LPIPS_MIN_SIDE:
            raise ImageError(
                "E_METRIC",
                f"lpips: got {image.shape[0]}x{image.shape[1]} pixels, expected at least "
                f"{LPIPS_MIN_SIDE} on each side. Leave this metric out for smaller images.",
            )
        planes = (image.astype(np.float32) / 127.5 - 1 - LPIPS_SHIFT) / LPIPS_SCALE
        taps = []
        for layer in CONVOLUTIONS:
            planes = _convolve(_pool(planes) if layer.pooled else planes, layer, self._weights)
            planes = np.maximum(planes, 0)
            taps.append(planes)
        return tuple(taps)

    def between(self, first: Features, second: Features) -> float:
        """Distance of two images of one size, given their `features`."""
        total = 0.0
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            head = self._weights[f"alex.lin{index}.model.1.weight"].reshape(-1)
            total += float(np.mean(np.square(a - b) @ head, dtype=np.float64))
        return total

    def __call__(self, reference: Image, image: Image) -> float:
        """Distance of two images of one size."""
        check_pair("lpips", reference, image)
        return self.between(self.features(reference), self.features(image))


def load_lpips(folder: Path) -> Lpips:
    """Read the two weight files `LPIPS_FILES` in `folder`.

    Raises:
        DataError: ``E_METRIC_WEIGHTS``, a file is missing, unreadable or lacks a tensor.
    """
    weights: dict[str, npt.NDArray[np.generic]] = {}
    for name in LPIPS_FILES:
        try:
            weights.update(load_file(folder / name))
        except (OSError, SafetensorError) as error:
            raise DataError(
                "E_METRIC_WEIGHTS",
                f"LPIPS weights: got {error} for {name!r}, expected a safetensors file. "
                "Name the folder that holds both files.",
            ) from error
    return Lpips(weights)


def _convolve(
    planes: Planes, layer: Convolution, weights: Mapping[str, npt.NDArray[np.float32]]
) -> Planes:
    """Convolve [height, width, feature] by gathering the windows into one matrix."""
    weight, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
    size = weight.shape[2]
    edge = (layer.padding, layer.padding)
    windows = sliding_window_view(np.pad(planes, (edge, edge, (0, 0))), (size, size), axis=(0, 1))
    windows = windows[:: layer.stride, :: layer.stride]
    rows, columns = windows.shape[:2]
    product = windows.reshape(rows * columns, -1) @ weight.reshape(weight.shape[0], -1).T
    return (product + bias).reshape(rows, columns, -1)


def _pool(planes: Planes) -> Planes:
    """Largest of 3x3 positions, every second one."""
    windows = sliding_window_view(planes, (3, 3), axis=(0, 1))
    return np.asarray(windows[::2, ::2].max(axis=(3, 4)))
