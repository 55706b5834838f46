"""Folder: a bundle as a directory, every file opened relative to the directory that was opened.

A path that is switched while it is read cannot redirect the reader, and nothing in it that is a
link is followed. Hard links are not told apart from files; their bytes are hashed like any.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from jscc.runtime.errors import BundleError
from jscc.runtime.external import LargeFile
from jscc.runtime.trust import (
    BUNDLE,
    Bytes,
    open_folder,
    open_regular,
    read_file,
    read_span,
    reading,
    size_of,
)

PARTS = ("graphs", "tensors")


@dataclass(frozen=True)
class Folder:
    """An open directory.

    Attributes:
        where: Its path, for messages.
        descriptors: Open directories by prefix: ``""``, ``"graphs/"``, ``"tensors/"``.
    """

    where: str
    descriptors: Mapping[str, int]

    def names(self) -> list[str]:
        """Everything in the folder; entries of ``graphs`` and ``tensors`` with their prefix."""
        with reading(self.where, BUNDLE, "a directory"):
            return sorted(
                prefix + name
                for prefix, descriptor in self.descriptors.items()
                for name in os.listdir(descriptor)
                if prefix or f"{name}/" not in self.descriptors
            )

    def head(self, name: str, limit: int) -> bytes:
        """A small file that no manifest lists.

        Raises:
            BundleError: ``E_BUNDLE_MISSING``, ``E_BUNDLE_FILETYPE``; ``E_MANIFEST``, too large.
        """
        with self._open(name) as descriptor:
            size = size_of(descriptor)
            if size > limit:
                raise BundleError(
                    "E_MANIFEST",
                    f"{name}: got {size} bytes, expected at most {limit}. Export the bundle again.",
                )
            return read_span(descriptor, name, 0, size)[0].tobytes()

    def read(self, name: str, *, size: int, sha256: str) -> Bytes:
        """A file that the manifest lists; see `read_file` for the errors."""
        with self._open(name) as descriptor:
            found = size_of(descriptor)
            return read_file(descriptor, name, size=size, sha256=sha256, found=found)

    def verify(self, name: str, *, size: int, sha256: str) -> LargeFile:
        """A file that the manifest lists, hashed and left where it lies; errors as `read`."""
        with self._open(name) as descriptor:
            folder = self.descriptors[f"{name.rpartition('/')[0]}/"]
            return LargeFile(descriptor, folder, name, size=size, sha256=sha256)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        prefix, _, leaf = name.rpartition("/")
        folder = self.descriptors.get(f"{prefix}/" if prefix else "")
        if folder is None:
            raise BUNDLE.refuse("MISSING", self.where, f"no folder {prefix!r}", repr(name))
        with open_regular(leaf, folder=folder) as descriptor:
            yield descriptor


@contextmanager
def open_bundle_folder(path: Path) -> Iterator[Folder]:
    """The directory at `path`, which may be a symbolic link: the operator gave it.

    Raises:
        BundleError: ``E_BUNDLE_FILETYPE``, a link where a directory is expected.
    """
    with ExitStack() as stack:
        root = stack.enter_context(open_folder(path, follow=True))
        descriptors = {"": root}
        with reading(str(path), BUNDLE, "a directory"):
            present = os.listdir(root)
        for name in PARTS:
            if name in present:
                folder = stack.enter_context(open_folder(name, folder=root))
                descriptors[f"{name}/"] = folder
        yield Folder(str(path), descriptors)
