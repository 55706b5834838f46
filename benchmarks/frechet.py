"""Frechet distance: how far apart two sets of pictures are, by the features of a network.

The features of each set are summed up as a Gaussian; the distance is that of the two Gaussians
(squared 2-Wasserstein):

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

D. C. Dowson, B. V. Landau, "The Frechet distance between multivariate normal distributions", 1982;
Martin Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", arXiv 1706.08500, eq. 6. With features of Inception it is called FID. With those of
another network it is not FID, and figures of different networks or numbers of patches cannot be
compared.
"""

import base64
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jscc.calibration.metrics import Image
from jscc.runtime.errors import DataError

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

PATCH = 256  # pixels, as in the papers


class FeatureNetwork(Protocol):
    """Turns pictures of `PATCH` x `PATCH` pixels into vectors."""

    def __call__(self, patches: Sequence[Image]) -> Features:
        """float32[patch, feature]."""


def patches_of(image: Image) -> list[Image]:
    """The whole patches of `image` beside and below each other; none of a smaller image."""
    height, width = image.shape[:2]
    return [
        image[top : top + PATCH, left : left + PATCH]
        for top in range(0, height - PATCH + 1, PATCH)
        for left in range(0, width - PATCH + 1, PATCH)
    ]


def frechet_distance(first: Features, second: Features) -> float:
    """Distance of the Gaussians that two sets of features [sample, feature] are summed up to.

    The trace of the square root is computed without one: C = R^T R for the triangular factor R of
    the centred samples, and tr (C1 C2)^(1/2) is the sum of the singular values of R1 R2^T. That is
    exact, and holds for fewer samples than features too.

    Raises:
        DataError: ``E_FRECHET``, fewer than two samples, or vectors of different length.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[1]:
            raise DataError(
                "E_FRECHET",
                f"Frechet distance: got features {list(features.shape)}, expected "
                f"[2 or more samples, {first.shape[-1]}]. Take more or larger images.",
            )
    (mean, factor), (other_mean, other_factor) = _gaussian(first), _gaussian(second)
    traces = float(np.sum(factor**2) + np.sum(other_factor**2))
    mixed = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    return max(0.0, float(np.sum((mean - other_mean) ** 2)) + traces - 2.0 * float(mixed))


def _gaussian(features: Features) -> tuple[Floats, Floats]:
    """Mean, and R with R^T R = the unbiased covariance."""
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    _, factor = np.linalg.qr((wide - mean) / np.sqrt(len(wide) - 1))
    return mean, factor


def to_text(features: Features) -> str:
    """Features as text for a line of JSON, every bit of them."""
    return base64.b64encode(features.astype("<f4").tobytes()).decode("ascii")


def from_text(text: str, width: int) -> Features:
    """What `to_text` wrote, as float32[sample, width]."""
    flat = np.frombuffer(base64.b64decode(text), "<f4")
    return flat.reshape(-1, width).astype(np.float32)
