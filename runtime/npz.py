"""Npz: several arrays in one ``.npz`` file, as ``numpy.savez`` writes them.

That is a zip of ``.npy`` files. Compressed entries are not read: a few kilobytes of them can be
gigabytes of array. So what an entry claims to be never exceeds what the file is.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import DataError
from jscc.runtime.npy import read_npy

MAX_ENTRIES = 16
_SUFFIX = ".npy"
_ENCRYPTED = 1


def read_npz(
    data: npt.NDArray[np.uint8], where: str, *, dtypes: tuple[str, ...], error: type[DataError]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays in the bytes of a ``.npz`` file, by name.

    Args:
        data: The whole file.
        where: Its name, for messages.
        dtypes: NumPy names of the dtypes that are accepted.
        error: Class of the errors.

    Raises:
        DataError: ``E_NPZ``, of class `error`: no zip, or one with other than a few plain entries;
            ``E_NPY``, an entry is no array.
    """

    def refuse(got: str, expected: str) -> DataError:
        return error("E_NPZ", f"{where}: got {got}, expected {expected}. Save it with numpy.savez.")

    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data.tobytes())) as archive:
            entries = archive.infolist()
            problem = _problem(entries, data.size)
            if problem is not None:
                raise refuse(*problem)
            contents = {entry.filename: archive.read(entry) for entry in entries}
    except DataError:
        raise
    except Exception as broken:  # zipfile raises a dozen kinds for the ways that a zip can be wrong
        raise refuse("a file that is no whole zip", "one") from broken
    for name, content in contents.items():
        short = name.removesuffix(_SUFFIX)
        entry = np.frombuffer(content, np.uint8)
        arrays[short] = read_npy(entry, f"{where}, {short!r}", dtypes=dtypes, error=error)
    return arrays


def write_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of a ``.npz`` file with `arrays`."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _problem(entries: list[zipfile.ZipInfo], size: int) -> tuple[str, str] | None:
    """What is wrong with the directory of a zip of `size` bytes, and what is expected."""
    names = [entry.filename for entry in entries]
    if not 0 < len(names) <= MAX_ENTRIES:
        return f"{len(names)} entries", f"1 to {MAX_ENTRIES}"
    if len(set(names)) < len(names):
        return "two entries of one name", "each name once"
    for entry in entries:
        shown = ascii(entry.filename)[:60]
        if not entry.filename.endswith(_SUFFIX):
            return f"the entry {shown}", f"names that end in {_SUFFIX}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            return f"{shown} compressed", "entries that are not (not savez_compressed)"
        if entry.flag_bits & _ENCRYPTED:
            return f"{shown} encrypted", "plain entries"
    claimed = sum(entry.file_size for entry in entries)
    return (f"entries of {claimed} bytes", f"at most the file's {size}") if claimed > size else None
