"""Output files: written beside their destination, then given their name in one step.

A reader sees the whole file or none, a power cut leaves the old one, and nothing that exists is
replaced unless the caller says so. The temporary file is created with ``O_EXCL`` and
``O_NOFOLLOW`` in the destination's own folder, so a planted link cannot redirect it.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jscc.runtime.errors import JsccError, OutputError, StorageError

# NOTE: Windows has neither flag; there a link in the output folder needs privileges to create.
_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_destination(path: Path, *, force: bool) -> None:
    """Refuse early what `write_file` would refuse after the work is done.

    Raises:
        OutputError: ``E_OUTPUT_EXISTS``, the file is there and `force` is false, or it is no
            regular file; ``E_OUTPUT_FOLDER``, its folder is missing or cannot be written.
    """
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(
            "E_OUTPUT_FOLDER",
            f"output {str(path)!r}: got no folder {str(folder)!r}, expected one. Create it first.",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "E_OUTPUT_FOLDER",
            f"output {str(path)!r}: got a folder without write permission, expected a writable "
            "one. Choose another with -o.",
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputError(
            "E_OUTPUT_EXISTS",
            f"output {str(path)!r}: got a link, folder or device, expected a free name or a "
            "regular file. Choose another name.",
        )
    if path.exists() and not force:
        raise _exists(path)


def write_file(path: Path, data: bytes | memoryview, *, force: bool) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        OutputError: ``E_OUTPUT_EXISTS`` or ``E_OUTPUT_FOLDER`` as in `check_destination`;
            ``E_OUTPUT``, the file cannot be created.
        StorageError: ``E_DISK_FULL`` or ``E_IO``, writing failed half-way; nothing is left.
    """
    write_files({path: data}, force=force)


def write_files(contents: Mapping[Path, bytes | memoryview], *, force: bool) -> None:
    """Write files that belong together; they get their names last, in the order given.

    Raises:
        OutputError: As `write_file`; files of this call that were already named are removed
            again when they were new.
        StorageError: As `write_file`.
    """
    for path, data in contents.items():
        with _typed_errors(path, len(data)):
            check_destination(path, force=force)
    temporary: dict[Path, Path] = {}
    named: list[Path] = []
    try:
        for path, data in contents.items():
            temporary[path] = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}.tmp")
            with _typed_errors(path, len(data)):
                _write_new(temporary[path], data)
        for path, source in temporary.items():
            with _typed_errors(path, len(contents[path])):
                _give_name(source, path, force=force)
            if not force:
                named.append(path)
        _sync_folders(contents)
    except BaseException:
        for path in named:
            path.unlink(missing_ok=True)
        raise
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes | memoryview) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _give_name(source: Path, path: Path, *, force: bool) -> None:
    """Rename `source` to `path`; without `force`, never over a file made in the meantime."""
    if force:
        os.replace(source, path)
        return
    try:
        os.link(source, path, follow_symlinks=False)
    except FileExistsError:
        raise _exists(path) from None
    except (OSError, NotImplementedError) as error:
        # FAT and some network folders have no links: check, then rename.
        unsupported = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
        if isinstance(error, OSError) and error.errno not in unsupported:
            raise
        if path.exists():
            raise _exists(path) from None
        os.replace(source, path)


def _sync_folders(paths: Mapping[Path, object]) -> None:
    """Make the new names survive a power cut, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    for folder in {path.parent for path in paths}:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # some network folders cannot; the files themselves are synced
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


@contextmanager
def _typed_errors(path: Path, size: int) -> Iterator[None]:
    """Turn the system's errors about `path` into ours."""
    try:
        yield
    except JsccError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            raise StorageError(
                "E_DISK_FULL",
                f"output {str(path)!r}: got {_free(path.parent)} bytes free, expected room for "
                f"{size} ({reason}). Free some space or choose another folder with -o.",
            ) from error
        if error.errno == errno.EIO:
            raise StorageError(
                "E_IO",
                f"output {str(path)!r}: got {reason}, expected to write {size} bytes. Check the "
                "disk.",
            ) from error
        raise OutputError(
            "E_OUTPUT",
            f"output {str(path)!r}: got {reason}, expected to create this file. Choose another "
            "name with -o.",
        ) from error


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _exists(path: Path) -> OutputError:
    return OutputError(
        "E_OUTPUT_EXISTS",
        f"output {str(path)!r}: got a file that exists, expected a free name. Choose another "
        "name, or replace it with --force.",
    )
