"""Private folder: a cache of code that this machine made, which nobody else may write to.

What lies there is given to a device or a library to run, so that the folder and its files have to
belong to this user and be closed to all others.
"""

import os
import stat
from pathlib import Path

from jscc.runtime.errors import OutputError, UnavailableError
from jscc.runtime.trust import Asset, open_folder, open_regular, read_span, size_of

MODE = 0o700
_OTHERS = 0o077  # bits that let others in; a folder below a setgid one has bits besides


def cache_folder(name: str) -> Path:
    """Where this user's cache called `name` is.

    Raises:
        UnavailableError: ``E_HOME``, this user has no home folder.
    """
    try:
        return Path.home() / ".cache" / "jscc" / name
    except RuntimeError as error:
        raise UnavailableError(
            "E_HOME", "home: got none for this user, expected a folder. Set HOME."
        ) from error


def make_private(folder: Path, asset: Asset) -> None:
    """Make the folder, or hold the one that is there to this user alone.

    Raises:
        DataError: ``_FILETYPE``, ``_MODE``, ``_OWNER``.
        OutputError: ``E_OUTPUT_FOLDER``, it cannot be made.
    """
    try:
        folder.mkdir(mode=MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "E_OUTPUT_FOLDER",
            f"folder {str(folder)!r}: got {error.strerror!r}, expected to make it. Choose another.",
        ) from error
    with open_folder(folder, asset=asset) as descriptor:
        check_private(descriptor, folder, asset)


def check_private(descriptor: int, folder: Path, asset: Asset) -> None:
    """Hold an open folder to this user alone.

    Raises:
        DataError: ``_MODE``, ``_OWNER``.
    """
    where = f"folder {str(folder)!r}"
    check_owner(descriptor, where, asset)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & _OTHERS:
        raise asset.error(
            f"{asset.prefix}_MODE",
            f"{where}: got mode {mode:04o}, expected {MODE:04o}, for others could put code there. "
            "Run chmod 700 on it, or choose another.",
        )


def check_owner(descriptor: int, where: str, asset: Asset) -> None:
    """Hold an open file or folder to this user.

    Raises:
        DataError: ``_OWNER``.
    """
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        raise asset.refuse("OWNER", where, f"user {owner}", f"user {os.geteuid()}, this one")


def read_private(path: Path, where: str, largest: int, asset: Asset) -> bytes:
    """All of a file in such a folder; neither is followed where it is a link.

    Args:
        path: Of the file.
        where: What messages call it.
        largest: Bytes that it may have.
        asset: Names the errors.

    Raises:
        DataError: ``_FILETYPE``, ``_MISSING``, ``_MODE``, ``_OWNER``, ``_SIZE``.
        StorageError: ``E_IO``.
        UnavailableError: ``E_MEMORY``.
    """
    with open_folder(path.parent, asset=asset) as folder:
        check_private(folder, path.parent, asset)
        with open_regular(path.name, asset=asset, folder=folder) as file:
            check_owner(file, where, asset)
            size = size_of(file)
            if size > largest:
                raise asset.refuse("SIZE", where, f"{size} bytes", f"at most {largest}")
            return read_span(file, where, 0, size, asset=asset)[0].tobytes()
