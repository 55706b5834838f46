"""Ceilings: the FLOPs of a product by its definition, and graphs that compute what they should."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from jscc.benchmarks.peer_ceilings import Product, graph, measure, products


def run(model: bytes, x):
    """By the specification's own evaluator: engines forgive what it does not."""
    return ReferenceEvaluator(ModelProto.FromString(model)).run(None, {"x": x})[0]


def test_products_are_those_of_the_network_at_its_own_sizes():
    """Stable Diffusion 2.1 at 512×512: 320, 640, 1280 and 1280 features at 64, 32, 16 and 8."""
    square, *convolutions = products("full", 512, 512)
    assert square.flops == 2 * 2048**3
    assert [each.activations for each in convolutions] == [
        (1, 320, 64, 64),
        (1, 640, 32, 32),
        (1, 1280, 16, 16),
        (1, 1280, 8, 8),
    ]
    assert convolutions[1].flops == 2 * 32 * 32 * 640 * 640 * 9


@pytest.mark.parametrize(
    "product",
    [Product("m", (40, 24), (24, 32), 0), Product("c", (1, 24, 5, 6), (16, 24, 3, 3), 0)],
    ids=["product", "convolution"],
)
def test_a_graph_of_eight_bits_is_near_the_exact_one(product):
    rng = np.random.default_rng(0)
    x = rng.uniform(-3.9, 3.9, product.activations).astype(np.float32)
    x /= np.float32(3)
    weights = rng.standard_normal(product.weights).astype(np.float32)
    exact = run(graph(product, weights), x)
    if product.operator == "MatMul":
        np.testing.assert_allclose(exact, x @ weights, rtol=1e-4, atol=1e-4)
    else:  # the middle of a convolution is one product of its window
        window = x[0, :, 1:4, 1:4]
        np.testing.assert_allclose(
            exact[0, :, 2, 2], np.tensordot(weights, window, 3), rtol=1e-4, atol=1e-4
        )
    step = 4 / 127
    integers = (np.round(x / step) + 128).astype(np.uint8)
    rounded = run(graph(product, weights, int8=True), integers)
    assert rounded.dtype == np.uint8
    reach = 4 * np.sqrt(weights.size / weights.shape[product.out_axis])
    gap = (rounded.astype(np.float32) - 128) * (reach / 127) - exact
    assert np.sqrt(np.mean(np.square(gap))) < 0.03 * exact.std() + reach / 127


def test_every_engine_and_precision_has_a_rate():
    found = measure("small", 64, 64, 1, side=64, runs=1)
    ways = {(each["product"][:2], each["engine"], each["precision"]) for each in found}
    assert {("64", "numpy", "fp32"), ("64", "onnxruntime", "int8")} <= ways
    assert {("3×", "onnxruntime", "fp32"), ("3×", "onnxruntime", "int8")} <= ways
    assert all(each["tflops"] > 0 for each in found)
