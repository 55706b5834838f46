"""Place: a value of a SigMF document with its JSON pointer, so that each message says where."""

import json
from collections.abc import Mapping
from typing import TypeGuard

from jscc.runtime.errors import SymbolsError

Json = object

MAX_INTEGER = 2**53
_LARGEST = 1e30
_SHOWN = 80


class Place:
    """A JSON value, where it stands, and what it may be taken for.

    Every method that reads raises `SymbolsError`, ``E_SIGMF_META``, where the value is not of the
    kind that it returns.

    Args:
        name: What to call the file in messages.
        value: Any JSON.
        pointer: Where the value stands (RFC 6901).
    """

    def __init__(self, name: str, value: Json, pointer: str = "") -> None:
        self.name = name
        self.value = value
        self.pointer = pointer

    def fail(self, code: str, got: Json, expected: str) -> SymbolsError:
        """The error that this place breaks the contract."""
        where = f"symbols {self.name!r}, {self.pointer or '/'}"
        return SymbolsError(
            code, f"{where}: got {_brief(got)}, expected {expected}. Correct the recording."
        )

    def at(self, key: str | int, value: Json) -> "Place":
        """The place of `value` one `key` below this one."""
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        return Place(self.name, value, f"{self.pointer}/{escaped}")

    def object(self) -> Mapping[str, Json]:
        """This value, an object."""
        if not isinstance(self.value, dict):
            raise self.fail("E_SIGMF_META", self.value, "an object")
        return self.value

    def get(self, key: str) -> Json:
        """Whatever is at `key`; None for nothing."""
        return self.object().get(key)

    def child(self, key: str) -> "Place":
        """The object at `key`."""
        place = self.at(key, self.get(key))
        place.object()
        return place

    def items(self, key: str) -> list["Place"]:
        """The objects of the list at `key`."""
        place = self.at(key, self.get(key))
        if not isinstance(place.value, list):
            raise place.fail("E_SIGMF_META", place.value, "a list")
        items = [place.at(index, value) for index, value in enumerate(place.value)]
        for item in items:
            item.object()
        return items

    def integer(self, key: str, *, default: int | None = None, least: int = 0) -> int:
        """The integer at `key`, from `least` to `MAX_INTEGER`."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if _is_number(value) and isinstance(value, int) and least <= value <= MAX_INTEGER:
            return value
        expected = f"an integer from {least} to {MAX_INTEGER}"
        raise self.at(key, value).fail("E_SIGMF_META", value, expected)

    def number(self, key: str) -> float | None:
        """The finite number at `key`, or None."""
        value = self.get(key)
        return None if value is None else self.at(key, value).as_number()

    def as_number(self) -> float:
        """This value, a finite number."""
        value = self.value
        if _is_number(value) and abs(value) <= _LARGEST:
            return float(value)
        raise self.fail("E_SIGMF_META", value, "a finite number")

    def text(self, key: str) -> str | None:
        """The string at `key`, or None."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.at(key, value).fail("E_SIGMF_META", value, "a string")
        return value


def _is_number(value: Json) -> TypeGuard[int | float]:
    """Whether `value` is a number; JSON's true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _brief(value: Json) -> str:
    """`value` in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if _is_number(value) and isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
