"""Pickles: a reader of pickle streams that builds data and runs nothing.

A pickle is a program for a stack machine. This machine has its data opcodes only: no name is ever
imported, no object is ever built, nothing is hashed or compared. What calls something is handed,
as data, to `Meanings`, which decides by exact name. The result is made of None, bool, int, float,
str, bytes, list, tuple and the classes of this module.

NOTE: Python's own `pickle.Unpickler` with a restricted ``find_class`` is not enough: it sets
attributes on whatever ``find_class`` gave out, allocates by the index of a memo opcode, and hashes
nested tuples recursively in C, which ends the process.
"""

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from jscc.runtime.errors import CheckpointError

Value = Any  # one of the kinds listed above; a recursive alias would say no more to a reader

MAX_OPCODES = 1_000_000  # a checkpoint spends about 50 per tensor
LONGEST_NUMBER = 64  # bytes of an integer, digits of a text number
LONGEST_NAME = 512


@dataclass(frozen=True)
class Global:
    """A name that the pickle would have imported."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """``module.name`` in printable characters."""
        return ascii(f"{self.module}.{self.name}")[1:-1]


@dataclass(frozen=True, eq=False, slots=True)
class Inert:
    """Stands where the pickle would have built an object; what it would hold is dropped."""

    of: Global


@dataclass(eq=False, slots=True)
class Table:
    """A dict as its pairs, in order; kept unhashed, since keys may be anything."""

    pairs: list[tuple[Value, Value]] = field(default_factory=list)

    def named(self) -> dict[str, Value]:
        """The pairs whose key is a string."""
        return {key: value for key, value in self.pairs if type(key) is str}


class Meanings(Protocol):
    """What the names in a pickle stand for."""

    def admit(self, name: Global) -> None:
        """Raise if `name` must not occur."""

    def call(self, name: Global, arguments: tuple[Value, ...]) -> Value:
        """The value of ``name(*arguments)``, where nothing may be run to get it."""

    def persistent(self, identity: Value) -> Value:
        """The value of a persistent id."""


def read_pickle(stream: BinaryIO, size: int, meanings: Meanings, *, where: str) -> Value:
    """Read one pickle from `stream`, which is left right behind it.

    Args:
        stream: Positioned at the pickle's first byte.
        size: Bytes from there to the end of the stream.
        meanings: Decides what names and persistent ids become.
        where: Begins every message.

    Raises:
        CheckpointError: ``E_CKPT_TRUNCATED``, the stream ends inside the pickle;
            ``E_CKPT_FORMAT``, it is no pickle of data; ``E_CKPT_BOMB``, it has more than
            `MAX_OPCODES` steps; whatever `meanings` raises.
    """
    return _Machine(stream, size, meanings, where).run()


class _Machine:
    """The stack machine; one method per group of opcodes."""

    def __init__(self, stream: BinaryIO, size: int, meanings: Meanings, where: str) -> None:
        self.stream = stream
        self.size = size
        self.position = 0
        self.meanings = meanings
        self.where = where
        self.stack: list[Value] = []
        self.marks: list[list[Value]] = []
        self.memo: dict[int, Value] = {}

    def run(self) -> Value:
        for _ in range(MAX_OPCODES):
            code = self.take(1)
            if code == b".":
                return self.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise self.broken(f"opcode 0x{code.hex()}")
            action(self)
        raise CheckpointError(
            "E_CKPT_BOMB",
            f"{self.where}: got a pickle of more than {MAX_OPCODES} steps, expected about 50 per "
            "tensor. Ask its author for safetensors.",
        )

    def broken(self, got: str) -> CheckpointError:
        return CheckpointError(
            "E_CKPT_FORMAT",
            f"{self.where}: got {got} at byte {self.position} of the pickle, expected what "
            "torch.save writes. Fetch the file again, or ask its author for safetensors.",
        )

    def take(self, count: int) -> bytes:
        data = self.stream.read(count) if count <= self.size - self.position else b""
        if len(data) != count:
            raise self.ended()
        self.position += count
        return data

    def ended(self) -> CheckpointError:
        return CheckpointError(
            "E_CKPT_TRUNCATED",
            f"{self.where}: got the end of the data after {self.position} bytes of the pickle, "
            "expected more. Fetch the file again.",
        )

    def line(self) -> str:
        data = self.stream.readline(LONGEST_NAME)
        if not data.endswith(b"\n"):
            raise self.broken("an overlong line") if len(data) == LONGEST_NAME else self.ended()
        self.position += len(data)
        return self.text(data[:-1])

    def text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken("text that is not UTF-8") from None

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def sized(self, layout: str, limit: int | None = None) -> bytes:
        length = self.number(layout)
        if length < 0 or (limit is not None and length > limit):
            raise self.broken(f"a length of {length}")
        return self.take(length)

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def pop(self) -> Value:
        if not self.stack:
            raise self.broken("an empty stack")
        return self.stack.pop()

    def top(self) -> Value:
        if not self.stack:
            raise self.broken("an empty stack")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Value]:
        if not self.marks:
            raise self.broken("a missing mark")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise self.broken("an empty stack")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def drop(self) -> None:
        """POP also takes back a mark when nothing lies above it."""
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_mark(self) -> None:
        self.pop_mark()

    def protocol(self) -> None:
        version = self.number("<B")
        if version > 5:
            raise self.broken(f"protocol {version}")

    def frame(self) -> None:
        """A frame only says how much to read ahead."""
        if self.number("<Q") > self.size - self.position:
            raise self.ended()

    def decimal(self) -> None:
        text = self.line().removesuffix("L")
        if text in ("00", "01"):  # how protocol 0 writes booleans
            self.push(text == "01")
            return
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= LONGEST_NUMBER):
            raise self.broken("a malformed number")
        self.push(int(text))

    def point(self) -> None:
        text = self.line()
        try:
            self.push(float(text[:LONGEST_NUMBER]))
        except ValueError:
            raise self.broken("a malformed number") from None

    def string(self, layout: str) -> None:
        """The byte strings of Python 2: text where they are text."""
        data = self.sized(layout)
        try:
            self.push(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(data)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.broken(f"an unset memo {index}")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def index(self) -> int:
        text = self.line()
        if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
            raise self.broken("a malformed memo index")
        return int(text)

    def extend(self, items: list[Value]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise self.broken(f"items for a {type(target).__name__}")

    def update(self, items: list[Value]) -> None:
        target = self.top()
        if len(items) % 2:
            raise self.broken("a key without a value")
        if isinstance(target, Table):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise self.broken(f"keys for a {type(target).__name__}")

    def table(self) -> None:
        items = self.pop_mark()
        self.push(Table())
        self.update(items)

    def name(self, module: Value, name: Value) -> Global:
        if not (type(module) is str and type(name) is str):
            raise self.broken("a global without a name")
        if len(module) + len(name) > LONGEST_NAME:
            raise self.broken("an overlong name")
        if (module, name) in NAME_MAPPING:  # Python 2's names, which protocol 2 still writes
            module, name = NAME_MAPPING[module, name]
        found = Global(str(IMPORT_MAPPING.get(module, module)), str(name))
        self.meanings.admit(found)
        return found

    def call(self, function: Value, arguments: Value) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise self.broken("a call of what is no name")
        self.push(self.meanings.call(function, arguments))

    def global_line(self) -> None:
        module = self.line()
        self.push(self.name(module, self.line()))

    def global_stack(self) -> None:
        name = self.pop()
        self.push(self.name(self.pop(), name))

    def instance(self) -> None:
        module = self.line()
        name = self.name(module, self.line())
        self.call(name, tuple(self.pop_mark()))

    def construct(self) -> None:
        items = self.pop_mark()
        self.call(items[0] if items else None, tuple(items[1:]))

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new_with_names(self) -> None:
        self.pop()
        self.reduce()

    def item(self) -> None:
        value = self.pop()
        self.update([self.pop(), value])

    def state(self) -> None:
        """BUILD would set attributes; only data has been made, which has none to set."""
        self.pop()
        self.top()

    def extension(self) -> None:
        raise CheckpointError(
            "E_CKPT_UNSAFE",
            f"{self.where}: got a copyreg extension code, expected weights. Do not use this file; "
            "ask its author for safetensors.",
        )


_Action = Callable[[_Machine], None]

_ACTIONS: dict[bytes, _Action] = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"G": lambda m: m.push(m.number(">d")),
    b"I": _Machine.decimal,
    b"L": _Machine.decimal,
    b"F": _Machine.point,
    b"\x8a": lambda m: m.push(int.from_bytes(m.sized("<B", LONGEST_NUMBER), "little", signed=True)),
    b"\x8b": lambda m: m.push(int.from_bytes(m.sized("<i", LONGEST_NUMBER), "little", signed=True)),
    b"U": lambda m: m.string("<B"),
    b"T": lambda m: m.string("<i"),
    b"X": lambda m: m.push(m.text(m.sized("<I"))),
    b"\x8c": lambda m: m.push(m.text(m.sized("<B"))),
    b"\x8d": lambda m: m.push(m.text(m.sized("<Q"))),
    b"C": lambda m: m.push(m.sized("<B")),
    b"B": lambda m: m.push(m.sized("<I")),
    b"\x8e": lambda m: m.push(m.sized("<Q")),
    b"\x96": lambda m: m.push(m.sized("<Q")),
    b"(": _Machine.mark,
    b"0": _Machine.drop,
    b"1": _Machine.drop_mark,
    b"2": lambda m: m.push(m.top()),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_mark()),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"\x8f": lambda m: m.push([]),
    b"\x90": lambda m: m.extend(m.pop_mark()),
    b"\x91": lambda m: m.push(m.pop_mark()),
    b"}": lambda m: m.push(Table()),
    b"d": _Machine.table,
    b"s": _Machine.item,
    b"u": lambda m: m.update(m.pop_mark()),
    b"g": lambda m: m.get(m.index()),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"p": lambda m: m.put(m.index()),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"c": _Machine.global_line,
    b"\x93": _Machine.global_stack,
    b"i": _Machine.instance,
    b"o": _Machine.construct,
    b"R": _Machine.reduce,
    b"\x81": _Machine.reduce,
    b"\x92": _Machine.new_with_names,
    b"b": _Machine.state,
    b"Q": lambda m: m.push(m.meanings.persistent(m.pop())),
    b"P": lambda m: m.push(m.meanings.persistent(m.line())),
    b"\x82": _Machine.extension,
    b"\x83": _Machine.extension,
    b"\x84": _Machine.extension,
}
