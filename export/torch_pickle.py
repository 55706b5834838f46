"""Torch pickles: what the names in a pickle by ``torch.save`` become, as data."""

import shlex
from dataclasses import dataclass, field
from typing import Any

import torch

from jscc.export.known_globals import (
    DTYPES,
    HARMLESS,
    LISTS,
    REBUILDS,
    STORAGES,
    TABLES,
    UNDERSTOOD,
    WRAPPERS,
    is_code,
)
from jscc.export.pickles import Global, Inert, Table, Value
from jscc.runtime.errors import CheckpointError

MAX_LISTED = 10
MAX_AXES = 32
MAX_LISTED_PAIRS = 100_000  # of dicts made from lists, as Python 2 wrote them


@dataclass(frozen=True, eq=False)
class Storage:
    """A storage as the pickle names it.

    Attributes:
        key: Name of the bytes in the container.
        dtype: Type of its elements.
        count: Number of its elements.
        offset: First element within the bytes; above 0 only for views in old files.
    """

    key: str
    dtype: torch.dtype
    count: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Strided:
    """A tensor as the pickle describes it; nothing of it is believed yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class TorchMeanings:
    """Gives names their meaning, by `known_globals`, and keeps a list of what it left out.

    Attributes:
        path: The file, for messages.
        allow: Names of unknown classes that may be left out.
        left_out: Names whose objects were left out, in order of appearance.
        unknown: Names that nothing is known of; `check_unknown` raises for them.
        storages: Every mention of a storage, by key.
        listed_pairs: Pairs copied from lists so far.
    """

    path: str
    allow: tuple[str, ...]
    left_out: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    storages: dict[str, list[Storage]] = field(default_factory=dict)
    listed_pairs: int = 0

    def admit(self, name: Global) -> None:
        """Stop at code; note what is only unknown, so that all of it can be listed."""
        path = name.path
        if path in UNDERSTOOD:
            return
        if path in HARMLESS:
            self.left_out[path] = None
        elif is_code(name):
            raise CheckpointError(
                "E_CKPT_UNSAFE",
                f"{self.path!r}: got a call of {path[:100]!r}, expected weights: unpickling this "
                "file would run code, and nothing of it was run. Do not use it; ask its author "
                "for safetensors.",
            )
        elif path in self.allow:
            self.left_out[path] = None
        else:
            self.unknown[path] = None

    def check_unknown(self) -> None:
        """Raise if a name was neither understood nor known to be harmless."""
        if not self.unknown:
            return
        names = list(self.unknown)
        shown = ", ".join(name[:100] for name in names[:MAX_LISTED])
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        options = " ".join(f"--allow {name[:100]}" for name in names[:MAX_LISTED])
        raise CheckpointError(
            "E_CKPT_EXTRA_OBJECTS",
            f"{self.path!r}: got objects of {shown}{more}, expected tensors. To extract the "
            "tensors alone, without running the others: python -m jscc.export.convert "
            f"{shlex.quote(self.path)} OUT.safetensors {options}",
        )

    def call(self, name: Global, arguments: tuple[Value, ...]) -> Value:
        """Tensors, dicts and lists become data, everything else a stand-in."""
        path = name.path
        if path in REBUILDS:
            return self._tensor(path, arguments)
        if path in WRAPPERS:
            return self._first(path, arguments, Strided)
        if path == "torch._tensor._rebuild_from_type_v2":
            function = self._first(path, arguments, Global)
            inner = arguments[2] if len(arguments) > 2 else None
            if function.path not in REBUILDS or not isinstance(inner, tuple):
                raise self._malformed(path)
            return self.call(function, inner)
        if path == "torch.Size":
            return tuple(self._first(path, arguments, tuple))
        if path in TABLES:
            return self._table(path, arguments)
        if path in LISTS:  # the list itself: a copy for each call would multiply
            return arguments[0] if arguments and isinstance(arguments[0], list) else []
        return Inert(name)

    def _table(self, path: str, arguments: tuple[Value, ...]) -> Table:
        """The dict made from a dict or from a list of pairs, behind a defaultdict's factory."""
        content = arguments[-1] if arguments else None
        if isinstance(content, Table):
            return content
        if not isinstance(content, list):
            return Table()
        self.listed_pairs += len(content)
        if self.listed_pairs > MAX_LISTED_PAIRS:
            raise self._malformed(path)
        pairs = [item for item in content if isinstance(item, list | tuple) and len(item) == 2]
        return Table([(key, value) for key, value in pairs])

    def persistent(self, identity: Value) -> Value:
        """Persistent ids name storages, or in old files the source of a class."""
        if isinstance(identity, tuple) and len(identity) >= 2 and identity[0] == "module":
            return identity[1]
        if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6:
            raise self._malformed("a persistent id")
        kind, storage_type, key, _, count, *view = identity
        path = storage_type.path if isinstance(storage_type, Global) else ""
        sound = kind == "storage" and path in STORAGES and type(key) is str and _is_count(count)
        if not sound:
            raise self._malformed("a persistent id")
        whole = Storage(key, STORAGES[path], count)
        self.storages.setdefault(key, []).append(whole)
        if not view or view[0] is None:
            return whole
        return self._view(whole, view[0])

    def _view(self, whole: Storage, view: Value) -> Storage:
        if not (isinstance(view, tuple) and len(view) == 3):
            raise self._malformed("a view of a storage")
        _, offset, count = view
        if not (_is_count(offset) and _is_count(count) and offset + count <= whole.count):
            raise self._malformed("a view of a storage")
        return Storage(whole.key, whole.dtype, count, offset)

    def _tensor(self, path: str, arguments: tuple[Value, ...]) -> Strided:
        if len(arguments) < 4:
            raise self._malformed(path)
        storage, offset, shape, stride = arguments[:4]
        rest = arguments[4:]
        third = path.endswith("_v3")
        metadata = rest[3 if third else 2 :]
        sound = isinstance(storage, Storage) and _is_count(offset)
        if not (sound and _is_counts(shape) and _is_counts(stride)) or any(
            isinstance(item, Table) and item.pairs for item in metadata
        ):
            raise self._malformed(path)  # metadata would say: conjugate or negate
        dtype = storage.dtype
        if third:
            named = rest[2] if len(rest) > 2 else None
            if not isinstance(named, Global) or named.path not in DTYPES:
                raise self._malformed(path)
            dtype = DTYPES[named.path]
        return Strided(storage, dtype, offset, shape, stride)

    def _first(self, path: str, arguments: tuple[Value, ...], kind: type) -> Any:
        if not arguments or not isinstance(arguments[0], kind):
            raise self._malformed(path)
        return arguments[0]

    def _malformed(self, what: str) -> CheckpointError:
        return CheckpointError(
            "E_CKPT_FORMAT",
            f"{self.path!r}: got {what} with unknown arguments, expected what torch.save writes. "
            "Fetch the file again, or ask its author for safetensors.",
        )


def _is_count(value: Value) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_counts(value: Value) -> bool:
    return type(value) is tuple and len(value) <= MAX_AXES and all(map(_is_count, value))
