"""Archive: a bundle as one STORED zip, in exactly one form.

The bytes of the archive are a function of the names and contents in it: no compression, no gaps,
no prefix, no comments, a fixed date. The reader takes names, sizes and offsets from the directory,
writes the directory and the headers that the writer would have written, and compares. A zip that
overlaps, lies about sizes, hides entries or links elsewhere differs.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from jscc.runtime.declared import shown
from jscc.runtime.errors import BundleError
from jscc.runtime.trust import (
    BUNDLE,
    Bytes,
    is_flat_name,
    open_regular,
    read_file,
    read_span,
    size_of,
)

ZIP64 = 0xFFFFFFFF  # a size or offset from here on stands in a zip64 field
ENTRY_LIMIT = 4096

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_DATE = 0x21  # 1 January 1980
_FILE = 0o100644 << 16  # a regular file
_UNIX = 3 << 8


@dataclass(frozen=True)
class Entry:
    """One file of an archive: name, bytes, their CRC-32, and where its header begins."""

    name: str
    size: int
    crc: int
    offset: int

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.offset + len(local_header(self))

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + self.size


def local_header(entry: Entry) -> bytes:
    """What stands before the bytes of `entry`."""
    name = entry.name.encode()
    large = entry.size >= ZIP64
    extra = struct.pack("<2H2Q", 1, 16, entry.size, entry.size) if large else b""
    size = ZIP64 if large else entry.size
    version = 45 if large else 20
    fields = (version, 0, 0, 0, _DATE, entry.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra


def directory(entries: list[Entry]) -> bytes:
    """What stands behind the last byte of the last entry."""
    start = entries[-1].end if entries else 0
    records = b"".join(_central_record(entry) for entry in entries)
    tail = b""
    if start >= ZIP64:
        where = start + len(records)
        count = len(entries)
        sizes = (count, count, len(records), start)
        tail = _END64.pack(b"PK\x06\x06", 44, _UNIX | 45, 45, 0, 0, *sizes)
        tail += _LOCATOR.pack(b"PK\x06\x07", 0, where, 1)
    count = len(entries)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(records), min(start, ZIP64), 0)
    return records + tail + end


def _central_record(entry: Entry) -> bytes:
    name = entry.name.encode()
    large = [entry.size, entry.size] if entry.size >= ZIP64 else []
    far = [entry.offset] if entry.offset >= ZIP64 else []
    lengths = large + far
    extra = struct.pack(f"<2H{len(lengths)}Q", 1, 8 * len(lengths), *lengths) if lengths else b""
    version = 45 if lengths else 20
    size = min(entry.size, ZIP64)
    fields = (_UNIX | version, version, 0, 0, 0, _DATE, entry.crc, size, size)
    rest = (len(name), len(extra), 0, 0, 0, _FILE, min(entry.offset, ZIP64))
    return _CENTRAL.pack(b"PK\x01\x02", *fields, *rest) + name + extra


@dataclass(frozen=True)
class Archive:
    """An open archive whose directory was checked.

    Attributes:
        where: Its path, for messages.
        descriptor: The open file.
        entries: Files by name.
    """

    where: str
    descriptor: int
    entries: Mapping[str, Entry]

    def names(self) -> list[str]:
        """Every file in the archive."""
        return sorted(self.entries)

    def head(self, name: str, limit: int) -> bytes:
        """A small file that no manifest lists.

        Raises:
            BundleError: ``E_BUNDLE_MISSING``; ``E_MANIFEST``, too large.
        """
        if name not in self.entries:
            raise BUNDLE.refuse("MISSING", self.where, "no such entry", repr(name))
        entry = self.entries[name]
        if entry.size > limit:
            raise BundleError(
                "E_MANIFEST",
                f"{name}: got {entry.size} bytes, expected at most {limit}. Export it again.",
            )
        return read_span(self.descriptor, name, entry.start, entry.size)[0].tobytes()

    def read(self, name: str, *, size: int, sha256: str) -> Bytes:
        """A file that the manifest lists; see `read_file` for the errors."""
        entry = self.entries[name]
        return read_file(
            self.descriptor, name, size=size, sha256=sha256, found=entry.size, offset=entry.start
        )

    def verify(self, name: str, *, size: int, sha256: str) -> Bytes:
        """As `read`: what lies inside another file, no engine takes from there."""
        return self.read(name, size=size, sha256=sha256)


@contextmanager
def open_bundle_archive(path: Path) -> Iterator[Archive]:
    """The archive at `path`, which may be a symbolic link: the operator gave it.

    Raises:
        BundleError: ``E_BUNDLE_ZIP``, not in the one form that is read; ``E_BUNDLE_TRUNCATED``,
            its end is missing; ``E_BUNDLE_MISSING``, ``E_BUNDLE_FILETYPE``.
    """
    with open_regular(path.resolve()) as descriptor:
        entries = _read_directory(descriptor, str(path))
        yield Archive(str(path), descriptor, {entry.name: entry for entry in entries})


def _zip_error(where: str, got: str, expected: str) -> BundleError:
    return BundleError(
        "E_BUNDLE_ZIP",
        f"{where}: got {got}, expected {expected}. Write it with jscc-edge, or give the folder.",
    )


def _span(descriptor: int, where: str, start: int, stop: int) -> bytes:
    return read_span(descriptor, where, start, stop - start)[0].tobytes()


def _read_directory(descriptor: int, where: str) -> list[Entry]:
    """The entries of the archive, every byte besides their contents checked."""
    total = size_of(descriptor)
    start = _find_directory(descriptor, where, total)
    tail = _span(descriptor, where, start, total)
    entries = _parse_records(tail, where)
    position = 0
    for entry in entries:
        if entry.offset != position:
            raise _zip_error(where, f"{entry.name!r} at {entry.offset}", f"{position}, without gap")
        position = entry.end
    if position != start or directory(entries) != tail:
        raise _zip_error(where, "an unusual zip directory", "the one of a plain STORED zip")
    for entry in entries:
        header = _span(descriptor, where, entry.offset, entry.start)
        if header != local_header(entry):
            raise _zip_error(where, f"a header of {entry.name!r} unlike the directory", "the same")
    return entries


def _find_directory(descriptor: int, where: str, total: int) -> int:
    """Where the directory starts; how long it is was bounded."""
    room = _END64.size + _LOCATOR.size + _END.size
    tail = _span(descriptor, where, max(0, total - room), total)
    if tail[-_END.size :][:4] != b"PK\x05\x06":
        _refuse_end(descriptor, where, total)
    _, _, _, _, count, length, start, _ = _END.unpack(tail[-_END.size :])
    behind = _END.size
    if start == ZIP64:
        if len(tail) < room or tail[:4] != b"PK\x06\x06":
            raise _zip_error(where, "no zip64 record", "one before the end record")
        start = _END64.unpack(tail[: _END64.size])[-1]
        behind = room
    if count > ENTRY_LIMIT or length > ENTRY_LIMIT * 256:
        raise _zip_error(where, f"{count} entries in {length} bytes", f"at most {ENTRY_LIMIT}")
    if start != total - behind - length:
        raise _zip_error(where, f"a directory at {start}", f"{total - behind - length}")
    return int(start)


def _refuse_end(descriptor: int, where: str, total: int) -> NoReturn:
    """Tell bytes behind the archive from an archive that was cut."""
    tail = _span(descriptor, where, max(0, total - (1 << 16)), total)
    last = tail.rfind(b"PK\x05\x06")
    if last != -1 and len(tail) - last >= _END.size:
        raise _zip_error(where, "bytes behind the zip's end record", "nothing")
    head = _span(descriptor, where, 0, min(4, total))
    if head == b"PK\x03\x04":
        raise BUNDLE.refuse("TRUNCATED", where, f"a zip cut at {total} bytes", "its end record")
    raise _zip_error(where, f"{head!r} at its head", "a bundle: a folder or a STORED zip")


def _parse_records(tail: bytes, where: str) -> list[Entry]:
    """Names, sizes and offsets of the central records at the head of `tail`."""
    entries: list[Entry] = []
    names: set[str] = set()
    position = 0
    while tail[position : position + 4] == b"PK\x01\x02":
        if len(tail) < position + _CENTRAL.size:
            raise _zip_error(where, "half a record", "a whole one")
        record = _CENTRAL.unpack_from(tail, position)
        flags, method, crc, size, name_length, extra_length = (
            record[index] for index in (3, 4, 7, 9, 10, 11)
        )
        position += _CENTRAL.size
        raw = tail[position : position + name_length]
        extra = tail[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + record[12]
        name = raw.decode("ascii", "backslashreplace")
        _check_record(where, name, flags, method, record[15])
        if name in names:
            raise _zip_error(where, f"{shown(name)} twice", "each name once")
        names.add(name)
        longs = [int.from_bytes(extra[at : at + 8], "little") for at in range(4, len(extra), 8)]
        if size == ZIP64 and longs:
            size = longs[0]
        offset = record[16]
        if offset == ZIP64 and longs:
            offset = longs[-1]
        entries.append(Entry(name, size, crc, offset))
    return entries


def _check_record(where: str, name: str, flags: int, method: int, attributes: int) -> None:
    """Say what is wrong where it is worth more than "unusual"."""
    if flags & 1:
        raise _zip_error(where, f"{shown(name)} encrypted", "plain STORED entries")
    if method:
        raise _zip_error(where, f"{shown(name)} compressed (method {method})", "STORED entries")
    if attributes >> 16 & 0o170000 == 0o120000:
        raise _zip_error(where, f"{shown(name)}, a symbolic link", "regular files")
    if not is_flat_name(name) and name not in ("manifest.json", "manifest.sha256"):
        raise BUNDLE.refuse("PATH", where, f"the entry {shown(name)}", "a plain file name")
