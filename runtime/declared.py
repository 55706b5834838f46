"""Declared: JSON trees read into the frozen dataclasses that declare them.

The annotations are the schema; nothing is written twice. Understood are ``bool``, ``int``,
``float``, ``str``, ``None``, ``Literal``, unions of kinds that JSON tells apart,
``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``, dataclasses, ``object`` (any JSON) and
``Annotated[X, Check(...)]``. Every key of a dataclass is required, no other key is accepted, and
a ``bool`` is never an ``int``.

A field that came after format 1 is made by `added`: absent it has its default, and a value that
equals the default is not written, so what needs nothing new stays readable for older runtimes.
"""

import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jscc.runtime.errors import BundleError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_SHOWN = 60
_SINCE = "since"


@dataclass(frozen=True)
class Check:
    """What a value has to meet besides its type.

    Attributes:
        test: True for a value that is accepted.
        expected: The condition in words, as it follows "expected" in the message.
        code: Code of the error.
    """

    test: Callable[[Any], bool]
    expected: str
    code: str = "E_MANIFEST"


def added(since: int, default: Any) -> Any:
    """A dataclass field that format `since` added; `default` is what older manifests mean.

    A mapping as default is copied for every instance.
    """
    metadata = {_SINCE: since}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def needed_format(value: Any) -> int:
    """The least format that can say `value`: 1, or the latest `added` field not at its default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return max(
            (
                max(field.metadata.get(_SINCE, 1), needed_format(getattr(value, field.name)))
                for field in dataclasses.fields(value)
                if not _is_left_out(value, field)
            ),
            default=1,
        )
    if isinstance(value, Mapping):
        return max((needed_format(item) for item in value.values()), default=1)
    if isinstance(value, (tuple, list)):
        return max((needed_format(item) for item in value), default=1)
    return 1


def _is_left_out(record: Any, field: "dataclasses.Field[Any]") -> bool:
    """Whether `field` came later than format 1 and says what its absence says."""
    if _SINCE not in field.metadata:
        return False
    if field.default is not dataclasses.MISSING:
        default = field.default
    else:
        assert field.default_factory is not dataclasses.MISSING
        default = field.default_factory()
    return bool(getattr(record, field.name) == default)


def shown(value: object) -> str:
    """`value` as JSON for a message: on one line, escaped and short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def step(pointer: str, key: str | int) -> str:
    """The JSON pointer (RFC 6901) one `key` below `pointer`."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def refuse(pointer: str, got: str, expected: str, code: str = "E_MANIFEST") -> BundleError:
    """The error for what stands at `pointer` of the manifest."""
    place = json.dumps(pointer)[1:-1] or "/"
    return BundleError(
        code, f"manifest.json at {place}: got {got}, expected {expected}. Export the bundle again."
    )


def read(declared: Any, tree: Json, pointer: str = "") -> Any:
    """Read `tree` as the type `declared`; `pointer` says where it stands.

    Raises:
        BundleError: ``E_MANIFEST`` (or the code of a `Check`) naming the JSON pointer.
    """
    origin = get_origin(declared)
    if origin is Annotated:
        base, *checks = get_args(declared)
        value = read(base, tree, pointer)
        for check in checks:
            if not check.test(value):
                raise refuse(pointer, shown(tree), check.expected, check.code)
        return value
    if origin in (Union, types.UnionType):
        declared = _member(declared, tree, pointer)
        return read(declared, tree, pointer)
    if not _fits(declared, tree):
        raise refuse(pointer, shown(tree), _words(declared))
    if dataclasses.is_dataclass(declared):
        return _read_record(declared, tree, pointer)
    if origin is tuple:
        return _read_tuple(get_args(declared), tree, pointer)
    if origin is Mapping:
        return _read_mapping(get_args(declared), tree, pointer)
    return float(tree) if declared is float else tree  # type: ignore[arg-type]


def write(value: Any) -> Json:
    """The JSON tree of `value`; the inverse of `read`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: write(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_left_out(value, field)
        }
    if isinstance(value, Mapping):
        return {str(key): write(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [write(item) for item in value]
    return value  # type: ignore[no-any-return]


@cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _read_record(record: Any, tree: Any, pointer: str) -> Any:
    hints = _hints(record)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise refuse(pointer, f"unknown keys {shown(unknown)}", f"only {shown(sorted(hints))}")
    later = {field.name for field in dataclasses.fields(record) if _SINCE in field.metadata}
    for name in hints:
        if name not in tree and name not in later:
            raise refuse(step(pointer, name), "nothing", _words(hints[name]))
    return record(
        **{
            name: read(hint, tree[name], step(pointer, name))
            for name, hint in hints.items()
            if name in tree
        }
    )


def _read_tuple(members: tuple[Any, ...], tree: Any, pointer: str) -> tuple[Any, ...]:
    if members[-1] is Ellipsis:
        members = members[:1] * len(tree)
    if len(tree) != len(members):
        raise refuse(pointer, f"{len(tree)} items", f"{len(members)}")
    return tuple(
        read(member, item, step(pointer, index))
        for index, (member, item) in enumerate(zip(members, tree, strict=True))
    )


def _read_mapping(members: tuple[Any, ...], tree: Any, pointer: str) -> dict[str, Any]:
    key_type, value_type = members
    return {
        read(key_type, key, step(pointer, key)): read(value_type, item, step(pointer, key))
        for key, item in tree.items()
    }


def _member(union: Any, tree: Json, pointer: str) -> Any:
    """The member of `union` that JSON like `tree` belongs to."""
    for member in get_args(union):
        if _fits(member, tree):
            return member
    raise refuse(pointer, shown(tree), _words(union))


def _fits(declared: Any, tree: Json) -> bool:
    """Whether `tree` is the kind of JSON that `declared` is written as."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _fits(get_args(declared)[0], tree)
    if origin is Literal:
        return isinstance(tree, str) and tree in get_args(declared)
    if declared is object:
        return True
    if declared in (None, types.NoneType):
        return tree is None
    if declared in (int, float):
        kinds = (int,) if declared is int else (int, float)
        return isinstance(tree, kinds) and not isinstance(tree, bool)
    if declared in (bool, str):
        return isinstance(tree, declared)
    return isinstance(tree, list if origin is tuple else dict)


def _words(declared: Any) -> str:
    """What `declared` is called in a message."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _words(get_args(declared)[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in get_args(declared))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(declared)))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if declared in words:
        return words[declared]
    if declared in (None, types.NoneType):
        return "null"
    return "a list" if origin is tuple else "an object"
