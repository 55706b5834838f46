"""Activations around 128 instead of 0: the same values, in the integers that x86 multiplies."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from jscc.runtime.backends.quantised import ZERO_POINT, unsigned


def rounded(name, step):
    """A pair on `name` with the shared zero point."""
    to_int = helper.make_node("QuantizeLinear", [name, step, ZERO_POINT], [f"{name}_int8"])
    back = helper.make_node("DequantizeLinear", [f"{name}_int8", step, ZERO_POINT], [f"{name}_q"])
    return [to_int, back]


def conv(before, kernel, after):
    steps = [f"{kernel}_int8", f"{kernel}_step", f"{kernel}_zero"]
    return [
        helper.make_node("DequantizeLinear", steps, [f"{kernel}_q"], axis=0),
        helper.make_node("Conv", [f"{before}_q", f"{kernel}_q"], [after], pads=[1, 1, 1, 1]),
        *rounded(after, f"{after}_scale"),
    ]


def kernel(name, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (8, 8, 3, 3), dtype=np.int8)
    return [
        numpy_helper.from_array(values, f"{name}_int8"),
        numpy_helper.from_array(np.full(8, 0.002, np.float32), f"{name}_step"),
        numpy_helper.from_array(np.zeros(8, np.int8), f"{name}_zero"),
    ]


@pytest.fixture(scope="module")
def graph():
    """A residual block: what the first convolution returns has two readers."""
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 12, 16]) for n in "xy"]
    scales = {"x_scale": 0.02, "a_scale": 0.05, "b_scale": 0.05}
    nodes = [
        *rounded("x", "x_scale"),
        *conv("x", "first", "a"),
        *conv("a", "second", "b"),
        helper.make_node("Add", ["a_q", "b_q"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(0, np.int8), ZERO_POINT),
        *(numpy_helper.from_array(np.float32(value), name) for name, value in scales.items()),
        *kernel("first", 1),
        *kernel("second", 2),
    ]
    made = helper.make_graph(nodes, "block", [port[0]], [port[1]], initializer=constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def session(data, path=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if path is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_the_values_stay_the_same(graph):
    x = np.random.default_rng(3).standard_normal((1, 8, 12, 16)).astype(np.float32)
    before, after = (session(data).run(None, {"x": x})[0] for data in (graph, unsigned(graph)))
    np.testing.assert_array_equal(before, after)
    assert np.ptp(before) > 1


def test_one_byte_and_its_type_are_changed(graph):
    changed = onnx.ModelProto.FromString(unsigned(graph))
    zero = next(each for each in changed.graph.initializer if each.name == ZERO_POINT)
    assert numpy_helper.to_array(zero) == np.uint8(128)
    assert numpy_helper.to_array(zero).dtype == np.uint8
    zero.CopyFrom(numpy_helper.from_array(np.array(0, np.int8), ZERO_POINT))
    assert changed == onnx.ModelProto.FromString(graph)
    onnx.checker.check_model(onnx.ModelProto.FromString(unsigned(graph)), full_check=True)


def test_every_convolution_becomes_an_integer_one(graph, tmp_path):
    session(unsigned(graph), tmp_path / "optimised.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert ops.count("QLinearConv") == 2
    assert "Conv" not in ops


def without(graph, change):
    model = onnx.ModelProto.FromString(graph)
    zero = next(each for each in model.graph.initializer if each.name == ZERO_POINT)
    change(zero)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "change",
    [
        lambda zero: zero.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int8), ZERO_POINT)),
        lambda zero: zero.CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), ZERO_POINT)),
        lambda zero: zero.CopyFrom(numpy_helper.from_array(np.array(5, np.int8), ZERO_POINT)),
        lambda zero: setattr(zero, "name", f"{ZERO_POINT}_of_another"),
    ],
)
def test_another_zero_point_is_left_alone(graph, change):
    changed = without(graph, change)
    assert unsigned(changed) == changed


def test_a_graph_that_rounds_nothing_is_left_alone(codec_bundle):
    graph = codec_bundle.graph("decode")
    assert unsigned(graph) is graph
