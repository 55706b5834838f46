"""Write: a folder or file that appears complete, or not at all.

Everything goes to ``.<name>.tmp.<pid>`` beside the destination, under a lock in ``.<name>.lock``;
files are flushed, then folders, and one rename publishes. Where something is to be replaced the
two names are exchanged, so that at no time there is nothing; the old is removed afterwards.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from jscc.runtime.errors import BusyError, OutputError, StorageError
from jscc.runtime.manifest import MANIFEST, SEAL
from jscc.runtime.trust import open_regular
from jscc.runtime.writers import FULL, NEW, ArchiveWriter, FolderWriter, Writer, sync

T = TypeVar("T")

_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def write_atomically(
    destination: Path,
    fill: Callable[[Writer], None],
    verify: Callable[[Path], T],
    *,
    needed: int,
    single_file: bool,
    overwrite: bool,
) -> T:
    """Let `fill` write beside `destination`, `verify` it there, and publish it in one rename.

    Args:
        destination: What appears; untouched if anything fails.
        fill: Adds files and seals.
        verify: Reads what was written; its result is returned.
        needed: Bytes that will be written, for messages.
        single_file: Write a file instead of a folder.
        overwrite: Replace a bundle that is there.

    Raises:
        OutputError: ``E_EXISTS``, ``E_OUTPUT``.
        StorageError: ``E_DISK_FULL``, ``E_IO``.
        BusyError: ``E_BUSY``.
    """
    temporary = _beside(destination, f"tmp.{os.getpid()}")
    with _explained(destination, needed), _locked(destination):
        _recover(destination)
        check_destination(destination, overwrite=overwrite)
        try:
            with _writer(temporary, single_file=single_file) as writer:
                fill(writer)
            result = verify(temporary)
            _publish(temporary, destination)
        finally:
            _remove(temporary)
    return result


def _beside(destination: Path, suffix: str) -> Path:
    return destination.parent / f".{destination.name}.{suffix}"


@contextmanager
def _explained(destination: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into what it means for the user."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in FULL:
            raise StorageError(
                "E_DISK_FULL",
                f"{destination}: got {_available(destination)} bytes available ({reason}), "
                f"expected {needed} bytes. Free space, or write elsewhere.",
            ) from error
        if error.errno == errno.EIO:
            raise StorageError(
                "E_IO", f"{destination}: got {reason!r}, expected a sound disk. Check the disk."
            ) from error
        raise OutputError(
            "E_OUTPUT",
            f"{destination}: got {reason!r}, expected a folder that can be written. "
            "Choose another destination.",
        ) from error


def _available(destination: Path) -> int:
    try:
        status = os.statvfs(destination.parent)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Hold ``.<name>.lock``; it names the process that holds it and goes with it."""
    path = _beside(destination, "lock")
    descriptor = _acquire(path, destination)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _acquire(path: Path, destination: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our open and our lock.
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise BusyError(
                "E_BUSY",
                f"{destination}: got a lock held by process {holder or 'unknown'}, expected none. "
                "Wait for it to end.",
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _recover(destination: Path) -> None:
    """Under the lock, clear up after writers that died."""
    prefix = f".{destination.name}."
    for name in sorted(os.listdir(destination.parent)):
        kind, _, pid = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or not pid.isdecimal():
            continue
        path = destination.parent / name
        if kind == "old" and not os.path.lexists(destination):
            os.rename(path, destination)
        elif kind in ("tmp", "old") and not _is_other(int(pid)):
            _remove(path)


def _is_other(pid: int) -> bool:
    """Whether `pid` is a living process besides this one."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid != os.getpid()


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a `destination` that is taken, before any work is spent on it.

    Raises:
        OutputError: ``E_EXISTS``.
    """
    if not os.path.lexists(destination):
        return
    if destination.is_symlink():
        got, remedy = "a symbolic link", "Give the place that it points to"
    elif not overwrite:
        got, remedy = "something that is there", "Choose another name, or overwrite it"
    elif not _is_bundle(destination):
        got, remedy = "something that is no bundle", "Choose another name"
    else:
        return
    raise OutputError("E_EXISTS", f"{destination}: got {got}, expected nothing. {remedy}.")


def _is_bundle(path: Path) -> bool:
    """Whether `path` looks enough like a bundle to be replaced by one."""
    if path.is_dir():
        return (path / MANIFEST).is_file() and (path / SEAL).is_file()
    if not path.is_file():
        return False
    with open_regular(path.resolve()) as descriptor:
        return os.pread(descriptor, 4, 0) == b"PK\x03\x04"


@contextmanager
def _writer(temporary: Path, *, single_file: bool) -> Iterator[Writer]:
    if not single_file:
        os.mkdir(temporary)
        yield FolderWriter(temporary)
        return
    descriptor = os.open(temporary, NEW, 0o644)
    try:
        yield ArchiveWriter(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, destination: Path) -> None:
    """Give `temporary` the name `destination`; what was there becomes `temporary`."""
    move = _exchange if os.path.lexists(destination) else os.rename
    move(temporary, destination)
    try:
        sync(destination.parent)
    except BaseException:
        move(destination, temporary)
        raise


def _exchange(left: Path, right: Path) -> None:
    """Swap two names, in one step where the system can."""
    if _exchange_at_once(left, right):
        return
    aside = _beside(right, f"old.{os.getpid()}")
    os.rename(right, aside)
    try:
        os.rename(left, right)
        try:
            os.rename(aside, left)
        except BaseException:
            os.rename(right, left)
            raise
    except BaseException:
        os.rename(aside, right)
        raise


def _exchange_at_once(left: Path, right: Path) -> bool:
    """Linux' renameat2, which Python does not offer; False where there is none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = (os.fsencode(left), os.fsencode(right))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(right))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)
