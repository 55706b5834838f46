"""ONNX edit: the nodes of a graph as values, and a model's bytes with other nodes in their place.

Written without the onnx package, which no device has. Every field that is not a node, an added
initializer or an added opset is copied as it was read.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jscc.runtime.onnx_wire import BYTES, FIXED32, VARINT, Reader, Value

_GRAPH, _OPSET = 7, 8  # of ModelProto
_NODE, _INITIALIZER, _VALUE_INFO = 1, 5, 13  # of GraphProto
_INPUT, _OUTPUT = 11, 12
_FLOAT, _INT, _INTS = 1, 2, 7  # of AttributeProto.AttributeType
_DTYPE_FLOAT, _DTYPE_INT64 = 1, 7  # of TensorProto.DataType

Field = tuple[int, int, Value]
Dimension = int | str | None


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: Domain and type.
        inputs: Names of values, "" for one that is left out.
        outputs: Names of values.
        raw: Its message.
    """

    op: tuple[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: bytes | memoryview

    def ints(self, name: str) -> tuple[int, ...]:
        """The numbers of the attribute, empty where it has none."""
        reader = Reader("graph")
        for number, kind, part in reader.fields(memoryview(self.raw)):
            if number != 5 or kind != BYTES or not isinstance(part, memoryview):
                continue
            attribute = reader.message(part, {1: BYTES, 3: VARINT, 8: VARINT}, {8})
            if attribute.text(1) == name:
                return tuple(attribute.numbers(8) or attribute.numbers(3))
        return ()


@dataclass
class Graph:
    """A model's one graph, read for a change.

    Attributes:
        nodes: In order.
        constants: Raw message of each initializer.
    """

    nodes: list[Node]
    constants: dict[str, memoryview]
    _model: list[Field]
    _graph: list[Field]

    @cached_property
    def shapes(self) -> dict[str, tuple[Dimension, ...]]:
        """Of the values that have one: a size, a name, or None where neither is known."""
        reader = Reader("graph")
        shapes = {}
        for number, kind, part in self._graph:
            if number in (_VALUE_INFO, _INPUT, _OUTPUT) and kind == BYTES:
                assert isinstance(part, memoryview)
                named = _named_shape(reader, part)
                if named is not None:
                    shapes[named[0]] = named[1]
        return shapes

    @cached_property
    def readers(self) -> dict[str, int]:
        """How many inputs each value is, the graph's outputs included."""
        counts: dict[str, int] = {}
        reader = Reader("graph")
        for number, kind, part in self._graph:
            if number == _OUTPUT and kind == BYTES:
                assert isinstance(part, memoryview)
                name = reader.message(part, {1: BYTES}, set()).text(1)
                counts[name] = counts.get(name, 0) + 1
        for node in self.nodes:
            for name in node.inputs:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def scalar(self, name: str) -> float | None:
        """The one float32 of a constant that lies in the graph itself."""
        part = self.constants.get(name)
        if part is None:
            return None
        reader = Reader("graph")
        kinds = {1: VARINT, 2: VARINT, 9: BYTES, 14: VARINT}
        tensor = reader.message(part, kinds, {1})
        raw = tensor.parts(9)
        single = all(size == 1 for size in tensor.numbers(1))
        if tensor.number(2) != _DTYPE_FLOAT or not raw or len(raw[0]) != 4 or not single:
            return None
        return float(struct.unpack("<f", raw[0])[0])

    def bytes_with(
        self, nodes: Sequence[Node], constants: Sequence[bytes], domain: str, version: int
    ) -> bytes:
        """The model with `nodes` for its own and `constants` besides.

        Args:
            nodes: In an order in which every value is made before it is read.
            constants: Messages of initializers, from `int64_constant`.
            domain: Of operations that the model may not have had.
            version: Of that domain's operations.
        """
        fields: list[Field] = [(_NODE, BYTES, memoryview(node.raw)) for node in nodes]
        fields += [(_INITIALIZER, BYTES, memoryview(constant)) for constant in constants]
        fields += [entry for entry in self._graph if entry[0] != _NODE]
        graph = encode(fields)
        reader = Reader("graph")
        opsets = [
            reader.message(part, {1: BYTES, 2: VARINT}, set()).text(1)
            for number, _, part in self._model
            if number == _OPSET and isinstance(part, memoryview)
        ]
        model = [entry for entry in self._model if entry[0] != _GRAPH]
        if domain not in opsets:
            opset = encode([(1, BYTES, memoryview(domain.encode())), (2, VARINT, version)])
            model.append((_OPSET, BYTES, memoryview(opset)))
        return encode([*model, (_GRAPH, BYTES, memoryview(graph))])


def read_graph(data: bytes) -> Graph | None:
    """The model's graph; None where a model has none, or more than one.

    Raises:
        BundleError: ``E_GRAPH_FORMAT``, these bytes are no ONNX model.
    """
    reader = Reader("graph")
    model = list(reader.fields(memoryview(data)))
    graphs = [part for number, kind, part in model if number == _GRAPH and kind == BYTES]
    if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
        return None
    fields = list(reader.fields(graphs[0]))
    nodes, constants = [], {}
    for number, kind, part in fields:
        if kind != BYTES or not isinstance(part, memoryview):
            continue
        if number == _NODE:
            nodes.append(_node(reader, part))
        elif number == _INITIALIZER:
            constants[reader.message(part, {8: BYTES}, set()).text(8)] = part
    return Graph(nodes, constants, model, fields)


def make_node(
    op: str,
    inputs: Sequence[str],
    output: str,
    *,
    domain: str = "",
    name: str = "",
    **attributes: int | float | Sequence[int],
) -> Node:
    """A node with one output."""
    fields: list[Field] = [(1, BYTES, _text(value)) for value in inputs]
    fields += [(2, BYTES, _text(output)), (3, BYTES, _text(name)), (4, BYTES, _text(op))]
    fields += [(5, BYTES, memoryview(_attribute(*item))) for item in attributes.items()]
    if domain:
        fields.append((7, BYTES, _text(domain)))
    return Node((domain, op), tuple(inputs), (output,), encode(fields))


def int64_constant(name: str, values: Sequence[int]) -> bytes:
    """The message of an initializer with a list of numbers."""
    raw = struct.pack(f"<{len(values)}q", *values)
    head: list[Field] = [(1, VARINT, len(values)), (2, VARINT, _DTYPE_INT64)]
    return encode([*head, (8, BYTES, _text(name)), (9, BYTES, memoryview(raw))])


def encode(fields: Sequence[Field]) -> bytes:
    """The message with these fields, in this order."""
    parts: list[bytes | memoryview] = []
    for number, kind, value in fields:
        parts.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint(value))
            continue
        if kind == BYTES:
            parts.append(_varint(len(value)))
        parts.append(value)
    return b"".join(parts)


def _attribute(name: str, value: int | float | Sequence[int]) -> bytes:
    fields: list[Field] = [(1, BYTES, _text(name))]
    if isinstance(value, float):
        fields += [(2, FIXED32, memoryview(struct.pack("<f", value))), (20, VARINT, _FLOAT)]
    elif isinstance(value, int):
        fields += [(3, VARINT, value), (20, VARINT, _INT)]
    else:
        fields += [(8, VARINT, number) for number in value]
        fields.append((20, VARINT, _INTS))
    return encode(fields)


def _text(value: str) -> memoryview:
    return memoryview(value.encode())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _node(reader: Reader, part: memoryview) -> Node:
    message = reader.message(part, {1: BYTES, 2: BYTES, 4: BYTES, 7: BYTES}, {1, 2})
    domain = message.text(7)
    op = ("" if domain == "ai.onnx" else domain, message.text(4))
    return Node(op, tuple(message.texts(1)), tuple(message.texts(2)), part)


def _named_shape(reader: Reader, part: memoryview) -> tuple[str, tuple[Dimension, ...]] | None:
    """Name and shape of a ValueInfoProto, if it is a tensor's and has a shape."""
    value = reader.message(part, {1: BYTES, 2: BYTES}, set())
    shape = part
    for number, kinds in ((2, {2: BYTES}), (1, {1: BYTES}), (2, {2: BYTES})):
        inner = reader.message(shape, kinds, set()).parts(number)
        if not inner:
            return None
        shape = inner[0]
    return value.text(1), tuple(_dimensions(reader, shape))


def _dimensions(reader: Reader, shape: memoryview) -> Iterator[Dimension]:
    for part in reader.message(shape, {1: BYTES}, {1}).parts(1):
        dimension = reader.message(part, {1: VARINT, 2: BYTES}, set())
        yield dimension.number(1) if 1 in dimension else dimension.text(2) or None
