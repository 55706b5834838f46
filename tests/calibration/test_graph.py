"""Graph: a stage is read without a copy, and written so that ONNX Runtime computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

import tiny_bundle
import tiny_convolutions
from jscc.calibration import graph as graph_module
from jscc.calibration.graph import (
    array_of,
    constant,
    drop_unused,
    parse_graph,
    read_graph,
    serialise_graph,
    write_graph,
)
from jscc.runtime.ports import Port
from tiny_convolutions import normal, parsed, run

X, Y = Port("x", "float32", ("batch", 8)), Port("y", "float32", ("batch", 64))
LARGE = "block.up.weight"  # the weights that lie in a file of their own


def fed():
    rng = np.random.default_rng(5)
    planes = {name: rng.normal(size=(1, 4, 3, 5)).astype(np.float32) for name in ("latent", "hint")}
    return {**planes, "timestep": np.array([399], np.float32)}


def of_file(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, fed())


def test_weights_of_another_file_are_a_view_of_it(looped):
    model = read_graph(looped, "denoise")
    (file,) = looped.external("denoise").values()
    weight = array_of(model.graph.initializers[LARGE])
    assert np.shares_memory(weight, np.frombuffer(file, np.uint8))
    expected, _, _ = tiny_convolutions.denoise_graph()
    (tensor,) = (t for t in expected.graph.initializer if t.name == LARGE)
    np.testing.assert_array_equal(weight, onnx.numpy_helper.to_array(tensor))


def test_serialised_it_refers_to_the_same_place_and_stays_usable(looped):
    model = read_graph(looped, "denoise")
    proto = onnx.ModelProto.FromString(serialise_graph(model))
    (tensor,) = (t for t in proto.graph.initializer if t.name == LARGE)
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    where = {entry.key: entry.value for entry in tensor.external_data}
    assert where["location"] == "denoise.onnx.data"
    assert int(where["length"]) == 8 * 16 * 4
    assert not tensor.raw_data
    assert array_of(model.graph.initializers[LARGE]).shape == (8, 16)


@pytest.mark.parametrize("limit", [1 << 20, 64], ids=["inside", "apart"])
def test_what_is_written_computes_what_was_read(looped, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(graph_module, "EMBEDDED_BYTES", limit)
    monkeypatch.setattr(graph_module, "_STORED_APART", 64)
    files = write_graph(read_graph(looped, "denoise"), "denoise", tmp_path)
    apart = {"graphs/denoise.onnx.data"} if limit == 64 else set()
    assert set(files) == {"graphs/denoise.onnx"} | apart
    assert all(path.parent == tmp_path for path in files.values())
    expected = of_file(looped.path / "graphs" / "denoise.onnx")
    for got, wanted in zip(of_file(files["graphs/denoise.onnx"]), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_unknown_stage_is_a_lookup_error(looped):
    with pytest.raises(LookupError, match="denoiser"):
        read_graph(looped, "denoiser")


def test_types_that_the_file_leaves_out_are_inferred():
    """onnx's helper writes no types of what lies inside."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    plain = tiny_bundle.model(nodes, [X], [Y], [normal("w", 8, 64)])
    assert not plain.graph.value_info
    model = parse_graph(plain.SerializeToString(), {})
    (inner,) = model.graph[0].outputs
    assert inner.dtype == ir.DataType.FLOAT
    assert inner.shape is not None
    assert inner.shape[1] == 64


def test_a_constant_is_there_under_its_name():
    model = parsed([helper.make_node("MatMul", ["x", "w"], ["y"])], [X], [Y], [normal("w", 8, 64)])
    value = constant(model, "twice", 2 * array_of(model.graph.initializers["w"]))
    x = np.ones((2, 8), np.float32)
    before = run(model, x=x)["y"]
    model.graph[0].replace_input_with(1, value)
    np.testing.assert_array_equal(run(model, x=x)["y"], 2 * before)


def test_what_no_output_needs_is_dropped_with_its_weights():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "v"], ["idle"]),
    ]
    model = parsed(nodes, [X], [Y], [normal("w", 8, 64), normal("v", 8, 64)])
    drop_unused(model)
    assert [node.outputs[0].name for node in model.graph] == ["y"]
    assert set(model.graph.initializers) == {"w"}
