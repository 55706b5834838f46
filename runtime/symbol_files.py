"""Symbol files: frames from and to ``.sigmf-meta`` + ``.sigmf-data``, ``.npy`` or ``.npz``.

A ``.npy`` file holds complex64[planes/2, rows, columns] for one image, with a leading axis for
several, or complex64[count] for one image of unknown grid; it says nothing of the radio channel.
A ``.npz`` file holds that array as ``symbols``, and as ``side.NAME`` float32[images, count] what
else the receiver is given; a ``.npy`` file cannot carry it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.machine import software
from jscc.runtime.npy import read_npy
from jscc.runtime.npz import read_npz, write_npz
from jscc.runtime.output_files import check_destination, write_files
from jscc.runtime.ports import describe
from jscc.runtime.sides import MAX_SIDE_OUTPUTS, MAX_SIDE_VALUES
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
NPZ_SUFFIX = ".npz"

_SYMBOLS = Asset(SymbolsError, "E_SYM", "Name the file that holds the symbols")
_KINDS = f"NAME{META_SUFFIX}, NAME{NPZ_SUFFIX} or NAME{NPY_SUFFIX}"
_ARRAY = "symbols"  # in a .npz file
_SIDE = "side."
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
        UsageError: ``E_SYM_KIND``, a name that is none of the three.
        SymbolsError: ``E_SYM_MISSING``, ``E_SYM_FILETYPE``, ``E_SYM_SIZE``: no such file, no
            regular file, larger than `MAX_DATA_BYTES`; ``E_SYM_DTYPE``, ``E_SYM_COUNT``,
            ``E_NPY``, ``E_NPZ``, ``E_SIGMF_…``, ``E_SIDE_…``: its content breaks the format.
        StorageError: ``E_IO``, reading failed.
    """
    kind = _kind(path)
    if kind == META_SUFFIX:
        return _read_sigmf(path)
    frames = _read_npy(path) if kind == NPY_SUFFIX else _read_npz(path)
    return Recording(frames, hashed=False)


def write_symbols(path: Path, frames: Sequence[Frame], *, force: bool) -> None:
    """Write `frames` to `path` in the format that its name says.

    Raises:
        UsageError: ``E_SYM_KIND``, as `read_symbols`, or side values for a ``.npy`` file.
        SymbolsError: ``E_SYM_COUNT``, frames of several shapes for a ``.npy`` or ``.npz`` file;
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
    check_carries(path, sides=any(frame.side for frame in frames))
    if kind == NPY_SUFFIX:
        contents: dict[Path, bytes | memoryview] = {path: _npy_bytes(path, frames)}
    elif kind == NPZ_SUFFIX:
        contents = {path: _npz_bytes(path, frames)}
    else:
        meta, data = serialise(frames, recorder=software())
        if len(meta) > MAX_META_BYTES:
            raise SymbolsError(
                "E_SYM_SIZE",
                f"symbols {str(path)!r}: got {len(meta)} bytes of metadata, expected at most "
                f"{MAX_META_BYTES}. Write several files.",
            )
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


def check_carries(path: Path, *, sides: bool) -> None:
    """Refuse a file that cannot carry what is to be written.

    Args:
        path: Where the symbols are to go.
        sides: Whether there are side values too.

    Raises:
        UsageError: ``E_SYM_KIND``.
    """
    if sides and _kind(path) == NPY_SUFFIX:
        raise UsageError(
            "E_SYM_KIND",
            f"symbols: got {str(path)!r}, expected NAME{META_SUFFIX} or NAME{NPZ_SUFFIX}: this "
            f"bundle's receiver is given more than symbols, which {NPY_SUFFIX} cannot carry. "
            "Rename it.",
        )


def _kind(path: Path) -> str:
    """``.sigmf-meta``, ``.npy`` or ``.npz``."""
    if path.suffix in (META_SUFFIX, NPY_SUFFIX, NPZ_SUFFIX) and path.stem:
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
    data = _read_whole(path)
    where = f"symbols {str(path)!r}"
    return _frames(read_npy(data, where, dtypes=_NPY_DTYPES, error=SymbolsError), where)


def _read_npz(path: Path) -> tuple[Frame, ...]:
    data = _read_whole(path)
    where = f"symbols {str(path)!r}"
    arrays = read_npz(data, where, dtypes=_NPY_DTYPES, error=SymbolsError)
    if _ARRAY not in arrays:
        names = ", ".join(ascii(name)[:60] for name in arrays)
        raise SymbolsError(
            "E_NPZ", f"{where}: got the arrays {names}, expected {_ARRAY!r}. Name the array so."
        )
    frames = _frames(arrays.pop(_ARRAY), where)
    for name, array in arrays.items():
        _check_side(name, array, len(frames), where)
    count = sum(array.size for array in arrays.values()) // len(frames)
    if count > MAX_SIDE_VALUES or len(arrays) > MAX_SIDE_OUTPUTS:
        raise SymbolsError(
            "E_SIDE_SIZE",
            f"{where}: got {len(arrays)} side arrays of {count} values, expected at most "
            f"{MAX_SIDE_OUTPUTS} of {MAX_SIDE_VALUES}. Keep what the transmitter returned.",
        )
    return tuple(
        replace(
            frame,
            side={name.removeprefix(_SIDE): array[number] for name, array in arrays.items()},
        )
        for number, frame in enumerate(frames)
    )


def _check_side(name: str, array: npt.NDArray[Any], images: int, where: str) -> None:
    """Hold an array of side values to one row of finite numbers for each image."""
    named = name.startswith(_SIDE) and name.isascii()
    if not named or array.dtype != np.float32 or array.ndim != 2 or len(array) != images:
        raise SymbolsError(
            "E_NPZ",
            f"{where}: got {ascii(name)[:60]} {describe(array)}, expected {_SIDE}NAME "
            f"float32[{images},count]. Save one row of side values for each image.",
        )
    if not np.isfinite(array).all():
        raise SymbolsError(
            "E_SIDE_NONFINITE",
            f"{where}: got values of {ascii(name)[:60]} that are not finite, expected finite ones. "
            "Receive them again.",
        )


def _frames(array: npt.NDArray[Any], where: str) -> tuple[Frame, ...]:
    """One frame for each image of `array`."""
    if array.dtype.kind != "c":
        raise SymbolsError(
            "E_SYM_DTYPE",
            f"{where}: got {array.dtype}, expected complex64 or complex128. "
            "Join real and imaginary parts first.",
        )
    if (
        array.ndim not in (1, 3, 4)
        or not array.size > 0
        or (array.ndim == 4 and len(array) > MAX_FRAMES)
    ):
        raise SymbolsError(
            "E_SYM_COUNT",
            f"{where}: got {describe(array)}, expected [count], [planes/2,rows,columns] "
            f"or [images,planes/2,rows,columns] of at most {MAX_FRAMES} images. Reshape it.",
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, refused later
        symbols = array.astype(np.complex64, copy=False)
    parts = symbols if array.ndim == 4 else symbols[np.newaxis]
    return tuple(Frame(part, number) for number, part in enumerate(parts))


def _npz_bytes(path: Path, frames: Sequence[Frame]) -> bytes:
    names = sorted(frames[0].side)
    if any(_lengths(frame) != _lengths(frames[0]) for frame in frames):
        raise SymbolsError(
            "E_SYM_COUNT",
            f"symbols {str(path)!r}: got images of different side values, expected the same of "
            f"all for {NPZ_SUFFIX}. Write {META_SUFFIX} instead.",
        )
    sides = {f"{_SIDE}{name}": np.stack([frame.side[name] for frame in frames]) for name in names}
    return write_npz({_ARRAY: _stack(path, frames), **sides})


def _lengths(frame: Frame) -> dict[str, int]:
    return {name: row.size for name, row in frame.side.items()}


def _npy_bytes(path: Path, frames: Sequence[Frame]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _stack(path, frames), allow_pickle=False)
    return buffer.getvalue()


def _stack(path: Path, frames: Sequence[Frame]) -> npt.NDArray[np.complex64]:
    """The symbols of all frames, without an axis for them where there is one only."""
    shapes = {frame.symbols.shape for frame in frames}
    if len(shapes) > 1:
        raise SymbolsError(
            "E_SYM_COUNT",
            f"symbols {str(path)!r}: got images of {len(shapes)} sizes, expected one for "
            f"{path.suffix}. Write {META_SUFFIX} instead.",
        )
    stack = np.stack([frame.symbols for frame in frames]).astype("<c8")
    return stack if len(frames) > 1 else stack[0]


def _read_whole(path: Path) -> Bytes:
    with open_regular(path.resolve(), asset=_SYMBOLS) as descriptor:
        return _read(descriptor, str(path), MAX_DATA_BYTES)


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
