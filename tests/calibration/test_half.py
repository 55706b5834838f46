"""Half: what float16 spoils stays float32, and the graph computes nearly the same.

Graphs are run by onnx's reference implementation: ONNX Runtime's CPU computes most of float16 in
float32, and so shows neither overflow nor rounding inside.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tiny_convolutions
from jscc.calibration.graph import drop_unused, parse_graph, serialise_graph
from jscc.calibration.half import LARGEST, convert_to_half, half_tensors, overflowing
from jscc.calibration.layers import layers_of
from jscc.calibration.ranges import Ranges
from jscc.runtime.ports import Port
from tiny_convolutions import normal, numbers, parsed, run

ROWS = Port("x", "float32", (3, 8))
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def example(seed=0):
    return np.random.default_rng(seed).normal(size=ROWS.shape).astype(np.float32)


def rounded(model, **fed):
    """The output, every float16 tensor on the way really rounded to it."""
    with np.errstate(over="ignore", invalid="ignore"):
        (out,) = ReferenceEvaluator(onnx.ModelProto.FromString(serialise_graph(model))).run(
            None, fed
        )
    return out


def converted(model, overflow=(), exact=()):
    convert_to_half(model, overflow, exact)
    drop_unused(model)
    return model


def types_of(model):
    """Element type of every tensor, by onnx's own inference, and the checked graph."""
    proto = onnx.ModelProto.FromString(serialise_graph(model))
    del proto.graph.value_info[:]  # so that nothing is taken on trust
    onnx.checker.check_model(proto)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {t.name: t.data_type for t in inferred.initializer}, inferred


def inputs_of(model, kind):
    """Types that the nodes of `kind` read."""
    types, graph = types_of(model)
    nodes = [node for node in graph.node if node.op_type == kind]
    assert nodes, f"no {kind} is left"
    return {types[name] for node in nodes for name in node.input if name}


def swell():
    """A middle of about 10 ** 6, made small again at the end."""
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["big"]),
        helper.make_node("Mul", ["big", "large"], ["bigger"]),
        helper.make_node("Mul", ["bigger", "small"], ["y"]),
    ]
    constants = [numbers("large", 1e3), numbers("small", 1e-6)]
    return parsed(nodes, [ROWS], [Port("y", "float32", ROWS.shape)], constants)


def audit(model, x):
    """What an audit measures: the largest magnitude of all that could become float16."""
    probe = parse_graph(serialise_graph(model), {})
    for name in half_tensors(probe):
        value = next(v for node in probe.graph for v in node.outputs if v.name == name)
        if value not in probe.graph.outputs:
            probe.graph.outputs.append(value)
    ranges = {}
    for name, array in run(probe, x=x).items():
        ranges[name] = Ranges()
        ranges[name].add(array, (7.0, None))
    return overflowing(ranges)


def test_the_audit_saves_a_graph_that_overflows():
    x = example()
    exact = run(swell(), x=x)["y"]
    assert not np.all(np.isfinite(rounded(converted(swell()), x=x)))
    found = audit(swell(), x)
    assert set(found) == {"bigger"}
    assert found["bigger"] == pytest.approx(1e6 * np.abs(x).max(), rel=1e-5)
    saved = rounded(converted(swell(), found), x=x)
    np.testing.assert_allclose(saved, exact, rtol=2e-3)


def test_a_constant_that_float16_takes_for_0_stays():
    """Such as the epsilon of a norm that is written out, which keeps it from dividing by 0."""
    nodes = [
        helper.make_node("Add", ["x", "epsilon"], ["there"]),
        helper.make_node("Mul", ["there", "scale"], ["y"]),
    ]
    constants = [numbers("epsilon", 1e-9), numbers("scale", 2.0)]
    model = parsed(nodes, [ROWS], [Port("y", "float32", ROWS.shape)], constants)
    assert convert_to_half(model, ()) == 1
    assert inputs_of(model, "Add") == {TensorProto.FLOAT}
    assert inputs_of(model, "Mul") == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("largest", "found"), [(65504 / 4, True), (0.99 * 65504 / 4, False)])
def test_what_comes_near_the_end_of_float16_counts_as_beyond(largest, found):
    ranges = Ranges()
    ranges.add(np.float32([-largest]), (7.0, None))
    assert bool(overflowing({"t": ranges})) == found


def test_the_largest_number_is_numpy_s():
    assert float(np.finfo(np.float16).max) == LARGEST


def test_ports_stay_float32_under_their_names():
    graph, inputs, outputs = tiny_convolutions.denoise_graph()
    model = converted(parse_graph(graph.SerializeToString(), {}))
    types, proto = types_of(model)
    assert [value.name for value in proto.input] == [port.name for port in inputs]
    assert [value.name for value in proto.output] == [port.name for port in outputs]
    assert {types[port.name] for port in (*inputs, *outputs)} == {FLOAT}


def test_weights_are_stored_in_float16_only():
    graph, _, _ = tiny_convolutions.denoise_graph()
    types, _ = types_of(converted(parse_graph(graph.SerializeToString(), {})))
    assert "block.up.weight" not in types
    assert types["block.up.weight_float16"] == HALF
    assert {types[n] for n in ("norm.weight", "norm.bias", "time_embed.weight")} == {FLOAT}


def around(kind, **attributes):
    """A product, a node of `kind` that float16 spoils, another product."""
    constants = [normal("w", 8, 8), normal("v", 8, 4)]
    more = []
    if kind == "LayerNormalization":
        more = ["gain"]
        constants.append(numbers("gain", np.linspace(0.5, 2, 8)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(kind, ["h", *more], ["n"], **attributes),
        helper.make_node("MatMul", ["n", "v"], ["y"]),
    ]
    return parsed(nodes, [ROWS], [Port("y", "float32", (3, 4))], constants)


@pytest.mark.parametrize("kind", ["LayerNormalization", "Softmax", "Exp"])
def test_what_float16_spoils_reads_float32_between_products_of_float16(kind):
    model = converted(around(kind))
    assert inputs_of(model, kind) == {FLOAT}
    assert inputs_of(model, "MatMul") == {HALF}


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
def test_sums_read_float32(kind):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(kind, ["h"], ["s"], keepdims=1),
        helper.make_node("Sub", ["h", "s"], ["y"]),
    ]
    out = Port("y", "float32", ROWS.shape)
    model = converted(parsed(nodes, [ROWS], [out], [normal("w", 8, 8)]))
    assert inputs_of(model, kind) == {FLOAT}
    assert inputs_of(model, "Sub") == {HALF}


def test_a_layer_that_is_to_stay_exact_reads_float32():
    model = around("Softmax")
    first, second = layers_of(model)
    model = converted(model, exact=[second])
    _, graph = types_of(model)
    types, _ = types_of(model)
    read = [types[node.input[0]] for node in graph.node if node.op_type == "MatMul"]
    assert read == [HALF, FLOAT]
    assert first.node is not second.node


@pytest.mark.parametrize("kind", ["Softmax", "Relu"])
def test_the_error_is_that_of_eleven_bits(kind):
    """float16 keeps 11 bits of a number, and sums of 8 products lose little more."""
    x = example()
    exact = run(around(kind), x=x)["y"]
    off = np.abs(rounded(converted(around(kind)), x=x) - exact)
    assert 0 < off.max() < 8 * 2.0**-11 * np.abs(exact).max()


def embedding():
    """Sines of a time step times frequencies, as diffusion networks embed it."""
    frequencies = np.exp(-np.log(1e4) * np.arange(8) / 8)[None]
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["timestep", "axis"], ["column"]),
        make("Mul", ["column", "frequencies"], ["phases"]),
        make("Sin", ["phases"], ["sines"]),
        make("Cos", ["phases"], ["cosines"]),
        make("Concat", ["sines", "cosines"], ["waves"], axis=1),
        make("MatMul", ["waves", "w"], ["y"]),
    ]
    constants = [
        numbers("axis", [1], np.int64),
        numbers("frequencies", frequencies),
        normal("w", 16, 8),
    ]
    inputs = [Port("timestep", "float32", ("batch",))]
    return parsed(nodes, inputs, [Port("y", "float32", ("batch", 8))], constants)


def test_time_steps_are_embedded_as_exactly_as_before():
    """float16 has steps of 0.5 from 512 on, and a phase off by 0.25 is another time step."""
    timestep = np.float32([1, 501.5, 903, 998.75])
    exact = run(embedding(), timestep=timestep)["y"]
    model = converted(embedding())
    assert inputs_of(model, "MatMul") == {HALF}
    np.testing.assert_allclose(rounded(model, timestep=timestep), exact, atol=5e-3)


def test_constants_beyond_float16_do_not_become_infinite():
    nodes = [helper.make_node("Max", ["x", "floor"], ["y"])]
    out = Port("y", "float32", ROWS.shape)
    model = converted(parsed(nodes, [ROWS], [out], [numbers("floor", -3e38)]))
    np.testing.assert_allclose(rounded(model, x=example()), example(), rtol=1e-3)


def test_one_tensor_is_cast_once_for_all_its_readers():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("Exp", ["a"], ["c"]),
        helper.make_node("Exp", ["a"], ["d"]),
        helper.make_node("Sum", ["b", "c", "d"], ["y"]),
    ]
    out = Port("y", "float32", ROWS.shape)
    model = converted(parsed(nodes, [ROWS], [out], [normal("w", 8, 8)]))
    casts = [node.input[0] for node in types_of(model)[1].node if node.op_type == "Cast"]
    assert sorted(casts) == ["a", "b", "x"]


def test_sizes_of_a_resize_stay_what_they_are():
    planes = Port("x", "float32", (1, 2, 4, 4))
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    out = Port("y", "float32", (1, 2, 8, 8))
    model = parsed(nodes, [planes], [out], [numbers("scales", [1, 1, 2, 2])])
    x = np.arange(32, dtype=np.float32).reshape(planes.shape)
    expected = run(model, x=x)["y"]
    model = converted(model)
    np.testing.assert_array_equal(rounded(model, x=x), expected)
    types, graph = types_of(model)
    (resize,) = (node for node in graph.node if node.op_type == "Resize")
    assert [types.get(name) for name in resize.input] == [HALF, None, FLOAT]


def test_how_many_nodes_became_float16():
    assert convert_to_half(around("Softmax"), ()) == 2
