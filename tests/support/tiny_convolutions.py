"""A tiny bundle with layers to calibrate: convolutions in `decode`, those and products in a loop.

Like a real export, its graphs say the type of every tensor, and each layer has the name of its
module: `decode` has ``first``, ``middle``, ``tail`` and ``last``; `denoise` has ``entry``,
``time_embed``, ``block.conv``, ``block.up``, ``block.down`` and ``exit``.
"""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import tiny_bundle
from jscc.calibration.graph import parse_graph, serialise_graph
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.manifest import ParityEntry, Selftest, SelftestCsi, TensorEntry
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.ports import Port
from jscc.runtime.receiver import Receiver

STEPS = 4
DECODE = ("first", "middle", "tail", "last")
DENOISE = ("entry", "time_embed", "block.conv", "block.up", "block.down", "exit")
OUT = Port("reconstruction", "float32", tiny_bundle.IMAGE)


def typed(nodes, inputs, outputs, initializers=()):
    """An ONNX model that says the type of each of its tensors, as exports do."""
    return onnx.shape_inference.infer_shapes(
        tiny_bundle.model(nodes, inputs, outputs, initializers), strict_mode=True
    )


def normal(name, *shape, gain=1.5):
    """A trained-looking weight: normal, its variance divided by what is summed."""
    rng = np.random.default_rng(sum(name.encode()) + sum(shape))
    fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return numpy_helper.from_array(
        (rng.normal(0, gain, shape) / np.sqrt(fan)).astype(np.float32), name
    )


def numbers(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype), name)


def conv(name, before, after, size=3):
    """A convolution called `name` that keeps the size, its weight ``<name>.weight``."""
    pad = size // 2
    return helper.make_node(
        "Conv", [before, f"{name}.weight", f"{name}.bias"], [after], name=name, pads=[pad] * 4
    )


def conv_weights(name, after, before, size=3):
    bias = np.linspace(-0.2, 0.2, after)
    return [normal(f"{name}.weight", after, before, size, size), numbers(f"{name}.bias", bias)]


def decode_graph():
    """Four convolutions and a shift by the SNR."""
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["snr_db", "axes"], ["snr"]),
        node("Mul", ["snr", "slope"], ["shift"]),
        conv("first", "received", "f0"),
        node("Add", ["f0", "shift"], ["f1"]),
        node("Relu", ["f1"], ["f2"]),
        conv("middle", "f2", "m0"),
        node("Relu", ["m0"], ["m1"]),
        conv("tail", "m1", "t0"),
        node("Tanh", ["t0"], ["t1"]),
        conv("last", "t1", "l0", 1),
        node("DepthToSpace", ["l0"], ["l1"], blocksize=4),
        node("Sigmoid", ["l1"], ["reconstruction"]),
    ]
    constants = [
        *conv_weights("first", 8, 4),
        *conv_weights("middle", 8, 8),
        *conv_weights("tail", 8, 8),
        *conv_weights("last", 48, 8, 1),
        numbers("axes", [1, 2, 3], np.int64),
        numbers("slope", 0.01),
    ]
    inputs, outputs = [tiny_bundle.RECEIVED, tiny_bundle.SNR], [OUT]
    return typed(nodes, inputs, outputs, constants), inputs, outputs


def denoise_graph():
    """A denoiser in small: embedding of the time step, convolutions, norm and two products."""
    node = helper.make_node
    grid = tiny_bundle.GRID
    inputs = [Port(name, "float32", grid) for name in ("latent", "hint")]
    inputs.insert(1, Port("timestep", "float32", ("batch",)))
    outputs = [Port("clean", "float32", grid)]
    nodes = [
        node("Unsqueeze", ["timestep", "column"], ["time"]),
        node("Mul", ["time", "frequencies"], ["phases"]),
        node("Sin", ["phases"], ["waves"]),
        node("Gemm", ["waves", "time_embed.weight"], ["embedded"], name="time_embed", transB=1),
        node("Unsqueeze", ["embedded", "plane"], ["drift"]),
        node("Concat", ["latent", "hint"], ["both"], axis=1),
        conv("entry", "both", "e0"),
        node("Add", ["e0", "drift"], ["e1"]),
        conv("block.conv", "e1", "b0"),
        node("Sigmoid", ["b0"], ["gate"]),
        node("Mul", ["b0", "gate"], ["b1"]),
        node("Shape", ["b1"], ["size"]),
        node("Reshape", ["b1", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
        node("LayerNormalization", ["tokens", "norm.weight", "norm.bias"], ["normed"]),
        node("MatMul", ["normed", "block.up.weight"], ["wide"], name="block.up"),
        node("Gelu", ["wide"], ["active"]),
        node("MatMul", ["active", "block.down.weight"], ["narrow"], name="block.down"),
        node("Add", ["tokens", "narrow"], ["mixed"]),
        node("Transpose", ["mixed"], ["columns"], perm=[0, 2, 1]),
        node("Reshape", ["columns", "size"], ["image"]),
        conv("exit", "image", "x0", 1),
        node("Tanh", ["x0"], ["clean"]),
    ]
    constants = [
        numbers("frequencies", [[1.0, 0.1, 0.01, 0.001]]),
        normal("time_embed.weight", 8, 4),
        *conv_weights("entry", 8, 8),
        *conv_weights("block.conv", 8, 8),
        numbers("norm.weight", np.linspace(0.5, 1.5, 8)),
        numbers("norm.bias", np.linspace(-0.1, 0.1, 8)),
        normal("block.up.weight", 8, 16),
        normal("block.down.weight", 16, 8),
        *conv_weights("exit", 4, 8, 1),
        numbers("column", [1], np.int64),
        numbers("plane", [2, 3], np.int64),
        numbers("flat", [0, 8, -1], np.int64),
    ]
    return typed(nodes, inputs, outputs, constants), inputs, outputs


def _condition_graph():
    hint = Port("hint", "float32", tiny_bundle.GRID)
    nodes = [helper.make_node("Conv", ["reconstruction", "fold"], ["hint"], strides=[4, 4])]
    return typed(nodes, [OUT], [hint], [normal("fold", 4, 3, 4, 4)]), [OUT], [hint]


def _render_graph():
    latent = Port("latent", "float32", tiny_bundle.GRID)
    image = Port("image", "float32", tiny_bundle.IMAGE)
    nodes = [
        helper.make_node("ConvTranspose", ["latent", "unfold"], ["wide"], strides=[4, 4]),
        helper.make_node("Add", ["wide", "reconstruction"], ["image"]),
    ]
    constants = [normal("unfold", 4, 3, 4, 4, gain=0.3)]
    return typed(nodes, [latent, OUT], [image], constants), [latent, OUT], [image]


def looped():
    """Manifest and files: ``encode``, and ``decode condition loop(denoise) render``.

    Some of `denoise`'s weights lie in a file of their own. The self-test's image is still black.
    """
    manifest, files = tiny_bundle.codec()
    parts = {
        "decode": decode_graph(),
        "condition": _condition_graph(),
        "denoise": denoise_graph(),
        "render": _render_graph(),
    }
    data = tiny_bundle._external(parts["denoise"][0], "block.up.weight", "denoise.onnx.data")
    files |= {f"graphs/{name}.onnx": part[0].SerializeToString() for name, part in parts.items()}
    files["graphs/denoise.onnx.data"] = data
    files["tensors/selftest_image.npy"] = tiny_bundle.npy(np.zeros((8, 16, 3), np.uint8))
    stages = {name: tiny_bundle.stage(name, *part) for name, part in parts.items()}
    schedule = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)
    sampler = SamplerSpec("ddim", STEPS, "received", 0.6, 0.0)
    manifest = dataclasses.replace(
        manifest,
        variant="convolutions",
        stages={"encode": manifest.stages["encode"], **stages},
        program=("decode", "condition", LoopStep("denoise"), "render"),
        image_output="image",
        loops={"denoise": Loop("latent", "hint", "hint", schedule, sampler)},
        tensors={
            "selftest_symbols": manifest.tensors["selftest_symbols"],
            "selftest_image": TensorEntry("tensors/selftest_image.npy", "uint8", (8, 16, 3)),
        },
        selftest=Selftest(
            "selftest_symbols", "selftest_image", SelftestCsi(7.0, (1.0, 0.0)), 0, 2, 40.0
        ),
        parity={
            name: {port: ParityEntry(1e-7, 120.0, (8, 16))}
            for name, port in (("decode", "reconstruction"), ("condition", "hint"))
        },
    )
    return manifest, files


def write_looped(path: Path) -> Bundle:
    """Write the bundle to `path`, its self-test's image received."""
    manifest, files = looped()
    draft = write_bundle(path.with_suffix(".draft"), manifest, files)
    known = Receiver(draft, selftest=False).receive_known(draft)
    return write_bundle(
        path, manifest, files | {"tensors/selftest_image.npy": tiny_bundle.npy(known)}
    )


def parsed(nodes, inputs, outputs, constants=()):
    """The graph as calibration takes it."""
    return parse_graph(typed(nodes, inputs, outputs, constants).SerializeToString(), {})


def run(model, *, saturates=True, **fed):
    """What ONNX Runtime makes of a graph without weight files, by name of the output.

    On a CPU without VNNI its integer kernels saturate sums of two products, unless asked not to.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not saturates:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        serialise_graph(model), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def photos(count, height=32, width=40):
    """Smooth colour pictures, each another, by name."""
    rows, columns = np.mgrid[:height, :width]
    return {
        f"{number}.png": np.stack(
            [
                columns * 255 // width,
                rows * 255 // height,
                128 + 100 * np.sin(columns / (number + 2)) * np.cos(rows / (number + 3)),
            ],
            axis=-1,
        ).astype(np.uint8)
        for number in range(count)
    }
