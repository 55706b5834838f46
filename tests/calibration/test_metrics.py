"""PSNR and MS-SSIM against closed forms and against an independent implementation."""

import math
from fractions import Fraction

import numpy as np
import pytest

from jscc.calibration.metrics import MS_SSIM_MIN_SIDE, ms_ssim, psnr_db
from jscc.runtime.errors import ImageError


def picture(height: int, width: int) -> np.ndarray:
    """Smooth waves with a hard edge: low and high frequencies in every colour."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 17 + c) * np.cos(columns / (11 + 3 * c)) for c in range(3)]
    planes = 128 + 90 * np.stack(waves, axis=2)
    planes[rows + columns > (height + width) / 2] -= 30
    return np.clip(planes, 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_psnr_of_a_constant_offset_is_closed_form():
    image = np.full((8, 9, 3), 100, np.uint8)
    assert psnr_db(image, image + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))


def psnr_of_ffmpeg(reference: np.ndarray, image: np.ndarray) -> float:
    """What FFmpeg's filter ``psnr`` says of a frame, in dB."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    graph, clock = av.filter.Graph(), Fraction(1, 25)
    frames = [av.VideoFrame.from_ndarray(each, format="gbrp") for each in (image, reference)]
    sources = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=clock
        )
        for frame in frames
    ]
    meter, sink = graph.add("psnr"), graph.add("buffersink")
    for place, (source, frame) in enumerate(zip(sources, frames, strict=True)):
        source.link_to(meter, 0, place)
        frame.pts, frame.time_base = 0, clock
    meter.link_to(sink)
    graph.configure()
    for source, frame in zip(sources, frames, strict=True):
        source.push(frame)
        source.push(None)
    return float(sink.pull().metadata["lavfi.psnr.psnr_avg"])


@pytest.mark.parametrize("deviation", [1, 4, 12, 60])
@pytest.mark.parametrize("size", [(16, 16), (161, 177), (64, 333)])
def test_psnr_agrees_with_ffmpeg(size, deviation):
    image = picture(*size)
    other = noisy(image, deviation, seed=3)
    assert psnr_db(image, other) == pytest.approx(psnr_of_ffmpeg(image, other), abs=2e-6)


def test_psnr_does_not_wrap_around():
    dark, bright = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr_db(dark, bright) == psnr_db(bright, dark) == 0


def test_psnr_of_equal_images_is_infinite():
    assert psnr_db(picture(5, 6), picture(5, 6)) == math.inf


@pytest.mark.parametrize("deviation", [2, 12, 60])
@pytest.mark.parametrize("size", [(161, 161), (176, 192), (163, 200), (201, 333)])
def test_ms_ssim_agrees_with_an_independent_implementation(size, deviation):
    independent = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    image = picture(*size)
    other = noisy(image, deviation)
    tensors = [
        torch.from_numpy(a.transpose(2, 0, 1)[None].astype(np.float64)) for a in (image, other)
    ]
    # Its own window is rounded to float32, which moves the result by up to 2e-6.
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (taps / taps.sum()).reshape(1, 1, 1, 11).repeat(3, 1, 1, 1)
    expected = float(independent.ms_ssim(*tensors, data_range=255, win=window))
    assert ms_ssim(image, other) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_of_equal_images_is_one():
    image = picture(170, 180)
    assert ms_ssim(image, image) == pytest.approx(1, abs=1e-12)


def test_ms_ssim_of_a_negative_is_zero_and_not_complex():
    image = noisy(picture(170, 180), 40)
    assert ms_ssim(image, 255 - image) == 0


def test_ms_ssim_falls_with_noise():
    image = picture(170, 180)
    values = [ms_ssim(image, noisy(image, deviation)) for deviation in (1, 4, 16, 64)]
    assert values == sorted(values, reverse=True)


def test_ms_ssim_needs_room_for_five_scales():
    image = picture(MS_SSIM_MIN_SIDE - 1, 300)
    with pytest.raises(ImageError, match="got 160x300 pixels, expected at least 161") as caught:
        ms_ssim(image, image)
    assert caught.value.code == "E_METRIC"


@pytest.mark.parametrize("metric", [psnr_db, ms_ssim])
def test_sizes_must_match(metric):
    with pytest.raises(ImageError, match="got 200x181 pixels, expected 200x180 like"):
        metric(picture(200, 180), picture(200, 181))


@pytest.mark.parametrize("metric", [psnr_db, ms_ssim])
def test_only_rgb_bytes_are_compared(metric):
    image = picture(200, 180)
    with pytest.raises(ImageError, match=r"got float64\[200,180,3\], expected uint8"):
        metric(image, image / 255)
    with pytest.raises(ImageError, match=r"got uint8\[200,180\], expected uint8\[height"):
        metric(image, image[..., 0])
