"""Zip directory: where the uncompressed entries of a zip file lie, judged before any is read.

Only what ``torch.save`` writes is accepted: entries stored as they are, one after the other. The
directory is held to the file first, so that no size that is believed later can be a lie.
"""

import struct
from collections.abc import Mapping

from jscc.export.tensor_file import Extent, OpenFile
from jscc.runtime.errors import CheckpointError

MAX_ENTRIES = 100_000
MAX_DIRECTORY = 1 << 25  # bytes
LONGEST_TAIL = 22 + 0xFFFF + 20 + 56  # end record with comment, zip64 locator and end record

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


def read_directory(file: OpenFile) -> Mapping[str, Extent]:
    """The entries of a zip file by name.

    Raises:
        CheckpointError: ``E_CKPT_TRUNCATED``, the directory at the end is missing;
            ``E_CKPT_BOMB``, entries are compressed, overlap or add up to more than the file;
            ``E_CKPT_FORMAT``, the directory is malformed.
    """
    begin, size, count = _locate(file)
    data = file.read(begin, size)
    entries: dict[str, Extent] = {}
    places: list[tuple[int, int, str]] = []
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > size:
            raise _malformed(file, f"a directory that ends inside entry {len(entries)}")
        name, offset, extent, position = _entry(file, data, position)
        if name in entries:
            raise _bomb(file, f"two entries named {name!r}")
        local = _local(file, name, offset, begin)
        entries[name] = Extent(local, extent.size, extent.crc32)
        places.append((offset, local + extent.size, name))
    if position != size:
        raise _malformed(file, f"{size - position} bytes behind the last entry of the directory")
    _check_places(file, places, begin)
    return entries


def _locate(file: OpenFile) -> tuple[int, int, int]:
    """Begin, size in bytes and number of entries of the directory."""
    tail_begin = max(0, file.size - LONGEST_TAIL)
    tail = file.read(tail_begin, file.size - tail_begin)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise CheckpointError(
            "E_CKPT_TRUNCATED",
            f"{str(file.path)!r}: got {file.size} bytes without a zip directory at their end, "
            "expected a whole file. Fetch it again; the download may have stopped early.",
        )
    _, disk, first, here, count, size, begin, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise _malformed(file, "bytes behind the zip directory")
    if disk or first or here != count:
        raise _malformed(file, "a zip file in several parts")
    end = tail_begin + at
    wide = _FULL16 in (here, count) or _FULL32 in (size, begin)
    if wide or tail[:at][-_LOCATOR.size :].startswith(b"PK\x06\x07"):  # torch always writes these
        begin, size, count, end = _locate64(file, end)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise _bomb(file, f"{count} entries in a directory of {size} bytes")
    if begin + size != end:
        raise _malformed(file, f"a directory at {begin}:{begin + size} that does not end at {end}")
    return begin, size, count


def _locate64(file: OpenFile, end: int) -> tuple[int, int, int, int]:
    """The same from the zip64 records in front of `end`, and where those begin."""
    locator = end - _LOCATOR.size
    if locator < 0:
        raise _malformed(file, "a zip64 directory without its locator")
    signature, disk, begin64, disks = _LOCATOR.unpack(file.read(locator, _LOCATOR.size))
    if signature != b"PK\x06\x07" or disk or disks > 1 or begin64 + _END64.size > locator:
        raise _malformed(file, "a zip64 directory without its locator")
    record = _END64.unpack(file.read(begin64, _END64.size))
    signature, _, _, _, disk, first, here, count, size, begin = record
    if signature != b"PK\x06\x06" or disk or first or here != count:
        raise _malformed(file, "a broken zip64 record")
    return begin, size, count, begin64


def _entry(file: OpenFile, data: bytes, position: int) -> tuple[str, int, Extent, int]:
    """Name, header offset and size of one directory entry, and where the next one begins."""
    fields = _CENTRAL.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc32, packed, size, names, extras, notes = fields[:13]
    offset = fields[16]
    begin = position + _CENTRAL.size
    after = begin + names + extras + notes
    if signature != b"PK\x01\x02" or after > len(data):
        raise _malformed(file, f"a broken directory entry at byte {position}")
    try:
        name = data[begin : begin + names].decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed(file, "an entry whose name is not UTF-8") from None
    extra = data[begin + names : begin + names + extras]
    size, packed, offset = _widen(file, name, extra, (size, packed, offset))
    if method != 0 or packed != size:
        raise _bomb(file, f"entry {name!r} compressed from {size} to {packed} bytes")
    if flags & 0x2041:
        raise _malformed(file, f"entry {name!r} encrypted")
    return name, offset, Extent(0, size, crc32), after


def _widen(
    file: OpenFile, name: str, extra: bytes, short: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Replace the numbers that do not fit 32 bits by those of the zip64 field."""
    wanted = [number == _FULL32 for number in short]
    if not any(wanted):
        return short
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1 and size >= 8 * sum(wanted) and position + size <= len(extra):
            wide = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra, position))
            first, second, third = (
                next(wide) if full else number for full, number in zip(wanted, short, strict=True)
            )
            return first, second, third
        position += size
    raise _malformed(file, f"entry {name!r} without its zip64 sizes")


def _local(file: OpenFile, name: str, offset: int, directory: int) -> int:
    """Where the entry's data begin, from the header in front of them."""
    if offset + _LOCAL.size > directory:
        raise _malformed(file, f"entry {name!r} at byte {offset}, behind the directory")
    fields = _LOCAL.unpack(file.read(offset, _LOCAL.size))
    signature, method, names, extras = fields[0], fields[3], fields[9], fields[10]
    begin: int = offset + _LOCAL.size + names + extras
    same = signature == b"PK\x03\x04" and method == 0 and begin <= directory
    if not same or file.read(offset + _LOCAL.size, names) != name.encode("utf-8"):
        raise _malformed(file, f"entry {name!r} without its header")
    return begin


def _check_places(file: OpenFile, places: list[tuple[int, int, str]], directory: int) -> None:
    previous = 0
    for begin, end, name in sorted(places):
        if begin < previous or end > directory:
            raise _bomb(file, f"entry {name!r} at {begin}:{end}, over what is stored beside it")
        previous = end


def _bomb(file: OpenFile, got: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_BOMB",
        f"{str(file.path)!r}: got {got}, expected separate entries stored as they are. "
        "Do not use this file; torch.save writes no such thing.",
    )


def _malformed(file: OpenFile, got: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_FORMAT",
        f"{str(file.path)!r}: got {got}, expected a zip file as torch.save writes it. "
        "Fetch it again.",
    )
