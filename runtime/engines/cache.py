"""Engine cache: compiled engines in a folder of this user's own, which may be deleted at any time.

A file is named after all that its content depends on. Its first line says that once more, with a
hash of the engine that follows; it is read whole and checked, and what was checked is what is used.
The hash finds damage; that nobody else can write there, the folder's mode and owner have to see to.

A library may crash on an engine instead of refusing it. While one is loaded a file beside it says
so; where such a file outlived its process, the engine is refused the next time.
"""

import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jscc.runtime.declared import Json
from jscc.runtime.engines.spans import Span
from jscc.runtime.errors import DataError, JsccError, OutputError
from jscc.runtime.output_files import write_file
from jscc.runtime.trust import Asset, open_folder, open_regular, read_span, size_of, strict_json

ENGINE: Final = Asset(DataError, "E_ENGINE", "Delete it; it is built again")
SUFFIX, LOADING = ".engine", ".loading"
FORMAT: Final = 1
_PRIVATE = 0o700
_LINE = 1 << 16  # bytes of the first line
_ABANDONED_S = 3600.0  # a file that is still not complete then never will be
_PROCESS = f"{os.getpid()} {secrets.token_hex(8)}"


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
        """Files of the engines for `key`, unchecked."""
        with suppress(OSError):
            found = sorted(os.listdir(self.folder))
            return tuple(
                name for name in found if name.startswith(key.stem) and name.endswith(SUFFIX)
            )
        return ()

    def read(self, key: EngineKey, name: str) -> Kept:
        """One of the engines for `key`.

        Raises:
            DataError: ``E_ENGINE_…``: the folder or the file is not to be trusted.
            StorageError: ``E_IO``.
            UnavailableError: ``E_MEMORY``.
        """
        where = f"engine {str(self.folder / name)!r}"
        with open_folder(self.folder, asset=ENGINE) as folder:
            _check_folder(folder, self.folder)
            self._check_survivor(name, where)
            with open_regular(name, asset=ENGINE, folder=folder) as descriptor:
                _check_owner(descriptor, where)
                size = size_of(descriptor)
                data = read_span(descriptor, where, 0, size, asset=ENGINE)[0].data
        return _checked(data, key, name, where)

    def keep(
        self, key: EngineKey, spans: tuple[Span, ...], plan: memoryview, seconds: float
    ) -> Path:
        """Write an engine, whole or not at all.

        Raises:
            DataError: ``E_ENGINE_…``: the folder is not to be trusted.
            JsccError: What writing raises.
        """
        make_folder(self.folder)
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
        return path

    def discard(self, name: str) -> None:
        """Remove what is of no use."""
        for each in (name, f"{name}{LOADING}"):
            with suppress(OSError):
                os.unlink(self.folder / each)

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Leave a trace on the disk for as long as the library may crash."""
        trace = self.folder / f"{name}{LOADING}"
        with suppress(OSError, JsccError):
            write_file(trace, _PROCESS.encode(), force=True)
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(trace)

    def _check_survivor(self, name: str, where: str) -> None:
        """Refuse an engine whose loading no process survived."""
        try:
            text = (self.folder / f"{name}{LOADING}").read_text("ascii", "replace")
        except OSError:
            return
        pid = text.partition(" ")[0]
        if text != _PROCESS and not (pid.isdecimal() and _is_other(int(pid))):
            raise ENGINE.refuse(
                "CRASH", where, f"process {pid or '?'} ended by it", "one that loads"
            )


def hash_graph(graph: bytes, external: Mapping[str, memoryview]) -> str:
    """One sha256 of a graph and the weight files that it refers to."""
    digest = hashlib.sha256(_digest(graph).encode())
    for location in sorted(external):
        digest.update(f"\n{location} {_digest(external[location])}".encode())
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Make the folder of a cache, or hold the one that is there to this user alone.

    Raises:
        DataError: ``E_ENGINE_…``.
        OutputError: ``E_OUTPUT_FOLDER``, it cannot be made.
    """
    try:
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "E_OUTPUT_FOLDER",
            f"folder {str(folder)!r}: got {error.strerror!r}, expected to make it. Choose another.",
        ) from error
    with open_folder(folder, asset=ENGINE) as descriptor:
        _check_folder(descriptor, folder)


def _sweep(folder: Path) -> None:
    """Remove what writers left that were ended half-way."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > _ABANDONED_S:
                path.unlink()


def _checked(data: memoryview, key: EngineKey, name: str, where: str) -> Kept:
    """The engine in a file, if the file is what it should be."""
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
    plan = data[end + 1 :]
    fields = head if isinstance(head, dict) else {}
    if fields.get("format") != FORMAT or fields.get("key") != asdict(key):
        raise ENGINE.refuse("KEY", where, "another key", "the one that it is named after")
    found = _digest(plan)
    if fields.get("sha256") != found:
        raise ENGINE.refuse("HASH", where, f"sha256 {found}", "the one in its first line")
    spans, seconds = _spans(fields.get("spans"), where), fields.get("seconds")
    if name != key.file_name(spans):
        raise ENGINE.refuse("KEY", where, "other sizes", "those that it is named after")
    return Kept(name, spans, float(seconds) if isinstance(seconds, int | float) else 0.0, plan)


def _spans(value: Json, where: str) -> tuple[Span, ...]:
    spans = []
    for item in value if isinstance(value, list) else ():
        ranges = item if isinstance(item, dict) else {}
        if not all(isinstance(each, list) and len(each) == 3 for each in ranges.values()):
            raise ENGINE.refuse("FORMAT", f"{where}/spans", "something else", "three sizes each")
        spans.append(Span.of({symbol: tuple(each) for symbol, each in ranges.items()}))  # type: ignore[arg-type,misc]
    return tuple(spans)


def _check_folder(descriptor: int, path: Path) -> None:
    """Hold the folder to this user alone: others could put code into it."""
    where = f"folder {str(path)!r}"
    _check_owner(descriptor, where)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & ~_PRIVATE:
        raise DataError(
            "E_ENGINE_MODE",
            f"{where}: got mode {mode:04o}, expected {_PRIVATE:04o}, for others could put engines "
            "there. Run chmod 700 on it, or choose another.",
        )


def _check_owner(descriptor: int, where: str) -> None:
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        raise ENGINE.refuse("OWNER", where, f"user {owner}", f"user {os.geteuid()}, this one")


def _is_other(pid: int) -> bool:
    """Whether `pid` is a living process besides this one."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid != os.getpid()


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
