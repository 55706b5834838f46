"""A tiny bundle with a descent: the received picture is found again by its squared error.

`look` is a picture on which the loss is the mean squared distance to the reconstruction, `lift`
begins as its half and is added to it in the second round; `still` is drawn and never moved.
"""

import dataclasses

import numpy as np
from onnx import helper, numpy_helper

import tiny_bundle
from jscc.runtime.bundle import write_bundle
from jscc.runtime.manifest_loops import Descent, LoopStep, Round, Variable
from jscc.runtime.ports import Port

TILE = 32
PICTURE = (1, 3, TILE, TILE)
LOOK, LIFT, STILL = (Port(name, "float32", PICTURE) for name in ("look", "lift", "still"))
RECEIVED = Port("reconstruction", "float32", PICTURE)
WEIGHT = Port("weight", "float32", (1,))
LOSS = Port("loss", "float32", (1,))
COUNT = 3 * TILE * TILE


def _number(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.array(value, dtype), name)


def _gradient(names):
    """Loss of the sum of the pictures `names`, and its gradient by each of them."""
    inputs = [Port(name, "float32", PICTURE) for name in names]
    outputs = [LOSS, *(Port(f"grad_{name}", "float32", PICTURE) for name in names)]
    inputs += [STILL, RECEIVED, WEIGHT]
    nodes = [
        helper.make_node("Sum", [*names], ["picture"]),
        helper.make_node("Sub", ["picture", "reconstruction"], ["gap"]),
        helper.make_node("Mul", ["gap", "gap"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "weight"], ["weighted"]),
        helper.make_node("Mul", ["still", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "axes"], ["none"], keepdims=0),
        helper.make_node("Add", ["weighted", "none"], ["loss"]),
        helper.make_node("Mul", ["gap", "slope"], ["grad"]),
        *(helper.make_node("Identity", ["grad"], [f"grad_{name}"]) for name in names),
    ]
    constants = [
        _number("axes", [1, 2, 3], np.int64),
        _number("zero", 0.0),
        _number("slope", 2 / COUNT),
    ]
    return tiny_bundle.model(nodes, inputs, outputs, constants), inputs, outputs


def _carry():
    nodes = [helper.make_node("Mul", ["look", "half"], ["lift"])]
    return tiny_bundle.model(nodes, [LOOK], [LIFT], [_number("half", 0.5)]), [LOOK], [LIFT]


def _render():
    image = Port("image", "float32", PICTURE)
    nodes = [helper.make_node("Sum", ["look", "lift"], ["image"])]
    return tiny_bundle.model(nodes, [LOOK, LIFT], [image]), [LOOK, LIFT], [image]


DESCENT = Descent(
    variables={
        "look": Variable("normal", 0),
        "lift": Variable("stage", 0),
        "still": Variable("normal", 2),
    },
    rounds=(Round("first", 60, 0.1, None), Round("second", 40, 0.1, "carry")),
    render="render",
    keep="best",
    rise=0.05,
    fall=0.75,
    betas=(0.9, 0.999),
    epsilon=1e-8,
    settings={"weight": 1.0},
)


def descending():
    """Manifest and files of the bundle."""
    manifest, files = tiny_bundle.codec()
    parts = {
        "first": _gradient(["look"]),
        "carry": _carry(),
        "second": _gradient(["look", "lift"]),
        "render": _render(),
    }
    files |= {f"graphs/{name}.onnx": part[0].SerializeToString() for name, part in parts.items()}
    stages = {name: tiny_bundle.stage(name, *part) for name, part in parts.items()}
    files = {name: data for name, data in files.items() if not name.startswith("tensors/")}
    manifest = dataclasses.replace(
        manifest,
        stages={**manifest.stages, **stages},
        tensors={},
        selftest=None,
        program=("decode", LoopStep("find")),
        image_output="image",
        descents={"find": DESCENT},
        format=2,
    )
    return manifest, files


def write_descending(path):
    """Write the bundle to `path` and return it."""
    return write_bundle(path, *descending())
