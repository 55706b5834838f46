"""External: the weight files of a graph, in memory or, if they are large, where they lie.

Where those of a bundle's folder are large, each is hashed when the bundle is opened and not kept: an engine that
reads files takes it from the folder itself, tensor by tensor, so that a receiver never holds its
weights twice. Whoever asks for the bytes gets bytes that are hashed again.
"""

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from jscc.runtime.trust import Bytes, hash_error, hash_file, read_file, size_of

LARGE = 1 << 26  # bytes of all weight files from which they are left where they lie
_DESCRIPTORS = "/proc/self/fd"  # Linux

Identity = tuple[int, int, int, int, int]


class Descriptor:
    """A descriptor of one's own, closed with the last reference to it."""

    def __init__(self, descriptor: int) -> None:
        self.number = os.dup(descriptor)
        weakref.finalize(self, os.close, self.number)


@dataclass(frozen=True)
class LargeFile:
    """A verified file that was not kept.

    Attributes:
        name: In the bundle.
        size: In bytes.
        sha256: Of its bytes.
        file: Open.
        folder: Open; the file lies in it.
        identity: Of the file while it was verified.
    """

    name: str
    size: int
    sha256: str
    file: Descriptor
    folder: Descriptor
    identity: Identity

    @classmethod
    def verified(
        cls, descriptor: int, folder: int, name: str, *, size: int, sha256: str
    ) -> "LargeFile":
        """Hash the open file in chunks.

        Raises:
            BundleError: ``E_BUNDLE_TRUNCATED``, ``E_HASH``.
            StorageError: ``E_IO``.
        """
        before = _identity(os.fstat(descriptor))
        hash_file(descriptor, name, size=size, sha256=sha256, found=size_of(descriptor))
        return cls(name, size, sha256, Descriptor(descriptor), Descriptor(folder), before)

    def read(self) -> Bytes:
        """All of it, hashed anew; errors as `verified`."""
        number = self.file.number
        found = size_of(number)
        return read_file(number, self.name, size=self.size, sha256=self.sha256, found=found)

    def in_place(self) -> bool:
        """Whether the folder still has this very file under its name, as long as it was."""
        leaf = self.name.rpartition("/")[2]
        try:
            status = os.stat(leaf, dir_fd=self.folder.number, follow_symlinks=False)
        except OSError:
            return False
        return _identity(status)[:3] == self.identity[:3]

    def check(self) -> None:
        """Hold the file to what was verified, after somebody else has read it by its name.

        Raises:
            BundleError: ``E_HASH``, ``E_BUNDLE_TRUNCATED``: it changed in between.
        """
        if not self.in_place():
            raise hash_error(self.name, "another file", "the one that was verified")
        if _identity(os.fstat(self.file.number)) != self.identity:  # a new link to it, at best
            found = size_of(self.file.number)
            number = self.file.number
            hash_file(number, self.name, size=self.size, sha256=self.sha256, found=found)


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

    def __iter__(self) -> Iterator[str]:
        yield from {**self._kept, **self._large}

    def __len__(self) -> int:
        return len({**self._kept, **self._large})

    @contextmanager
    def folder(self) -> Iterator[str | None]:
        """A folder with all the files under their locations, to load from inside the block.

        None where there is none, and their bytes are to be taken: some lie in memory only, were
        replaced since, or this system has no name for an open folder.

        Raises:
            BundleError: At the end, ``E_HASH``, ``E_BUNDLE_TRUNCATED``: a file changed meanwhile.
        """
        folders = {file.folder.number for file in self._large.values()}
        here = [f"{_DESCRIPTORS}/{number}" for number in folders]
        usable = len(here) == 1 and not set(self._kept) - set(self._large)
        usable = usable and os.path.isdir(here[0])
        if not usable or not all(file.in_place() for file in self._large.values()):
            yield None
            return
        yield here[0]
        for file in self._large.values():
            file.check()


def _identity(status: os.stat_result) -> Identity:
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times
