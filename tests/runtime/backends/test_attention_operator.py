"""Attention as one operation: the same values out of the engine, and whatever else it may meet."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from jscc.runtime.backends.attention import fused
from jscc.runtime.errors import BundleError
from jscc.runtime.onnx_edit import Tensor, make_node, read_graph

HEADS, D, V = 3, 8, 6


def port(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    *,
    bias=False,
    axis=-1,
    second_reader=False,
    key_batch="b",
    heads=HEADS,
    factor=0.5,
    planes=(-1, 5, D),
    unplanes=(-1, HEADS, D, 5),
    dtype=TensorProto.FLOAT,
):
    """Attention as PyTorch's exporter writes it, with the keys' planes as one axis between."""
    constants = [
        numpy_helper.from_array(
            np.array([factor], helper.tensor_dtype_to_np_dtype(dtype)), "factor"
        ),
        numpy_helper.from_array(np.array(planes), "planes"),
        numpy_helper.from_array(np.array(unplanes), "unplanes"),
        numpy_helper.from_array(np.array([0.0, 1, 0, 2, 0], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Reshape", ["k", "planes"], ["k1"]),
        helper.make_node("Transpose", ["k1"], ["k2"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["k2", "unplanes"], ["k3"]),
        helper.make_node("Mul", ["k3", "factor"], ["kt"]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
    ]
    if bias:
        nodes.append(helper.make_node("Add", ["scores", "bias"], ["biased"]))
    nodes += [
        helper.make_node("Softmax", ["biased" if bias else "scores"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    outputs = [port("y", None, dtype)]
    if second_reader:
        outputs.append(port("scores", None, dtype))
    inputs = [
        port("q", ["b", heads, "n", D], dtype),
        port("k", [key_batch, heads, 5, D], dtype),
        port("v", ["b", heads, 5, V], dtype),
    ]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, initializer=constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


def run(data, arrays):
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, arrays)[0]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"q": (2, HEADS, 7, D), "k": (2, HEADS, 5, D), "v": (2, HEADS, 5, V)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def ops(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def test_same_values(arrays):
    """Equation 1 of "Attention Is All You Need", arXiv 1706.03762, written out."""
    data = fused(model(factor=D**-0.5))
    assert "MultiHeadAttention" in ops(data)
    assert "Softmax" not in ops(data)
    assert "MatMul" not in ops(data)
    scores = np.einsum("bhnd,bhmd->bhnm", arrays["q"], arrays["k"], dtype=np.float64) / D**0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(run(data, arrays), weights @ arrays["v"], atol=2e-6)


@pytest.mark.parametrize(
    "unlike",
    [
        {"bias": True},
        {"axis": 2},
        {"second_reader": True},  # somebody else wants the scores
        {"key_batch": 1},  # one set of keys for all images: the operation would refuse it
        {"heads": "h"},  # a number of heads that is not known
        {"factor": 0.0},  # the operation takes it for the usual one
        {"factor": float("inf")},
        {"planes": (-1, D, 5), "unplanes": (-1, HEADS, D, 5)},  # no transpose of the keys
        {"planes": (2, 5 * HEADS, D), "unplanes": (2, HEADS, D, 5)},  # heads among the tokens
        {"dtype": TensorProto.DOUBLE},  # for which there is no such operation
    ],
    ids=str,
)
def test_left_alone(unlike):
    data = model(**unlike)
    assert fused(data) is data


def test_other_fields_are_kept():
    """Metadata, functions and every initializer come through a rewritten graph unchanged."""
    proto = onnx.load_from_string(model())
    helper.set_model_props(proto, {"who": "asks"})
    proto.doc_string = "words"
    proto.graph.doc_string = "more words"
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(300), "long"))
    after = onnx.load_from_string(fused(proto.SerializeToString()))
    assert after.doc_string == "words"
    assert after.graph.doc_string == "more words"
    assert after.metadata_props == proto.metadata_props
    assert list(after.graph.initializer)[-5:] == list(proto.graph.initializer)
    assert list(after.graph.input) == list(proto.graph.input)
    assert {opset.domain: opset.version for opset in after.opset_import} == {
        "": 20,
        "com.microsoft": 1,
    }


@pytest.mark.parametrize("size", [("b", HEADS, "n", D), ("b", HEADS, 5, D)])
def test_shapes_that_are_computed(size):
    """As the exporter has them where sizes are open: pieces of the keys' own shape."""
    proto = onnx.load_from_string(model())
    proto.graph.input[1].CopyFrom(port("k", size))
    proto.graph.input[2].CopyFrom(port("v", [*size[:3], V]))
    constants = {"least": -(2**63), "most": 2**63 - 1, "one": -1, "two": -2}
    for name, number in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    slices = {"outer": ("least", "two"), "last": ("one", "most"), "before": ("two", "one")}
    made = [helper.make_node("Shape", ["k"], ["shape"])]
    made += [helper.make_node("Slice", ["shape", *ends], [n]) for n, ends in slices.items()]
    made.append(helper.make_node("Slice", ["shape", "two", "most"], ["inner"]))
    made.append(helper.make_node("Concat", ["one", "inner"], ["planes2"], axis=0))
    made.append(helper.make_node("Concat", ["outer", "last", "before"], ["unplanes2"], axis=0))
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for node in proto.graph.node:
        if node.op_type == "Reshape":
            node.input[1] += "2"
    assert "MultiHeadAttention" in ops(fused(proto.SerializeToString()))
    # The other way round it is no transpose any more.
    swapped = next(node for node in proto.graph.node if node.output[0] == "unplanes2")
    swapped.input[:] = ["outer", "before", "last"]
    assert "MultiHeadAttention" not in ops(fused(proto.SerializeToString()))


def test_one_may_not_take_what_another_reads(arrays):
    """What is one attention's answer may be another's scores: only the first is replaced."""
    proto = onnx.load_from_string(model())
    del proto.graph.output[:]
    proto.graph.output.append(port("z", None))
    proto.graph.node[-1].input[1] = "otherT"
    proto.graph.node.insert(
        0, helper.make_node("Transpose", ["other"], ["otherT"], perm=[0, 1, 3, 2])
    )
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["weights2"], axis=-1))
    proto.graph.node.append(helper.make_node("MatMul", ["weights2", "v"], ["z"]))
    proto.graph.input.append(port("other", ["b", HEADS, 5, 5]))
    proto.graph.value_info.append(port("otherT", ["b", HEADS, 5, 5]))
    proto.graph.value_info.append(port("weights", ["b", HEADS, "n", 5]))
    plain = proto.SerializeToString()
    data = fused(plain)
    assert ops(data).count("MultiHeadAttention") == ops(data).count("Softmax") == 1
    arrays["other"] = arrays["k"][..., :5] + 1
    np.testing.assert_allclose(run(data, arrays), run(plain, arrays), atol=2e-6)


@pytest.mark.parametrize(("op", "side"), [("Softmax", "input"), ("MatMul", "input")])
def test_operations_without_their_inputs(op, side):
    """Whatever an untrusted graph leaves out is the engine's to refuse, not ours to trip over."""
    proto = onnx.load_from_string(model())
    for node in proto.graph.node:
        if node.op_type == op:
            del getattr(node, side)[:]
    assert "MultiHeadAttention" not in ops(fused(proto.SerializeToString()))


def test_names_that_are_taken():
    proto = onnx.load_from_string(model())
    proto.graph.node[-1].output[0] = "jscc_attention_0_mixed"
    proto.graph.output[0].name = "jscc_attention_0_mixed"
    data = proto.SerializeToString()
    assert fused(data) is data


def test_nothing_to_do():
    data = fused(model())
    assert fused(data) is data


@pytest.mark.parametrize("cut", [60, 200, 350])
def test_broken_bytes_are_refused(cut):
    """A file that is cut short is never half a graph."""
    data = model() + model()[:cut]
    with pytest.raises(BundleError, match="bytes, expected"):
        fused(data)


def test_constants_and_attributes():
    graph = read_graph(model(factor=0.25))
    assert graph.scalar("factor") == 0.25
    assert graph.scalar("planes") is None  # int64
    assert graph.scalar("bias") is None  # five of them
    assert graph.nodes[1].ints("perm") == (0, 2, 1)
    assert graph.nodes[1].ints("axis") == ()
    assert graph.nodes[5].ints("axis") == (-1,)
    assert graph.integers("planes") == (-1, 5, D)
    assert graph.integers("factor") is None
    assert graph.tensor("q") == Tensor(TensorProto.FLOAT, ("b", HEADS, "n", D))
    assert graph.tensor("scores") is None
    assert graph.readers == {
        "k": 1, "planes": 1, "k1": 1, "k2": 1, "unplanes": 1, "k3": 1, "factor": 1,
        "q": 1, "kt": 1, "scores": 1, "weights": 1, "v": 1, "y": 1,
    }  # fmt: skip


def test_negative_numbers_are_written_as_protobuf_does():
    node = onnx.NodeProto.FromString(make_node("Softmax", ["x"], "y", axis=-1).raw)
    assert [attribute.i for attribute in node.attribute] == [-1]
