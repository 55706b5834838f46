"""Networks: metrics whose trained networks this package does not carry.

LPIPS and the features of AlexNet come from a folder of weights or from the package ``lpips``, DISTS
from ``piq``, Inception's features for FID from ``torchmetrics``; these packages fetch their own
weights when they are first used. They are imported here only when they are asked for.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jscc.benchmarks.frechet import Features
from jscc.calibration.lpips import CONVOLUTIONS, Lpips
from jscc.calibration.metrics import Image
from jscc.runtime.errors import UnavailableError

# Which of the package's slices holds a convolution of AlexNet.
_SLICES = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")


def lpips_package_is_there() -> bool:
    """Whether the package ``lpips`` can be imported; it is not."""
    return importlib.util.find_spec("lpips") is not None


def lpips_from_package() -> Lpips:
    """LPIPS with the weights of the package ``lpips``, computed by `Lpips`.

    Raises:
        UnavailableError: ``E_METRIC_PACKAGE`` or ``E_METRIC_NETWORK``.
    """
    package = _import("lpips", "LPIPS", "pip install lpips, or give --lpips-weights")
    state = _load("LPIPS", lambda: package.LPIPS(net="alex", verbose=False)).state_dict()
    weights = {
        f"{layer.name}.{part}": state[f"net.{place}.{part}"]
        for layer, place in zip(CONVOLUTIONS, _SLICES, strict=True)
        for part in ("weight", "bias")
    }
    for index in range(len(CONVOLUTIONS)):
        weights[f"alex.lin{index}.model.1.weight"] = state[f"lin{index}.model.1.weight"]
    return Lpips({name: np.asarray(tensor.detach().numpy()) for name, tensor in weights.items()})


class AlexNetFeatures:
    """AlexNet's last convolution, averaged over positions; 256 features.

    Args:
        alexnet: Its convolutions.
    """

    def __init__(self, alexnet: Lpips) -> None:
        self._alexnet = alexnet

    def __call__(self, patches: Sequence[Image]) -> Features:
        """float32[patch, feature]."""
        taps = [self._alexnet.activations(patch)[-1] for patch in patches]
        return np.stack([tap.mean(axis=(0, 1), dtype=np.float64) for tap in taps]).astype("f4")


class InceptionFeatures:
    """Inception v3's 2048 features as FID takes them, through ``torchmetrics``.

    Raises:
        UnavailableError: ``E_METRIC_PACKAGE`` or ``E_METRIC_NETWORK``.
    """

    def __init__(self) -> None:
        fid = _import("torchmetrics.image.fid", "fid", "pip install 'torchmetrics[image]'")
        self._torch = importlib.import_module("torch")
        whole = _load("fid", lambda: fid.FrechetInceptionDistance(feature=2048))
        self._inception = whole.inception.eval()

    def __call__(self, patches: Sequence[Image]) -> Features:
        """float32[patch, feature]."""
        planes = np.stack([patch.transpose(2, 0, 1) for patch in patches])
        with self._torch.no_grad():
            features = self._inception(self._torch.from_numpy(planes))
        return np.asarray(features.numpy(), np.float32)


class Dists:
    """DISTS through ``piq``: 0 where equal, lower is closer.

    Keyan Ding, Kede Ma, Shiqi Wang, Eero P. Simoncelli, "Image Quality Assessment: Unifying
    Structure and Texture Similarity", arXiv 2004.07728.

    Raises:
        UnavailableError: ``E_METRIC_PACKAGE`` or ``E_METRIC_NETWORK``.
    """

    def __init__(self) -> None:
        piq = _import("piq", "dists", "pip install piq")
        self._torch = importlib.import_module("torch")
        self._dists = _load("dists", piq.DISTS)

    def __call__(self, reference: Image, image: Image) -> float:
        """Distance of two images of one size."""
        with self._torch.no_grad():
            return float(self._dists(self._tensor(reference), self._tensor(image)))

    def _tensor(self, image: Image) -> Any:
        planes = image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        return self._torch.from_numpy(planes)


def _import(module: str, metric: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "E_METRIC_PACKAGE",
            f"metric {metric!r}: got no package {error.name!r}, expected it installed. "
            f"Leave the metric out, or run in an environment of its own: {install}",
        ) from error


def _load(metric: str, make: Callable[[], Any]) -> Any:
    """What `make` returns; it may have to fetch weights."""
    try:
        return make()
    except (OSError, RuntimeError, ModuleNotFoundError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            "E_METRIC_NETWORK",
            f"metric {metric!r}: got {first!r}, expected its trained network. "
            "Let the package fetch its weights once, or leave the metric out.",
        ) from error
