"""Trust: the one module that opens files from outside.

Kind and size are looked at before a byte is read, links are never followed inside a bundle, and
the bytes that were hashed are the bytes that are handed out.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jscc.runtime.declared import Json, refuse, shown, step
from jscc.runtime.errors import BundleError, DataError, StorageError, UnavailableError

Bytes = npt.NDArray[np.uint8]

CHUNK = 1 << 23  # bytes read and hashed at a time
DEPTH = 32  # levels of JSON
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRONG_KIND = {errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EISDIR, errno.ENODEV}

_FLAT = re.compile(
    r"graphs/[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\.(onnx|data)"
    r"|tensors/[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\.npy"
    r"|[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.md|\.txt)?"
)
_RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]|graphs|tensors|manifest")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")

Refuse = Callable[[str, str, str], DataError]


@dataclass(frozen=True)
class Asset:
    """What kind of thing is read: names the errors.

    Attributes:
        error: Class of the errors.
        prefix: Their codes begin so: ``E_BUNDLE`` gives ``E_BUNDLE_FILETYPE``.
        remedy: What the user can do.
    """

    error: type[DataError]
    prefix: str
    remedy: str

    def refuse(self, suffix: str, where: str, got: str, expected: str) -> DataError:
        """The error ``<prefix>_<suffix>``."""
        return self.error(
            f"{self.prefix}_{suffix}", f"{where}: got {got}, expected {expected}. {self.remedy}."
        )


BUNDLE = Asset(BundleError, "E_BUNDLE", "Copy the bundle again, or export it again")


def is_flat_name(name: str) -> bool:
    """Whether `name` may name a file of a bundle, on every file system."""
    if _FLAT.fullmatch(name) is None or ".." in name:
        return False
    return _RESERVED.fullmatch(name.lower().rpartition("/")[2].partition(".")[0]) is None


def check_name(name: str) -> str:
    """Return `name` if it may name a file of a bundle.

    Raises:
        BundleError: ``E_BUNDLE_PATH``.
    """
    if not is_flat_name(name):
        raise BUNDLE.refuse(
            "PATH",
            "bundle",
            f"the file name {shown(name)}",
            "a plain name, or graphs/*.onnx, graphs/*.data, tensors/*.npy",
        )
    return name


@contextmanager
def open_regular(
    path: str | Path, *, asset: Asset = BUNDLE, folder: int | None = None
) -> Iterator[int]:
    """A descriptor of the regular file at `path`, below the open directory `folder` if given.

    Raises:
        DataError: ``_MISSING``, ``_FILETYPE``: a link, FIFO, device or directory.
        StorageError: ``E_IO``.
    """
    with reading(str(path), asset, "a regular file"):
        descriptor = os.open(path, _OPEN, dir_fd=folder)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise asset.refuse("FILETYPE", str(path), _kind(mode), "a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_folder(
    path: str | Path, *, asset: Asset = BUNDLE, folder: int | None = None, follow: bool = False
) -> Iterator[int]:
    """A descriptor of the directory at `path`; a symbolic link only if `follow`.

    Raises:
        DataError: ``_MISSING``, ``_FILETYPE``.
        StorageError: ``E_IO``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with reading(str(path), asset, "a directory"):
        descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def size_of(descriptor: int) -> int:
    """Size in bytes of an open file."""
    return os.fstat(descriptor).st_size


def read_span(
    descriptor: int, where: str, offset: int, size: int, *, asset: Asset = BUNDLE
) -> tuple[Bytes, str]:
    """Read `size` bytes at `offset` once, into one read-only buffer, and hash that buffer.

    Large files are hashed in a second thread, one chunk behind.

    Returns:
        The bytes and their SHA-256.

    Raises:
        DataError: ``_TRUNCATED``, the file is shorter.
        StorageError: ``E_IO``.
        UnavailableError: ``E_MEMORY``.
    """
    digest = hashlib.sha256()
    buffer = _allocate(where, size)
    with ExitStack() as stack:
        hash_chunk = _hasher(stack, digest.update, size)
        for start in range(0, size, CHUNK):
            chunk = buffer.data[start : start + CHUNK]
            with reading(where, asset, f"{size} bytes"):
                count = _fill(descriptor, chunk, offset + start)
            if count < len(chunk):
                raise asset.refuse("TRUNCATED", where, f"{start + count} bytes", f"{size} bytes")
            hash_chunk(chunk)
    buffer.flags.writeable = False
    return buffer, digest.hexdigest()


def read_file(
    descriptor: int, where: str, *, size: int, sha256: str, found: int, offset: int = 0
) -> Bytes:
    """The bytes of one file of a bundle, if they are those that the manifest lists.

    Args:
        descriptor: The open file.
        where: Its name, for messages.
        size: Listed size.
        sha256: Listed hash.
        found: Size of what is there; nothing is allocated for a file of another size.
        offset: Where it begins, in an archive.

    Raises:
        BundleError: ``E_BUNDLE_TRUNCATED``, shorter than listed; ``E_HASH``, other bytes.
        StorageError: ``E_IO``.
    """
    _check_size(where, found, size)
    data, digest = read_span(descriptor, where, offset, size)
    if digest != sha256:
        raise hash_error(where, f"sha256 {digest}", sha256)
    return data


def hash_file(descriptor: int, where: str, *, size: int, sha256: str, found: int) -> None:
    """Hold one file of a bundle to what the manifest lists, in chunks; see `read_file`."""
    _check_size(where, found, size)
    with reading(where, BUNDLE, f"{size} bytes"):
        count, digest = digest_file(descriptor)
    _check_size(where, count, size)
    if digest != sha256:
        raise hash_error(where, f"sha256 {digest}", sha256)


def _check_size(where: str, found: int, size: int) -> None:
    if found < size:
        raise BUNDLE.refuse("TRUNCATED", where, f"{found} bytes", f"{size} bytes")
    if found > size:
        raise hash_error(where, f"{found} bytes", f"{size} bytes")


def hash_error(where: str, got: str, expected: str) -> BundleError:
    """The error for bytes that are not those that were listed."""
    return BundleError("E_HASH", f"{where}: got {got}, expected {expected}. {BUNDLE.remedy}.")


def digest_file(descriptor: int) -> tuple[int, str]:
    """Size and SHA-256 of an open file, read in chunks.

    Raises:
        OSError: Reading failed.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    size = 0
    while count := _fill(descriptor, buffer, size):
        digest.update(buffer[:count])
        size += count
    return size, digest.hexdigest()


@dataclass(frozen=True)
class _Flaw:
    """Stands in the tree where JSON was accepted that is refused here."""

    got: str
    expected: str


def strict_json(data: bytes, *, limit: int, refuse: Refuse = refuse) -> Json:
    """Read JSON of at most `limit` bytes: UTF-8, finite numbers, each key once, no bombs.

    Raises:
        DataError: What `refuse(pointer, got, expected)` makes of a fault; by default
            ``E_MANIFEST``. The pointer is JSON's, or empty where the text is no JSON at all.
    """
    if len(data) > limit:
        raise refuse("", f"{len(data)} bytes", f"at most {limit}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse("", f"byte {data[error.start]:#04x}", "UTF-8") from None
    if text[:1] == "\ufeff" or "\0" in text[:2]:
        raise refuse("", "a byte order mark or UTF-16", "UTF-8 without one")
    if _depth(text) > DEPTH:
        raise refuse("", f"more than {DEPTH} levels of nesting", f"at most {DEPTH}")
    try:
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=lambda word: _Flaw(word, "a finite number"),
            parse_int=lambda digits: _number(digits, int),
            parse_float=lambda digits: _number(digits, float),
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise refuse("", f"a fault at {place} ({error.msg})", "JSON") from None
    for pointer, flaw in _flaws(tree, ""):
        raise refuse(pointer, flaw.got, flaw.expected)
    return tree  # type: ignore[no-any-return]


def _depth(text: str) -> int:
    """Levels of brackets, counted before the recursive parser sees them."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket.group() in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Flaw:
    tree: dict[str, Any] = {}
    for key, item in pairs:
        if key in tree:
            return _Flaw(f"the key {shown(key)} twice", "each key once")
        tree[key] = item
    return tree


def _number(digits: str, kind: type[int] | type[float]) -> int | float | _Flaw:
    if len(digits) > (20 if kind is int else 40):
        return _Flaw(f"a number of {len(digits)} digits", "at most 20")
    value = kind(digits)
    return value if abs(value) != float("inf") else _Flaw(digits, "a finite number")


def _flaws(tree: Any, pointer: str) -> Iterator[tuple[str, _Flaw]]:
    """The flaws that the parser left in `tree`, and those of its strings, each with its pointer."""
    if isinstance(tree, _Flaw):
        yield pointer, tree
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _flaws(key, pointer)
            yield from _flaws(item, step(pointer, key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _flaws(item, step(pointer, index))
    elif isinstance(tree, str) and _SURROGATE.search(tree):
        yield pointer, _Flaw(shown(tree), "text without lone surrogates")


def _hasher(
    stack: ExitStack, update: Callable[[memoryview], None], size: int
) -> Callable[[memoryview], object]:
    """`update` itself, or for large files `update` in a thread that ends with `stack`."""
    if size <= CHUNK:
        return update
    pool = stack.enter_context(ThreadPoolExecutor(1))
    return lambda chunk: pool.submit(update, chunk)


def _fill(descriptor: int, chunk: memoryview, offset: int) -> int:
    """Read from `offset` until `chunk` is full or the file ends; return how much came.

    The descriptor's own position stays: others may read by it at the same time.
    """
    count = 0
    while count < len(chunk):
        part = os.preadv(descriptor, [chunk[count:]], offset + count)
        if not part:
            break
        count += part
    return count


def _allocate(where: str, size: int) -> Bytes:
    try:
        return np.empty(size, np.uint8)
    except MemoryError:
        raise UnavailableError(
            "E_MEMORY",
            f"{where}: got {size} bytes, expected what fits in this machine's memory. "
            "Use a smaller bundle.",
        ) from None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


@contextmanager
def reading(where: str, asset: Asset, expected: str) -> Iterator[None]:
    """Turn an OSError into what it means for the user.

    Raises:
        DataError: ``_MISSING``, ``_FILETYPE``.
        StorageError: ``E_IO``.
    """
    try:
        yield
    except OSError as error:
        got = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT:
            raise asset.refuse("MISSING", where, "nothing", expected) from None
        if error.errno in _WRONG_KIND:
            raise asset.refuse(
                "FILETYPE", where, f"a link or special file ({got})", expected
            ) from None
        raise StorageError(
            "E_IO", f"{where}: got {got!r}, expected {expected}. Check the disk and permissions."
        ) from error
