"""Cubins: what was compiled on this machine for its device, kept in a folder of this user's own.

A file is named after all that its content depends on, and holds that once more, with a hash of what
follows. It is read whole, checked, and only then used. Whatever is wrong with it, or with the
folder, costs a compilation and a word, nothing else: the folder may be deleted at any time.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jscc.runtime.errors import DataError, JsccError
from jscc.runtime.output_files import write_file
from jscc.runtime.private_folder import make_private, read_private
from jscc.runtime.trust import Asset

CUBIN: Final = Asset(DataError, "E_CUBIN", "Delete it; it is compiled again")
LARGEST: Final = 1 << 24  # bytes of a file


@dataclass(frozen=True)
class CubinKey:
    """All that a compiled kernel depends on.

    Attributes:
        kernel: Its name.
        source_sha256: Of its text.
        options: Of the compiler.
        architecture: Such as ``90``.
        nvrtc: Version of the compiler.
        driver: Version of the driver.
        device: The device's name.
    """

    kernel: str
    source_sha256: str
    options: tuple[str, ...]
    architecture: str
    nvrtc: str
    driver: str
    device: str

    @property
    def text(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\n"

    @property
    def file_name(self) -> str:
        """Where the cache keeps it."""
        return hashlib.sha256(self.text).hexdigest() + ".cubin"


class CubinCache:
    """Files by `CubinKey`.

    Args:
        folder: Made when something is kept, for this user alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: CubinKey) -> bytes | None:
        """The cubin kept for `key`, None where there is none.

        Raises:
            DataError: ``E_CUBIN_…``: the folder or the file is not to be trusted.
            StorageError: ``E_IO``.
            UnavailableError: ``E_MEMORY``.
        """
        if not os.path.lexists(self._folder / key.file_name):
            return None
        where = f"cubin {str(self._folder / key.file_name)!r}"
        data = read_private(self._folder / key.file_name, where, LARGEST, CUBIN)
        return _content(data, key, where)

    def keep(self, key: CubinKey, cubin: bytes) -> None:
        """Write `cubin` for the next time, whole or not at all.

        Raises:
            DataError: ``E_CUBIN_…``: the folder is not to be trusted.
            JsccError: What writing raises.
        """
        make_private(self._folder, CUBIN)
        digest = hashlib.sha256(cubin).hexdigest().encode()
        write_file(self._folder / key.file_name, key.text + digest + b"\n" + cubin, force=True)


def reason_of(error: JsccError) -> str:
    """What a record says where the cache was of no use."""
    return f"cache of kernels: {error}"


def _content(data: bytes, key: CubinKey, where: str) -> bytes:
    """The cubin in a file, if the file is what it should be."""
    if not data.startswith(key.text):
        raise CUBIN.refuse("KEY", where, "another key", "the one that it is named after")
    digest, _, cubin = data[len(key.text) :].partition(b"\n")
    found = hashlib.sha256(cubin).hexdigest()
    if digest != found.encode():
        raise CUBIN.refuse("HASH", where, f"sha256 {found}", "the one in its second line")
    return cubin
