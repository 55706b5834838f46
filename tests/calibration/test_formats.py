"""Eight-bit floats against their definition, bit by bit, and in a graph that engines run.

E4M3 as Paulius Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433, define it:
a sign, four bits of exponent with bias 7, three of mantissa, no infinities, NaN where all are set.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper

from jscc.calibration.calibrate import FP8 as FP8_NAME
from jscc.calibration.calibrate import PRECISIONS
from jscc.calibration.formats import FP8, INT8
from jscc.calibration.graph import drop_unused, serialise_graph
from jscc.calibration.layers import layers_of
from jscc.calibration.quantize import quantise, quantise_weights
from jscc.runtime.backends.onnxruntime import session_builder
from jscc.runtime.backends.quantised import computes_in_float
from jscc.runtime.ports import Port
from tiny_convolutions import normal, numbers, parsed

PLANES = Port("x", "float32", (2, 4, 7, 6))


def value_of(bits):
    """What eight bits stand for."""
    sign, exponent, mantissa = bits >> 7, bits >> 3 & 15, bits & 7
    if (exponent, mantissa) == (15, 7):
        return np.nan
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


TABLE = np.array([value_of(bits) for bits in range(256)])
FINITE = np.unique(TABLE[np.isfinite(TABLE)])


def nearest(values):
    """By search through all finite numbers; the even mantissa of two that are as near."""
    flat = np.clip(np.asarray(values, np.float64).ravel(), FINITE[0], FINITE[-1])
    off = np.abs(flat[:, None] - FINITE[None])
    found = np.empty(flat.shape)
    for row, each in enumerate(off):
        near = FINITE[each == each.min()]
        even = [x for x in near if int(np.flatnonzero(x == TABLE)[0]) % 2 == 0]
        found[row] = near[0] if len(near) == 1 else even[0]
    return found.reshape(np.shape(values)).astype(np.float32)


def test_the_largest_number_is_that_of_the_definition():
    assert FP8.largest == FINITE[-1] == 448
    assert FP8.dtype.itemsize == INT8.dtype.itemsize == 1
    assert FP8.name == FP8_NAME
    assert FP8_NAME in PRECISIONS


def test_every_number_is_kept():
    assert np.array_equal(FP8.round(FINITE.astype(np.float32)).astype(np.float64), FINITE)


@given(arrays(np.float32, 32, elements=st.floats(-600, 600, width=32)))
def test_the_nearest_number_is_stored(values):
    assert np.array_equal(FP8.round(values).astype(np.float32), nearest(values))


@pytest.mark.parametrize("value", [449.0, 464.0, 465.0, 1e30, np.inf])
def test_what_lies_beyond_is_the_largest_and_never_nan(value):
    assert FP8.round(np.float32([value, -value])).astype(np.float32).tolist() == [448.0, -448.0]


@pytest.mark.parametrize("axis", [0, 1])
def test_no_weight_moves_by_more_than_half_a_unit_in_the_last_place(axis):
    weights = np.random.default_rng(2).normal(size=(5, 4, 3, 3)).astype(np.float32)
    weights[2, 1] = 0.0
    stored = quantise_weights(weights, axis, FP8)
    shape = [-1 if a == axis else 1 for a in range(4)]
    scaled = np.abs(weights / stored.steps.reshape(shape))
    unit = 2.0 ** (np.floor(np.log2(np.maximum(scaled, 2.0**-6))) - 3)
    off = np.abs(stored.floats - weights) / stored.steps.reshape(shape)
    assert np.all(off <= unit / 2 * (1 + 1e-5))
    assert scaled.max() == pytest.approx(448.0, rel=1e-6)


def graph():
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="r"),
    ]
    constants = [normal("w", 6, 4, 3, 3), numbers("b", np.linspace(-1, 1, 6))]
    return parsed(nodes, [PLANES], [Port("y", "float32", (2, 6, 7, 6))], constants)


def test_a_layer_reads_rounded_numbers_and_computes_in_float32():
    """Through ONNX Runtime as a receiver asks it; its output is not rounded."""
    x = np.random.default_rng(3).normal(size=PLANES.shape).astype(np.float32)
    step = float(np.abs(x).max()) / 448
    model = graph()
    (layer,) = layers_of(model)
    weight = layer.weight.const_value.numpy()
    quantise(model, [layer], lambda name: {"x": step}[name], FP8)
    drop_unused(model)
    data = serialise_graph(model)
    onnx.checker.check_model(onnx.ModelProto.FromString(data), full_check=True)
    assert computes_in_float(data)
    session = session_builder("tiny", data, {}, provider="cpu", threads=1)()
    (found,) = session.run(None, {"x": x})

    peaks = np.abs(weight).reshape(6, -1).max(axis=1)
    steps = (peaks / np.float32(448)).reshape(6, 1, 1, 1)
    rounded_w = nearest(weight / steps) * steps
    rounded_x = nearest(x / np.float32(step)) * np.float32(step)
    plain = onnxruntime.InferenceSession(
        serialise_graph(with_weights(graph(), rounded_w)), providers=["CPUExecutionProvider"]
    )
    (expected,) = plain.run(None, {"x": rounded_x})
    np.testing.assert_allclose(found, expected, atol=2e-5)
    (exact,) = plain.run(None, {"x": x})
    assert np.abs(found - exact).max() > 1e-3


def with_weights(model, weights):
    proto = onnx.ModelProto.FromString(serialise_graph(model))
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float32), "w"))
    from onnx_ir import serde

    return serde.deserialize_model(proto)


def test_integers_stay_integers_in_the_engine():
    model = graph()
    quantise(model, layers_of(model), lambda name: 0.1)
    assert not computes_in_float(serialise_graph(model))
    assert not computes_in_float(serialise_graph(graph()))
