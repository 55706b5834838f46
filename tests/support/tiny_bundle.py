"""Tiny bundles: complete, valid and a few kilobytes, for tests that need one.

`codec` has a transmitter, a receiver and a self-test; `diffusion` has a loop, external weights, a
constant and a side input. Both give ``(manifest, files)`` as `write_bundle` takes them.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jscc.runtime.bundle import write_bundle
from jscc.runtime.manifest import (
    ImageContract,
    Manifest,
    ParityEntry,
    Selftest,
    SelftestCsi,
    Signal,
    Source,
    StageEntry,
    TensorEntry,
)
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.ports import Port

OPSET = 20
IMAGE = ("batch", 3, "height", "width")
GRID = ("batch", 4, "height/4", "width/4")
RECEIVED = Port("received", "float32", GRID)
SNR = Port("snr_db", "float32", ("batch",))

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def value(port):
    """The ONNX declaration of `port`."""
    return helper.make_tensor_value_info(port.name, _TYPES[port.dtype], list(port.shape))


def weights(name, *shape, scale=0.5):
    """A float32 initializer that depends on its name and shape only."""
    rng = np.random.default_rng(sum(name.encode()) + sum(shape))
    return numpy_helper.from_array((rng.random(shape, np.float32) - 0.5) * scale, name)


def model(nodes, inputs, outputs, initializers=()):
    """An ONNX model with the given ports."""
    graph = helper.make_graph(
        nodes, "tiny", [value(port) for port in inputs], [value(port) for port in outputs],
        initializer=list(initializers),
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def stage(name, made, inputs, outputs, *, tiled=False):
    """The manifest's entry for `made`."""
    del made
    return StageEntry(f"graphs/{name}.onnx", OPSET, tiled, tuple(inputs), tuple(outputs))


def npy(array):
    """The bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _codec_graphs():
    planes = Port("planes", "float32", GRID)
    image, out = Port("image", "float32", IMAGE), Port("reconstruction", "float32", IMAGE)
    encode = model(
        [
            helper.make_node("Conv", ["image", "kernel"], ["folded"], strides=[4, 4]),
            helper.make_node("Tanh", ["folded"], ["planes"]),
        ],
        [image], [planes], [weights("kernel", 4, 3, 4, 4)],
    )  # fmt: skip
    decode = model(
        [
            helper.make_node("Unsqueeze", ["snr_db", "axes"], ["snr"]),
            helper.make_node("Mul", ["snr", "slope"], ["shift"]),
            helper.make_node("Add", ["received", "shift"], ["shifted"]),
            helper.make_node("ConvTranspose", ["shifted", "kernel"], ["wide"], strides=[4, 4]),
            helper.make_node("Sigmoid", ["wide"], ["reconstruction"]),
        ],
        [RECEIVED, SNR], [out],
        [
            weights("kernel", 4, 3, 4, 4, scale=4.0),
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.float32(0.01), "slope"),
        ],
    )  # fmt: skip
    return (encode, [image], [planes]), (decode, [RECEIVED, SNR], [out])


def _manifest(stages, program, image_output, **more):
    return Manifest(
        system="tiny",
        variant="codec",
        made_by="jscc-edge tests",
        source=Source("none", "0" * 64, "Apache-2.0", ()),
        signal=Signal(
            planes=4, stride=4, packing="halves", power="unit_per_image", snr_db_range=(0.0, 14.0),
            snr_db_default=7.0, csi_inputs=("snr_db",), transmitter_csi=False,
            equalisation="none", power_range=(0.05, 100.0),
        ),
        image=ImageContract(
            multiple=8, short_edge=0, rounding="nearest", tile=32, overlap=8, max_pixels=1 << 20
        ),
        stages=stages, program=program, image_output=image_output, **more,
    )  # fmt: skip


def codec():
    """Manifest and files of a DeepJSCC-like bundle: `encode`, `decode` and a self-test."""
    encode, decode = _codec_graphs()
    rng = np.random.default_rng(7)
    symbols = (rng.normal(size=(2, 2, 4)) + 1j * rng.normal(size=(2, 2, 4))).astype(np.complex64)
    symbols /= np.sqrt(np.mean(np.abs(symbols) ** 2))
    planes = np.concatenate([symbols.real, symbols.imag])[None]
    session = onnxruntime.InferenceSession(
        decode[0].SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, {"received": planes, "snr_db": np.array([7.0], np.float32)})
    image = np.round(np.clip(out[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    files = {
        "graphs/encode.onnx": encode[0].SerializeToString(),
        "graphs/decode.onnx": decode[0].SerializeToString(),
        "tensors/selftest_symbols.npy": npy(symbols),
        "tensors/selftest_image.npy": npy(np.ascontiguousarray(image)),
        "SOURCE.md": b"Made by tests.\n",
    }
    manifest = _manifest(
        {"encode": stage("encode", *encode), "decode": stage("decode", *decode)},
        ("decode",),
        "reconstruction",
        tensors={
            "selftest_symbols": TensorEntry(
                "tensors/selftest_symbols.npy", "complex64", symbols.shape
            ),
            "selftest_image": TensorEntry("tensors/selftest_image.npy", "uint8", image.shape),
        },
        selftest=Selftest(
            "selftest_symbols", "selftest_image", SelftestCsi(7.0, (1.0, 0.0)), 0, 1, 40.0
        ),
        parity={"decode": {"reconstruction": ParityEntry(1e-7, 120.0, (8, 16))}},
    )
    return manifest, files


def smallest():
    """Manifest and files of the least bundle: `decode`, for tests that go through every byte."""
    manifest, files = codec()
    manifest = dataclasses.replace(
        manifest, stages={"decode": manifest.stages["decode"]}, tensors={}, selftest=None, parity={}
    )
    return manifest, {name: files[name] for name in ("graphs/decode.onnx", "SOURCE.md")}


def _external(made, name, location):
    """Move the initializer `name` of `made` to the file `location`; return its bytes."""
    tensor = next(item for item in made.graph.initializer if item.name == name)
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=text)
    return data


def diffusion():
    """Manifest and files of a DiffJSCC-like bundle: `decode condition loop(denoise) render`."""
    _, decode = _codec_graphs()
    out = decode[2][0]
    latent, hint, clean = (Port(name, "float32", GRID) for name in ("latent", "hint", "clean"))
    time = Port("timestep", "float32", ("batch",))
    context = Port("context", "float32", ("batch", 2, 5))
    bias = Port("bias", "float32", ("batch", 4, 1, 1))
    image = Port("image", "float32", IMAGE)
    condition = model(
        [helper.make_node("Conv", ["reconstruction", "kernel"], ["hint"], strides=[4, 4])],
        [out], [hint], [weights("kernel", 4, 3, 4, 4)],
    )  # fmt: skip
    denoise = model(
        [
            helper.make_node("Conv", ["latent", "mix"], ["mixed"]),
            helper.make_node("Unsqueeze", ["timestep", "axes"], ["time"]),
            helper.make_node("Mul", ["time", "slope"], ["drift"]),
            helper.make_node("ReduceMean", ["context", "reduce"], ["level"], keepdims=0),
            helper.make_node("Unsqueeze", ["level", "axes"], ["levels"]),
            helper.make_node("Sum", ["mixed", "hint", "drift", "bias", "levels"], ["clean"]),
        ],
        [latent, time, hint, bias, context], [clean],
        [
            weights("mix", 4, 4, 1, 1),
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "reduce"),
            numpy_helper.from_array(np.float32(0.001), "slope"),
        ],
    )  # fmt: skip
    data = _external(denoise, "mix", "denoise.onnx.data")
    render = model(
        [
            helper.make_node("ConvTranspose", ["latent", "kernel"], ["wide"], strides=[4, 4]),
            helper.make_node("Add", ["wide", "reconstruction"], ["image"]),
        ],
        [latent, out], [image], [weights("kernel", 4, 3, 4, 4)],
    )  # fmt: skip
    parts = {
        "decode": decode,
        "condition": (condition, [out], [hint]),
        "denoise": (denoise, [latent, time, hint, bias, context], [clean]),
        "render": (render, [latent, out], [image]),
    }
    files = {f"graphs/{name}.onnx": part[0].SerializeToString() for name, part in parts.items()}
    files["graphs/denoise.onnx.data"] = data
    files["tensors/bias.npy"] = npy(np.linspace(0, 0.1, 4, dtype=np.float32).reshape(1, 4, 1, 1))
    stages = {
        name: stage(name, *part, tiled=name in ("denoise", "render"))
        for name, part in parts.items()
    }
    sampler = SamplerSpec("ddim", 4, "received", 0.6, 0.0)
    schedule = ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000)
    manifest = _manifest(
        stages,
        ("decode", "condition", LoopStep("denoise"), "render"),
        "image",
        tensors={"bias": TensorEntry("tensors/bias.npy", "float32", (1, 4, 1, 1))},
        loops={"denoise": Loop("latent", "hint", "hint", schedule, sampler)},
        side_inputs=("context",),
    )
    return dataclasses.replace(manifest, variant="diffusion"), files


def write_codec(path: Path, **options):
    """Write the `codec` bundle to `path` and return it."""
    return write_bundle(path, *codec(), **options)


def write_diffusion(path: Path, **options):
    """Write the `diffusion` bundle to `path` and return it."""
    return write_bundle(path, *diffusion(), **options)
