"""The task metric: a classifier of the user's, and how often its answer survives the channel."""

import argparse
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import tiny_bundle
from jscc.benchmarks import quality
from jscc.benchmarks.classifier import Classifier
from jscc.benchmarks.judge import Instruments, Judge, Wanted
from jscc.runtime.errors import DataError


def write(path, shape):
    """A network whose classes are red, green and blue."""
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    node = helper.make_node("ReduceMean", ["picture", "axes"], ["scores"], keepdims=0)
    return save(path, node, shape, TensorProto.FLOAT, axes)


def echo(path, shape, kind):
    """A network that returns what it gets."""
    return save(path, helper.make_node("Identity", ["picture"], ["scores"]), shape, kind)


def save(path, node, shape, kind, *constants):
    graph = helper.make_graph(
        [node],
        "classes",
        [helper.make_tensor_value_info("picture", kind, shape)],
        [helper.make_tensor_value_info("scores", kind, None)],
        initializer=constants,
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def plain(colour, height=40, width=60):
    return np.full((height, width, 3), colour, np.uint8)


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (1, 3, 24, 24), ("n", 3, 16, 32)])
@pytest.mark.parametrize(("colour", "number"), [((200, 10, 10), 0), ((5, 90, 80), 1)])
def test_the_highest_score_is_the_class(tmp_path, shape, colour, number):
    assert Classifier(write(tmp_path / "c.onnx", shape))(plain(colour)) == number


def test_a_fixed_size_sees_the_centre(tmp_path):
    image = plain((200, 0, 0), 40, 80)
    image[:, 20:60] = (0, 0, 200)  # the central square of 40
    assert Classifier(write(tmp_path / "c.onnx", (1, 3, 8, 8)))(image) == 2
    image[:, :30], image[:, 50:] = (250, 0, 0), (250, 0, 0)
    assert Classifier(write(tmp_path / "d.onnx", (1, 3, "h", "w")))(image) == 0


def test_values_are_standardised_on_demand(tmp_path):
    # Standardised by ImageNet's figures, (0.48, 0.47, 0.45) is red below its mean, blue above.
    image = plain((122, 119, 115))
    path = write(tmp_path / "c.onnx", ("n", 3, "h", "w"))
    assert Classifier(path)(image) == 0
    assert Classifier(path, "imagenet")(image) == 2


@pytest.mark.parametrize(
    ("shape", "kind", "got"),
    [
        ((1, 1, 8, 8), TensorProto.FLOAT, r"got input tensor\(float\)\[1, 1, 8, 8\], expected"),
        ((1, 3, 8), TensorProto.FLOAT, r"got inputs tensor\(float\)\[1, 3, 8\], expected"),
        ((1, 3, 8, 8), TensorProto.INT64, r"got inputs tensor\(int64\)\[1, 3, 8, 8\], expected"),
    ],
)
def test_other_inputs_are_refused(tmp_path, shape, kind, got):
    with pytest.raises(DataError, match=got) as caught:
        Classifier(echo(tmp_path / "c.onnx", shape, kind))
    assert caught.value.code == "E_TASK"


def test_other_scores_are_refused(tmp_path):
    classifier = Classifier(echo(tmp_path / "c.onnx", (1, 3, 8, 8), TensorProto.FLOAT))
    with pytest.raises(DataError, match=r"got scores \[1, 3, 8, 8\], expected"):
        classifier(plain((1, 2, 3)))


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "c.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"--task 'c\.onnx': got .*, expected an ONNX network"):
        Classifier(tmp_path / "c.onnx")


def test_agreement_is_with_the_class_of_what_was_sent(tmp_path):
    task = write(tmp_path / "c.onnx", ("n", 3, "h", "w"))
    judge = Judge(plain((200, 10, 10)), Instruments(Wanted(task=task)))
    assert judge(plain((180, 60, 60)))["top1"] == 1
    assert judge(plain((10, 60, 60)))["top1"] == 0


def test_the_measurement_has_it(tmp_path):
    codec = tmp_path / "codec.jscc"
    tiny_bundle.write_codec(codec)
    for index, colour in enumerate([(200, 10, 10), (5, 90, 80)]):
        Image.fromarray(plain(colour)).save(tmp_path / f"{index}.png")
    task = write(tmp_path / "c.onnx", ("n", 3, "h", "w"))
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    words = (codec, "--images", tmp_path, "--snr", "7", "--task", task, "--json", tmp_path / "o")
    quality.run(parser.parse_args([str(word) for word in words]))
    document = json.loads((tmp_path / "o").read_text())
    agreements = [row["received"]["top1"] for row in document["rows"]]
    assert set(agreements) <= {0, 1}
    assert document["means"][0]["received"]["top1"] == np.mean(agreements)
    assert document["task"]["name"] == "c.onnx"
    assert "top-1 agreement, received" in quality.table(document)
