"""Quantise against a numpy emulation of integer arithmetic, and against what engines take.

The emulation follows Benoit Jacob et al., arXiv:1712.05877: real = step * integer; products are
summed as integers and scaled once.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper
from onnx.reference import ReferenceEvaluator

from jscc.calibration.graph import drop_unused, serialise_graph
from jscc.calibration.layers import layers_of
from jscc.calibration.quantize import quantise, quantise_weights
from jscc.runtime.ports import Port
from tiny_convolutions import normal, numbers, parsed, run

PLANES = Port("x", "float32", (2, 4, 7, 6))
ROWS = Port("x", "float32", (2, 5, 8))
PADS = [1, 1, 1, 1]


def example(port, seed=0):
    return np.random.default_rng(seed).normal(size=port.shape).astype(np.float32)


def step_of(values):
    return float(np.abs(values).max()) / 127


def integers(values, step):
    """QuantizeLinear: halves to even, 8 bits."""
    return np.clip(np.round(values / np.float32(step)), -128, 127).astype(np.int64)


def convolved(planes, kernel, groups=1):
    """Of integers, padded by 1."""
    batch, _, height, width = planes.shape
    padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((batch, len(kernel), height, width), np.int64)
    inputs = np.split(padded, groups, axis=1)
    per = len(kernel) // groups
    for group, part in enumerate(inputs):
        rows = slice(group * per, (group + 1) * per)
        for y in range(3):
            for x in range(3):
                window = part[:, :, y : y + height, x : x + width]
                out[:, rows] += np.einsum("bchw,oc->bohw", window, kernel[rows, :, y, x])
    return out


def conv_graph(groups=1):
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c", pads=PADS, group=groups)]
    constants = [normal("w", 6, 4 // groups, 3, 3), numbers("b", np.linspace(-1, 1, 6))]
    return parsed(nodes, [PLANES], [Port("y", "float32", (2, 6, 7, 6))], constants)


def matmul_graph():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    return parsed(nodes, [ROWS], [Port("y", "float32", (2, 5, 16))], [normal("w", 8, 16)])


def converted(model, **fed):
    """`model` with all its layers quantised, each tensor's step from what `fed` makes of it."""
    measured = {**fed, **run(model, **fed)}
    quantise(model, layers_of(model), lambda name: step_of(measured[name]))
    drop_unused(model)
    return model


def proto_of(model):
    proto = onnx.ModelProto.FromString(serialise_graph(model))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def nodes_of(model, kind):
    return [node for node in proto_of(model).graph.node if node.op_type == kind]


def initialisers(model):
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto_of(model).graph.initializer}


@given(
    arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(-50, 50, width=32)),
    st.integers(0, 2),
)
def test_no_weight_moves_by_more_than_half_its_step(weights, axis):
    stored = quantise_weights(weights, axis)
    steps = stored.steps.reshape([-1 if a == axis else 1 for a in range(3)])
    assert stored.steps.shape == (weights.shape[axis],)
    assert stored.numbers.min() >= -127  # so that -w is as exact as w
    assert np.all(np.abs(stored.floats - weights) <= steps / 2 * (1 + 1e-5) + 1e-30)


def test_the_largest_weight_of_each_feature_is_exact_and_a_dead_feature_stays_dead():
    weights = normal_array(5, 4, 3, 3)
    weights[2] = 0
    stored = quantise_weights(weights, 0)
    largest = np.abs(weights).reshape(5, -1).argmax(axis=1)
    rows = np.arange(5)
    np.testing.assert_allclose(
        stored.floats.reshape(5, -1)[rows, largest],
        weights.reshape(5, -1)[rows, largest],
        rtol=1e-6,
    )
    assert np.all(stored.floats[2] == 0)
    assert np.all(stored.steps > 0)


def normal_array(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_computes_what_integers_do(groups):
    model, x = conv_graph(groups), example(PLANES)
    exact = run(model, x=x)["y"]
    (layer,) = layers_of(model)
    weights = layer.weight.const_value.numpy()
    got = run(converted(model, x=x), saturates=False, x=x)["y"]
    in_step, out_step = step_of(x), step_of(exact)
    steps = np.abs(weights).max(axis=(1, 2, 3)) / 127
    kernel = np.round(weights / steps[:, None, None, None]).astype(np.int64)
    sums = convolved(integers(x, in_step), kernel, groups)
    bias = np.linspace(-1, 1, 6)[:, None, None]
    real = sums * (in_step * steps[:, None, None]) + bias
    expected = integers(real, out_step)
    np.testing.assert_allclose(got / out_step, np.round(got / out_step), atol=1e-3)
    off = np.abs(np.round(got / out_step) - expected)
    assert off.max() <= 1  # the bias is an integer there too
    assert np.mean(off > 0) < 0.02
    assert 0 < np.mean((got - exact) ** 2) < 1e-3 * np.mean(exact**2)


def test_weights_too_small_for_a_step_become_zero():
    stored = quantise_weights(np.float32([[1e-45, -1e-44], [1.0, 0.5]]), 0)
    assert np.all(stored.steps >= np.finfo(np.float32).tiny)
    assert not stored.numbers[0].any()


def test_a_matrix_product_computes_what_integers_do():
    model, x = matmul_graph(), example(ROWS)
    weights = layers_of(model)[0].weight.const_value.numpy()
    exact = run(model, x=x)["y"]
    got = run(converted(model, x=x), saturates=False, x=x)["y"]
    steps = np.abs(weights).max(axis=0) / 127
    sums = integers(x, step_of(x)) @ np.round(weights / steps).astype(np.int64)
    np.testing.assert_allclose(got, sums * (step_of(x) * steps), rtol=1e-5, atol=1e-6)
    assert 0 < np.mean((got - exact) ** 2) < 1e-3 * np.mean(exact**2)


@pytest.mark.parametrize("build", [conv_graph, matmul_graph])
def test_onnx_s_own_implementation_computes_the_same(build):
    """ONNX Runtime's fused kernels do not look at the axis of the weights' steps; this does."""
    port = PLANES if build is conv_graph else ROWS
    x = example(port)
    exact = run(build(), x=x)["y"]
    model = converted(build(), x=x)
    (got,) = ReferenceEvaluator(proto_of(model)).run(None, {"x": x})
    fused = run(model, saturates=False, x=x)["y"]
    # A convolution's output is rounded: one step where it stands on a half.
    step = step_of(exact) if build is conv_graph else 1e-5
    np.testing.assert_allclose(got, fused, rtol=1e-5, atol=1.001 * step)


def test_what_is_beyond_the_range_is_clipped():
    model, x = matmul_graph(), example(ROWS)
    quantise(model, layers_of(model), lambda name: 0.5 / 127)
    beyond = run(model, x=np.sign(x) * 9)["y"]
    within = run(model, x=np.sign(x) * np.float32(127 * 0.5 / 127))["y"]
    # Two's complement reaches one step further on the negative side.
    np.testing.assert_allclose(beyond, within, atol=2 * np.abs(within).max() / 127)


@pytest.mark.parametrize("build", [conv_graph, matmul_graph])
def test_engines_that_want_symmetric_int8_take_it(build):
    """TensorRT's parser refuses zero points that are not 0 and int32 DequantizeLinear (biases)."""
    model = build()
    port = PLANES if build is conv_graph else ROWS
    proto = proto_of(converted(model, x=example(port)))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    pairs = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == (5 if build is conv_graph else 3)
    for node in pairs:
        zero, step = constants[node.input[2]], constants[node.input[1]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert step.dtype == np.float32
        assert zero.shape == step.shape
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            assert constants[node.input[0]].dtype == np.int8


def optimised(model, tmp_path):
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        serialise_graph(model), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]


def test_onnx_runtime_runs_a_convolution_on_integers(tmp_path):
    kinds = optimised(converted(conv_graph(), x=example(PLANES)), tmp_path)
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds


def test_onnx_runtime_runs_a_matrix_product_on_integers(tmp_path):
    kinds = optimised(converted(matmul_graph(), x=example(ROWS)), tmp_path)
    assert {"MatMulIntegerToFloat", "QLinearMatMul"} & set(kinds)
    assert "MatMul" not in kinds


def attention_graph(*, shared_weight=False):
    """Three products of one input."""
    make = helper.make_node
    names = ("q", "k", "v")
    weights = ["w", "w", "w"] if shared_weight else ["wq", "wk", "wv"]
    nodes = [
        make("MatMul", ["x", weight], [name], name=name)
        for name, weight in zip(names, weights, strict=True)
    ]
    outputs = [Port(name, "float32", (2, 5, 8)) for name in names]
    constants = [normal(name, 8, 8) for name in dict.fromkeys(weights)]
    return parsed(nodes, [ROWS], outputs, constants)


def test_one_input_is_rounded_once_for_all_its_readers():
    model = converted(attention_graph(), x=example(ROWS))
    (pair,) = nodes_of(model, "QuantizeLinear")
    assert pair.input[0] == "x"
    products = nodes_of(model, "MatMul")
    assert len(products) == 3
    assert len({node.input[0] for node in products}) == 1


def test_weights_that_layers_share_are_stored_once():
    model = converted(attention_graph(shared_weight=True), x=example(ROWS))
    stored = [n for n, v in initialisers(model).items() if v.dtype == np.int8 and v.ndim == 2]
    assert stored == ["w_int8"]
    out = run(model, x=example(ROWS))
    np.testing.assert_array_equal(out["q"], out["v"])


def two_convs(between):
    make = helper.make_node
    middle = "h" if between is None else "a"
    nodes = [make("Conv", ["x", "w"], ["h"], name="one", pads=PADS)]
    if between is not None:
        nodes.append(make(between, ["h"], ["a"]))
    nodes.append(make("Conv", [middle, "w"], ["y"], name="two", pads=PADS))
    return parsed(nodes, [PLANES], [Port("y", "float32", PLANES.shape)], [normal("w", 4, 4, 3, 3)])


@pytest.mark.parametrize(("between", "pairs"), [(None, 3), ("Sigmoid", 4)])
def test_what_was_rounded_behind_a_convolution_is_not_rounded_again(between, pairs):
    model = two_convs(between)
    quantise(model, layers_of(model), lambda name: 0.02)
    assert len(nodes_of(model, "QuantizeLinear")) == pairs


def test_a_convolution_that_makes_the_output_keeps_its_name_and_rounds_it():
    model, x = conv_graph(), example(PLANES)
    quantise(model, layers_of(model), lambda name: 0.125)
    assert [output.name for output in proto_of(model).graph.output] == ["y"]
    out = run(model, x=x)["y"]
    np.testing.assert_array_equal(out * 8, np.round(out * 8))


def test_an_output_with_readers_is_rounded_for_all_of_them():
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["y"], name="one", pads=PADS),
        make("Neg", ["y"], ["z"]),
    ]
    outputs = [Port(name, "float32", PLANES.shape) for name in "yz"]
    model = parsed(nodes, [PLANES], outputs, [normal("w", 4, 4, 3, 3)])
    quantise(model, layers_of(model), lambda name: 0.125)
    out = run(model, x=example(PLANES))
    np.testing.assert_array_equal(out["z"], -out["y"])


def test_layers_that_were_not_chosen_stay_as_they_are():
    model = two_convs("Sigmoid")
    one, _ = layers_of(model)
    quantise(model, [one], lambda name: 0.02)
    (left,) = (node for node in nodes_of(model, "Conv") if node.name == "two")
    assert left.input[1] == "w"
    assert initialisers(model)["w"].dtype == np.float32
