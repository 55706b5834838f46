"""ONNX edit: the nodes of a graph as values, and a model's bytes with other nodes in their place.

Written without the onnx package, which no device has. Every field that is not a node, an added
initializer or an added opset is copied as it was read.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jscc.runtime.onnx_wire import BYTES, FIXED32, VARINT, Reader, Value

_GRAPH, _OPSET = 7, 8  # of ModelProto
_NODE, _INITIALIZER, _VALUE_INFO = 1, 5, 13  # of GraphProto
_INPUT, _OUTPUT = 11, 12
_FLOAT, _INT, _INTS = 1, 2, 7  # of AttributeProto.AttributeType
FLOAT, INT64 = 1, 7  # of TensorProto.DataType

Field = tuple[int, int, Value]
Dimension = int | str | None


@dataclass(frozen=True)
class Tensor:
    """What a graph says of a value.

    Attributes:
        dtype: TensorProto.DataType.
        shape: A size, a name, or None where neither is known.
    """

    dtype: int
    shape: tuple[Dimension, ...]


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
        """The numbers of the attribute, empty where it has none or there are several."""
        reader = Reader("graph")
        found = []
        for number, kind, part in reader.fields(memoryview(self.raw)):
            if number != 5 or kind != BYTES or not isinstance(part, memoryview):
                continue
            attribute = reader.message(part, {1: BYTES, 3: VARINT, 8: VARINT}, {8})
            if attribute.text(1) == name:
                found.append(tuple(attribute.numbers(8) or attribute.numbers(3)))
        return found[0] if len(found) == 1 else ()


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
    _reader: Reader

    def tensor(self, name: str) -> Tensor | None:
        """What the graph says of the value's type, if it does."""
        part = self._described.get(name)
        return None if part is None else _tensor(self._reader, part)

    @cached_property
    def _described(self) -> dict[str, memoryview]:
        """The messages of values that have a type."""
        found = {}
        for number, kind, part in self._graph:
            if number in (_VALUE_INFO, _INPUT, _OUTPUT) and kind == BYTES:
                assert isinstance(part, memoryview)
                found[self._reader.message(part, {1: BYTES}, set()).text(1)] = part
        return found

    @cached_property
    def readers(self) -> dict[str, int]:
        """How many inputs each value is, the graph's outputs included."""
        counts: dict[str, int] = {}
        for number, kind, part in self._graph:
            if number == _OUTPUT and kind == BYTES:
                assert isinstance(part, memoryview)
                name = self._reader.message(part, {1: BYTES}, set()).text(1)
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
        kinds = {1: VARINT, 2: VARINT, 9: BYTES, 14: VARINT}
        tensor = self._reader.message(part, kinds, {1})
        raw = tensor.parts(9)
        single = all(size == 1 for size in tensor.numbers(1))
        if tensor.number(2) != FLOAT or not raw or len(raw[0]) != 4 or not single:
            return None
        return float(struct.unpack("<f", raw[0])[0])

    @property
    def names(self) -> Iterator[str]:
        """Of all values."""
        yield from self.constants
        yield from self._described
        for node in self.nodes:
            yield from (*node.inputs, *node.outputs)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The int64 numbers of a constant that lies in the graph itself."""
        part = self.constants.get(name)
        if part is None:
            return None
        tensor = self._reader.message(part, {1: VARINT, 2: VARINT, 7: VARINT, 9: BYTES}, {1, 7})
        if tensor.number(2) != INT64 or len(tensor.numbers(1)) > 1:
            return None
        for raw in tensor.parts(9):
            return struct.unpack(f"<{len(raw) // 8}q", raw) if len(raw) % 8 == 0 else None
        return tuple(tensor.numbers(7))

    def sizes(
        self, makers: Mapping[str, int], name: str, depth: int = 4
    ) -> tuple[Dimension, ...] | None:
        """The numbers that a shape is made of: constants, and sizes of other values, by name.

        Args:
            makers: Place of the node that makes each value.
            name: Of the int64 list.
            depth: How many nodes may lie between.
        """
        constant = self.integers(name)
        if constant is not None or name not in makers or not depth:
            return constant
        node = self.nodes[makers[name]]
        if node.op == ("", "Shape") and not any(node.ints("start")) and not node.ints("end"):
            of = self.tensor(node.inputs[0])
            return None if of is None else of.shape
        parts = [self.sizes(makers, each, depth - 1) for each in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return None
        if node.op == ("", "Concat"):
            return tuple(size for part in known for size in part)
        if node.op == ("", "Slice") and len(known) in (3, 4) and known[3:] in ([], [(0,)]):
            return _sliced(known[0], known[1], known[2])
        return None

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
        graph = _parts(fields)
        opsets = [
            self._reader.message(part, {1: BYTES, 2: VARINT}, set()).text(1)
            for number, _, part in self._model
            if number == _OPSET and isinstance(part, memoryview)
        ]
        model = [entry for entry in self._model if entry[0] != _GRAPH]
        if domain not in opsets:
            opset = encode([(1, BYTES, memoryview(domain.encode())), (2, VARINT, version)])
            model.append((_OPSET, BYTES, memoryview(opset)))
        head = [_varint(_GRAPH << 3 | BYTES), _varint(sum(map(len, graph)))]
        return b"".join([*_parts(model), *head, *graph])


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
    return Graph(nodes, constants, model, fields, reader)


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


def _sliced(
    sizes: tuple[Dimension, ...], begin: tuple[Dimension, ...], end: tuple[Dimension, ...]
) -> tuple[Dimension, ...] | None:
    if len(begin) != 1 or len(end) != 1:
        return None
    first, last = begin[0], end[0]
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return sizes[first:last]


def int64_constant(name: str, values: Sequence[int]) -> bytes:
    """The message of an initializer with a list of numbers."""
    raw = struct.pack(f"<{len(values)}q", *values)
    head: list[Field] = [(1, VARINT, len(values)), (2, VARINT, INT64)]
    return encode([*head, (8, BYTES, _text(name)), (9, BYTES, memoryview(raw))])


def encode(fields: Sequence[Field]) -> bytes:
    """The message with these fields, in this order."""
    return b"".join(_parts(fields))


def _parts(fields: Sequence[Field]) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for number, kind, value in fields:
        parts.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint(value))
            continue
        if kind == BYTES:
            parts.append(_varint(len(value)))
        parts.append(value)
    return parts


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
    number &= 0xFFFFFFFFFFFFFFFF  # two's complement, as protobuf writes what is negative
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


def _tensor(reader: Reader, part: memoryview) -> Tensor | None:
    """Type and shape in a ValueInfoProto, if it is a tensor's and has a shape."""
    value = reader.message(part, {1: BYTES, 2: BYTES}, set())
    for kind in value.parts(2):
        for tensor in reader.message(kind, {1: BYTES}, set()).parts(1):
            fields = reader.message(tensor, {1: VARINT, 2: BYTES}, set())
            for shape in fields.parts(2):
                return Tensor(fields.number(1), tuple(_dimensions(reader, shape)))
    return None


def _dimensions(reader: Reader, shape: memoryview) -> Iterator[Dimension]:
    for part in reader.message(shape, {1: BYTES}, {1}).parts(1):
        dimension = reader.message(part, {1: VARINT, 2: BYTES}, set())
        yield dimension.number(1) if 1 in dimension else dimension.text(2) or None
