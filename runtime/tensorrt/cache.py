"""Engine cache: compiled engines in a folder of this user's own, which may be deleted at any time.

A file is named after all that its content depends on. Its first line says that once more, with a
hash of the engine that follows; it is read whole and checked, and what was checked is what is used.
The hash finds damage; that nobody else can write there, the folder's mode and owner have to see to.

Where a process ended by loading an engine (`jscc.runtime.tensorrt.traces`), its stage's engines
are refused until somebody asks for new ones. What ends those that build it is not built for ever.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jscc.runtime.declared import Json
from jscc.runtime.errors import DataError, JsccError, StorageError
from jscc.runtime.external import External
from jscc.runtime.output_files import write_file
from jscc.runtime.private_folder import check_owner, check_private, make_private
from jscc.runtime.tensorrt.spans import Span
from jscc.runtime.tensorrt.traces import (
    BUILDING,
    LOADING,
    SUFFIX,
    ended,
    engine_of,
    forget,
    is_trace,
    trace,
)
from jscc.runtime.trust import Asset, open_folder, open_regular, read_span, size_of, strict_json

ENGINE: Final = Asset(DataError, "E_ENGINE", "Delete it; it is built again")
FORMAT: Final = 1
MOST: Final = 8  # engines of one size that are kept for a stage; the least recently used go
MOST_ENDS: Final = 2  # of processes that built an engine; one may be a power cut
# Codes of what is wrong with a file itself, so that removing it helps.
DAMAGED: Final = frozenset(f"E_ENGINE_{each}" for each in ("HASH", "KEY", "FORMAT", "TRUNCATED"))
_LINE = 1 << 16  # bytes of the first line
_ABANDONED_S = 3600.0  # a file that is still not complete then never will be


@dataclass(frozen=True)
class EngineKey:
    """What an engine is made of and for, besides sizes.

    Attributes:
        graph: sha256 of the graph and its weights, see `hash_graph`.
        library: What builds and loads it, with its version.
        target: Kind of device, such as ``sm_89``.
        tf32: Whether float32 products may round their factors to TF32.
    """

    graph: str
    library: str
    target: str
    tf32: bool = False

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())[:40]

    @property
    def named(self) -> str:
        """What builds and loads it, and on what."""
        return f"{self.library} for {self.target}{' with TF32' * self.tf32}"

    def file_name(self, spans: tuple[Span, ...]) -> str:
        """Where the cache keeps the engine for `spans`."""
        text = json.dumps([span.ranges for span in spans]).encode()
        return f"{self.stem}-{_digest(text)[:16]}{SUFFIX}"


@dataclass(frozen=True)
class Kept:
    """An engine of the cache, checked.

    Attributes:
        name: Of its file.
        spans: Sizes of its profiles, in their order.
        seconds: What building it took.
        plan: What the library deserialises.
    """

    name: str
    spans: tuple[Span, ...]
    seconds: float
    plan: memoryview


class EngineCache:
    """Engines by `EngineKey` and spans.

    Args:
        folder: Made when something is kept, for this user alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, key: EngineKey) -> tuple[str, ...]:
        """Files of the engines for `key`, unchecked.

        Raises:
            StorageError: ``E_IO``.
        """
        return tuple(name for name in self._all() if name.startswith(key.stem))

    def others(self, key: EngineKey) -> tuple[str, ...]:
        """What engines of the same graph are for, where there is none for `key`."""
        found = set()
        with suppress(OSError, JsccError), self._opened() as folder:
            for name in () if self.names(key) else self._all():
                with suppress(OSError, JsccError, KeyError, TypeError):
                    made = EngineKey(**self._head(folder, name)["key"])  # type: ignore[arg-type]
                    if made.graph == key.graph:
                        found.add(made.named)
        return tuple(sorted(found))

    def listed(self, key: EngineKey) -> tuple[dict[str, tuple[Span, ...]], tuple[JsccError, ...]]:
        """Spans of the engines for `key` by file, and why others are left out.

        Only their first lines are read; `read` checks the rest. Damaged files are removed.
        """
        found: dict[str, tuple[Span, ...]] = {}
        errors: list[JsccError] = []
        try:
            names = self.names(key)
            with self._opened() if names else nullcontext(-1) as folder:
                for name in names:
                    try:
                        found[name] = self._spans(folder, key, name)
                    except JsccError as error:
                        errors.append(error)
        except JsccError as error:
            errors.append(error)
        return found, tuple(errors)

    def read(self, key: EngineKey, name: str) -> Kept:
        """One of the engines for `key`.

        Raises:
            DataError: ``E_ENGINE_…``: the folder or the file is not to be trusted.
            StorageError: ``E_IO``.
            UnavailableError: ``E_MEMORY``.
        """
        where = self._where(name)
        with self._opened() as folder:
            _check_survived(folder, name, where)
            with open_regular(name, asset=ENGINE, folder=folder) as descriptor:
                check_owner(descriptor, where, ENGINE)
                size = size_of(descriptor)
                data = read_span(descriptor, where, 0, size, asset=ENGINE)[0].data
                with suppress(OSError):
                    os.utime(descriptor)  # the least recently used go first
        return _checked(data, key, name, where)

    def keep(
        self, key: EngineKey, spans: tuple[Span, ...], plan: memoryview, seconds: float
    ) -> Path:
        """Write an engine, whole or not at all.

        What no longer serves goes: engines of the library's other versions for this kind of
        device, and of those for one size the least recently used beyond `MOST`.

        Raises:
            DataError: ``E_ENGINE_…``: the folder is not to be trusted.
            JsccError: What writing raises.
        """
        make_private(self.folder, ENGINE)
        _sweep(self.folder)
        head = {
            "format": FORMAT,
            "key": asdict(key),
            "seconds": round(seconds, 3),
            "sha256": _digest(plan),
            "spans": [dict(span.ranges) for span in spans],
        }
        line = json.dumps(head, sort_keys=True).encode() + b"\n"
        path = self.folder / key.file_name(spans)
        write_file(path, b"".join((line, plan)), force=True)
        with suppress(OSError, JsccError), self._opened() as folder:
            forget(folder, path.name, BUILDING)
            self._tidy(folder, key, path.name, MOST - is_single(spans))
        return path

    def discard(self, *names: str) -> None:
        """Remove what is of no use, in a folder that is to be trusted."""
        with suppress(OSError, JsccError), self._opened() as folder:
            _unlink(folder, names)

    def check_survived(self, key: EngineKey) -> None:
        """Refuse a stage if a process ended by loading one of its engines.

        Raises:
            DataError: ``E_ENGINE_CRASH``.
        """
        try:
            with self._opened() as folder:
                engines = {engine_of(name) for name in os.listdir(folder)}
                for name in sorted(each for each in engines if each.startswith(key.stem)):
                    _check_survived(folder, name, self._where(name))
        except (OSError, JsccError) as error:
            if isinstance(error, DataError) and error.code == "E_ENGINE_CRASH":
                raise
            # What is wrong with the folder `listed` and `keep` say.

    def check_buildable(self, name: str) -> None:
        """Refuse an engine that too many processes ended by building.

        Raises:
            DataError: ``E_ENGINE_KILLED``.
        """
        ends: tuple[str, ...] = ()
        with suppress(OSError, JsccError), self._opened() as folder:
            ends = ended(folder, name, BUILDING)
        if len(ends) >= MOST_ENDS:
            raise DataError(
                "E_ENGINE_KILLED",
                f"{self._where(name)}: got processes {', '.join(ends)} ended by building it, "
                "expected it built. Free memory and run jscc build, or take smaller images.",
            )

    def forgive(self, key: EngineKey, *, spared: str) -> None:
        """Forget that processes ended by engines of `key`; those but `spared` are removed."""
        with suppress(OSError, JsccError), self._opened() as folder:
            names = [name for name in os.listdir(folder) if name.startswith(key.stem)]
            _unlink(folder, {engine_of(name) for name in names if is_trace(name)}, spared)

    def loading(self, name: str) -> AbstractContextManager[None]:
        """Leave a trace on the disk for as long as the library may crash."""
        return trace(self._opened, name, LOADING)

    def building(self, name: str) -> AbstractContextManager[None]:
        """Leave a trace on the disk for as long as the system may kill this process."""
        with suppress(OSError, JsccError), self._opened():
            _sweep(self.folder)
        return trace(self._opened, name, BUILDING)

    def _where(self, name: str) -> str:
        return f"engine {str(self.folder / name)!r}"

    def _all(self) -> list[str]:
        """Files of all engines."""
        try:
            return sorted(name for name in os.listdir(self.folder) if name.endswith(SUFFIX))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(
                "E_IO",
                f"folder {str(self.folder)!r}: got {error.strerror!r}, expected to list it. "
                "Check the disk and permissions, or choose another.",
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder, which belongs to this user alone."""
        with open_folder(self.folder, asset=ENGINE) as folder:
            check_private(folder, self.folder, ENGINE)
            yield folder

    def _head(self, folder: int, name: str) -> Mapping[str, Json]:
        """The first line of a file."""
        where = self._where(name)
        with open_regular(name, asset=ENGINE, folder=folder) as descriptor:
            check_owner(descriptor, where, ENGINE)
            size = min(size_of(descriptor), _LINE)
            data = read_span(descriptor, where, 0, size, asset=ENGINE)[0].data
        return _fields(data, where)[0]

    def _spans(self, folder: int, key: EngineKey, name: str) -> tuple[Span, ...]:
        try:
            return _named_spans(self._head(folder, name), key, name, self._where(name))
        except DataError as error:
            if error.code in DAMAGED:
                _unlink(folder, (name,))
            raise

    def _tidy(self, folder: int, key: EngineKey, new: str, most: int) -> None:
        """Remove what the engine `new` for `key` leaves no use for, but `most` of one size."""
        single: list[tuple[int, str]] = []
        for name in self._all():
            try:
                if name.startswith(key.stem):
                    if name != new and is_single(self._spans(folder, key, name)):
                        used = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns
                        single.append((used, name))
                elif _is_older(self._head(folder, name), key):
                    _unlink(folder, (name,))
            except (OSError, JsccError):
                continue
        _unlink(folder, (name for _, name in sorted(single)[:-most]))


def is_single(spans: tuple[Span, ...]) -> bool:
    """Whether an engine takes one size only, as those do that are built when sizes first come."""
    return len(spans) == 1 and all(least == most for _, (least, _, most) in spans[0].ranges)


def hash_graph(graph: bytes, external: Mapping[str, memoryview]) -> str:
    """One sha256 of a graph and the weight files that it refers to."""
    listed = external.sha256 if isinstance(external, External) else lambda _: None
    digest = hashlib.sha256(_digest(graph).encode())
    for location in sorted(external):
        known = listed(location) or _digest(external[location])
        digest.update(f"\n{location} {known}".encode())
    return digest.hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what writers left that were ended half-way."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime <= _ABANDONED_S:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _unlink(folder: int, names: Iterable[str], spared: str = "") -> None:
    """Remove engines with their traces from an open folder; of `spared` the traces only."""
    gone = {*names}
    for name in os.listdir(folder) if gone else ():
        if engine_of(name) in gone and name != spared:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _is_older(head: Mapping[str, Json], key: EngineKey) -> bool:
    """Whether another version of the library than the key's built it, for the same device."""
    made = head.get("key")
    library = made.get("library") if isinstance(made, dict) else None
    if not isinstance(made, dict) or not isinstance(library, str):
        return False
    return library != key.library and made.get("target") == key.target


def _fields(data: memoryview, where: str) -> tuple[Mapping[str, Json], int]:
    """What the first line of a file says, and where the engine begins."""
    end = bytes(data[:_LINE]).find(b"\n")
    if end < 0:
        raise ENGINE.refuse("FORMAT", where, "no first line", "what it holds")
    head = strict_json(
        bytes(data[:end]),
        limit=_LINE,
        refuse=lambda pointer, got, expected: ENGINE.refuse(
            "FORMAT", f"{where}{pointer}", got, expected
        ),
    )
    return head if isinstance(head, dict) else {}, end + 1


def _named_spans(
    fields: Mapping[str, Json], key: EngineKey, name: str, where: str
) -> tuple[Span, ...]:
    """The spans that a first line lists, if it is that of the file called `name`."""
    if fields.get("format") != FORMAT or fields.get("key") != asdict(key):
        raise ENGINE.refuse("KEY", where, "another key", "the one that it is named after")
    spans = _spans(fields.get("spans"), where)
    if name != key.file_name(spans):
        raise ENGINE.refuse("KEY", where, "other sizes", "those that it is named after")
    return spans


def _checked(data: memoryview, key: EngineKey, name: str, where: str) -> Kept:
    """The engine in a file, if the file is what it should be."""
    fields, begin = _fields(data, where)
    spans, plan = _named_spans(fields, key, name, where), data[begin:]
    found = _digest(plan)
    if fields.get("sha256") != found:
        raise ENGINE.refuse("HASH", where, f"sha256 {found}", "the one in its first line")
    seconds = fields.get("seconds")
    return Kept(name, spans, float(seconds) if isinstance(seconds, int | float) else 0.0, plan)


def _spans(value: Json, where: str) -> tuple[Span, ...]:
    spans = []
    for item in value if isinstance(value, list) else ():
        ranges = item if isinstance(item, dict) else {}
        if not all(isinstance(each, list) and len(each) == 3 for each in ranges.values()):
            raise ENGINE.refuse("FORMAT", f"{where}/spans", "something else", "three sizes each")
        spans.append(Span.of({symbol: tuple(each) for symbol, each in ranges.items()}))  # type: ignore[arg-type,misc]
    return tuple(spans)


def _check_survived(folder: int, name: str, where: str) -> None:
    """Refuse an engine whose loading a process did not survive.

    Raises:
        DataError: ``E_ENGINE_CRASH``.
    """
    if ends := ended(folder, name, LOADING):
        raise DataError(
            "E_ENGINE_CRASH",
            f"{where}: got process {ends[0]} ended by loading it, expected one that loads. "
            "Update the library, or run jscc build --force.",
        )


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
