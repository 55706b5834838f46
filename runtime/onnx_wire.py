"""ONNX wire: the fields of a protobuf message, read from bytes without the onnx package.

Stricter than protobuf where a lenient reader and ONNX Runtime could see different graphs: a known
field of another wire type, a singular field that comes twice, and groups are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jscc.runtime.errors import BundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIELD_LIMIT = 5_000_000  # fields walked in one graph
REPEAT_LIMIT = 100_000  # items of one repeated field

Value = int | memoryview


def malformed(where: str, got: str, expected: str) -> BundleError:
    """The error for bytes that are no ONNX model."""
    return BundleError(
        "E_GRAPH_FORMAT", f"{where}: got {got}, expected {expected}. Export the bundle again."
    )


def forbidden(where: str, got: str, expected: str) -> BundleError:
    """The error for a model that is more than this runtime takes on."""
    return BundleError(
        "E_GRAPH_POLICY", f"{where}: got {got}, expected {expected}. Export the bundle again."
    )


@dataclass
class Reader:
    """Reads messages of one graph file and bounds the work spent on it.

    Attributes:
        where: Name of the file, for messages.
        left: Fields that may still be read.
    """

    where: str
    left: int = FIELD_LIMIT

    def fields(self, data: memoryview) -> Iterator[tuple[int, int, Value]]:
        """Number, wire type and value of each field of the message `data`.

        Raises:
            BundleError: ``E_GRAPH_FORMAT``; ``E_GRAPH_POLICY``, more than is walked.
        """
        position, end = 0, len(data)
        while position < end:
            self._count()
            key, position = self._varint(data, position)
            number, kind = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise malformed(self.where, f"field number {number}", "1 to 2^29")
            if kind == VARINT:
                value, position = self._varint(data, position)
                yield number, kind, value
                continue
            if kind == BYTES:
                size, position = self._varint(data, position)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise malformed(self.where, f"wire type {kind}", "0, 1, 2 or 5")
            if size > end - position:
                raise malformed(self.where, f"a field of {size} bytes", f"{end - position} at most")
            yield number, kind, data[position : position + size]
            position += size

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise forbidden(self.where, "too many fields", f"at most {FIELD_LIMIT}")

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        """The number at `position`, and the position behind it."""
        value = shift = 0
        while position < len(data) and shift < 70:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
        raise malformed(self.where, "a number without end", "one of at most 10 bytes")

    def message(self, data: memoryview, kinds: dict[int, int], repeated: set[int]) -> "Message":
        """Collect the fields of `data` that `kinds` names, with their wire type.

        Raises:
            BundleError: ``E_GRAPH_FORMAT``, a field is of another wire type or comes twice;
                ``E_GRAPH_POLICY``, a field is repeated more often than is walked.
        """
        found: dict[int, list[Value]] = {}
        for number, kind, value in self.fields(data):
            if number not in kinds:
                continue
            expected = kinds[number]
            if kind == expected:
                items = found.setdefault(number, [])
                if items and number not in repeated:
                    raise malformed(self.where, f"field {number} twice", "once")
                items.append(value)
            elif kind == BYTES and number in repeated:
                found.setdefault(number, []).extend(self._packed(value))
            else:
                raise malformed(self.where, f"field {number} of wire type {kind}", f"{expected}")
            if len(found[number]) > REPEAT_LIMIT:
                got = f"more than {REPEAT_LIMIT} items of field {number}"
                raise forbidden(self.where, got, "fewer")
        return Message(self.where, found)

    def _packed(self, value: Value) -> Iterator[int]:
        """The numbers of a packed field; no field of fixed width is ever asked for."""
        assert isinstance(value, memoryview)
        position = 0
        while position < len(value):
            self._count()
            number, position = self._varint(value, position)
            yield number


@dataclass(frozen=True)
class Message:
    """The collected fields of one message, by number."""

    where: str
    found: dict[int, list[Value]]

    def __contains__(self, number: int) -> bool:
        return number in self.found

    def text(self, number: int) -> str:
        """The string in field `number`, empty by default."""
        texts = self.texts(number)
        return texts[0] if texts else ""

    def texts(self, number: int) -> list[str]:
        """The strings in field `number`."""
        try:
            return [bytes(value).decode("utf-8") for value in self.parts(number)]
        except UnicodeDecodeError:
            raise malformed(self.where, "a name that is no text", "UTF-8") from None

    def parts(self, number: int) -> list[memoryview]:
        """The messages or byte strings in field `number`."""
        return [value for value in self.found.get(number, ()) if isinstance(value, memoryview)]

    def numbers(self, number: int) -> list[int]:
        """The signed 64-bit numbers in field `number`."""
        values = (value for value in self.found.get(number, ()) if isinstance(value, int))
        return [value - (1 << 64) if value >> 63 else value for value in values]

    def number(self, number: int) -> int:
        """The number in field `number`, 0 by default."""
        numbers = self.numbers(number)
        return numbers[0] if numbers else 0
