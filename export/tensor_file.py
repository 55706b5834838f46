"""TensorFile: tensors that stay in their file until they are asked for.

NOTE: tensors are read with ``pread`` into memory of their own, not mapped. A mapped file that is
cut short or overwritten while it is in use ends the process (SIGBUS) or changes the weights under
it, and its pages stay counted until the last tensor is gone; a read one fails with an error.
"""

import hashlib
import math
import os
import stat
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from jscc.runtime.errors import CheckpointError, StorageError

CHUNK = 1 << 24  # bytes read or hashed at a time


@dataclass(frozen=True)
class Extent:
    """Bytes of a file that hold the elements of one storage.

    Attributes:
        begin: Offset of the first byte.
        size: Number of bytes.
        crc32: Checksum that the file states of these bytes; 0 when it states none.
    """

    begin: int
    size: int
    crc32: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file describes it.

    Attributes:
        file: The file that holds it.
        dtype: Type of the elements.
        shape: Sizes, outermost first.
        stride: Steps in elements, outermost first.
        offset: First element's place in `extent`, in elements.
        extent: Where the storage lies.
    """

    file: "OpenFile"
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    extent: Extent

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


class OpenFile:
    """A regular file, open for reading for as long as this object lives."""

    def __init__(self, path: Path) -> None:
        """Open `path`; links are followed, since the cache of the hub is made of them.

        Raises:
            CheckpointError: ``E_CKPT_NOT_FOUND``, there is no such file; ``E_CKPT_FILETYPE``, it
                is a folder, a pipe or a device.
            StorageError: ``E_IO``, it cannot be opened.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise CheckpointError(
                "E_CKPT_NOT_FOUND",
                f"{str(path)!r}: got no such file, expected a checkpoint. Check the path.",
            ) from error
        except OSError as error:
            raise StorageError(
                "E_IO",
                f"{str(path)!r}: got {error.strerror}, expected a readable checkpoint. "
                "Check the path and its permissions.",
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                "E_CKPT_FILETYPE",
                f"{str(path)!r}: got {_kind(status.st_mode)}, expected a regular file. "
                "Give the checkpoint file itself.",
            )
        self.size = status.st_size
        self._stamp = _stamp(status)

    def read(self, begin: int, size: int) -> bytes:
        """The bytes ``begin : begin + size``; callers hold `size` to a limit of their own."""
        data = bytearray(size)
        self.read_into(memoryview(data), begin)
        return bytes(data)

    def read_into(self, target: memoryview, begin: int) -> None:
        """Fill `target` with the bytes from `begin` on.

        Raises:
            CheckpointError: ``E_CKPT_TRUNCATED``, the file ends before; ``E_CKPT_CHANGED``, it is
                not the file that was opened any more.
            StorageError: ``E_IO``, the read failed.
        """
        done = 0
        while done < len(target):
            try:
                count = os.preadv(
                    self._descriptor, [target[done : done + (CHUNK << 2)]], begin + done
                )
            except OSError as error:
                raise StorageError(
                    "E_IO",
                    f"{str(self.path)!r}: got {error.strerror} at byte {begin + done}, expected "
                    "data. Check the disk, or copy the file to another one.",
                ) from error
            if count == 0:
                raise CheckpointError(
                    "E_CKPT_TRUNCATED",
                    f"{str(self.path)!r}: got the end of the file at byte {begin + done}, expected "
                    f"{len(target) - done} more. Fetch the file again.",
                )
            done += count
        self._check_unchanged()

    def open_stream(self) -> BinaryIO:
        """A buffered stream over the whole file, at its first byte."""
        return open(os.dup(self._descriptor), "rb")

    def sha256(self) -> str:
        """SHA-256 of the whole file, in hexadecimal.

        Raises:
            CheckpointError: ``E_CKPT_CHANGED``, the file changed since it was opened.
        """
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(CHUNK, self.size)))
        for begin in range(0, self.size, CHUNK):
            part = buffer[: min(CHUNK, self.size - begin)]
            self.read_into(part, begin)
            digest.update(part)
        return digest.hexdigest()

    def _check_unchanged(self) -> None:
        if _stamp(os.fstat(self._descriptor)) != self._stamp:
            raise CheckpointError(
                "E_CKPT_CHANGED",
                f"{str(self.path)!r}: got a file that changed while it was read, expected the one "
                "that was opened. Wait until its download or copy has ended, then run again.",
            )


class StoredTensors(Mapping[str, torch.Tensor]):
    """Tensors by name; each look-up reads that one tensor, anew, into memory of its own."""

    def __init__(self, entries: Mapping[str, StoredTensor]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            CheckpointError: ``E_CKPT_CORRUPT``, its checksum is wrong; ``E_CKPT_TRUNCATED`` or
                ``E_CKPT_CHANGED``, the file is not what it was.
            StorageError: ``E_IO``, the read failed.
        """
        return _load(name, self.entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def renamed(self, rename: Callable[[str], str | None]) -> "StoredTensors":
        """The tensors to which `rename` gives a name, under that name; reads nothing."""
        names = {name: rename(name) for name in self.entries}
        return StoredTensors(
            {new: self.entries[old] for old, new in names.items() if new is not None}
        )


def form(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and element type of one tensor, unread where it is stored."""
    if isinstance(tensors, StoredTensors):
        return tensors.entries[name].shape, tensors.entries[name].dtype
    return tuple(tensors[name].shape), tensors[name].dtype


def _load(name: str, entry: StoredTensor) -> torch.Tensor:
    if entry.span == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    width = entry.dtype.itemsize
    whole = entry.offset == 0 and entry.span * width == entry.extent.size
    data = torch.empty(entry.span * width, dtype=torch.uint8)
    view = data.numpy().data
    entry.file.read_into(view, entry.extent.begin + entry.offset * width)
    if whole and entry.extent.crc32 not in (0, zlib.crc32(view)):
        raise CheckpointError(
            "E_CKPT_CORRUPT",
            f"{str(entry.file.path)!r}: tensor {name!r}: got CRC-32 {zlib.crc32(view):08x}, "
            f"expected {entry.extent.crc32:08x}. Fetch the file again.",
        )
    if entry.dtype == torch.bool:
        data = data != 0  # any other byte than 0 and 1 is undefined behaviour as a bool
    return torch.as_strided(data.view(entry.dtype), entry.shape, entry.stride)


def check_entry(name: str, entry: StoredTensor) -> StoredTensor:
    """Hold the description of a tensor to its storage.

    Raises:
        CheckpointError: ``E_CKPT_FORMAT``, it reaches outside; ``E_CKPT_BOMB``, it claims more
            elements than are stored.
    """
    where = f"{str(entry.file.path)!r}: tensor {name!r}"
    numbers = (*entry.shape, *entry.stride, entry.offset)
    fits = (
        len(entry.shape) == len(entry.stride) <= 32
        and all(0 <= number < 1 << 48 for number in numbers)
        and math.prod(max(1, number) for number in entry.shape) < 1 << 48
        and (entry.offset + entry.span) * entry.dtype.itemsize <= entry.extent.size
    )
    if not fits:
        raise CheckpointError(
            "E_CKPT_FORMAT",
            f"{where}: got shape {entry.shape}, strides {entry.stride} and offset {entry.offset}, "
            f"expected a view into {entry.extent.size} bytes. Fetch the file again.",
        )
    if math.prod(entry.shape) * entry.dtype.itemsize > entry.extent.size:
        raise CheckpointError(
            "E_CKPT_BOMB",
            f"{where}: got shape {entry.shape}, expected no more than the {entry.extent.size} "
            "bytes stored for it. Save a contiguous copy of the tensor.",
        )
    return entry


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _kind(mode: int) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")
