"""Graph walk: every node and tensor of an ONNX model, however deep it is nested.

Field numbers are those of onnx.proto3; each table below maps the fields that are read to their
wire type. What is not read cannot change what an engine computes, or is refused by the policy.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from jscc.runtime.errors import BundleError
from jscc.runtime.onnx_wire import BYTES, VARINT, Message, Reader, forbidden, malformed
from jscc.runtime.ports import Dim, Port

NODE_LIMIT = 100_000
DEPTH_LIMIT = 8
STATIC_LIMIT = 16  # elements of a constant that is looked into

# Name and bits per element by TensorProto.DataType; strings and complex numbers are refused.
TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
}

_MODEL = {6: BYTES, 7: BYTES, 8: BYTES, 20: BYTES, 25: BYTES}
_OPSET = {1: BYTES, 2: VARINT}
_GRAPH = {1: BYTES, 5: BYTES, 11: BYTES, 12: BYTES, 15: BYTES}
_NODE = {1: BYTES, 2: BYTES, 4: BYTES, 5: BYTES, 7: BYTES}
_ATTRIBUTE = {1: BYTES, 3: VARINT, 5: BYTES, 6: BYTES, 8: VARINT, 10: BYTES, 11: BYTES}
_ATTRIBUTE |= {22: BYTES, 23: BYTES}
_TENSOR = {1: VARINT, 2: VARINT, 8: BYTES, 9: BYTES, 13: BYTES, 14: VARINT}
_TYPED_DATA = (4, 5, 7, 10, 11)
_SPARSE = {1: BYTES, 2: BYTES}
_TRAINING = {1: BYTES, 2: BYTES}
_FUNCTION = {7: BYTES, 11: BYTES}
_PAIR = {1: BYTES, 2: BYTES}
_VALUE = {1: BYTES, 2: BYTES}
_TYPE = {1: BYTES, 4: BYTES, 5: BYTES, 8: BYTES, 9: BYTES}
_TENSOR_TYPE = {1: VARINT, 2: BYTES}
_SHAPE = {1: BYTES}
_DIMENSION = {1: VARINT, 2: BYTES}

# Input that says how large the output is, by op.
_SIZED = {"ConstantOfShape": 0, "Expand": 1, "OneHot": 1, "Col2Im": 1}
_GROWING = {"Tile": 1, "Resize": 2, "Upsample": 1}
_GROWING_ATTRIBUTES = {"strides", "pads", "output_padding", "output_shape", "kernel_shape"}
_GROWING_ATTRIBUTES |= {"scales", "dilations", "paddings"}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file.

    Attributes:
        name: Tensor in the graph.
        location: File, as the graph names it.
        offset: First byte.
        length: Bytes.
        dtype: Element type.
        bits: Bits per element.
        shape: Dimensions.
        fault: What is wrong with the reference by itself, or empty.
    """

    name: str
    location: str
    offset: int
    length: int
    dtype: str
    bits: int
    shape: tuple[int, ...]
    fault: str


@dataclass
class Walk:
    """Collects what `jscc.runtime.graphs.GraphSummary` tells; see there."""

    reader: Reader
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    ops: set[tuple[str, str]] = field(default_factory=set)
    opsets: dict[str, int] = field(default_factory=dict)
    external: list[ExternalTensor] = field(default_factory=list)
    nodes: int = 0
    initializer_bytes: int = 0
    special: set[str] = field(default_factory=set)
    elements: tuple[float, str] = (0, "")
    growth: tuple[float, str] = (0, "")
    doc: str = ""
    _static: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def model(self, data: memoryview) -> None:
        """Walk a ModelProto."""
        model = self._message(data, _MODEL, {8, 20, 25})
        for part in model.parts(8):
            opset = self._message(part, _OPSET)
            domain = _domain(opset.text(1))
            if domain in self.opsets:
                raise self._malformed(f"opset of domain {domain!r} twice", "once")
            self.opsets[domain] = opset.number(2)
        self.doc = model.text(6)
        for part in model.parts(25):
            self._function(part)
        for part in model.parts(20):
            self.special.add("training information")
            training = self._message(part, _TRAINING)
            for graph in training.parts(1) + training.parts(2):
                self._graph(graph, 1)
        if 7 not in model:
            raise self._malformed("no graph", "one")
        self._graph(model.parts(7)[0], 0)

    def _graph(self, data: memoryview, depth: int) -> None:
        """Walk a GraphProto; the outermost one gives the ports."""
        if depth > DEPTH_LIMIT:
            raise self._forbidden(
                f"graphs nested over {DEPTH_LIMIT} deep", f"at most {DEPTH_LIMIT}"
            )
        graph = self._message(data, _GRAPH, set(_GRAPH))
        initializers = dict(self._tensor(part) for part in graph.parts(5))
        self._static.update(initializers)
        for part in graph.parts(15):
            self._sparse(part)
        for part in graph.parts(1):
            self._node(part, depth)
        if depth == 0:
            ports = [self._port(part) for part in graph.parts(11)]
            self.inputs = [port for port in ports if port.name not in initializers]
            self.outputs = [self._port(part) for part in graph.parts(12)]

    def _function(self, data: memoryview) -> None:
        """A FunctionProto is refused later; what hides in it is still looked at."""
        self.special.add("a function")
        function = self._message(data, _FUNCTION, set(_FUNCTION))
        for part in function.parts(7):
            self._node(part, 1)
        for part in function.parts(11):
            self._attribute(part, "function", 1)

    def _node(self, data: memoryview, depth: int) -> None:
        self.nodes += 1
        if self.nodes > NODE_LIMIT:
            raise self._forbidden(f"more than {NODE_LIMIT} nodes", f"at most {NODE_LIMIT}")
        node = self._message(data, _NODE, {1, 2, 5})
        op = node.text(4)
        self.ops.add((_domain(node.text(7)), op))
        attributes = dict(self._attribute(part, op, depth) for part in node.parts(5))
        inputs, outputs = node.texts(1), node.texts(2)
        if op == "Constant" and len(outputs) == 1 and len(attributes) == 1:
            self._static[outputs[0]] = next(iter(attributes.values()))
        self._weigh(op, inputs, attributes)

    def _weigh(self, op: str, inputs: list[str], attributes: dict[str, tuple[float, ...]]) -> None:
        """Note how much `op` allocates, as far as the graph itself says so."""
        fed = [self._static.get(name, ()) for name in inputs]
        index = _SIZED.get(op, len(fed))
        if index < len(fed):
            self._note_elements(math.prod(max(1.0, abs(size)) for size in fed[index]), op)
        if op == "Resize" and len(fed) > 3:
            self._note_elements(math.prod(max(1.0, size) for size in fed[3]), op)
        if op == "Range" and len(fed) == 3 and all(len(values) == 1 for values in fed):
            start, limit, delta = (values[0] for values in fed)
            self._note_elements(abs(limit - start) / abs(delta) if delta else math.inf, op)
        index = _GROWING.get(op, len(fed))
        if index < len(fed):
            self._note_growth(math.prod(max(1.0, abs(size)) for size in fed[index]), op)
        if op == "Pad" and len(fed) > 1:
            self._note_growth(max((abs(size) for size in fed[1]), default=0), op)
        for name in _GROWING_ATTRIBUTES & set(attributes):
            self._note_growth(max((abs(size) for size in attributes[name]), default=0), op)

    def _note_elements(self, elements: float, op: str) -> None:
        self.elements = max(self.elements, (elements, op))

    def _note_growth(self, growth: float, op: str) -> None:
        self.growth = max(self.growth, (growth, op))

    def _attribute(self, data: memoryview, op: str, depth: int) -> tuple[str, tuple[float, ...]]:
        """Name and numbers of an AttributeProto; its tensors and graphs are walked."""
        attribute = self._message(data, _ATTRIBUTE, {8, 10, 11, 23})
        name = attribute.text(1)
        numbers = tuple(float(number) for number in attribute.numbers(3) + attribute.numbers(8))
        for part in attribute.parts(5) + attribute.parts(10):
            _, numbers = self._tensor(part)
        for part in attribute.parts(22) + attribute.parts(23):
            self._sparse(part)
        for part in attribute.parts(6) + attribute.parts(11):
            self.special.add(f"a subgraph in {op}")
            self._graph(part, depth + 1)
        return name, numbers

    def _sparse(self, data: memoryview) -> None:
        """A SparseTensorProto is refused later: its dense shape is not bounded by the file."""
        self.special.add("a sparse tensor")
        sparse = self._message(data, _SPARSE)
        for part in sparse.parts(1) + sparse.parts(2):
            self._tensor(part)

    def _tensor(self, data: memoryview) -> tuple[str, tuple[float, ...]]:
        """Walk a TensorProto; its name, and its numbers where they are few."""
        tensor = self._message(data, _TENSOR, {1, 13})
        name = tensor.text(8)
        shape = tuple(tensor.numbers(1))
        dtype, bits = self._type(tensor.number(2))
        if len(shape) > 32 or any(size < 0 for size in shape):
            raise self._malformed(f"tensor of shape {list(shape)[:40]}", "no negative dimension")
        location = tensor.number(14)
        if location not in (0, 1):
            raise self._malformed(f"data location {location}", "0 or 1")
        if location == 1 or 13 in tensor:
            self.external.append(self._external(tensor, name, (dtype, bits), shape))
            return name, ()
        count = math.prod(shape)
        raw = tensor.parts(9)
        expected = math.ceil(count * bits / 8)
        if raw and len(raw[0]) != expected:
            raise self._malformed(f"{len(raw[0])} bytes for {dtype}{list(shape)}", f"{expected}")
        if not raw and count > 4 * len(data):
            raise self._malformed(f"{len(data)} bytes for {dtype}{list(shape)}", "its elements")
        self.initializer_bytes += expected
        if count <= STATIC_LIMIT and dtype in ("int64", "int32", "float32"):
            return name, self._values(data, raw, dtype)
        return name, ()

    def _values(self, data: memoryview, raw: list[memoryview], dtype: str) -> tuple[float, ...]:
        """The numbers of a small tensor."""
        letter = {"int64": "q", "int32": "i", "float32": "f"}[dtype]
        if raw:
            return struct.unpack(f"<{len(raw[0]) // struct.calcsize(letter)}{letter}", raw[0])
        number = {"int64": 7, "int32": 5}.get(dtype)
        if number is None:
            parts = b"".join(
                bytes(value)
                for key, _, value in self.reader.fields(data)
                if key == 4 and isinstance(value, memoryview)
            )
            return struct.unpack(f"<{len(parts) // 4}f", parts[: len(parts) // 4 * 4])
        return tuple(map(float, self._message(data, {number: VARINT}, {number}).numbers(number)))

    def _external(
        self, tensor: Message, name: str, kind: tuple[str, int], shape: tuple[int, ...]
    ) -> ExternalTensor:
        pairs: dict[str, str] = {}
        fault = "" if tensor.number(14) == 1 else "external data marked as inside"
        for part in tensor.parts(13):
            pair = self._message(part, _PAIR)
            key = pair.text(1)
            if key in pairs:
                fault = f"{key!a} twice"
            pairs[key] = pair.text(2)
        unknown = sorted(set(pairs) - {"location", "offset", "length"})
        if unknown:
            fault = f"unknown keys {unknown!a:.60}"
        sizes = {}
        for key, default in (("offset", "0"), ("length", "")):
            text = pairs.get(key, default)
            if not (text.isascii() and text.isdecimal() and len(text) <= 19):
                fault = fault or f"{key} {text!a:.60}"
                text = "0"
            sizes[key] = int(text)
        if 9 in tensor:
            fault = fault or "bytes inside too"
        location = pairs.get("location", "")
        return ExternalTensor(name, location, sizes["offset"], sizes["length"], *kind, shape, fault)

    def _port(self, data: memoryview) -> Port:
        """Read a ValueInfoProto."""
        value = self._message(data, _VALUE)
        name = value.text(1)
        kind = self._message(_only(value.parts(2)), _TYPE)
        tensor = self._message(_only(kind.parts(1)), _TENSOR_TYPE)
        if set(kind.found) != {1} or set(tensor.found) != {1, 2}:
            raise self._malformed(f"port {name!a} of another kind", "a tensor with a shape")
        shape = self._message(_only(tensor.parts(2)), _SHAPE, {1})
        dims = tuple(self._dim(part) for part in shape.parts(1))
        return Port(name, self._type(tensor.number(1))[0], dims)

    def _dim(self, data: memoryview) -> Dim:
        dimension = self._message(data, _DIMENSION)
        if 1 not in dimension:
            return dimension.text(2) or "?"
        size = dimension.number(1)
        if size < 0 or 2 in dimension:
            raise self._malformed(f"dimension {size}", "a size or a symbol")
        return size

    def _type(self, number: int) -> tuple[str, int]:
        if number not in TYPES:
            raise self._malformed(f"element type {number}", "a number type")
        return TYPES[number]

    def _message(
        self, data: memoryview, kinds: dict[int, int], repeated: set[int] | None = None
    ) -> Message:
        return self.reader.message(data, kinds, repeated or set())

    def _malformed(self, got: str, expected: str) -> BundleError:
        return malformed(self.reader.where, got, expected)

    def _forbidden(self, got: str, expected: str) -> BundleError:
        return forbidden(self.reader.where, got, expected)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _only(parts: list[memoryview]) -> memoryview:
    """The one message, or an empty one."""
    return parts[0] if parts else memoryview(b"")
