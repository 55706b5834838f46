"""Collect: every cell of the grid is visited and counted, and the ranges are those of the runs."""

import dataclasses

import numpy as np
import onnx
import pytest

import tiny_convolutions
from jscc.calibration.collect import Grid, collect, receive, send_all, watched_tensors
from jscc.calibration.graph import read_graph
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import write_bundle
from jscc.runtime.errors import UnavailableError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend
from tiny_convolutions import run

STAGES = ("decode", "denoise")


def collected_of(bundle, airings, grid, stages=STAGES, **options):
    return collect(bundle, stages, airings, grid, threads=1, progress=lambda _: None, **options)


@pytest.fixture(scope="module")
def collected(looped, airings, grid):
    return collected_of(looped, airings, grid)


@pytest.fixture(scope="module")
def recorded(looped, airings, grid):
    """The same receptions, listened to by another backend; and the images."""
    backend = RecordingBackend()
    receiver = Receiver(looped, backend=backend, selftest=False)
    return backend, [receive(receiver, airing, grid) for airing in airings]


def test_every_cell_of_the_grid_is_visited(collected, recorded):
    backend, _ = recorded
    steps = {float(fed["timestep"][0]) for fed in backend.inputs("denoise")}
    assert len(steps) == 3
    assert collected.timesteps == steps
    for ranges in collected.ranges["denoise"].values():
        assert set(ranges.cells) == {(snr_db, step) for snr_db in (0.0, 10.0) for step in steps}
    for ranges in collected.ranges["decode"].values():
        assert set(ranges.cells) == {(0.0, None), (10.0, None)}


def test_every_run_is_counted(collected, recorded):
    backend, images = recorded
    assert collected.receptions == len(images) == 4
    assert collected.evaluations == {stage: len(backend.inputs(stage)) for stage in STAGES}
    assert collected.evaluations == {"decode": 4, "denoise": 12}
    for stage in STAGES:
        for ranges in collected.ranges[stage].values():
            assert ranges.samples == collected.evaluations[stage]


def test_the_ranges_are_those_of_the_graph_run_by_hand(looped, collected, recorded):
    """Inputs of `denoise` again through its graph, with everything that is watched laid open."""
    backend, _ = recorded
    model = read_graph(looped, "denoise")
    watched = watched_tensors(model)
    values = {v.name: v for node in model.graph for v in node.outputs}
    for name in watched:
        if values[name] not in model.graph.outputs:
            model.graph.outputs.append(values[name])
    largest = dict.fromkeys(watched, 0.0)
    counts = dict.fromkeys(watched, 0)
    for fed in backend.inputs("denoise"):
        told = run_with_weights(model, fed)
        for name in watched:
            array = told[name]
            largest[name] = max(largest[name], float(np.abs(array).max()))
            counts[name] += array.size
    measured = collected.ranges["denoise"]
    assert set(measured) == set(watched)
    for name, ranges in measured.items():
        assert ranges.largest == pytest.approx(largest[name], rel=1e-5)
        assert ranges.counts.sum() == counts[name]


def run_with_weights(model, fed):
    """`run`, the weights of the other file put inside."""
    for value in model.graph.initializers.values():
        if value.name == "block.up.weight":
            array = np.array(value.const_value.numpy())
            value.const_value = type(model.graph.initializers["norm.bias"].const_value)(
                onnx.numpy_helper.from_array(array, value.name)
            )
    return run(model, **fed)


def test_what_a_layer_reads_and_returns_is_watched(looped):
    watched = watched_tensors(read_graph(looped, "denoise"))
    assert watched == {
        **dict.fromkeys(["both", "e1", "image"], 1),
        **dict.fromkeys(["waves", "normed", "active"], -1),
        **dict.fromkeys(["e0", "embedded", "b0", "wide", "narrow", "x0"]),
    }


def test_features_are_kept_apart_where_layers_read(collected):
    measured = collected.ranges["denoise"]
    assert measured["both"].peaks.shape == (8,)
    assert measured["normed"].peaks.shape == (8,)
    assert measured["active"].peaks.shape == (16,)
    assert measured["wide"].peaks is None


def test_watching_changes_no_image(looped, airings, grid, recorded, monkeypatch):
    """The probed receiver gives, to the last bit, what one without a probe gives."""
    _, expected = recorded
    images = []

    def kept(receiver, airing, grid):
        images.append(receive(receiver, airing, grid))
        return images[-1]

    monkeypatch.setattr("jscc.calibration.collect.receive", kept)
    collected_of(looped, airings, grid, everything=True)
    for got, wanted in zip(images, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_only_the_stages_asked_for_are_measured(looped, airings, grid):
    collected = collected_of(looped, airings[:1], grid, stages=("decode",))
    assert set(collected.ranges) == {"decode"}
    assert collected.evaluations == {"decode": 1}
    assert collected.receptions == 1


def test_everything_takes_in_what_no_layer_touches(looped, airings, grid):
    collected = collected_of(looped, airings[:1], grid, everything=True)
    more = set(collected.ranges["denoise"]) - set(watched_tensors(read_graph(looped, "denoise")))
    assert {"b1", "gate", "mixed", "clean"} <= more
    assert all(ranges.samples == 3 for ranges in collected.ranges["denoise"].values())


def test_everything_goes_as_far_as_what_layers_touch(looped, airings, grid, collected):
    """Of all tensors only extremes are asked of the graph; they are the same."""
    everything = collected_of(looped, airings, grid, everything=True)
    for stage in STAGES:
        for name, ranges in collected.ranges[stage].items():
            assert everything.ranges[stage][name].cells == ranges.cells


def broken(path, value):
    """The bundle with one weight of `tail` replaced."""
    manifest, files = tiny_convolutions.looped()
    graph = onnx.ModelProto.FromString(files["graphs/decode.onnx"])
    (tensor,) = (t for t in graph.graph.initializer if t.name == "tail.weight")
    weights = np.array(onnx.numpy_helper.to_array(tensor))
    weights[0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "tail.weight"))
    files["graphs/decode.onnx"] = graph.SerializeToString()
    manifest = dataclasses.replace(manifest, selftest=None, tensors={})
    files = {name: data for name, data in files.items() if not name.startswith("tensors/")}
    return write_bundle(path, manifest, files)


@pytest.mark.parametrize("everything", [False, True])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, airings, grid, everything):
    """`Tanh` behind it makes the image finite, so nobody else would notice."""
    bundle = broken(tmp_path / "broken.jscc", 3e38)
    said = "stage 'decode', tensor 't0' at 0 dB: got a value that is not finite, expected finite"
    with pytest.raises(UnavailableError, match=said) as caught:
        collected_of(bundle, airings, grid, everything=everything)
    assert caught.value.code == "E_RUN"


def sent(bundle, names, **grid):
    photos = tiny_convolutions.photos(4)
    transmitter = Transmitter(bundle, backend=OnnxRuntimeBackend(threads=1))
    return send_all(transmitter, {name: photos[name] for name in names}, Grid(**grid))


def test_every_image_is_sent_at_every_snr(looped):
    airings = sent(looped, ["1.png", "2.png"], snrs_db=(0.0, 5.0, 10.0))
    assert [(a.name, a.received.csi.snr_db) for a in airings] == [
        (name, snr_db) for name in ("1.png", "2.png") for snr_db in (0.0, 5.0, 10.0)
    ]


@pytest.mark.parametrize("channel", ["awgn", "rayleigh"])
def test_more_images_and_snrs_change_nothing_for_the_others(looped, channel):
    (alone,) = sent(looped, ["2.png"], snrs_db=(5.0,), channel=channel)
    among = sent(looped, ["1.png", "2.png"], snrs_db=(0.0, 5.0), channel=channel)[3]
    np.testing.assert_array_equal(alone.received.symbols, among.received.symbols)
    assert alone.received.csi == among.received.csi


def test_each_image_and_each_snr_meets_other_noise(looped):
    """The same picture under two names: what it is sent as is the same, so all else is noise."""
    photo = tiny_convolutions.photos(1)["0.png"]
    transmitter = Transmitter(looped, backend=OnnxRuntimeBackend(threads=1))
    clean = transmitter.send_with_side(photo)[0]
    airings = send_all(transmitter, {"a.png": photo, "b.png": photo}, Grid((0.0, 10.0)))
    noises = [
        (airing.received.symbols - clean) * 10 ** (airing.received.csi.snr_db / 20)
        for airing in airings
    ]
    for index, noise in enumerate(noises):
        for other in noises[:index]:
            assert np.mean(np.abs(noise - other) ** 2) > 0.5


def test_the_noise_has_the_power_that_the_snr_says(looped):
    """Symbols have power 1, so at -20 dB all but a hundredth of the power is noise."""
    airings = sent(looped, ["0.png", "1.png", "2.png", "3.png"], snrs_db=(-20.0,))
    power = np.mean([np.mean(np.abs(a.received.symbols) ** 2) for a in airings])
    # 640 symbols: the mean of as many exponentials is off by 4 % (one standard deviation).
    assert power == pytest.approx(101, rel=0.15)
