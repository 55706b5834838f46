"""TensorRT traces: who is loading or building which engine, for whoever comes after a sudden end.

A library may end its process instead of refusing: it crashes on an engine, or a build takes so much
memory that the system kills it. Meanwhile an empty file lies beside the engine, which a full disk
has room for too; its name says what is done and by whom. Where it outlives its process it becomes a
tombstone.
"""

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

from jscc.runtime.errors import JsccError

SUFFIX: Final = ".engine"
LOADING, BUILDING, ENDED = ".loading", ".building", ".ended"
# NOTE: Windows has no such flag; there a link in the folder needs privileges to create.
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_PROCESS: Final = f"{os.getpid()}-{secrets.token_hex(8)}"
_numbers = itertools.count()


@contextmanager
def trace(
    opened: Callable[[], AbstractContextManager[int]], engine: str, kind: str
) -> Iterator[None]:
    """Leave a trace for as long as the library may end this process.

    Args:
        opened: Opens the folder; where it cannot, nothing is left.
        engine: Name of the file, be it there or not.
        kind: `LOADING` or `BUILDING`.
    """
    name = f"{engine}.{_PROCESS}-{next(_numbers)}{kind}"
    with suppress(OSError, JsccError), opened() as folder:
        os.close(os.open(name, _NEW, 0o600, dir_fd=folder))
        os.fsync(folder)
    try:
        yield
    finally:
        with suppress(OSError, JsccError), opened() as folder:
            os.unlink(name, dir_fd=folder)


def ended(folder: int, engine: str, kind: str) -> tuple[str, ...]:
    """Numbers of the processes that ended by it, whose traces become tombstones.

    Args:
        folder: Open.
        engine: Name of the file.
        kind: `LOADING` or `BUILDING`.

    Raises:
        OSError: The folder cannot be listed.
    """
    found = []
    for name in sorted(os.listdir(folder)):
        if engine_of(name) != engine:
            continue
        process, _, what = name.removeprefix(f"{engine}.").partition(".")
        if f".{what}" == kind and not _goes_on(process):
            with suppress(OSError):
                os.rename(name, f"{name}{ENDED}", src_dir_fd=folder, dst_dir_fd=folder)
        elif f".{what}" != f"{kind}{ENDED}":
            continue
        found.append(process.partition("-")[0])
    return tuple(found)


def forget(folder: int, engine: str, kind: str) -> None:
    """Remove the tombstones of a kind."""
    for name in os.listdir(folder):
        if engine_of(name) == engine and name.endswith(f"{kind}{ENDED}"):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def engine_of(name: str) -> str:
    """The engine that a file is, or is a trace of; empty for other files."""
    before, suffix, _ = name.partition(SUFFIX)
    return f"{before}{suffix}" if suffix else ""


def is_trace(name: str) -> bool:
    """Whether a file is a trace or a tombstone."""
    return name != engine_of(name)


def _goes_on(process: str) -> bool:
    """Whether the process that left a trace may still be at it."""
    if process.startswith(f"{_PROCESS}-"):
        return True
    number = process.partition("-")[0]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
