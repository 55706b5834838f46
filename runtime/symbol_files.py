"""Symbol files: frames from and to ``.sigmf-meta`` + ``.sigmf-data``, or ``.npy``.

A ``.npy`` file holds complex64[planes/2, rows, columns] for one image, with a leading axis for
several, or complex64[count] for one image of unknown grid; it says nothing of the radio channel.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.machine import software
from jscc.runtime.npy import read_npy
from jscc.runtime.output_files import check_destination, write_files
from jscc.runtime.ports import describe
from jscc.runtime.sigmf import (
    DATA_SUFFIX,
    MAX_FRAMES,
    MAX_META_BYTES,
    META_SUFFIX,
    assemble,
    parse,
    serialise,
)
from jscc.runtime.trust import (
    Asset,
    Bytes,
    open_folder,
    open_regular,
    read_span,
    size_of,
    strict_json,
)

MAX_DATA_BYTES = 2**28
NPY_SUFFIX = ".npy"

_SYMBOLS = Asset(SymbolsError, "E_SYM", "Name the file that holds the symbols")
_KINDS = f"NAME{META_SUFFIX} or NAME{NPY_SUFFIX}"
_REMEDIES = {
    DATA_SUFFIX: f"Name the {META_SUFFIX} file beside it",
    ".sigmf": "Unpack the archive first: tar -xf NAME.sigmf",
    ".sigmf-collection": f"Name one of its {META_SUFFIX} files",
}
_NPY_DTYPES = ("complex64", "complex128", "float32", "float64", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class Recording:
    """What a symbol file held.

    Attributes:
        frames: In the order of the file, at least one.
        hashed: Whether the file carried a hash of its samples, which then agreed.
    """

    frames: tuple[Frame, ...]
    hashed: bool


def read_symbols(path: Path) -> Recording:
    """Read a symbol file.

    Raises:
        UsageError: ``E_SYM_KIND``, a name that is neither ``.sigmf-meta`` nor ``.npy``.
        SymbolsError: ``E_SYM_MISSING``, ``E_SYM_FILETYPE``, ``E_SYM_SIZE``: no such file, no
            regular file, larger than `MAX_DATA_BYTES`; ``E_SYM_DTYPE``, ``E_SYM_COUNT``,
            ``E_NPY``, ``E_SIGMF_…``: its content breaks the format.
        StorageError: ``E_IO``, reading failed.
    """
    if _kind(path) == NPY_SUFFIX:
        return Recording(_read_npy(path), hashed=False)
    return _read_sigmf(path)


def write_symbols(path: Path, frames: Sequence[Frame], *, force: bool) -> None:
    """Write `frames` to `path` in the format that its name says.

    Raises:
        UsageError: ``E_SYM_KIND``, as `read_symbols`.
        SymbolsError: ``E_SYM_COUNT``, frames of several shapes for a ``.npy`` file;
            ``E_SYM_SIZE``, more than `read_symbols` would read back.
        OutputError: As `write_files`.
        StorageError: As `write_files`.
    """
    kind = _kind(path)
    size = sum(frame.symbols.nbytes for frame in frames)
    if len(frames) > MAX_FRAMES or size > MAX_DATA_BYTES:
        raise SymbolsError(
            "E_SYM_SIZE",
            f"symbols {str(path)!r}: got {len(frames)} frames of {size} bytes, expected at most "
            f"{MAX_FRAMES} of {MAX_DATA_BYTES}. Write several files.",
        )
    if kind == NPY_SUFFIX:
        contents: dict[Path, bytes | memoryview] = {path: _npy_bytes(path, frames)}
    else:
        meta, data = serialise(frames, recorder=software())
        # The metadata come last: they are what a reader starts from.
        contents = {path.with_suffix(DATA_SUFFIX): data, path: meta}
    write_files(contents, force=force)


def check_symbols_path(path: Path, *, force: bool) -> None:
    """Refuse early what `write_symbols` would refuse after the work is done.

    Raises:
        UsageError: ``E_SYM_KIND``, as `read_symbols`.
        OutputError: As `check_destination`.
    """
    if _kind(path) == META_SUFFIX:
        check_destination(path.with_suffix(DATA_SUFFIX), force=force)
    check_destination(path, force=force)


def _kind(path: Path) -> str:
    """``.sigmf-meta`` or ``.npy``."""
    if path.suffix in (META_SUFFIX, NPY_SUFFIX) and path.stem:
        return path.suffix
    remedy = _REMEDIES.get(path.suffix, "Rename or convert it")
    raise UsageError("E_SYM_KIND", f"symbols: got {str(path)!r}, expected {_KINDS}. {remedy}.")


def _read_sigmf(path: Path) -> Recording:
    name = path.name
    with open_folder(path.parent, asset=_SYMBOLS, follow=True) as folder:
        with open_regular(name, asset=_SYMBOLS, folder=folder) as descriptor:
            document = _read_json(name, _read(descriptor, name, MAX_META_BYTES))
        meta = parse(name, document)
        dataset = meta.dataset or path.with_suffix(DATA_SUFFIX).name
        with open_regular(dataset, asset=_SYMBOLS, folder=folder) as descriptor:
            data = _read(descriptor, dataset, MAX_DATA_BYTES)
    return Recording(assemble(dataset, meta, data), hashed=meta.sha512 is not None)


def _read_json(name: str, data: Bytes) -> object:
    def refuse(pointer: str, got: str, expected: str) -> SymbolsError:
        where = f"symbols {name!r}, {pointer or '/'}"
        return SymbolsError(
            "E_SIGMF_META", f"{where}: got {got}, expected {expected}. Correct the recording."
        )

    return strict_json(data.tobytes(), limit=MAX_META_BYTES, refuse=refuse)


def _read_npy(path: Path) -> tuple[Frame, ...]:
    where = str(path)
    with open_regular(path.resolve(), asset=_SYMBOLS) as descriptor:
        data = _read(descriptor, where, MAX_DATA_BYTES)
    array = read_npy(data, f"symbols {where!r}", dtypes=_NPY_DTYPES, error=SymbolsError)
    if array.dtype.kind != "c":
        raise SymbolsError(
            "E_SYM_DTYPE",
            f"symbols {where!r}: got {array.dtype}, expected complex64 or complex128. "
            "Join real and imaginary parts first.",
        )
    if (
        array.ndim not in (1, 3, 4)
        or not array.size > 0
        or (array.ndim == 4 and len(array) > MAX_FRAMES)
    ):
        raise SymbolsError(
            "E_SYM_COUNT",
            f"symbols {where!r}: got {describe(array)}, expected [count], [planes/2,rows,columns] "
            f"or [images,planes/2,rows,columns] of at most {MAX_FRAMES} images. Reshape it.",
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, refused later
        symbols = array.astype(np.complex64, copy=False)
    parts = symbols if array.ndim == 4 else symbols[np.newaxis]
    return tuple(Frame(part, number) for number, part in enumerate(parts))


def _npy_bytes(path: Path, frames: Sequence[Frame]) -> bytes:
    shapes = {frame.symbols.shape for frame in frames}
    if len(shapes) > 1:
        raise SymbolsError(
            "E_SYM_COUNT",
            f"symbols {str(path)!r}: got images of {len(shapes)} sizes, expected one for "
            f"{NPY_SUFFIX}. Write {META_SUFFIX} instead.",
        )
    stack = np.stack([frame.symbols for frame in frames])
    buffer = io.BytesIO()
    np.save(buffer, (stack if len(frames) > 1 else stack[0]).astype("<c8"), allow_pickle=False)
    return buffer.getvalue()


def _read(descriptor: int, where: str, limit: int) -> Bytes:
    """The whole file, of at most `limit` bytes."""
    size = size_of(descriptor)
    if size > limit:
        raise SymbolsError(
            "E_SYM_SIZE",
            f"symbols {where!r}: got {size} bytes, expected at most {limit}. Split the recording.",
        )
    data, _ = read_span(descriptor, where, 0, size, asset=_SYMBOLS)
    return data
