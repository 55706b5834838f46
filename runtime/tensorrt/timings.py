"""TensorRT timings: what one build measured of a device's tactics, for those of later processes.

A file for each library version and kind of device lies beside the engines, under the same rules: in
a folder of this user's own, checked before use, and of no use at worst; it may be deleted at any
time. RTX's builds measure nothing, so there are no files of theirs.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jscc.runtime.errors import JsccError
from jscc.runtime.output_files import write_file
from jscc.runtime.private_folder import make_private, read_private
from jscc.runtime.tensorrt.build import Built, Plan, build_engine
from jscc.runtime.tensorrt.cache import ENGINE, EngineKey
from jscc.runtime.tensorrt.library import Library
from jscc.runtime.trust import open_folder, open_regular, strict_json

SUFFIX: Final = ".timings"
LARGEST: Final = 1 << 28  # bytes of a file
_LINE = 1 << 12  # of its first line


@dataclass(frozen=True)
class TimingsKey:
    """What timings hold for.

    Attributes:
        library: With its version.
        target: Kind of device, as in `EngineKey`.
    """

    library: str
    target: str

    @classmethod
    def of(cls, key: EngineKey) -> "TimingsKey":
        """Those of an engine's builds."""
        return cls(key.library, key.target)

    @property
    def line(self) -> bytes:
        """What a file begins with."""
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\n"

    @property
    def file_name(self) -> str:
        """Where they lie."""
        return f"{hashlib.sha256(self.line).hexdigest()[:40]}{SUFFIX}"


def read_timings(folder: Path, key: TimingsKey) -> bytes:
    """What was kept for `key`; empty where nothing was, or where it is not to be trusted."""
    path = folder / key.file_name
    if not os.path.isfile(path):
        return b""
    try:
        data = read_private(path, f"timings {str(path)!r}", LARGEST, ENGINE)
    except JsccError:
        return b""
    digest, _, timings = data[len(key.line) :].partition(b"\n")
    whole = data.startswith(key.line) and digest == _digest(timings)
    return timings if whole else b""


def keep_timings(folder: Path, key: TimingsKey, timings: bytes) -> None:
    """Write them for the next process; what keeps it from that costs time only."""
    if not timings or len(timings) > LARGEST:
        return
    with suppress(JsccError, OSError):
        make_private(folder, ENGINE)
        content = b"".join((key.line, _digest(timings), b"\n", timings))
        write_file(folder / key.file_name, content, force=True)
        with open_folder(folder, asset=ENGINE) as opened:
            for name in os.listdir(opened):
                if name.endswith(SUFFIX) and name != key.file_name and _is_older(opened, name, key):
                    os.unlink(name, dir_fd=opened)


def _is_older(folder: int, name: str, key: TimingsKey) -> bool:
    """Whether these are of another version of the library, for the same device."""
    try:
        with open_regular(name, asset=ENGINE, folder=folder) as descriptor:
            head = os.read(descriptor, _LINE).partition(b"\n")[0]
        made = strict_json(head, limit=_LINE)
    except (OSError, JsccError):
        return False
    same = isinstance(made, dict) and made.get("target") == key.target
    return same and isinstance(made, dict) and made.get("library") != key.library


def build_timed(
    library: Library,
    plan: Plan,
    advance: Callable[[float], None],
    folder: Path,
    key: EngineKey,
) -> Built:
    """Build with what earlier builds measured, and keep what this one did; see `build_engine`."""
    timed = TimingsKey.of(key)
    built = build_engine(library, plan, advance, read_timings(folder, timed))
    keep_timings(folder, timed, built.timings)
    return built


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
