"""Smooth: the graph computes the same, and eq. 4 of arXiv:2211.10438 holds for what divides."""

import numpy as np
import pytest
from onnx import helper

from jscc.calibration.graph import array_of, drop_unused
from jscc.calibration.layers import layers_of
from jscc.calibration.ranges import Ranges
from jscc.calibration.smooth import smooth
from jscc.runtime.ports import Port
from tiny_convolutions import conv, conv_weights, normal, numbers, parsed, run

FEATURES = 6
ROWS = Port("x", "float32", (2, 5, FEATURES))
SPREAD = np.float32([0.01, 0.3, 1, 4, 20, 100])


def example():
    """Activations whose features differ by four orders of magnitude."""
    return np.random.default_rng(0).normal(size=ROWS.shape).astype(np.float32) * SPREAD


def products(count=1, *, norm=False, other=False):
    """`count` matrix products of one tensor: the input, or what a layer norm makes of it."""
    make = helper.make_node
    nodes, read, constants = [], "x", []
    outputs = [Port(f"y{index}", "float32", (2, 5, 3)) for index in range(count)]
    if norm:
        nodes.append(make("LayerNormalization", ["x", "gain", "shift"], ["n"]))
        constants += [numbers("gain", SPREAD), numbers("shift", SPREAD[::-1])]
        read = "n"
    for index in range(count):
        nodes.append(make("MatMul", [read, f"w{index}"], [f"y{index}"], name=f"m{index}"))
        constants.append(normal(f"w{index}", FEATURES, 3))
    if other:
        nodes.append(make("Relu", [read], ["z"]))
        outputs.append(Port("z", "float32", ROWS.shape))
    return parsed(nodes, [ROWS], outputs, constants), read


def smoothed(model, read, alpha, **fed):
    """Smooth all products of `model`; what they read, before."""
    activations = fed[read] if read in fed else normed(fed["x"])
    ranges = Ranges(-1)
    ranges.add(activations, (7.0, None))
    assert smooth(model, layers_of(model), {read: ranges}, alpha) == len(layers_of(model))
    drop_unused(model)
    return activations


def normed(x):
    """Layer norm as the graph's, in double precision."""
    centred = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    unit = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return (unit * SPREAD + SPREAD[::-1]).astype(np.float32)


def kinds(model):
    return [node.op_type for node in model.graph]


def assert_same(before, after):
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())


CASES = {
    "one": {},
    "three": {"count": 3},
    "norm": {"count": 2, "norm": True},
    "norm with another reader": {"norm": True, "other": True},
}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_graph_computes_the_same(case, alpha):
    model, read = products(**case)
    x = example()
    before = run(model, x=x)
    smoothed(model, read, alpha, x=x)
    assert_same(before, run(model, x=x))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("norm", [False, True])
def test_divisors_are_those_of_equation_4(norm, alpha):
    model, read = products(2, norm=norm)
    weights = [np.array(array_of(layer.weight)) for layer in layers_of(model)]
    activations = smoothed(model, read, alpha, x=example())
    largest = np.abs(np.concatenate(weights, axis=1)).max(axis=1)
    expected = np.abs(activations).max(axis=(0, 1)) ** alpha / largest ** (1 - alpha)
    for layer, weight in zip(layers_of(model), weights, strict=True):
        ratio = array_of(layer.weight) / weight
        np.testing.assert_allclose(ratio, np.tile(expected[:, None], 3), rtol=1e-4)


def test_half_and_half_levels_activations_and_weights():
    """With α = 1/2 both have the same largest magnitude in every feature: section 4 there."""
    model, read = products()
    x = smoothed(model, read, 0.5, x=example())
    (layer,) = layers_of(model)
    (division,) = (node for node in model.graph if node.op_type == "Mul")
    inverse = array_of(division.inputs[1])
    np.testing.assert_allclose(
        np.abs(x * inverse).max(axis=(0, 1)),
        np.abs(array_of(layer.weight)).max(axis=1),
        rtol=1e-5,
    )


def test_a_layer_norm_takes_the_division_over():
    model, read = products(2, norm=True)
    smoothed(model, read, 0.5, x=example())
    assert kinds(model) == ["LayerNormalization", "MatMul", "MatMul"]


def test_a_layer_norm_that_others_read_stays_as_it_is():
    model, read = products(1, norm=True, other=True)
    smoothed(model, read, 0.5, x=example())
    assert kinds(model).count("Mul") == 1
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    np.testing.assert_array_equal(array_of(norm.inputs[1]), SPREAD)


def test_products_of_one_tensor_share_one_division():
    model, read = products(3)
    smoothed(model, read, 0.5, x=example())
    assert kinds(model) == ["Mul", "MatMul", "MatMul", "MatMul"]


def test_a_feature_that_is_never_there_is_left_alone():
    model, read = products()
    (layer,) = layers_of(model)
    before = np.array(array_of(layer.weight))
    x = example()
    x[..., 2] = 0
    smoothed(model, read, 0.5, x=x)
    np.testing.assert_array_equal(array_of(layers_of(model)[0].weight)[2], before[2])
    assert np.all(np.isfinite(run(model, x=x)["y0"]))


def test_convolutions_are_left_alone():
    planes = Port("x", "float32", (1, 4, 5, 6))
    out = Port("y", "float32", planes.shape)
    model = parsed([conv("c", "x", "y")], [planes], [out], conv_weights("c", 4, 4))
    ranges = Ranges(1)
    ranges.add(np.ones(planes.shape, np.float32), (7.0, None))
    assert smooth(model, layers_of(model), {"x": ranges}, 0.5) == 0
    assert kinds(model) == ["Conv"]
