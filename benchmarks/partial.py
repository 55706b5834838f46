"""Partial: rows of a long measurement, kept line by line so that it can be taken up again.

The first line says what is being measured; rows are only reused under exactly the same words. A
last line that a power cut left incomplete is dropped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from jscc.runtime.errors import UsageError

Row = dict[str, Any]


class Partial:
    """A file of JSON lines beside the result it will become.

    Args:
        path: The file.
        head: What is being measured; anything that JSON can say.

    Raises:
        UsageError: ``E_PARTIAL``, the file belongs to another measurement.
    """

    def __init__(self, path: Path, head: Mapping[str, object]) -> None:
        self._path = path
        wanted = json.dumps(head, sort_keys=True)
        lines = _lines(path)
        if lines and json.dumps(lines[0], sort_keys=True) != wanted:
            raise UsageError(
                "E_PARTIAL",
                f"partial result {path.name!r}: got rows of other options, expected those of this "
                "command. Delete the file, or write the result elsewhere with --json.",
            )
        self.rows: list[Row] = lines[1:]
        text = "".join(
            json.dumps(line, allow_nan=False) + "\n" for line in (json.loads(wanted), *self.rows)
        )
        path.write_text(text, encoding="utf-8")
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Keep one more row; it is on its way to the disk when this returns."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self.rows.append(json.loads(json.dumps(row)))

    def discard(self) -> None:
        """Delete the file: the result is written."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Partial":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _lines(path: Path) -> list[Row]:
    """The whole lines of the file; none where there is no file."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]
