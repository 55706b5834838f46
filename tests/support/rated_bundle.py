"""A tiny bundle whose transmitter chooses its rate and sends side values, with a self-test.

It has 8 planes, of which the first 2, 4 or 8 are sent, the ``power`` of what is sent, and a
``mask`` of 8 that says which they are.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from jscc.runtime.bundle import write_bundle
from jscc.runtime.manifest import (
    ImageContract,
    Manifest,
    Selftest,
    SelftestCsi,
    Signal,
    Source,
    TensorEntry,
)
from jscc.runtime.ports import Port
from tiny_bundle import IMAGE, model, npy, stage, weights

RATES = (2, 4, 8)
GRID = ("batch", "planes", "height/4", "width/4")
PICTURE = Port("image", "float32", IMAGE)
RATE = Port("rate", "float32", ("batch",))
PLANES = Port("planes", "float32", GRID)
RECEIVED = Port("received", "float32", GRID)
POWER = Port("power", "float32", ("batch",))
MASK = Port("mask", "float32", ("batch", 8))
OUT = Port("reconstruction", "float32", IMAGE)


def constant(name, *numbers, dtype=np.int64):
    return numpy_helper.from_array(np.array(numbers, dtype), name)


def encode_graph():
    """The first `rate` planes of a convolution, their mean square, and which they are."""
    return model(
        [
            helper.make_node("Conv", ["image", "kernel"], ["all"], strides=[4, 4]),
            helper.make_node("Slice", ["rate", "zero", "one", "zero"], ["first"]),
            helper.make_node("Cast", ["first"], ["end"], to=7),
            helper.make_node("Slice", ["all", "zero", "end", "one"], ["planes"]),
            helper.make_node("Mul", ["planes", "planes"], ["squares"]),
            helper.make_node("ReduceMean", ["squares", "inner"], ["power"], keepdims=0),
            helper.make_node("Unsqueeze", ["rate", "one"], ["rates"]),
            helper.make_node("Less", ["numbers", "rates"], ["taken"]),
            helper.make_node("Cast", ["taken"], ["mask"], to=1),
        ],
        [PICTURE, RATE], [PLANES, POWER, MASK],
        [
            weights("kernel", 8, 3, 4, 4, scale=1.0),
            constant("zero", 0), constant("one", 1), constant("inner", 1, 2, 3),
            constant("numbers", *range(8), dtype=np.float32),
        ],
    )  # fmt: skip


def decode_graph():
    """A picture that depends on every input."""
    return model(
        [
            helper.make_node("ReduceMean", ["received", "one"], ["mean"]),
            helper.make_node("Sqrt", ["power"], ["root"]),
            helper.make_node("ReduceMean", ["mask", "one"], ["share"], keepdims=0),
            helper.make_node("Add", ["root", "share"], ["factor"]),
            helper.make_node("Unsqueeze", ["factor", "inner"], ["wide"]),
            helper.make_node("Mul", ["mean", "wide"], ["scaled"]),
            helper.make_node("ConvTranspose", ["scaled", "kernel"], ["logits"], strides=[4, 4]),
            helper.make_node("Sigmoid", ["logits"], ["reconstruction"]),
        ],
        [RECEIVED, POWER, MASK], [OUT],
        [weights("kernel", 1, 3, 4, 4, scale=4.0), constant("one", 1), constant("inner", 1, 2, 3)],
    )  # fmt: skip


def rated():
    """Manifest and files."""
    encode, decode = encode_graph(), decode_graph()
    rng = np.random.default_rng(3)
    symbols = (rng.normal(size=(2, 2, 4)) + 1j * rng.normal(size=(2, 2, 4))).astype(np.complex64)
    symbols /= np.sqrt(np.mean(np.abs(symbols) ** 2))
    power = np.array([0.5], np.float32)
    mask = np.repeat(np.array([[1, 0]], np.float32), 4, axis=1)
    session = onnxruntime.InferenceSession(
        decode.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    received = np.concatenate([symbols.real, symbols.imag])[None]
    (out,) = session.run(None, {"received": received, "power": power, "mask": mask})
    image = np.round(np.clip(out[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    tensors = {"symbols": symbols, "image": np.ascontiguousarray(image)}
    tensors |= {"side_power": power, "side_mask": mask}
    files = {f"tensors/selftest_{name}.npy": npy(array) for name, array in tensors.items()}
    files |= {
        "graphs/encode.onnx": encode.SerializeToString(),
        "graphs/decode.onnx": decode.SerializeToString(),
    }
    manifest = Manifest(
        system="tiny",
        variant="rated",
        made_by="jscc-edge tests",
        source=Source("none", "0" * 64, "Apache-2.0"),
        signal=Signal(
            planes=8, stride=4, packing="halves", power="unit_per_image", snr_db_range=(0.0, 14.0),
            snr_db_default=7.0, csi_inputs=(), transmitter_csi=False, equalisation="none",
            power_range=(0.05, 100.0), rates=RATES,
        ),
        image=ImageContract(
            multiple=8, short_edge=0, rounding="nearest", tile=0, overlap=0, max_pixels=1 << 20
        ),
        stages={
            "encode": stage("encode", encode, [PICTURE, RATE], [PLANES, POWER, MASK]),
            "decode": stage("decode", decode, [RECEIVED, POWER, MASK], [OUT]),
        },
        program=("decode",),
        image_output="reconstruction",
        side_inputs=("power", "mask"),
        tensors={
            f"selftest_{name}": TensorEntry(
                f"tensors/selftest_{name}.npy", str(array.dtype), array.shape
            )
            for name, array in tensors.items()
        },
        selftest=Selftest(
            "selftest_symbols", "selftest_image", SelftestCsi(7.0, (1.0, 0.0)), 0, 1, 40.0,
            side={"power": "selftest_side_power", "mask": "selftest_side_mask"},
        ),
        format=2,
    )  # fmt: skip
    return manifest, files


def write_rated(path):
    """Write the bundle to `path` and return it."""
    return write_bundle(path, *rated())


def write_longer(path):
    """The same with a stage behind the codec, which reads a side input of its own too."""
    manifest, files = rated()
    image, tint = Port("image", "float32", IMAGE), Port("tint", "float32", ("batch", 3, 1, 1))
    made = model(
        [helper.make_node("Mul", ["reconstruction", "tint"], ["image"])], [OUT, tint], [image]
    )
    files["graphs/render.onnx"] = made.SerializeToString()
    return write_bundle(
        path,
        replace(
            manifest,
            stages={**manifest.stages, "render": stage("render", made, [OUT, tint], [image])},
            program=("decode", "render"),
            image_output="image",
            side_inputs=("power", "mask", "tint"),
            selftest=None,
            tensors={},
        ),
        {name: data for name, data in files.items() if not name.startswith("tensors")},
    )
