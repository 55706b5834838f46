"""Layers: which nodes are, what their axes mean, and which of them keep their precision."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

import tiny_convolutions
from jscc.calibration.graph import array_of, read_graph
from jscc.calibration.layers import kept, layers_of
from jscc.runtime.ports import Port
from tiny_convolutions import normal, parsed, run

PLANES = Port("x", "float32", (1, 4, 5, 6))
ROWS = Port("x", "float32", (3, 4))


def layer_named(model, name):
    return next(layer for layer in layers_of(model) if layer.name == name)


def module(node, path):
    """`node` as torch's exporter marks it."""
    scopes = f": m.Net/{path}: torch.nn.Linear/linear: aten.linear.default"
    node.metadata_props.add(key="namespace", value=scopes)
    return node


def one_conv(**attributes):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4, **attributes)]
    shape = (6, 4 // attributes.get("group", 1), 3, 3)
    return parsed(nodes, [PLANES], [Port("y", "float32", (1, 6, 5, 6))], [normal("w", *shape)])


def one_product(kind, shape, **attributes):
    nodes = [helper.make_node(kind, ["x", "w"], ["y"], name="product", **attributes)]
    return parsed(nodes, [ROWS], [Port("y", "float32", (3, 7))], [normal("w", *shape)])


GRAPHS = {
    "Conv": lambda: one_conv(),
    "MatMul": lambda: one_product("MatMul", (4, 7)),
    "Gemm": lambda: one_product("Gemm", (4, 7)),
    "Gemm transposed": lambda: one_product("Gemm", (7, 4), transB=1),
}


def example(model):
    shape = [int(size) for size in model.graph.inputs[0].shape]
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def with_weight(build, change):
    """The output of a graph whose weight `change` has touched."""
    model = build()
    (layer,) = layers_of(model)
    weight = np.array(array_of(layer.weight))
    change(layer, weight)
    layer.weight.const_value = type(layer.weight.const_value)(
        numpy_helper.from_array(weight, layer.weight.name)
    )
    return run(model, x=example(model))["y"], layer


@pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)
def test_the_out_axis_runs_over_the_output_s_features(build):
    """Zero weights of one output feature make that feature zero, and leave the others."""

    def silence(layer, weight):
        np.moveaxis(weight, layer.out_axis, 0)[2] = 0

    changed, layer = with_weight(build, silence)
    whole, _ = with_weight(build, lambda layer, weight: None)
    axis = layer.feature_axis
    assert np.all(np.take(changed, 2, axis) == 0)
    np.testing.assert_array_equal(np.delete(changed, 2, axis), np.delete(whole, 2, axis))


@pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)
def test_the_in_axis_runs_over_the_input_s_features(build):
    """Zero weights of one input feature do what a zero input feature does."""

    def deafen(layer, weight):
        np.moveaxis(weight, layer.in_axis, 0)[1] = 0

    changed, layer = with_weight(build, deafen)
    model = build()
    silent = example(model)
    np.moveaxis(silent, layer.feature_axis, 0)[1] = 0
    np.testing.assert_allclose(changed, run(model, x=silent)["y"], rtol=1e-5, atol=1e-6)


def test_the_size_of_a_layer():
    (layer,) = layers_of(one_conv(group=2))
    assert (layer.shape, layer.parameters, layer.groups) == ((6, 2, 3, 3), 108, 2)


def test_layers_of_the_tiny_bundle(looped):
    names = [layer.name for layer in layers_of(read_graph(looped, "denoise"))]
    assert sorted(names) == sorted(tiny_convolutions.DENOISE)
    names = [layer.name for layer in layers_of(read_graph(looped, "decode"))]
    assert tuple(names) == tiny_convolutions.DECODE


def test_a_product_of_two_activations_is_no_layer():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    assert layers_of(parsed(nodes, [ROWS], [Port("y", "float32", (3, 3))])) == ()


def test_a_depthwise_convolution_is_no_layer():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1] * 4)]
    out = Port("y", "float32", (1, 4, 5, 6))
    assert layers_of(parsed(nodes, [PLANES], [out], [normal("w", 4, 1, 3, 3)])) == ()


def test_a_stack_of_matrices_is_no_layer():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    out = Port("y", "float32", (2, 3, 7))
    assert layers_of(parsed(nodes, [ROWS], [out], [normal("w", 2, 4, 7)])) == ()


def test_a_gemm_of_a_transposed_input_is_no_layer():
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)]
    out = Port("y", "float32", (4, 7))
    assert layers_of(parsed(nodes, [ROWS], [out], [normal("w", 3, 7)])) == ()


def test_weights_in_float16_are_no_layer():
    half = Port("x", "float16", (3, 4))
    weight = numpy_helper.from_array(np.ones((4, 7), np.float16), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert layers_of(parsed(nodes, [half], [Port("y", "float16", (3, 7))], [weight])) == ()


def test_a_layer_is_called_like_its_module_and_every_name_is_unique():
    make = helper.make_node
    nodes = [
        module(make("MatMul", ["x", "w"], ["a"], name="node_linear"), "mid.attn.to_q"),
        module(make("MatMul", ["a", "v"], ["b"], name="node_linear_1"), "mid.attn.to_q"),
        make("MatMul", ["b", "v"], ["c"], name="plain"),
        make("MatMul", ["c", "v"], ["y"]),
    ]
    out = Port("y", "float32", (3, 7))
    model = parsed(nodes, [ROWS], [out], [normal("w", 4, 7), normal("v", 7, 7)])
    names = [layer.name for layer in layers_of(model)]
    assert names == ["mid.attn.to_q", "mid.attn.to_q#2", "plain", "y"]


def chain(*names):
    """Convolutions one after the other, with an activation between."""
    nodes, value = [], "x"
    for index, name in enumerate(names):
        nodes.append(helper.make_node("Conv", [value, "w"], [f"c{index}"], name=name))
        value = "y" if index == len(names) - 1 else f"a{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [value]))
    out = Port("y", "float32", PLANES.shape)
    return parsed(nodes, [PLANES], [out], [normal("w", 4, 4, 1, 1)])


def reasons(model, *patterns, usual=True):
    return kept(layers_of(model), model.graph.outputs, patterns, usual=usual)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("down.0.resnets.1.time_emb_proj", "embedding"),
        ("snr_embed.0", "embedding"),
        ("up.1.conv_shortcut", "shortcut"),
        ("output_blocks.3.0.skip_connection", "shortcut"),
        ("controlnet_down_blocks.2", "zero convolution"),
        ("middle_block_out.0", "zero convolution"),
        ("encoder.igdn1", "norm"),
        ("g_s.1.gdn", "norm"),
    ],
)
def test_what_published_networks_call_sensitive_keeps_its_precision(name, why):
    held = reasons(chain("head", name, "middle", "tail"))
    assert set(held) == {"head", name, "tail"}
    assert held[name].startswith(why)


def test_first_and_last_are_found_by_the_graph_and_not_by_their_place():
    """`side` reads the input as well, and so does `late`, which stands last in the file."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="early"),
        make("Conv", ["x", "w"], ["b"], name="side"),
        make("Add", ["a", "b"], ["c"]),
        make("Conv", ["c", "w"], ["d"], name="inner"),
        make("Conv", ["d", "w"], ["y"], name="end"),
        make("Conv", ["x", "w"], ["e"], name="late"),
        make("Add", ["d", "e"], ["z"]),
    ]
    outputs = [Port(name, "float32", PLANES.shape) for name in "yz"]
    held = reasons(parsed(nodes, [PLANES], outputs, [normal("w", 4, 4, 1, 1)]))
    first = "first: reads a graph input"
    # `inner` makes the output z with nothing but an addition between.
    last = "last: makes a graph output"
    assert held == {"early": first, "side": first, "late": first, "inner": last, "end": last}


def test_a_pattern_keeps_more_and_says_so():
    held = reasons(chain("head", "up.1", "up.2", "tail"), r"up\.1$")
    assert held["up.1"] == "name matches 'up\\\\.1$'"
    assert "up.2" not in held


def test_without_the_usual_ones_only_patterns_keep():
    assert set(reasons(chain("head", "up.1", "tail"), "up", usual=False)) == {"up.1"}


def test_a_gemm_keeps_its_precision_and_hides_no_first_layer():
    """What meets only an embedding still is the first that meets an input."""
    make = helper.make_node
    nodes = [
        make("Gemm", ["x", "w"], ["a"], name="embed"),
        make("MatMul", ["a", "v"], ["b"], name="body"),
        make("MatMul", ["b", "v"], ["c"], name="middle"),
        make("MatMul", ["c", "v"], ["d"], name="end"),
        make("Gemm", ["d", "v"], ["y"], name="head"),
    ]
    out = Port("y", "float32", (3, 7))
    held = reasons(parsed(nodes, [ROWS], [out], [normal("w", 4, 7), normal("v", 7, 7)]))
    vector = "embedding, or another product with single vectors"
    assert held == {
        "embed": vector,
        "body": "first: reads a graph input",
        "end": "last: makes a graph output",
        "head": vector,
    }
