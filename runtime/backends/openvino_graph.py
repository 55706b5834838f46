"""OpenVINO graph: ONNX bytes made ready for OpenVINO, and what it is known to compute wrongly.

OpenVINO reads external tensors from files only, with one exception: where the location is
``*/_ORT_MEM_ADDR_/*`` (ONNX Runtime's word for it) the offset is an address in this process, from
which it copies. `point_to` writes such references, so weights never touch a disk and are not bound
by the 2 GiB of an ONNX file.
"""

from collections.abc import Callable, Iterator, Mapping

from jscc.runtime.errors import BundleError
from jscc.runtime.onnx_wire import BYTES, VARINT, Message, Reader, Value

_MEMORY = b"*/_ORT_MEM_ADDR_/*"

# Field numbers of onnx.proto3, with their wire type where they are read.
_GRAPH, _NODES, _INITIALIZERS = 7, 1, 5
_NAME, _RAW_DATA, _EXTERNAL, _DATA_LOCATION = 8, 9, 13, 14
_REFERENCE = (_RAW_DATA, _EXTERNAL, _DATA_LOCATION)
_TENSOR = {_NAME: BYTES, _EXTERNAL: BYTES, _DATA_LOCATION: VARINT}
_NODE = {1: BYTES, 2: BYTES, 4: BYTES}
_OUTSIDE = 1  # of a data location


def point_to(graph: bytes, where: str, places: Mapping[str, tuple[int, int]]) -> bytes:
    """Let the external initializers of `graph` lie in memory.

    Args:
        graph: An ONNX file.
        where: Its name, for messages.
        places: Address and bytes of each, by name.

    Returns:
        The file with other references.

    Raises:
        BundleError: ``E_GRAPH_FORMAT``, these bytes are no ONNX model; ``E_GRAPH_EXTERNAL``, other
            initializers than those of `places` are external.
    """
    reader = Reader(where)
    left = dict(places)

    def tensor(data: memoryview) -> bytes:
        message = reader.message(data, _TENSOR, {_EXTERNAL})
        if message.number(_DATA_LOCATION) != _OUTSIDE:
            return bytes(data)
        address, size = left.pop(message.text(_NAME), (0, 0))
        kept = [_field(*field) for field in reader.fields(data) if field[0] not in _REFERENCE]
        return b"".join([*kept, *_reference(address, size)])

    made = _edit(
        reader, memoryview(graph), _GRAPH, lambda body: _edit(reader, body, _INITIALIZERS, tensor)
    )
    if left:
        raise BundleError(
            "E_GRAPH_EXTERNAL",
            f"{where}: got external tensors {sorted(left)} that are no initializers, expected "
            "initializers only. Export the bundle again.",
        )
    return made


def shared_kernel(graph: bytes, where: str) -> str | None:
    """Name of a tensor that is the kernel of a Conv and of a ConvTranspose, or None.

    Raises:
        BundleError: ``E_GRAPH_FORMAT``, these bytes are no ONNX model.
    """
    origin: dict[str, str] = {}
    users: dict[str, set[str]] = {}
    for node in _nodes(Reader(where), graph):
        op, inputs = node.text(4), node.texts(1)
        if op == "Identity" and inputs:
            origin[node.text(2)] = origin.get(inputs[0], inputs[0])
        elif op in ("Conv", "ConvTranspose") and len(inputs) > 1:
            users.setdefault(origin.get(inputs[1], inputs[1]), set()).add(op)
    return next((name for name, ops in users.items() if len(ops) > 1), None)


def _nodes(reader: Reader, graph: bytes) -> Iterator[Message]:
    """The nodes of the main graph, in the order in which they run."""
    for number, _, body in reader.fields(memoryview(graph)):
        if number == _GRAPH and isinstance(body, memoryview):
            for part, _, node in reader.fields(body):
                if part == _NODES and isinstance(node, memoryview):
                    yield reader.message(node, _NODE, {1, 2})


def _reference(address: int, size: int) -> Iterator[bytes]:
    """The fields that say where the bytes of a tensor lie; none have no address."""
    if not size:
        yield _field(_RAW_DATA, BYTES, b"")
        return
    pairs = {b"location": _MEMORY, b"offset": b"%d" % address, b"length": b"%d" % size}
    for key, text in pairs.items():
        yield _field(_EXTERNAL, BYTES, _field(1, BYTES, key) + _field(2, BYTES, text))
    yield _field(_DATA_LOCATION, VARINT, _OUTSIDE)


def _edit(
    reader: Reader, data: memoryview, number: int, change: Callable[[memoryview], bytes]
) -> bytes:
    """The message `data` with `change` made to each message in its field `number`."""
    parts = []
    for key, kind, value in reader.fields(data):
        if key == number and isinstance(value, memoryview):
            parts.append(_field(key, kind, change(value)))
        else:
            parts.append(_field(key, kind, value))
    return b"".join(parts)


def _field(number: int, kind: int, value: Value | bytes) -> bytes:
    """One field of a message."""
    key = _varint(number << 3 | kind)
    if isinstance(value, int):
        return key + _varint(value)
    if kind != BYTES:
        return key + bytes(value)
    return b"".join((key, _varint(len(value)), value))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
