"""Saturation: sums of large products are exact, whatever the processor's kernels would do."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from jscc.calibration.formats import REDUCED_INT8
from jscc.runtime.backends import onnxruntime as module
from jscc.runtime.backends.engines import make_backend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.quantised import FLOAT8_ZERO_POINT, ZERO_POINT, is_x86
from jscc.runtime.backends.saturation import MAY_CUT_OFF, cuts_off_sums, multiplies_integers
from jscc.runtime.errors import UnavailableError
from jscc.runtime.machine import describe_machine
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port

VNNI = {"avx_vnni", "avx512_vnni", "amx_int8"}
SIZES = (1, 64, 16, 16)
PORTS = Port("x", "float32", SIZES), Port("y", "float32", SIZES)
ENTRY = StageEntry("graphs/wide.onnx", 20, False, PORTS[:1], PORTS[1:])
OPTION = "session.x64quantprecision"


def pair(before, step, after):
    return [
        helper.make_node("QuantizeLinear", [before, step, ZERO_POINT], [f"{before}_int8"]),
        helper.make_node("DequantizeLinear", [f"{before}_int8", step, ZERO_POINT], [after]),
    ]


def wide(kind, largest=127):
    """One layer of the largest weights, read by activations that are at their largest."""
    shape = (64, 64, 3, 3) if kind == "Conv" else (16, 16)
    kernels = np.full(shape, largest, np.int8)
    kernels[..., 1::3] = -largest
    axis, steps = (0, 64) if kind == "Conv" else (1, 16)
    constants = {
        ZERO_POINT: np.int8(0), "x_scale": np.float32(0.02), "y_scale": np.float32(0.5),
        "w": kernels, "w_step": np.full(steps, 0.001, np.float32),
        "w_zero": np.zeros(steps, np.int8),
    }  # fmt: skip
    attributes = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {}
    nodes = [
        *pair("x", "x_scale", "x_q"),
        helper.make_node("DequantizeLinear", ["w", "w_step", "w_zero"], ["w_q"], axis=axis),
        helper.make_node(kind, ["x_q", "w_q"], ["c"], **attributes),
        *pair("c", "y_scale", "y"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SIZES) for n in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    made = helper.make_graph(nodes, "wide", ports[:1], ports[1:], initializer=tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def rounded_in_float(graph, x):
    """What the graph says, node by node."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sums_of_large_products_are_exact(engine, kind):
    """Two of 255 times 127 are 64770; 16 bits hold 32767."""
    if engine == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    x = np.random.default_rng(4).choice(np.float32([2.5, 2.5, 2.5, -2.5]), SIZES)
    expected = rounded_in_float(wide(kind), x)
    session = make_backend(engine, threads=1).load("wide", ENTRY, wide(kind), {})
    assert np.ptp(expected) > 4
    assert np.abs(session.run({"x": x})["y"] - expected).max() <= 0.5  # one step


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
def test_the_usual_kernels_are_exact_for_weights_of_a_reduced_range(monkeypatch, kind):
    """What `jscc calibrate --reduce-range` is for; see `REDUCED_INT8`."""
    monkeypatch.setattr(module, "cuts_off_sums", lambda: False)
    x = np.random.default_rng(4).choice(np.float32([2.5, 2.5, 2.5, -2.5]), SIZES)
    reduced = wide(kind, int(REDUCED_INT8.largest_weight))
    expected = rounded_in_float(reduced, x)
    session = make_backend(threads=1).load("wide", ENTRY, reduced, {})
    assert np.ptp(expected) > 4
    assert np.abs(session.run({"x": x})["y"] - expected).max() <= 0.5  # one step


def test_the_trial_agrees_with_what_the_processor_says():
    features = describe_machine().features
    if is_x86() and "avx2" not in features:
        pytest.skip("this processor is older, or its instructions are not known")
    assert cuts_off_sums() is (is_x86() and VNNI.isdisjoint(features))


@pytest.mark.parametrize("cut", [True, False])
def test_slower_kernels_are_asked_for_only_where_others_cut_off(monkeypatch, cut):
    """Where VNNI is, they would take its place."""
    monkeypatch.setattr(module, "cuts_off_sums", lambda: cut)

    options = module._options(wide("Conv"), 1, watched=False)
    floats = module._options(b"Conv", 1, watched=False)
    with pytest.raises(RuntimeError, match=OPTION):
        floats.get_session_config_entry(OPTION)
    if cut:
        assert options.get_session_config_entry(OPTION) == "1"
    else:
        with pytest.raises(RuntimeError, match=OPTION):
            options.get_session_config_entry(OPTION)


def test_another_library_s_provider_does_not_take_what_it_may_cut_off(monkeypatch, codec_bundle):
    """In a build with that provider, which starts as this one does."""
    monkeypatch.setitem(module.PROVIDERS, "openvino", "CPUExecutionProvider")
    monkeypatch.setattr(module, "cuts_off_sums", lambda: True)
    backend = OnnxRuntimeBackend(providers=("openvino", "cpu"), threads=1)
    session = backend.load("wide", ENTRY, wide("Conv"), {})
    assert session.provider == "cpu"
    assert session.fallbacks == (f"stage 'wide': openvino {MAY_CUT_OFF}",)
    alone = OnnxRuntimeBackend(providers=("openvino",), threads=1)
    codec = codec_bundle.manifest.stages["decode"]
    floats = alone.load("decode", codec, codec_bundle.graph("decode"), {})
    assert (floats.provider, floats.fallbacks) == ("openvino", ())
    with pytest.raises(UnavailableError, match=MAY_CUT_OFF) as caught:
        alone.load("wide", ENTRY, wide("Conv"), {})
    assert caught.value.code == "E_EP_MISSING"
    monkeypatch.setattr(module, "cuts_off_sums", lambda: False)
    assert backend.load("wide", ENTRY, wide("Conv"), {}).provider == "openvino"


def test_which_graphs_multiply_integers(codec_bundle):
    graph = wide("MatMul")
    assert multiplies_integers(graph)
    assert not multiplies_integers(codec_bundle.graph("decode"))
    floats = graph.replace(ZERO_POINT.encode(), FLOAT8_ZERO_POINT.encode())
    assert not multiplies_integers(floats)
    only_weights = graph.replace(b"QuantizeLinear", b"Identity")
    assert not multiplies_integers(only_weights)
