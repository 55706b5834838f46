"""Extremes: how far tensors go, the same as NumPy says, without keeping the tensors."""

import subprocess
import sys
import textwrap

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from jscc.calibration.extremes import add_extremes, extremes, numbers
from jscc.runtime.machine import peak_rss_mib
from tiny_convolutions import run

VALUES = np.float32([[-3.0, 0.5, 2.0], [1.0, -0.25, 0.0]])


def graph():
    """``middle`` = 2 x, ``y`` = its part above 0."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["middle"]),
        helper.make_node("Relu", ["middle"], ["y"]),
    ]
    edge = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")
    ]
    made = helper.make_graph(nodes, "doubled", edge[:1], edge[1:])
    return ir.serde.deserialize_model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )


def measured(values, *names):
    model = graph()
    for number in add_extremes(model, names):
        model.graph.outputs.append(
            next(v for node in model.graph for v in node.outputs if v.name == number)
        )
    told = run(model, x=values)
    return {name: extremes(name, told).tolist() for name in names}


def test_the_extremes_of_inputs_and_outputs_and_what_lies_between():
    assert measured(VALUES, "x", "middle", "y") == {
        "x": [-3.0, 2.0],
        "middle": [-6.0, 4.0],
        "y": [0.0, 4.0],
    }


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 1)])
def test_a_single_nan_is_told_wherever_it_is(place):
    """A maximum of ONNX Runtime passes NaN by."""
    values = VALUES.copy()
    values[place] = np.nan
    assert np.isnan(measured(values, "middle")["middle"]).any()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_told(value):
    values = VALUES.copy()
    values[1, 2] = value
    assert value in measured(values, "middle")["middle"]


def test_large_numbers_whose_sum_is_none_are_finite():
    far = np.full((4, 4), 1.5e38, np.float32)
    assert np.isfinite(measured(far, "middle")["middle"]).all()


def test_a_tensor_without_numbers_has_no_extremes():
    assert measured(np.zeros((0, 3), np.float32), "middle") == {"middle": []}


def test_the_graph_itself_is_left_as_it_is():
    model = graph()
    assert add_extremes(model, ["middle"]) == numbers("middle")
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [node.op_type for node in model.graph if node.op_type[:6] != "Reduce"] == ["Add", "Relu"]


CHAIN = """
    import numpy as np
    import onnx_ir as ir
    from onnx import TensorProto, helper

    from jscc.calibration.extremes import add_extremes
    from jscc.calibration.graph import serialise_graph
    from jscc.calibration.probe import lay_open
    from jscc.runtime.backends.onnxruntime import session_builder
    from jscc.runtime.machine import peak_rss_mib

    names = [f"t{i}" for i in range(41)]
    nodes = [helper.make_node("Tanh", [a], [b]) for a, b in zip(names, names[1:])]
    edges = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in ("t0", "t40")]
    made = helper.make_graph(nodes, "chain", edges[:1], edges[1:])
    opsets = [helper.make_opsetid("", 18)]
    model = ir.serde.deserialize_model(
        helper.make_model(made, opset_imports=opsets, ir_version=8)
    )
    lay_open(model, add_extremes(model, names[1:]))
    graph = serialise_graph(model)
    session = session_builder("chain", graph, {}, provider="cpu", threads=1, in_order=True)()
    values = np.zeros(2**20, np.float32)
    before = peak_rss_mib()
    session.run(None, {"t0": values})
    print((peak_rss_mib() - before) * 2**20 / values.nbytes)
"""


@pytest.mark.skipif(peak_rss_mib() is None, reason="this system does not tell a peak")
def test_forty_tensors_are_not_kept_until_the_run_ends():
    command = [sys.executable, "-c", textwrap.dedent(CHAIN)]
    tensors = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert tensors < 10
