"""Saturation: whether kernels for eight-bit integers cut off sums on this processor.

Before VNNI, x86 multiplies uint8 by int8 and adds two such products in 16 bits, where twice 255
times 127 does not fit: the picture is wrong, and no error says so. ONNX Runtime has other kernels,
if asked. Where there is no need they may take VNNI's place and be slower: the rule by which it told
is gone (microsoft/onnxruntime#27671). So the processor is tried, which works on every system.
"""

import functools

import numpy as np
import onnxruntime as ort

from jscc.runtime.backends.quantised import computes_in_float
from jscc.runtime.onnx_edit import encode, make_node
from jscc.runtime.onnx_wire import BYTES, VARINT

# What is said of a library that has no other kernels.
MAY_CUT_OFF = "may cut off sums of products of integers on this processor, which has no VNNI"

_ROWS, _SUMMED = 8, 64
_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType
_LOG_FATAL = 4


def multiplies_integers(graph: bytes) -> bool:
    """Whether there are layers in `graph` that an engine may run in eight-bit integers."""
    return b"QuantizeLinear" in graph and not computes_in_float(graph)


@functools.cache
def cuts_off_sums() -> bool:
    """Whether ONNX Runtime's usual kernels do.

    NOTE: other libraries' are taken to do the same, which was seen with AVX2. ONNX Runtime has no
    such kernels for processors of before; what OpenVINO makes of integers there was not tried.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_product(), options, providers=["CPUExecutionProvider"])
    largest = {
        "a": np.full((_ROWS, _SUMMED), 255, np.uint8),
        "b": np.full((_SUMMED, _ROWS), 127, np.int8),
    }
    (sums,) = session.run(["y"], largest)
    return bool(np.any(sums != _SUMMED * 255 * 127))


def _product() -> bytes:
    """An ONNX model of one product of matrices of integers."""
    node = make_node("MatMulInteger", ["a", "b"], "y").raw
    edges = [
        (11, _edge("a", _UINT8, _ROWS, _SUMMED)),
        (11, _edge("b", _INT8, _SUMMED, _ROWS)),
        (12, _edge("y", _INT32, _ROWS, _ROWS)),
    ]
    parts = [(1, node), (2, b"product"), *edges]
    graph = encode([(number, BYTES, memoryview(part)) for number, part in parts])
    opset = encode([(2, VARINT, 17)])
    return encode([(1, VARINT, 8), (7, BYTES, memoryview(graph)), (8, BYTES, memoryview(opset))])


def _edge(name: str, dtype: int, *shape: int) -> bytes:
    """A ValueInfoProto."""
    sizes = [encode([(1, VARINT, size)]) for size in shape]
    dimensions = encode([(1, BYTES, memoryview(size)) for size in sizes])
    tensor = encode([(1, VARINT, dtype), (2, BYTES, memoryview(dimensions))])
    kind = encode([(1, BYTES, memoryview(tensor))])
    return encode([(1, BYTES, memoryview(name.encode())), (2, BYTES, memoryview(kind))])
