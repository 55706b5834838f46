"""Parameters: what is trained counts, constants do not, and what stages share counts once."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_bundle
from jscc.benchmarks.parameters import count_parameters
from jscc.runtime.bundle import write_bundle


def test_constants_do_not_count(codec_bundle):
    # Each stage has a kernel of 4x3x4x4; decode also has axes (whole numbers) and one factor.
    assert count_parameters(codec_bundle) == {"transmitter": 192, "receiver": 192}


def test_weights_in_other_files_count(diffusion_bundle):
    # decode 192, denoise 4x4 beside the graph; condition and render hold one and the same kernel.
    assert count_parameters(diffusion_bundle) == {"transmitter": 0, "receiver": 400}


@pytest.mark.parametrize(
    ("scale", "total"), [(1.0, 400), (2.0, 400 + 192)], ids=["shared", "its own"]
)
def test_what_stages_share_counts_once(tmp_path, scale, total):
    manifest, files = tiny_bundle.diffusion()
    graph = onnx.load_model_from_string(files["graphs/render.onnx"])
    (kernel,) = graph.graph.initializer
    changed = numpy_helper.from_array(scale * numpy_helper.to_array(kernel), kernel.name)
    kernel.CopyFrom(changed)
    files["graphs/render.onnx"] = graph.SerializeToString()
    bundle = write_bundle(tmp_path / "b.jscc", manifest, files)
    assert count_parameters(bundle)["receiver"] == total


def test_the_same_numbers_twice_in_one_stage_count_twice(tmp_path):
    manifest, files = tiny_bundle.smallest()
    graph = onnx.load_model_from_string(files["graphs/decode.onnx"])
    for name in ("one", "two"):
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros(7, np.float32), name))
        graph.graph.node.append(helper.make_node("Identity", [name], [f"{name}_out"]))
    files["graphs/decode.onnx"] = graph.SerializeToString()
    bundle = write_bundle(tmp_path / "b.jscc", manifest, files)
    assert count_parameters(bundle)["receiver"] == 192 + 14


def test_numbers_that_are_not_stored_as_bytes_count(tmp_path):
    manifest, files = tiny_bundle.smallest()
    graph = onnx.load_model_from_string(files["graphs/decode.onnx"])
    plain = helper.make_tensor("plain", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    assert not plain.raw_data
    graph.graph.initializer.append(plain)
    graph.graph.node.append(helper.make_node("Identity", ["plain"], ["out"]))
    files["graphs/decode.onnx"] = graph.SerializeToString()
    bundle = write_bundle(tmp_path / "b.jscc", manifest, files)
    assert count_parameters(bundle)["receiver"] == 192 + 3
