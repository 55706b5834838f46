"""A transmitter that chooses its rate, and side values from it to the receiver."""

import re
from dataclasses import replace

import numpy as np
import pytest

import rated_bundle
from jscc.runtime.bundle import write_bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import ImageError, SymbolsError, UnavailableError, UsageError
from jscc.runtime.receiver import Receiver
from jscc.runtime.sides import flatten_side, host_sides, shape_side
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend, RecordingSession

SIZE = (21, 30)
GRID = (6, 8)  # of 24x32 pixels
CSI = Csi(7.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return rated_bundle.write_rated(tmp_path_factory.mktemp("rated") / "rated.jscc")


@pytest.fixture(scope="module")
def sender(bundle):
    return Transmitter(bundle)


@pytest.fixture(scope="module")
def receiver(bundle):
    return Receiver(bundle)


def make_image(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("rate", [2, 4, 8, None])
def test_every_rate_goes_through_one_bundle(bundle, rate):
    listening = RecordingBackend()
    symbols, side = Transmitter(bundle, backend=listening).send_with_side(make_image(), rate=rate)
    planes = rate or 8
    assert symbols.shape == (planes // 2, *GRID)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1.0, rel=1e-5)
    assert side["mask"].tolist() == [[1.0] * planes + [0.0] * (8 - planes)]
    encoded = listening.outputs("encode")[0]["planes"]
    np.testing.assert_allclose(side["power"], [np.mean(encoded**2)], rtol=1e-5)
    receiver = Receiver(bundle, backend=listening)
    image, record = receiver.receive(symbols, CSI, seed=0, size=SIZE, side=side)
    assert image.shape == (*SIZE, 3)
    assert record.rate == planes
    assert record.symbols == planes // 2 * GRID[0] * GRID[1]
    fed = listening.inputs("decode")[-1]
    np.testing.assert_array_equal(fed["received"][0], [*symbols.real, *symbols.imag])
    for name, values in side.items():
        np.testing.assert_array_equal(fed[name], values)


def test_images_of_a_batch_keep_their_own_side_values(sender, receiver):
    images = np.stack([make_image(seed) for seed in range(3)])
    symbols, side = sender.send_batch_with_side(images, rate=4)
    assert side["power"].shape == (3,)
    assert len(set(side["power"].tolist())) == 3
    together, _ = receiver.receive_batch(symbols, [CSI] * 3, seed=0, size=SIZE, side=side)
    for index, image in enumerate(images):
        alone, own = sender.send_with_side(image, rate=4)
        np.testing.assert_allclose(alone, symbols[index], rtol=1e-4, atol=1e-6)
        single, _ = receiver.receive(alone, CSI, seed=0, size=SIZE, side=own)
        assert np.abs(single.astype(int) - together[index]).max() <= 1


def test_symbols_alone_are_not_what_this_receiver_needs(sender):
    for call in (lambda: sender.send(make_image()), lambda: sender.send_batch(make_image()[None])):
        with pytest.raises(UsageError, match=r"given power, mask.* Call send_with_side") as caught:
            call()
        assert caught.value.code == "E_SIDE_OUTPUT"


def test_a_bundle_that_sends_symbols_only_has_no_side_values(codec_bundle):
    sender = Transmitter(codec_bundle)
    symbols, side = sender.send_with_side(make_image())
    assert side == {}
    np.testing.assert_array_equal(symbols, sender.send(make_image()))
    with pytest.raises(
        UsageError, match="got 4, expected none, this bundle has one rate"
    ) as caught:
        sender.send(make_image(), rate=4)
    assert caught.value.code == "E_RATE"


@pytest.mark.parametrize("rate", [0, 3, 6, 16, -2])
def test_rates_that_the_bundle_does_not_have(sender, rate):
    words = f"rate: got {rate}, expected one of 2, 4, 8. Leave it out to send all 8 planes."
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        sender.send_with_side(make_image(), rate=rate)
    assert caught.value.code == "E_RATE"


@pytest.mark.parametrize(
    ("shape", "size", "words"),
    [
        ((3, 6, 8), SIZE, "got complex64[3,6,8], expected 48, 96, 192 symbols: 2, 4, 8 planes"),
        ((100,), SIZE, "got complex64[100], expected 48, 96, 192 symbols: 2, 4, 8 planes of 6x8"),
        ((144,), SIZE, "got complex64[144], expected 48, 96, 192 symbols"),
        ((3, 6, 8), None, "got complex64[3,6,8], expected 48, 96, 192 symbols"),
        ((2, 6, 9), SIZE, "got complex64[2,6,9], 108 in all, expected complex64[2,6,8]"),
        ((2, 5), SIZE, "got complex64[2,5], expected 48, 96, 192 symbols"),
    ],
)
def test_symbols_of_no_rate_are_refused(receiver, shape, size, words):
    rng = np.random.default_rng(0)
    symbols = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    side = {"power": np.ones(1, np.float32), "mask": np.ones((1, 8), np.float32)}
    with pytest.raises(SymbolsError, match=re.escape(words)) as caught:
        receiver.receive(symbols, CSI, seed=0, size=size, side=side)
    assert caught.value.code == "E_SYM_COUNT"


def test_a_row_of_symbols_tells_its_rate(sender, receiver):
    symbols, side = sender.send_with_side(make_image(), rate=2)
    flat, record = receiver.receive(symbols.ravel(), CSI, seed=0, size=SIZE, side=side)
    assert record.rate == 2
    shaped, _ = receiver.receive(symbols, CSI, seed=0, size=SIZE, side=side)
    np.testing.assert_array_equal(flat, shaped)


ONE, EIGHT = np.ones(1, np.float32), np.ones((1, 8), np.float32)
SIDES = [
    ({}, "side: got none, expected mask, power. Give these and no others."),
    ({"power": ONE}, "side: got power, expected mask, power."),
    ({"power": ONE, "mask": EIGHT, "more": ONE}, "side: got mask, more, power, expected mask,"),
    ({"power": ONE, "mask": EIGHT[:, :7]}, "side 'mask': got float32[1,7], expected float32[1,8]"),
    ({"power": ONE, "mask": EIGHT[0]}, "side 'mask': got float32[8], expected float32[1,8]"),
    ({"power": ONE.astype(np.float64), "mask": EIGHT}, "side 'power': got float64[1], expected"),
    ({"power": [1.0], "mask": EIGHT}, "side 'power': got list, expected float32[1]."),
    ({"power": ONE * np.nan, "mask": EIGHT}, "side 'power': got values that are not finite"),
    ({"power": ONE, "mask": EIGHT * np.inf}, "side 'mask': got values that are not finite"),
]


@pytest.mark.parametrize(("side", "words"), SIDES)
def test_side_values_that_are_refused(sender, receiver, side, words):
    symbols, _ = sender.send_with_side(make_image(), rate=2)
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        receiver.receive(symbols, CSI, seed=0, size=SIZE, side=side)
    assert caught.value.code == "E_SIDE"


def test_a_captioner_cannot_stand_in_for_the_transmitter(bundle, sender):
    receiver = Receiver(bundle, captioner=lambda _: np.zeros((1, 2, 5), np.float32))
    symbols, side = sender.send_with_side(make_image(), rate=2)
    assert host_sides(bundle.manifest) == ()
    with pytest.raises(UsageError, match="side: got power, expected mask, power"):
        receiver.receive(symbols, CSI, seed=0, size=SIZE, side={"power": side["power"]})


def test_side_values_keep_their_shape_through_a_row(bundle, sender):
    _, side = sender.send_with_side(make_image(), rate=4)
    flat = flatten_side(side)
    assert {name: row.shape for name, row in flat.items()} == {"power": (1,), "mask": (8,)}
    shaped = shape_side(bundle.manifest, flat)
    for name, values in side.items():
        np.testing.assert_array_equal(shaped[name], values)
        assert shaped[name].shape == values.shape
    odd = {"mask": np.zeros(3, np.float32), "unknown": np.zeros(2, np.float32)}
    assert {name: row.shape for name, row in shape_side(bundle.manifest, odd).items()} == {
        "mask": (3,),
        "unknown": (2,),
    }


def test_the_self_test_is_given_its_side_values(tmp_path):
    """With zeros in their place another picture comes out, and the bundle is refused."""
    manifest, files = rated_bundle.rated()
    bundle = write_bundle(tmp_path / "whole.jscc", manifest, files)
    backend = RecordingBackend()
    Receiver(bundle, backend=backend)
    assert backend.inputs("decode")[0]["power"].tolist() == [0.5]
    emptied = replace(manifest, selftest=replace(manifest.selftest, side={}))
    bundle = write_bundle(tmp_path / "emptied.jscc", emptied, files)
    with pytest.raises(UnavailableError, match="self-test on") as caught:
        Receiver(bundle, backend=RecordingBackend())
    assert caught.value.code == "E_SELFTEST"


class BrokenSession(RecordingSession):
    """Returns a side value that is not finite."""

    def run(self, arrays):
        return {**super().run(arrays), "power": np.array([np.nan], np.float32)}


def test_side_values_that_the_encoder_cannot_give(bundle, monkeypatch):
    monkeypatch.setattr("recording_backend.RecordingSession", BrokenSession)
    sender = Transmitter(bundle, backend=RecordingBackend())
    with pytest.raises(ImageError, match="side 'power': got values that are not finite") as caught:
        sender.send_with_side(make_image())
    assert caught.value.code == "E_SIDE_NONFINITE"
