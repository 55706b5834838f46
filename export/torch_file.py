"""Torch files: the tensors of what ``torch.save`` wrote, found without unpickling it.

Both containers are read: the zip of torch 1.6 and later (a pickle beside one entry per storage)
and the stream before it (five pickles, then the storages).
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from jscc.export.pickles import Table, Value, read_pickle
from jscc.export.tensor_file import Extent, OpenFile, StoredTensor, check_entry
from jscc.export.torch_pickle import Storage, Strided, TorchMeanings
from jscc.export.zip_directory import read_directory
from jscc.runtime.errors import CheckpointError

MAX_PICKLE = 1 << 26  # bytes; 1896 tensors with optimizer states take about 0.5 MiB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the same, pickled
LEGACY_VERSION = 1001


@dataclass(frozen=True)
class TorchFile:
    """What a torch file holds.

    Attributes:
        file: The file itself.
        root: The pickled object as data; its tensors are `Strided`.
        extents: Where the storages lie, by key.
        container: ``torch-zip`` or ``torch-legacy``.
        extra_objects: Names of the objects that were left out, in order of appearance.
    """

    file: OpenFile
    root: Value
    extents: Mapping[str, Extent]
    container: str
    extra_objects: tuple[str, ...]

    def locate(self, name: str, tensor: Strided) -> StoredTensor:
        """The place of `tensor`, called `name`, in the file.

        Raises:
            CheckpointError: ``E_CKPT_FORMAT`` or ``E_CKPT_BOMB``, it is not within its storage.
        """
        storage = tensor.storage
        whole = self.extents[storage.key]
        width = storage.dtype.itemsize
        begin, size = storage.offset * width, storage.count * width
        extent = whole if size == whole.size else Extent(whole.begin + begin, size)
        return check_entry(
            name,
            StoredTensor(
                self.file, tensor.dtype, tensor.shape, tensor.stride, tensor.offset, extent
            ),
        )


def read_zip(file: OpenFile, allow: tuple[str, ...]) -> TorchFile:
    """Read a torch zip file.

    Args:
        file: The open file.
        allow: Names of further classes to leave out in silence, ``module.Class``.

    Raises:
        CheckpointError: ``E_CKPT_UNSAFE``, ``E_CKPT_EXTRA_OBJECTS``, ``E_CKPT_BOMB``,
            ``E_CKPT_TRUNCATED`` or ``E_CKPT_FORMAT``.
    """
    entries = read_directory(file)
    prefix = _prefix(file, entries)
    order = entries.get(f"{prefix}byteorder")
    if order is not None and file.read(order.begin, min(order.size, 16)) != b"little":
        raise _malformed(file, "numbers that are not little-endian")
    main = entries[f"{prefix}data.pkl"]
    if main.size > MAX_PICKLE:
        raise _too_large(file, main.size)
    meanings = TorchMeanings(str(file.path), allow)
    data = file.read(main.begin, main.size)
    if main.crc32 not in (0, zlib.crc32(data)):
        raise CheckpointError(
            "E_CKPT_CORRUPT",
            f"{str(file.path)!r}: data.pkl: got CRC-32 {zlib.crc32(data):08x}, expected "
            f"{main.crc32:08x}. Fetch the file again.",
        )
    stream = io.BytesIO(data)
    root = read_pickle(stream, main.size, meanings, where=repr(str(file.path)))
    meanings.check_unknown()
    places = {key: f"{prefix}data/{key}" for key in meanings.storages}
    extents = {key: entries[name] for key, name in places.items() if name in entries}
    _check_storages(file, meanings.storages, extents)
    return TorchFile(file, root, extents, "torch-zip", tuple(meanings.left_out))


def read_legacy(file: OpenFile, allow: tuple[str, ...]) -> TorchFile:
    """Read a torch file from before the zip container; arguments and errors as `read_zip`."""
    meanings = TorchMeanings(str(file.path), allow)
    with file.open_stream() as stream:
        limit = min(file.size, MAX_PICKLE)

        def read() -> Value:
            here = stream.tell()
            if here >= MAX_PICKLE:
                raise _too_large(file, here)
            return read_pickle(stream, limit - here, meanings, where=repr(str(file.path)))

        if read() != LEGACY_MAGIC or read() != LEGACY_VERSION:
            raise _malformed(file, "an unknown version")
        system = read()
        if not isinstance(system, Table) or system.named().get("little_endian") is not True:
            raise _malformed(file, "numbers that are not little-endian")
        root = read()
        meanings.check_unknown()
        keys = read()
        extents = dict(_legacy_extents(file, stream, keys, meanings.storages))
    _check_storages(file, meanings.storages, extents)
    return TorchFile(file, root, extents, "torch-legacy", tuple(meanings.left_out))


def _prefix(file: OpenFile, entries: Mapping[str, Extent]) -> str:
    """What stands before ``data.pkl`` in the names of the entries."""
    found = [
        name.removesuffix("data.pkl")
        for name in entries
        if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(found) != 1:
        raise _malformed(file, f"a zip file with {len(found)} entries named data.pkl")
    if f"{found[0]}constants.pkl" in entries:
        raise _malformed(file, "a TorchScript archive, which is a program")
    return found[0]


def _legacy_extents(
    file: OpenFile, stream: BinaryIO, keys: Value, storages: Mapping[str, list[Storage]]
) -> Iterator[tuple[str, Extent]]:
    """Where the storages lie behind the pickles: each is its number of elements, then these."""
    if not isinstance(keys, list):
        raise _malformed(file, "no list of storages")
    position = stream.tell()
    for key in keys:
        if type(key) is not str or key not in storages:
            raise _malformed(file, "a storage that no tensor names")
        (count,) = struct.unpack("<q", file.read(position, 8))
        position += 8
        size = count * storages[key][0].dtype.itemsize
        if count < 0 or position + size > file.size:
            raise CheckpointError(
                "E_CKPT_TRUNCATED",
                f"{str(file.path)!r}: got the end of the file inside storage {key!r}, expected "
                f"{size} bytes from {position} on. Fetch the file again.",
            )
        yield key, Extent(position, size)
        position += size


def _check_storages(
    file: OpenFile, storages: Mapping[str, list[Storage]], extents: Mapping[str, Extent]
) -> None:
    for key, claims in storages.items():
        for claim in claims:
            expected = claim.count * claim.dtype.itemsize
            held = extents[key].size if key in extents else None
            if held != expected:
                got = "no bytes" if held is None else f"{held} bytes"
                raise _malformed(file, f"{got} for storage {key[:100]!r} of {expected} bytes")


def _too_large(file: OpenFile, size: int) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_BOMB",
        f"{str(file.path)!r}: got a pickle of {size} bytes, expected at most {MAX_PICKLE}. "
        "Ask its author for safetensors.",
    )


def _malformed(file: OpenFile, got: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_FORMAT",
        f"{str(file.path)!r}: got {got}, expected a file as torch.save writes it. "
        "Fetch it again, or ask its author for safetensors.",
    )
