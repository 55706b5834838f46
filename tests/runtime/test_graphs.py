"""What the walk tells of a graph is what the onnx package tells; what is dangerous is refused."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import tiny_bundle
from effort import little_effort
from jscc.runtime import graph_walk
from jscc.runtime.errors import BundleError
from jscc.runtime.graphs import check_policy, summarise
from jscc.runtime.onnx_wire import Reader
from jscc.runtime.ports import Port

X = Port("x", "float32", ("batch", 4))
Y = Port("y", "float32", ("batch", 4))
SIZES = {"graphs/g.onnx.data": 64}


def built(*nodes, initializers=(), domains=("",), inputs=(X,), outputs=(Y,)):
    graph = helper.make_graph(
        list(nodes), "g", [tiny_bundle.value(port) for port in inputs],
        [tiny_bundle.value(port) for port in outputs], initializer=list(initializers),
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, 20) for domain in domains]
    )


def checked(model):
    summary = summarise(model.SerializeToString(), "graphs/g.onnx")
    check_policy(summary, "graphs/g.onnx", SIZES)
    return summary


def refused(model, said, code="E_GRAPH_POLICY"):
    with pytest.raises(BundleError, match=said) as caught:
        checked(model)
    assert caught.value.code == code


def relu(index=0):
    return helper.make_node("Relu", ["x"], ["y" if not index else f"y{index}"])


def external(fields, **changes):
    """A model with one external tensor of 64 bytes, its reference made of `fields`."""
    tensor = TensorProto(name="w", dims=[4, 4], data_type=TensorProto.FLOAT, data_location=1)
    for key, value in fields:
        tensor.external_data.add(key=key, value=value)
    for name, value in changes.items():
        setattr(tensor, name, value)
    return tensor


GOOD = (("location", "g.onnx.data"), ("offset", "0"), ("length", "64"))


@pytest.mark.parametrize("which", ["codec", "diffusion"])
def test_a_summary_says_what_onnx_says(which):
    _, files = getattr(tiny_bundle, which)()
    for name, data in files.items():
        if not name.endswith(".onnx"):
            continue
        model = onnx.load_from_string(data)
        summary = summarise(data)
        assert summary.nodes == len(model.graph.node)
        assert summary.ops == {(node.domain, node.op_type) for node in model.graph.node}
        assert summary.opsets == {item.domain: item.version for item in model.opset_import}
        inside = [item for item in model.graph.initializer if not item.data_location]
        assert summary.initializer_bytes == sum(numpy_helper.to_array(t).nbytes for t in inside)
        for found, declared in (
            (summary.inputs, model.graph.input),
            (summary.outputs, model.graph.output),
        ):
            assert [port.name for port in found] == [item.name for item in declared]
            for port, item in zip(found, declared, strict=True):
                dims = item.type.tensor_type.shape.dim
                assert port.shape == tuple(dim.dim_param or dim.dim_value for dim in dims)
                assert port.dtype == "float32"


def test_dimensions_are_kept_as_they_are_written():
    port = Port("x", "float16", ("batch", 3, "height/8", 5))
    (found,) = checked(built(relu(), inputs=(port,))).inputs
    assert found == port


def test_a_dimension_that_is_not_written_is_a_question():
    model = built(relu())
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    assert summarise(model.SerializeToString()).inputs[0].shape == ("?", 4)


def test_initializers_among_the_inputs_are_no_ports():
    weight = numpy_helper.from_array(np.zeros((1, 4), np.float32), "w")
    model = built(relu(), initializers=[weight], inputs=(X, Port("w", "float32", (1, 4))))
    assert [port.name for port in summarise(model.SerializeToString()).inputs] == ["x"]


def test_ai_onnx_is_the_onnx_domain():
    model = built(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx"), domains=("ai.onnx",))
    assert checked(model).ops == {("", "Relu")}
    assert checked(model).opsets == {"": 20}


def test_fused_and_quantised_ops_pass():
    model = built(
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("FusedMatMul", ["a", "a"], ["b"], domain="com.microsoft"),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["y"]),
        domains=("", "com.microsoft"),
    )
    assert ("com.microsoft", "FusedMatMul") in checked(model).ops


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (helper.make_node("RandomNormal", [], ["y"], shape=[1]), "got op \"::RandomNormal\""),
        (helper.make_node("SequenceEmpty", [], ["y"]), "got op \"::SequenceEmpty\""),
        (helper.make_node("Evil", ["x"], ["y"], domain="evil"), "got op \"evil::Evil\""),
        (helper.make_node("PythonOp", ["x"], ["y"], domain="com.microsoft"), "com.microsoft::Py"),
    ],
)  # fmt: skip
def test_other_ops_are_refused(node, said):
    refused(built(node), said)


def test_other_domains_are_refused_even_unused():
    refused(built(relu(), domains=("", "evil")), r"got domains \[\"evil\"\]")


def test_functions_are_refused():
    model = built(relu())
    function = helper.make_function(
        "evil", "F", ["x"], ["y"], [relu()], [helper.make_opsetid("", 20)]
    )
    model.functions.append(function)
    refused(model, "got a function, expected plain nodes only")


def test_training_information_is_refused():
    model = built(relu())
    model.training_info.add().algorithm.CopyFrom(built(relu()).graph)
    refused(model, "got training information")


def test_sparse_tensors_are_refused():
    """A dense shape of 10^12 in a file of 200 bytes."""
    model = built(relu())
    sparse = model.graph.sparse_initializer.add(dims=[10**12])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    refused(model, "got a sparse tensor")
    node = helper.make_node("Constant", [], ["c"], sparse_value=sparse)
    refused(built(relu(), node), "got a sparse tensor")


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_subgraphs_are_refused(op):
    node = helper.make_node(op, ["x"], ["y"], body=built(relu()).graph)
    refused(built(node), f"got a subgraph in {op}")


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


@pytest.mark.parametrize(
    ("node", "initializers", "said"),
    [
        (
            ("ConstantOfShape", ["s"]),
            [ints("s", 10**6, 10**5)],
            "ConstantOfShape of 100000000000 el",
        ),
        (("Expand", ["x", "s"]), [ints("s", 1, 10**10)], "Expand of 10000000000 elements"),
        (("Tile", ["x", "s"]), [ints("s", 10**5)], "Tile growing 100000 times"),
        (("Resize", ["x", "", "", "s"]), [ints("s", 10**5, 10**5)], "Resize of 10000000000 el"),
        (("Pad", ["x", "s"]), [ints("s", 0, 10**9)], "Pad growing 1000000000 times"),
        (
            ("Resize", ["x", "", "s"]),
            [numpy_helper.from_array(np.array([1e3, 1e3], np.float32), "s")],
            "Resize growing 1000000 times",
        ),
        (
            ("Resize", ["x", "", "s"]),
            [helper.make_tensor("s", TensorProto.FLOAT, [2], [1e3, 1e3])],
            "Resize growing 1000000 times",
        ),
        (
            ("ConstantOfShape", ["s"]),
            [helper.make_tensor("s", TensorProto.INT64, [1], [10**11])],
            "ConstantOfShape of 100000000000 el",
        ),
    ],
)
def test_sizes_written_in_the_graph_are_bounded(node, initializers, said):
    op, inputs = node
    refused(built(helper.make_node(op, inputs, ["y"]), initializers=initializers), said)


def test_a_constant_node_hides_no_size():
    shape = helper.make_node("Constant", [], ["s"], value=ints("s", 10**11))
    decoy = helper.make_node("Constant", [], ["t"], value=ints("s", 1))
    fill = helper.make_node("ConstantOfShape", ["s"], ["y"])
    refused(built(shape, decoy, fill), "ConstantOfShape of 100000000000")
    shape = helper.make_node("Constant", [], ["s"], value_ints=[10**6, 10**6])
    refused(built(shape, fill), "ConstantOfShape of 1000000000000")
    numbers = [
        helper.make_node("Constant", [], [n], value_int=v)
        for n, v in (("a", 0), ("b", 10**12), ("c", 1))
    ]
    refused(
        built(*numbers, helper.make_node("Range", ["a", "b", "c"], ["y"])), "Range of 1000000000000"
    )


def test_a_decoy_constant_does_not_replace_an_initializer():
    decoy = helper.make_node("Constant", [], ["t"], value=ints("s", 1))
    fill = helper.make_node("ConstantOfShape", ["s"], ["y"])
    refused(built(decoy, fill, initializers=[ints("s", 10**11)]), "ConstantOfShape of 100000000000")


def test_a_huge_stride_is_refused():
    node = helper.make_node("ConvTranspose", ["x", "x"], ["y"], strides=[10**6, 1])
    refused(built(node), "ConvTranspose growing 1000000 times")


def test_external_data_inside_a_listed_file_pass():
    summary = checked(built(relu(), initializers=[external(GOOD)]))
    (tensor,) = summary.external
    assert (tensor.name, tensor.location, tensor.offset, tensor.length) == (
        "w",
        "g.onnx.data",
        0,
        64,
    )
    assert (tensor.dtype, tensor.shape) == ("float32", (4, 4))
    assert summary.initializer_bytes == 0


def test_shape_and_bytes_of_a_tensor_agree():
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.dims[0] = 5
    refused(
        built(relu(), initializers=[tensor]),
        r"got 16 bytes for float32\[5\], expected 20",
        "E_GRAPH_FORMAT",
    )
    tensor = TensorProto(name="w", dims=[10**12], data_type=TensorProto.FLOAT)
    refused(
        built(relu(), initializers=[tensor]),
        r"float32\[1000000000000\], expected its",
        "E_GRAPH_FORMAT",
    )
    tensor.dims[0] = -1
    refused(built(relu(), initializers=[tensor]), r"tensor of shape \[-1\]", "E_GRAPH_FORMAT")
    text = TensorProto(name="w", dims=[1], data_type=TensorProto.STRING, string_data=[b"x"])
    refused(
        built(relu(), initializers=[text]),
        "got element type 8, expected a number",
        "E_GRAPH_FORMAT",
    )


def field(number, kind, payload=b""):
    """One field on the wire."""
    head = (
        bytes([number << 3 | kind])
        if number < 16
        else bytes([(number << 3 | kind) & 0x7F | 0x80, number >> 4])
    )
    return head + (bytes([len(payload)]) + payload if kind == 2 else payload)


def in_tensor(*fields):
    """A model whose one initializer has these fields."""
    return field(7, 2, field(5, 2, b"".join(fields)))


def in_type(*fields):
    """A model whose one input has a type with these fields."""
    return field(7, 2, field(11, 2, field(2, 2, b"".join(fields))))


def in_dimension(*fields):
    """A model whose one input has one dimension with these fields."""
    shape = field(2, 2, field(1, 2, b"".join(fields)))
    return in_type(field(1, 2, field(1, 0, b"\1") + shape))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "got no graph, expected one"),
        (b"\x80", "got a number without end"),
        (b"\xff" * 11, "got a number without end"),
        (field(7, 2, b"") + field(7, 2, b""), "got field 7 twice, expected once"),
        (field(7, 0, b"\x01"), "got field 7 of wire type 0, expected 2"),
        (field(7, 3), "got wire type 3"),
        (b"\x00\x00", "got field number 0"),
        (b"\x3a\x7f", "got a field of 127 bytes, expected 0 at most"),
        (b"\x39abc", "got a field of 8 bytes, expected 3 at most"),
        (field(6, 2, b"\xff") + field(7, 2), "got a name that is no text"),
        (field(8, 2) + field(8, 2) + field(7, 2), "got opset of domain '' twice"),
        (in_tensor(field(2, 0, b"\1"), field(14, 0, b"\2")), "got data location 2"),
        (
            in_tensor(field(14, 0, b"\x81\x80\x80\x80\x10"), field(2, 0, b"\1")),
            "got data location 4294967297",
        ),
        (field(7, 2, field(11, 2, field(1, 2, b"x"))), "got port 'x' of another kind"),
        (in_type(field(1, 2, field(1, 0, b"\1") + field(2, 2)), field(4, 2)), "'' of another kind"),
        (in_dimension(field(1, 0, b"\xff" * 9 + b"\1")), "got dimension -1"),
        (in_dimension(field(1, 0, b"\1"), field(2, 2, b"n")), "got dimension 1, expected a size"),
    ],
)  # fmt: skip
def test_malformed_models_are_refused(data, said):
    with pytest.raises(BundleError, match=said) as caught:
        summarise(data, "g")
    assert caught.value.code == "E_GRAPH_FORMAT"


def test_packed_and_unpacked_dimensions_read_alike():
    flat = field(2, 0, b"\x01") + field(9, 2, bytes(24))
    for dims in (field(1, 0, b"\x02") + field(1, 0, b"\x03"), field(1, 2, b"\x02\x03")):
        summarise(field(7, 2, field(5, 2, dims + flat)))
    with pytest.raises(BundleError, match="got 24 bytes for"):
        summarise(field(7, 2, field(5, 2, field(1, 2, b"\x02\x04") + flat)))


def test_the_walk_is_bounded():
    with pytest.raises(BundleError, match="got too many fields"):
        list(Reader("g", left=10).fields(memoryview(b"\x08\x01" * 11)))
    with pytest.raises(BundleError, match="got too many fields"):
        Reader("g", left=10).message(memoryview(field(1, 2, b"\x01" * 20)), {1: 0}, {1})
    with pytest.raises(BundleError, match="got more than 100000 items of field 1") as caught:
        Reader("g").message(memoryview(b"\x08\x01" * 100_001), {1: 0}, {1})
    assert caught.value.code == "E_GRAPH_POLICY"


SEED = tiny_bundle.diffusion()[1]["graphs/denoise.onnx"]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=4))
def test_any_mutant_is_read_or_refused(edits):
    data = bytearray(SEED)
    for place, value in edits:
        data[place] = value
    code = "E_GRAPH_"
    try:
        check_policy(summarise(bytes(data)), "g", {"graphs/denoise.onnx.data": 64})
    except BundleError as error:
        code = error.code
    assert code.startswith("E_GRAPH_")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data):
    with pytest.raises(BundleError):
        check_policy(summarise(data), "graphs/g.onnx", {})


def test_nodes_are_counted_over_all_graphs(monkeypatch):
    monkeypatch.setattr(graph_walk, "NODE_LIMIT", 2)
    loop = helper.make_node("Loop", ["x"], ["y"], body=built(relu(), relu(1)).graph)
    refused(built(loop), "got more than 2 nodes, expected at most 2")
    assert checked(built(relu(), relu(1))).nodes == 2


def test_attributes_of_functions_are_walked_too():
    model = built(relu())
    function = helper.make_function("f", "F", [], [], [relu()], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("w", external((("location", "/x"),))))
    model.functions.append(function)
    refused(model, "got length ''|location", "E_GRAPH_EXTERNAL")


def test_a_large_graph_is_walked_in_time():
    """20,000 nodes, twice what Stable Diffusion has."""
    nodes = [
        helper.make_node("Conv", ["x", "x"], [f"y{i}"], pads=[1, 1, 1, 1]) for i in range(20_000)
    ]
    data = built(*nodes).SerializeToString()
    with little_effort():
        assert summarise(data).nodes == 20_000


def test_growth_is_finite_for_ordinary_graphs():
    assert not math.isinf(summarise(SEED).elements[0])
