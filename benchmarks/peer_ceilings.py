"""Peer ceilings: how fast this machine multiplies, as a measure for what an engine makes of it.

Large square matrix products, and 3×3 convolutions at the network's own widths and sizes, each
alone in a graph, in every engine and precision that is installed. The best of several runs counts:
a ceiling is what the machine can do, not what it does on average. A convolution's FLOPs are those
of its definition, so that an engine that needs fewer (Winograd's) may stand above the product's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.peer_case import TRUNKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[], object]
    Numbers = npt.NDArray[Any]

NEEDS = ("onnx", "onnxruntime")
SIDE = 2048  # of the square matrices
RUNS = 5  # after one that warms up
OPSET = 20
_LATENT_FACTOR = 8  # pixels of the image to a side of a latent's


@dataclass(frozen=True)
class Product:
    """One product to time.

    Attributes:
        name: Shown.
        activations: Shape of what the weights meet.
        weights: Their shape.
        flops: A product and a sum are two.
    """

    name: str
    activations: tuple[int, ...]
    weights: tuple[int, ...]
    flops: int

    @property
    def operator(self) -> str:
        """Of ONNX."""
        return "MatMul" if len(self.weights) == 2 else "Conv"

    @property
    def out_axis(self) -> int:
        """Axis of the weights that runs over the output's features."""
        return 1 if self.operator == "MatMul" else 0


def products(scale: str, height: int, width: int, side: int = SIDE) -> list[Product]:
    """What is timed for a case: one matrix product, and a convolution for each level's width.

    Args:
        scale: Of the case.
        height: Of its image, in pixels.
        width: Likewise.
        side: Of the square matrices.
    """
    found = [Product(f"{side}×{side} product", (side, side), (side, side), 2 * side**3)]
    trunk = TRUNKS[scale]
    for level, factor in enumerate(trunk["channel_mult"]):
        features = trunk["model_channels"] * factor
        rows, columns = (each // (_LATENT_FACTOR * 2**level) for each in (height, width))
        shape = (features, features, 3, 3)
        flops = 2 * rows * columns * 9 * features**2
        name = f"3×3 convolution, {features} features, {rows}×{columns}"
        found.append(Product(name, (1, features, rows, columns), shape, flops))
    return found


def measure(
    scale: str, height: int, width: int, threads: int, *, side: int = SIDE, runs: int = RUNS
) -> list[dict[str, object]]:
    """Time every product in every engine and precision; see `products`.

    Args:
        scale: Of the case.
        height: Of its image, in pixels.
        width: Likewise.
        threads: Of every engine; NumPy has what the process was started with.
        side: Of the square matrices.
        runs: Timed runs, the best of which counts.

    Returns:
        Product, engine, precision and TFLOP/s of each.
    """
    found: list[dict[str, object]] = []
    for product in products(scale, height, width, side):
        for engine, precision, run in _ways(product, threads):
            run()
            best = min(_seconds(run) for _ in range(runs))
            found.append(
                {
                    "product": product.name,
                    "engine": engine,
                    "precision": precision,
                    "tflops": product.flops / best / 1e12,
                }
            )
    return found


def _seconds(run: Run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _ways(product: Product, threads: int) -> Iterator[tuple[str, str, Run]]:
    """Engine, precision and a way to run `product` once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(product.activations).astype(np.float32)
    weights = rng.standard_normal(product.weights).astype(np.float32)
    if product.operator == "MatMul":
        yield "numpy", "fp32", lambda: x @ weights
    exact = graph(product, weights)
    rated, integers = graph(product, weights, int8=True), _integers(x)
    yield "onnxruntime", "fp32", _onnxruntime(exact, x, threads)
    yield "onnxruntime", "int8", _onnxruntime(rated, integers, threads)
    try:
        import openvino
    except ModuleNotFoundError:
        return
    core = openvino.Core()
    yield "openvino", "fp32", _openvino(core, exact, x, threads, "f32")
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        yield "openvino", "bf16", _openvino(core, exact, x, threads, "bf16")
    yield "openvino", "int8", _openvino(core, rated, integers, threads, "f32")


def _integers(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.asarray((np.round(x * (127 / 4)) + 128).clip(0, 255), np.uint8)


def _onnxruntime(model: bytes, x: Numbers, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _openvino(core: Any, model: bytes, x: Numbers, threads: int, precision: str) -> Run:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer({"x": x}, share_inputs=True)


def graph(product: Product, weights: npt.NDArray[np.float32], *, int8: bool = False) -> bytes:
    """An ONNX model of `product`: x → y, float32, or from uint8 to uint8 with weights in int8."""
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, Numbers] = {"w": weights}
    nodes: list[Any] = []
    reads, writes = ("x", "w"), "y"
    if int8:
        constants, nodes = _rounded(product, weights)
        reads, writes = ("x_float", "w_float"), "y_float"
    middle = helper.make_node(product.operator, reads, [writes])
    if product.operator == "Conv":
        middle.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    nodes = [*nodes[:2], middle, *nodes[2:]]
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, product.activations)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _rounded(
    product: Product, weights: npt.NDArray[np.float32]
) -> tuple[dict[str, Numbers], list[Any]]:
    """Constants and nodes of a product of integers; the product goes before the last node."""
    from onnx import helper

    axis = product.out_axis
    others = tuple(each for each in range(weights.ndim) if each != axis)
    steps = np.abs(weights).max(axis=others, keepdims=True) / 127
    size = weights.shape[axis]
    # A sum of so many products of two numbers of unit variance; four deviations fit in a byte.
    reach = 4 * np.sqrt(weights.size / size)
    constants: dict[str, Numbers] = {
        "w": np.round(weights / steps).astype(np.int8),
        "w_step": steps.reshape(-1).astype(np.float32),
        "w_zero": np.zeros(size, np.int8),
        "x_step": np.array(4 / 127, np.float32),
        "y_step": np.array(reach / 127, np.float32),
        "middle": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_step", "middle"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_step", "w_zero"], ["w_float"], axis=axis),
        helper.make_node("QuantizeLinear", ["y_float", "y_step", "middle"], ["y"]),
    ]
    return constants, nodes
