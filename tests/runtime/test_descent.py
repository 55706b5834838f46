"""Descents: Adam, ramps and spheres by their definitions; a search whose answer is known."""

import dataclasses
import math

import numpy as np
import pytest

import tiny_descent
from jscc.runtime.bundle import write_bundle
from jscc.runtime.choices import Choices
from jscc.runtime.csi import Csi
from jscc.runtime.descent import (
    Adam,
    lengths,
    on_sphere,
    plan_descent,
    ramp,
    share,
)
from jscc.runtime.errors import ImageError, UsageError
from jscc.runtime.manifest_loops import Variable
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.receiver import Receiver
from recording_backend import RecordingBackend

DESCENT = tiny_descent.DESCENT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_descent.write_descending(tmp_path_factory.mktemp("descent") / "tiny.jscc")


def symbols(rows, columns, seed=3):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, rows, columns)) + 1j * rng.normal(size=(2, rows, columns))
    return (values / np.sqrt(np.mean(np.abs(values) ** 2))).astype(np.complex64)


def receive(bundle, sent, **choices):
    """Pixels, record, and a backend that remembers."""
    backend = RecordingBackend()
    pixels, record = Receiver(bundle, backend=backend).receive(sent, Csi(7.0), seed=5, **choices)
    return pixels, record, backend


def test_adams_first_step_has_the_learning_rate_whatever_the_gradient():
    """With both moments bias-corrected, g / (sqrt(g^2) + eps) is the sign of g."""
    gradient = np.array([3.0, -2e-3, 0.0, 1e4], np.float32)
    moved = Adam((0.9, 0.999), 1e-8).step({"v": np.zeros(4, np.float32)}, {"v": gradient}, 0.25)
    np.testing.assert_allclose(moved["v"], [-0.25, 0.25, 0.0, -0.25], rtol=1e-4)


def test_adams_third_step_by_hand():
    """The moments written out as sums, in float64, for gradients 1, -1 and 0.5."""
    gradients, b1, b2 = (1.0, -1.0, 0.5), 0.9, 0.999
    adam = Adam((b1, b2), 1e-8)
    value = {"v": np.zeros(1, np.float32)}
    expected = 0.0
    for count in (1, 2, 3):
        seen = gradients[:count]
        first = sum((1 - b1) * b1 ** (count - 1 - i) * g for i, g in enumerate(seen))
        second = sum((1 - b2) * b2 ** (count - 1 - i) * g * g for i, g in enumerate(seen))
        first, second = first / (1 - b1**count), second / (1 - b2**count)
        expected -= 0.1 * first / (math.sqrt(second) + 1e-8)
        value = adam.step(value, {"v": np.array([gradients[count - 1]], np.float32)}, 0.1)
    assert value["v"][0] == pytest.approx(expected, rel=1e-5)
    assert value["v"].dtype == np.float32


def test_a_variable_without_a_gradient_stays():
    start = {"v": np.ones(2, np.float32), "w": np.ones(2, np.float32)}
    moved = Adam((0.9, 0.999), 1e-8).step(start, {"w": np.ones(2, np.float32)}, 0.1)
    assert moved["v"] is start["v"]
    assert (moved["w"] < 1).all()


def test_the_ramp_rises_then_falls_as_half_a_cosine():
    factors = [ramp(step, 20, 0.05, 0.75) for step in range(20)]
    assert factors[0] == 0.0
    assert factors[1:6] == [1.0] * 5  # rise over 1 step of 20, fall over the last 15
    assert factors[6] < 1.0
    assert ramp(125, 200, 0.05, 0.75) == pytest.approx(0.5)  # the middle of the fall
    assert sorted(factors[1:], reverse=True) == factors[1:]
    assert ramp(3, 4, 0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("total", "expected"), [(150, (50, 50, 25, 25)), (4, (1, 1, 1, 1)), (30, (10, 10, 5, 5))]
)
def test_steps_are_shared_in_proportion(total, expected):
    shares = share(total, (50, 50, 25, 25))
    assert sum(shares) == total
    assert all(abs(got - want) <= 1 for got, want in zip(shares, expected, strict=True))


def test_fewer_steps_than_rounds_are_refused():
    with pytest.raises(UsageError, match="got 1, expected 2 or more") as caught:
        share(1, (60, 40))
    assert caught.value.code == "E_STEPS"


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_a_learning_rate_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match=f"learning_rate: got {value}") as caught:
        plan_descent(DESCENT, Choices(settings={"learning_rate": value}), 0)
    assert caught.value.code == "E_SETTING"


def test_a_knob_that_is_not_finite_is_refused():
    with pytest.raises(UsageError, match="weight: got nan"):
        plan_descent(DESCENT, Choices(settings={"weight": math.nan}), 0)


def test_spheres_keep_the_length_of_every_vector():
    rng = np.random.default_rng(0)
    descent = dataclasses.replace(
        DESCENT, variables={"rows": Variable("normal", 1), "map": Variable("normal", 2)}
    )
    before = {
        "rows": rng.normal(size=(1, 4, 8)).astype(np.float32),
        "map": rng.normal(size=(1, 1, 6, 6)).astype(np.float32),
    }
    kept = lengths(before, descent)
    moved = {name: value * 3 + 1 for name, value in before.items()}
    after = on_sphere(moved, kept, descent)
    for name, axes in (("rows", (2,)), ("map", (2, 3))):
        first, last = (np.sqrt((v[name].astype(float) ** 2).sum(axes)) for v in (before, after))
        np.testing.assert_allclose(last, first, rtol=1e-5)
        ratio = after[name] / moved[name]  # the direction stays: one factor per vector
        np.testing.assert_allclose(ratio.std(axes), 0, atol=1e-6)


def test_the_search_finds_what_was_received(bundle):
    """The least squared distance to the reconstruction is at the reconstruction."""
    pixels, record, backend = receive(bundle, symbols(8, 8), steps=400)
    wanted = backend.outputs("decode")[0]["reconstruction"]
    found = backend.outputs("render")[0]["image"]
    assert np.abs(found - wanted).max() < 0.02
    assert pixels.shape == (32, 32, 3)
    done = record.descents["find"]
    assert done.rounds == (240, 160)
    assert record.steps == done.steps == 400
    assert done.loss == pytest.approx(float(((found - wanted) ** 2).mean()), rel=1e-3)
    assert record.times_ms.keys() >= {"first", "carry", "second", "render"}


def test_each_round_begins_where_the_last_ended_with_new_moments(bundle):
    _, _, backend = receive(bundle, symbols(8, 8), steps=4)
    carried = backend.inputs("carry")[0]
    assert len(backend.inputs("first")) == len(backend.inputs("second")) == 2
    begun, second = backend.inputs("second")
    np.testing.assert_array_equal(begun["look"], carried["look"])
    np.testing.assert_array_equal(begun["lift"], carried["look"] * 0.5)
    np.testing.assert_array_equal(second["look"], begun["look"])  # the rate rises from 0
    ended = backend.inputs("render")[0]
    moved = np.abs(ended["look"] - second["look"])  # Adam's second step, gradients alike
    assert moved.max() <= 0.1 * ramp(1, 2, 0.05, 0.75) * 1.01


def test_the_variables_of_the_least_loss_are_rendered(bundle):
    """With so large a learning rate the loss rises and falls."""
    settings = {"learning_rate": 3.0}
    _, record, backend = receive(bundle, symbols(8, 8), steps=24, settings=settings)
    losses = [answer["loss"][0] for answer in backend.outputs("second")]
    assert sorted(losses, reverse=True) != losses
    assert record.descents["find"].loss == pytest.approx(min(losses))
    assert record.descents["find"].learning_rates == (3.0, 3.0)
    best = backend.inputs("second")[int(np.argmin(losses))]
    np.testing.assert_array_equal(backend.inputs("render")[0]["look"], best["look"])


def test_the_last_variables_are_rendered_where_the_bundle_says_so(tmp_path):
    manifest, files = tiny_descent.descending()
    descents = {"find": dataclasses.replace(DESCENT, keep="last")}
    last = write_bundle(
        tmp_path / "last.jscc", dataclasses.replace(manifest, descents=descents), files
    )
    _, _, backend = receive(last, symbols(8, 8), steps=4)
    rendered = backend.inputs("render")[0]["look"]
    asked = backend.inputs("second")[-1]["look"]  # from here one more step led to them
    rate = 0.1 * ramp(1, 2, 0.05, 0.75)
    moved = np.abs(rendered - asked)
    assert 0.9 * rate < np.median(moved) < 1.1 * rate


def test_a_knob_reaches_the_stages(bundle):
    _, record, backend = receive(bundle, symbols(8, 8), steps=2, settings={"weight": 3.0})
    assert backend.inputs("first")[0]["weight"].tolist() == [3.0]
    assert record.descents["find"].settings == {"weight": 3.0}


def test_large_images_are_searched_tile_by_tile(bundle):
    """Each tile has variables of its own; the tiles join where they overlap."""
    _, record, backend = receive(bundle, symbols(8, 14))
    wanted = backend.outputs("decode")[0]["reconstruction"]
    assert wanted.shape == (1, 3, 32, 56)
    starts = backend.inputs("first")[0::60]
    assert len(starts) == 2
    assert np.abs(starts[0]["look"] - starts[1]["look"]).max() > 1
    for start, left in zip(starts, (0, 24), strict=True):
        np.testing.assert_array_equal(start["reconstruction"], wanted[..., left : left + 32])
    assert record.descents["find"].loss < 1e-3


def test_images_smaller_than_a_tile_are_mirrored(bundle):
    pixels, _, backend = receive(bundle, symbols(4, 6))
    given = backend.inputs("first")[0]["reconstruction"]
    decoded = backend.outputs("decode")[0]["reconstruction"]
    assert decoded.shape == (1, 3, 16, 24)
    np.testing.assert_array_equal(given[:, :, :16, :24], decoded)
    np.testing.assert_array_equal(given[:, :, 16:, :24], decoded[:, :, ::-1])
    np.testing.assert_array_equal(given[:, :, :16, 24:], decoded[..., :-9:-1])
    shown = np.round(np.clip(backend.outputs("render")[0]["image"], 0, 1) * 255)
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), shown[0, :, :16, :24])


def test_a_batch_comes_out_like_single_images(bundle):
    receiver = Receiver(bundle, backend=RecordingBackend())
    both = np.stack([symbols(8, 8, seed=1), symbols(8, 8, seed=2)])
    images, records = receiver.receive_batch(both, [Csi(7.0)] * 2, seed=5, frame=10)
    for index in (0, 1):
        alone, record = receiver.receive(both[index], Csi(7.0), seed=5, frame=10 + index)
        np.testing.assert_array_equal(images[index], alone)
        assert record.descents == records[index].descents


def test_the_start_is_counted_noise(bundle):
    """Variables in the order of their names, after the numbers that the loops draw from."""
    _, _, backend = receive(bundle, symbols(8, 14), steps=2)
    starts = backend.inputs("first")
    for tile, start in enumerate(starts):
        for index, name in enumerate(("look", "still")):
            drawn = PhiloxNoise().draw(5, 0, 2 * tile + index, (1, 3, 32, 32))
            np.testing.assert_array_equal(start[name], drawn)


def test_choices_of_a_sampler_are_refused(bundle):
    with pytest.raises(UsageError, match="expected only steps and settings") as caught:
        receive(bundle, symbols(8, 8), sampler="ddim")
    assert caught.value.code == "E_NO_LOOP"


def test_an_unknown_knob_is_refused(bundle):
    with pytest.raises(UsageError, match="got wieght, expected learning_rate, weight") as caught:
        receive(bundle, symbols(8, 8), settings={"wieght": 1.0})
    assert caught.value.code == "E_SETTING"


def test_a_loss_that_is_never_finite_is_no_image(bundle):
    with pytest.raises(ImageError, match="'first': got no finite loss in 1 steps") as caught:
        receive(bundle, symbols(8, 8), steps=2, settings={"weight": 3.4e38})
    assert caught.value.code == "E_DECODE_NONFINITE"
