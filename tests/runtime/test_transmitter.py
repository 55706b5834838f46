"""Transmitter: unit power, halves, padding that is sent, and what it refuses."""

import dataclasses

import numpy as np
import pytest

import tiny_bundle
from fake_engine import FakeBackend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.csi import Csi
from jscc.runtime.errors import BundleError, CsiError, ImageError, UsageError
from jscc.runtime.transmitter import Transmitter

ENGINE = OnnxRuntimeBackend(threads=1)


@pytest.fixture
def transmitter(codec_bundle):
    return Transmitter(codec_bundle, backend=ENGINE)


def picture(height=30, width=45, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def with_manifest(bundle, **changes):
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))


def with_signal(bundle, **changes):
    return with_manifest(bundle, signal=dataclasses.replace(bundle.manifest.signal, **changes))


def test_symbols_have_unit_mean_power_and_the_grid_of_the_padded_image(transmitter):
    symbols = transmitter.send(picture())
    assert symbols.dtype == np.complex64
    assert symbols.shape == (2, 8, 12)
    assert np.mean(np.abs(symbols.astype(complex)) ** 2) == pytest.approx(1.0, abs=1e-6)


def test_the_first_half_of_the_planes_is_real(codec_bundle):
    planes = np.random.default_rng(1).standard_normal((1, 4, 8, 12)).astype(np.float32)
    fake = FakeBackend({"encode": lambda arrays: {"planes": planes}})
    symbols = Transmitter(codec_bundle, backend=fake).send(picture())
    expected = planes[0, :2] + 1j * planes[0, 2:]
    expected /= np.sqrt(np.mean(np.abs(expected) ** 2))
    assert np.abs(symbols - expected).max() < 1e-6


def test_padding_is_zero_and_transmitted(codec_bundle):
    seen = []

    def encode(arrays):
        seen.append(arrays["image"])
        return {"planes": np.ones((1, 4, 8, 12), np.float32)}

    image = picture()
    Transmitter(codec_bundle, backend=FakeBackend({"encode": encode})).send(image)
    assert seen[0].shape == (1, 3, 32, 48)
    assert np.array_equal(seen[0][0, :, :30, :45], image.transpose(2, 0, 1) / np.float32(255))
    assert not seen[0][0, :, 30:].any()
    assert not seen[0][0, :, :, 45:].any()


def test_a_batch_is_its_images(transmitter):
    images = np.stack([picture(seed=seed) for seed in range(3)])
    batch = transmitter.send_batch(images)
    for index in range(3):
        assert np.abs(batch[index] - transmitter.send(images[index])).max() < 1e-6


def test_an_encoder_that_uses_the_channel_is_told_it(codec_bundle):
    bundle = with_signal(codec_bundle, csi_inputs=("snr_db", "gain"), transmitter_csi=True)
    stages = dict(bundle.manifest.stages)
    ports = (
        *stages["encode"].inputs,
        tiny_bundle.SNR,
        tiny_bundle.Port("gain", "float32", ("batch", 2)),
    )
    stages["encode"] = dataclasses.replace(stages["encode"], inputs=ports)
    seen = []

    def encode(arrays):
        seen.append(arrays)
        return {"planes": np.ones((1, 4, 8, 12), np.float32)}

    device = Transmitter(
        with_manifest(bundle, stages=stages), backend=FakeBackend({"encode": encode})
    )
    device.send(picture(), csi=Csi(9.0, 0.5 - 0.25j))
    assert seen[0]["snr_db"].tolist() == [9.0]
    assert seen[0]["gain"].tolist() == [[0.5, -0.25]]
    device.send(picture(), csi=Csi(99.0))
    assert seen[1]["snr_db"].tolist() == [14.0]
    with pytest.raises(CsiError, match="csi: got None, expected the channel's SNR and gain"):
        device.send(picture())


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_encoder_without_power_sends_nothing(codec_bundle, value):
    planes = np.full((1, 4, 8, 12), value, np.float32)
    fake = FakeBackend({"encode": lambda arrays: {"planes": planes}})
    with pytest.raises(ImageError, match="image 0: got symbols of mean power") as caught:
        Transmitter(codec_bundle, backend=fake).send(picture())
    assert caught.value.code == "E_IMG_FLAT"


def test_images_that_are_too_large_are_refused_before_anything_is_allocated(codec_bundle):
    small = Transmitter(codec_bundle, backend=ENGINE, max_pixels=1000)
    with pytest.raises(ImageError, match=r"got 30x45.*at most 1000 pixels, here 32x48"):
        small.send(picture())
    huge = np.lib.stride_tricks.as_strided(picture(), (1 << 20, 1 << 20, 3), (0, 0, 1))
    with pytest.raises(ImageError, match="got 1048576x1048576"):
        small.send(huge)


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"got uint8\[4,4,3\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"got uint8\[0,4,4,3\]"),
        ([picture()], "got list"),
    ],
)
def test_a_batch_has_four_axes(transmitter, images, shown):
    with pytest.raises(ImageError, match=f"images: {shown}, expected uint8"):
        transmitter.send_batch(images)


def test_a_batch_has_a_csi_per_image(transmitter):
    with pytest.raises(UsageError, match="csis: got 1, expected 2"):
        transmitter.send_batch(np.stack([picture()] * 2), csis=[Csi(7.0)])


def test_a_receivers_bundle_cannot_send(diffusion_bundle):
    with pytest.raises(BundleError, match="got no 'encode' stage, expected one") as caught:
        Transmitter(diffusion_bundle, backend=ENGINE)
    assert caught.value.code == "E_NO_ENCODER"
