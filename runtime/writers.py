"""Writers: what puts the files of a bundle on the disk, as a folder or as one archive."""

import errno
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jscc.runtime.archive import Entry, directory, local_header
from jscc.runtime.manifest import MANIFEST, SEAL, FileEntry
from jscc.runtime.trust import CHUNK, digest_file, open_regular

LINK_FROM = 1 << 20  # bytes; smaller files are copied
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Writer(Protocol):
    """Takes the files of a bundle, the manifest last."""

    def add(self, name: str, content: bytes | Path) -> FileEntry:
        """Write one file and return its hash and size."""

    def seal(self, manifest: bytes) -> None:
        """Write the manifest and its hash, and flush everything to the disk."""


@dataclass(frozen=True)
class FolderWriter:
    """Writes a directory, which exists and is empty."""

    root: Path

    def add(self, name: str, content: bytes | Path) -> FileEntry:
        """Write one file, or link it where it is large and on the same file system."""
        path = self.root / name
        if not path.parent.is_dir():
            os.mkdir(path.parent)
        if isinstance(content, bytes):
            return self._write(path, iter([content]))
        with open_regular(content) as source:
            status = os.fstat(source)
            if status.st_size >= LINK_FROM and _link(content, path, status):
                os.fsync(source)
                size, sha256 = digest_file(source)
                return FileEntry(sha256, size)
            return self._write(path, _chunks(source))

    def seal(self, manifest: bytes) -> None:
        """Write the manifest and its hash, then flush the folders."""
        self.add(MANIFEST, manifest)
        self.add(SEAL, _seal(manifest))
        for folder in (*(path for path in self.root.iterdir() if path.is_dir()), self.root):
            sync(folder)

    def _write(self, path: Path, chunks: Iterator[bytes]) -> FileEntry:
        digest = hashlib.sha256()
        size = 0
        descriptor = os.open(path, NEW, 0o644)
        try:
            for chunk in chunks:
                _write_all(descriptor, chunk)
                digest.update(chunk)
                size += len(chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return FileEntry(digest.hexdigest(), size)


@dataclass
class ArchiveWriter:
    """Writes one STORED zip to an open, empty file."""

    descriptor: int
    entries: list[Entry] = field(default_factory=list)

    def add(self, name: str, content: bytes | Path) -> FileEntry:
        """Append one file; its header is written once its bytes are known."""
        if isinstance(content, bytes):
            return self._append(name, len(content), iter([content]))
        with open_regular(content) as source:
            return self._append(name, os.fstat(source).st_size, _chunks(source))

    def seal(self, manifest: bytes) -> None:
        """Append the manifest, its hash and the directory, then flush."""
        self.add(MANIFEST, manifest)
        self.add(SEAL, _seal(manifest))
        os.lseek(self.descriptor, 0, os.SEEK_END)
        _write_all(self.descriptor, directory(self.entries))
        os.fsync(self.descriptor)

    def _append(self, name: str, size: int, chunks: Iterator[bytes]) -> FileEntry:
        offset = self.entries[-1].end if self.entries else 0
        digest, crc = hashlib.sha256(), 0
        os.lseek(self.descriptor, Entry(name, size, 0, offset).start, os.SEEK_SET)
        for chunk in chunks:
            _write_all(self.descriptor, chunk)
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
        entry = Entry(name, size, crc, offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        _write_all(self.descriptor, local_header(entry))
        self.entries.append(entry)
        return FileEntry(digest.hexdigest(), size)


def _link(source: Path, target: Path, status: os.stat_result) -> bool:
    """Link `target` to `source` if that is still the file of `status`."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    if os.path.samestat(os.stat(target, follow_symlinks=False), status):
        return True
    os.unlink(target)
    return False


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, CHUNK):
        yield chunk


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _seal(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def sync(folder: Path) -> None:
    """Flush a directory: the names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
