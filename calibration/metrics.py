"""Metrics: how far a received image is from the one that was sent (PSNR, MS-SSIM).

Both take uint8 RGB images of one shape and need numpy only. LPIPS, which needs trained weights, is
in `jscc.calibration.lpips`.
"""

import math

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from jscc.runtime.errors import ImageError

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

PEAK = 255.0
WINDOW = 11
SIGMA = 1.5
STABILISERS = ((0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1


def psnr_db(reference: Image, image: Image) -> float:
    """Peak signal-to-noise ratio over all pixels and colours, in dB; infinite where equal.

    Raises:
        ImageError: ``E_METRIC``, the images differ in shape or are not uint8 RGB.
    """
    check_pair("psnr", reference, image)
    error = np.mean(np.square(reference.astype(np.float64) - image))
    return math.inf if error == 0 else float(10 * np.log10(PEAK**2 / error))


def ms_ssim(reference: Image, image: Image) -> float:
    """Multi-scale structural similarity, 1 where equal.

    Zhou Wang, Eero P. Simoncelli, Alan C. Bovik, "Multi-scale structural similarity for image
    quality assessment", Asilomar 2003, eq. 7: five scales, 11-tap Gaussian window of sigma 1.5,
    windows that lie wholly inside. As is usual for learned codecs it is computed for each colour
    and averaged, a negative mean counts as 0, and an odd side gets a row of zeros in front before
    it is halved.

    Raises:
        ImageError: ``E_METRIC``, the images do not match or a side is below `MS_SSIM_MIN_SIDE`.
    """
    check_pair("ms_ssim", reference, image)
    if min(reference.shape[:2]) < MS_SSIM_MIN_SIDE:
        raise ImageError(
            "E_METRIC",
            f"ms_ssim: got {reference.shape[0]}x{reference.shape[1]} pixels, expected at least "
            f"{MS_SSIM_MIN_SIDE} on each side. Leave this metric out for smaller images.",
        )
    x, y = (np.moveaxis(array.astype(np.float64), 2, 0) for array in (reference, image))
    product = np.ones(3)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        last = scale == len(SCALE_WEIGHTS) - 1
        luminance, contrast = _ssim_terms(x, y)
        term = (luminance * contrast if last else contrast).mean(axis=(1, 2))
        product *= np.maximum(term, 0.0) ** weight
        if not last:
            x, y = _halve(x), _halve(y)
    return float(product.mean())


def _ssim_terms(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Luminance term and contrast-structure term at every window of [colour, height, width]."""
    first, second = STABILISERS
    mean_x, mean_y = _blur(x), _blur(y)
    both = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    covariance = _blur(x * y) - both
    variances = _blur(x * x + y * y) - squares
    return (2 * both + first) / (squares + first), (2 * covariance + second) / (variances + second)


def _blur(planes: Floats) -> Floats:
    """Gaussian mean over every window that lies wholly inside."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    taps = np.exp(-(offsets**2) / (2 * SIGMA**2))
    taps /= taps.sum()
    for axis in (1, 2):
        planes = sliding_window_view(planes, WINDOW, axis=axis) @ taps
    return planes


def _halve(planes: Floats) -> Floats:
    """Mean over 2x2 pixels."""
    color, height, width = planes.shape
    padded = np.pad(planes, ((0, 0), (height % 2, 0), (width % 2, 0)))
    blocks = padded.reshape(color, (height + 1) // 2, 2, (width + 1) // 2, 2)
    return np.asarray(blocks.mean(axis=(2, 4)))


def check_image(metric: str, image: Image) -> None:
    """Refuse what is not uint8 RGB.

    Raises:
        ImageError: ``E_METRIC``.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            "E_METRIC",
            f"{metric}: got {image.dtype}[{','.join(map(str, image.shape))}], expected "
            "uint8[height,width,3]. Convert the image to RGB first.",
        )


def check_pair(metric: str, reference: Image, image: Image) -> None:
    """Refuse two images that cannot be compared.

    Raises:
        ImageError: ``E_METRIC``.
    """
    check_image(metric, reference)
    check_image(metric, image)
    if reference.shape != image.shape:
        raise ImageError(
            "E_METRIC",
            f"{metric}: got {image.shape[0]}x{image.shape[1]} pixels, expected "
            f"{reference.shape[0]}x{reference.shape[1]} like the reference. Crop to one size.",
        )
