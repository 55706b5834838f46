"""Unsigned: integers as x86 multiplies them, uint8 by int8, out of a graph that any engine reads.

A calibrated graph rounds activations to int8 around 0, which TensorRT asks for. On x86, ONNX
Runtime turns them into uint8 around 128 by itself, but not where a rounded tensor has several
readers; the convolutions on both sides of it then fall back to float32. The activations of such a
graph share one zero point, so that the same change is one tensor of one byte: the integers move by
128 and stand for the same values.
"""

import platform

from jscc.runtime.onnx_wire import BYTES, Reader, Value

ZERO_POINT = "int8_zero_point"  # what calibration calls the zero point of all activations

_GRAPH, _INITIALIZER = 7, 5  # fields of ModelProto, GraphProto
_NAME, _RAW = 8, 9  # of TensorProto
_INT8, _UINT8 = b"\x10\x03", b"\x10\x02"  # its data_type, which comes first in a scalar
_MIDDLE = 128
_X86 = ("x86_64", "amd64", "i386", "i686")


def is_x86() -> bool:
    """Whether this processor has x86's instructions."""
    return platform.machine().lower() in _X86


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
