"""External: the weight files of a graph, in memory or, if they are large, where they lie.

Where those of a bundle's folder are large, each is hashed when the bundle is opened and not kept:
an engine that reads files takes it from the folder itself, tensor by tensor, so that a receiver
never holds its weights twice. Whoever asks for the bytes gets bytes that are hashed again.

NOTE: ONNX Runtime 1.31 leaves small tensors mapped from the file for as long as a session lives.
Whoever then overwrote or cut the file would change or kill a running receiver; so every page that
is left of it is replaced by a private copy as soon as the engine has loaded.
"""

import ctypes
import mmap
import os
import re
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from jscc.runtime.errors import BundleError
from jscc.runtime.trust import BUNDLE, Bytes, hash_error, hash_file, read_file, reading, size_of

LARGE = 1 << 26  # bytes of all weight files from which they stay where they lie
_DESCRIPTORS = "/proc/self/fd"  # Linux
_MAPS = "/proc/self/maps"
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) +(.*)")
_MOVE_OVER = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
_LOADING = threading.Lock()  # nobody else maps or unmaps such files while copies take their place

Identity = tuple[int, int, int, int, int]


class FileChangedError(BundleError):
    """A weight file was touched while an engine read it: what it loaded is not to be used."""


@dataclass(frozen=True)
class Region:
    """Memory that shows a file.

    Attributes:
        start: Address.
        length: In bytes.
        offset: Of its first byte in the file.
        inode: Of the file.
    """

    start: int
    length: int
    offset: int
    inode: int


class Descriptor:
    """A descriptor of one's own, closed with the last reference to it."""

    def __init__(self, descriptor: int, where: str) -> None:
        with reading(where, BUNDLE, "one more open file"):
            self.number = os.dup(descriptor)
        weakref.finalize(self, os.close, self.number)


class LargeFile:
    """A verified file that was not kept.

    Attributes:
        name: In the bundle.
        sha256: Of its bytes.
        folder: Open; the file lies in it.
    """

    def __init__(self, descriptor: int, folder: int, name: str, *, size: int, sha256: str) -> None:
        """Hash the open file in chunks.

        Raises:
            BundleError: ``E_BUNDLE_TRUNCATED``, ``E_HASH``.
            StorageError: ``E_IO``.
        """
        self.name = name
        self.sha256 = sha256
        self.folder = Descriptor(folder, name)
        self._file = Descriptor(descriptor, name)
        self._size = size
        self._identity = self._verified()
        self._read: weakref.ref[Bytes] | None = None

    def read(self) -> Bytes:
        """All of it, hashed anew unless somebody still has it; errors as those of making one."""
        known = None if self._read is None else self._read()
        if known is None:
            number = self._file.number
            found = size_of(number)
            known = read_file(number, self.name, size=self._size, sha256=self.sha256, found=found)
            self._read = weakref.ref(known)
        return known

    def in_place(self) -> bool:
        """Whether the folder has this very file under its name; it is hashed anew if touched.

        Raises:
            BundleError: ``E_HASH``, ``E_BUNDLE_TRUNCATED``: other bytes.
        """
        if self._named() is None:
            return False
        if self._now() != self._identity:
            self._identity = self._verified()
        return self._named() == self._identity

    def settle(self, others: Collection[Region] = ()) -> None:
        """Hold the file to what was verified, and copy what an engine left mapped of it.

        Args:
            others: Mapped before it loaded, by somebody who keeps them: an exporter has one of the
                whole file for each of its tensors.

        Raises:
            FileChangedError: ``E_HASH``: it was touched in between, or cannot be let go of.
        """
        for region in self.mapped():
            if region.inode == self._identity[1] and region not in others:
                try:
                    _copy_over(self._file.number, region)
                except (OSError, MemoryError) as error:
                    raise _changed(self.name, f"{error} where it was to be copied") from error
        if self._named() != self._identity or self._now() != self._identity:
            raise _changed(self.name, "a file that was touched meanwhile")

    def mapped(self) -> tuple[Region, ...]:
        """What this process has mapped of files of this name."""
        return tuple(_mapped(self.name.rpartition("/")[2]))

    def _verified(self) -> Identity:
        number = self._file.number
        before = self._now()
        hash_file(number, self.name, size=self._size, sha256=self.sha256, found=size_of(number))
        return before

    def _now(self) -> Identity:
        return _identity(os.fstat(self._file.number))

    def _named(self) -> Identity | None:
        """What lies under the name now, if anything."""
        leaf = self.name.rpartition("/")[2]
        try:
            return _identity(os.stat(leaf, dir_fd=self.folder.number, follow_symlinks=False))
        except OSError:
            return None


class External(Mapping[str, memoryview]):
    """The weight files of one graph, by the location that the graph gives them.

    Args:
        kept: Those whose bytes are in memory.
        large: The others.
    """

    def __init__(self, kept: Mapping[str, memoryview], large: Mapping[str, LargeFile]) -> None:
        self._kept = dict(kept)
        self._large = large

    def __getitem__(self, location: str) -> memoryview:
        """The bytes; a large file is read once, and kept as long as this mapping.

        Raises:
            BundleError: ``E_HASH``, ``E_BUNDLE_TRUNCATED``: it changed since it was verified.
        """
        if location not in self._kept and location in self._large:
            self._kept[location] = self._large[location].read().data
        return self._kept[location]

    def __contains__(self, location: object) -> bool:
        return location in self._kept or location in self._large

    def __iter__(self) -> Iterator[str]:
        yield from {**self._kept, **self._large}

    def __len__(self) -> int:
        return len({**self._kept, **self._large})

    def sha256(self, location: str) -> str | None:
        """The hash that the bundle lists of a large file; None of one that is in memory."""
        return self._large[location].sha256 if location in self._large else None

    @contextmanager
    def folder(self) -> Iterator[str | None]:
        """A folder with all the files under their locations, to load from inside the block.

        None where there is none, and their bytes are to be taken: some lie in memory only, were
        replaced since, or this system has no name for an open folder.

        Raises:
            BundleError: ``E_HASH``, ``E_BUNDLE_TRUNCATED``: a file has other bytes by now.
            FileChangedError: At the end, ``E_HASH``: one was touched. Take the bytes.
        """
        folders = {file.folder.number for file in self._large.values()}
        here = [f"{_DESCRIPTORS}/{number}" for number in folders]
        usable = len(here) == 1 and not set(self._kept) - set(self._large)
        usable = usable and os.path.isdir(here[0]) and os.path.exists(_MAPS)
        if not usable or not all(file.in_place() for file in self._large.values()):
            yield None
            return
        with _LOADING:
            before = {file: set(file.mapped()) for file in self._large.values()}
            yield here[0]
            for file, others in before.items():
                file.settle(others)
                # Some file systems have other numbers for a file here than elsewhere.
                if set(file.mapped()) - others:
                    raise _changed(file.name, "a file that stays mapped")


def _mapped(leaf: str) -> Iterator[Region]:
    with open(_MAPS, encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            found = _MAP.match(line)
            if found and os.path.basename(found[5]).removesuffix(" (deleted)") == leaf:
                start, end, offset = (int(found[group], 16) for group in (1, 2, 3))
                yield Region(start, end - start, offset, int(found[4]))


def _copy_over(descriptor: int, region: Region) -> None:
    """Let private memory with the same bytes take the place of a mapping of the file, at once."""
    length = region.length
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = library.mremap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mremap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int]
    library.mremap.argtypes += [ctypes.c_void_p]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    writable, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    copy = library.mmap(None, length, writable, private, -1, 0)
    if copy in (None, ctypes.c_void_p(-1).value):
        raise MemoryError
    buffer = (ctypes.c_char * length).from_address(copy)
    view = memoryview(buffer).cast("B")
    done = 0
    while done < length:
        count = os.preadv(descriptor, [view[done:]], region.offset + done)
        if not count:
            break  # the last page ends behind the file
        done += count
    view.release()
    library.mprotect(copy, length, mmap.PROT_READ)
    if library.mremap(copy, length, length, _MOVE_OVER, region.start) != region.start:
        raise OSError(ctypes.get_errno(), "no mremap")


def _changed(name: str, got: str) -> FileChangedError:
    error = hash_error(name, got, "the one that was verified")
    return FileChangedError(error.code, error.message)


def _identity(status: os.stat_result) -> Identity:
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times
