"""Quantised: how ONNX Runtime takes a graph whose layers calibration wrote in eight bits.

Integers become what x86 multiplies, uint8 by int8, out of a graph that any engine reads. A
calibrated graph rounds activations to int8 around 0, which TensorRT asks for. On x86, ONNX Runtime
turns them into uint8 around 128 by itself, but not where a rounded tensor has several readers; the
convolutions on both sides of it then fall back to float32. The activations of such a graph share
one zero point, so that the same change is one tensor of one byte: the integers move by 128 and
stand for the same values.

Eight-bit floats no processor here multiplies: they are rounded as the graph says, and the layers
compute in float32, which shows what a GPU that has them will receive.
"""

import platform

from jscc.runtime.onnx_wire import BYTES, Reader, Value

# What calibration calls the zero point of all activations.
ZERO_POINT, FLOAT8_ZERO_POINT = "int8_zero_point", "float8_zero_point"

_GRAPH, _INITIALIZER = 7, 5  # fields of ModelProto, GraphProto
_NAME, _RAW = 8, 9  # of TensorProto
_INT8, _UINT8 = b"\x10\x03", b"\x10\x02"  # its data_type, which comes first in a scalar
_MIDDLE = 128
_X86 = ("x86_64", "amd64", "i386", "i686")


def is_x86() -> bool:
    """Whether this processor has x86's instructions."""
    return platform.machine().lower() in _X86


def computes_in_float(graph: bytes) -> bool:
    """Whether the layers of a graph with eight-bit numbers are to run in float32 all the same.

    Either only its weights have eight bits, which are made float32 once, when they are loaded, or
    its numbers are eight-bit floats.
    """
    if b"DequantizeLinear" not in graph:
        return False
    return b"QuantizeLinear" not in graph or FLOAT8_ZERO_POINT.encode() in graph


def unsigned(graph: bytes) -> bytes:
    """`graph` with its activations' integers around 128; as it is where it has no `ZERO_POINT`."""
    if ZERO_POINT.encode() not in graph:
        return graph
    copy = bytearray(graph)
    reader = Reader("graph")
    for number, kind, model_part in reader.fields(memoryview(copy)):
        if number != _GRAPH or kind != BYTES or not isinstance(model_part, memoryview):
            continue
        for inner, inner_kind, part in reader.fields(model_part):
            found = inner == _INITIALIZER and inner_kind == BYTES and isinstance(part, memoryview)
            if found and _move(reader, part):
                return bytes(copy)
    return graph


def _move(reader: Reader, tensor: Value) -> bool:
    """Make a zero point of 128 of the tensor, if it is the one of int8; whether it was."""
    assert isinstance(tensor, memoryview)
    if bytes(tensor[:2]) != _INT8:  # dimensions would come before: no scalar
        return False
    fields = {number: value for number, _, value in reader.fields(tensor)}
    name, raw = fields.get(_NAME), fields.get(_RAW)
    if not isinstance(name, memoryview) or bytes(name) != ZERO_POINT.encode():
        return False
    if not isinstance(raw, memoryview) or bytes(raw) != b"\x00":
        return False
    tensor[:2] = _UINT8
    raw[0] = _MIDDLE
    return True
