"""Sensitivity: doubles change nothing of the graph, and tell the ratio that numpy finds."""

import numpy as np
import pytest
from onnx import helper

from jscc.calibration.collect import receive
from jscc.calibration.graph import drop_unused, read_graph
from jscc.calibration.layers import layers_of
from jscc.calibration.quantize import quantise
from jscc.calibration.sensitivity import add_doubles, sensitivity
from jscc.runtime.ports import Port
from jscc.runtime.receiver import Receiver
from recording_backend import RecordingBackend
from tiny_convolutions import conv, conv_weights, normal, parsed, run

PLANES = Port("x", "float32", (1, 4, 6, 6))
ROWS = Port("x", "float32", (5, 8))
STEP = 0.03


def two_convs():
    nodes = [
        conv("one", "x", "h"),
        helper.make_node("Sigmoid", ["h"], ["a"]),
        conv("two", "a", "y"),
    ]
    out = Port("y", "float32", (1, 4, 6, 6))
    constants = conv_weights("one", 4, 4) + conv_weights("two", 4, 4)
    return parsed(nodes, [PLANES], [out], constants), PLANES


def two_products():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Gelu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="two"),
    ]
    out = Port("y", "float32", (5, 3))
    return parsed(nodes, [ROWS], [out], [normal("w", 8, 6), normal("v", 6, 3)]), ROWS


GRAPHS = [two_convs, two_products]


def example(port):
    return np.random.default_rng(4).normal(size=port.shape).astype(np.float32)


def exact_and_rounded(build, name, x):
    """Output of layer `name` on exact inputs: of its own graph, and with that layer quantised."""
    model, _ = build()
    chosen = next(layer for layer in layers_of(model) if layer.name == name)
    outside = str(chosen.output.name)
    if outside != "y":
        model.graph.outputs.append(chosen.output)
    exact = run(model, x=x)[outside]
    quantise(model, [chosen], lambda _: STEP)
    drop_unused(model)
    return exact, run(model, x=x)[outside]


@pytest.mark.parametrize("build", GRAPHS)
def test_the_main_path_is_the_same_to_the_last_bit(build):
    model, port = build()
    x = example(port)
    before = run(model, x=x)["y"]
    add_doubles(model, layers_of(model), lambda _: STEP)
    np.testing.assert_array_equal(run(model, x=x)["y"], before)


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("build", GRAPHS)
def test_the_ratio_is_numpy_s(build, name):
    """Each layer alone is rounded, on exact inputs, whatever is done to the others."""
    model, port = build()
    x = example(port)
    names = add_doubles(model, layers_of(model), lambda _: STEP)
    told = run(model, x=x)
    assert set(names) == set(told) - {"y"}
    exact, rounded = exact_and_rounded(build, name, x)
    error, power = told[f"rounding_error:{name}"], told[f"exact_power:{name}"]
    assert error == pytest.approx(np.sum((rounded - exact) ** 2), rel=1e-3)
    assert power == pytest.approx(np.sum(exact**2), rel=1e-5)
    assert error > 0


def test_a_double_is_asked_for_the_step_of_what_it_doubles():
    model, _ = two_convs()
    asked = []
    add_doubles(model, layers_of(model), lambda name: asked.append(name) or STEP)
    assert sorted(asked) == ["a", "h", "x", "y"]


def measured(looped, airings, grid, steps):
    return sensitivity(
        looped,
        {"decode": ("middle", "tail"), "denoise": ("block.conv", "block.up")},
        steps,
        airings,
        grid,
        threads=1,
        progress=lambda _: None,
    )


def test_every_chosen_layer_of_a_bundle_is_ranked(looped, airings, grid):
    fine = measured(looped, airings[:1], grid, dict.fromkeys(("decode", "denoise"), lambda _: 0.05))
    assert set(fine) == {
        *(("decode", name) for name in ("middle", "tail")),
        *(("denoise", name) for name in ("block.conv", "block.up")),
    }
    assert all(0 < ratio < 0.1 for ratio in fine.values())
    coarse = measured(
        looped, airings[:1], grid, dict.fromkeys(("decode", "denoise"), lambda _: 0.3)
    )
    assert all(coarse[key] > fine[key] for key in fine)


def test_the_ratio_of_a_bundle_is_the_mean_over_all_runs(looped, airings, grid):
    """Replayed by hand: what `decode` was fed, through its graph with one layer quantised."""
    steps = dict.fromkeys(("decode", "denoise"), lambda _: 0.05)
    ratios = measured(looped, airings, grid, steps)
    backend = RecordingBackend()
    receiver = Receiver(looped, backend=backend, selftest=False)
    for airing in airings:
        receive(receiver, airing, grid)
    expected = []
    for fed in backend.inputs("decode"):
        outs = []
        for rounded in (False, True):
            model = read_graph(looped, "decode")
            layer = next(layer for layer in layers_of(model) if layer.name == "tail")
            model.graph.outputs.append(layer.output)
            if rounded:
                quantise(model, [layer], steps["decode"])
            outs.append(run(model, **fed)["t0"])
        expected.append(np.sum((outs[1] - outs[0]) ** 2) / np.sum(outs[0] ** 2))
    assert len(expected) == 4
    assert ratios["decode", "tail"] == pytest.approx(np.mean(expected), rel=1e-2)


def test_a_layer_whose_output_is_zero_has_no_ratio_but_0():
    model, port = two_products()
    names = add_doubles(model, layers_of(model), lambda _: STEP)
    told = run(model, x=np.zeros(port.shape, np.float32))
    assert all(told[name] == 0 for name in names)
