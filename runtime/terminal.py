"""Terminal: what every command does at its edge, once: results out, errors as one line, status.

Results go to stdout, everything said to a human goes to stderr, so ``--json`` output can be piped
whatever else happens.
"""

import argparse
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from jscc.runtime.errors import JsccError, UsageError

INTERRUPTED = 130
TERMINATED = 143
_LONGEST_LINE = 2000
_ERASE = "\r\x1b[K"
_REDRAW_S = 0.1

# What a missing module is called for pip. The distribution itself is named for what it brings.
INSTALL = {
    "numpy": "pip install jscc-edge",
    "onnxruntime": "pip install jscc-edge",
    "PIL": "pip install pillow",
    "torch": "pip install 'jscc-edge[export]'",
    "onnx": "pip install 'jscc-edge[export]'",
    "onnxscript": "pip install 'jscc-edge[export]'",
    "onnx_ir": "pip install 'jscc-edge[export]'",
    "safetensors": "pip install 'jscc-edge[export]'",
    "huggingface_hub": "pip install 'jscc-edge[export]'",
    "rich": "pip install 'jscc-edge[export]'",
    "yaml": "pip install 'jscc-edge[export]'",
    "ftfy": "pip install 'jscc-edge[export]'",
    "openvino": "pip install 'jscc-edge[openvino]'",
    "cuda": "pip install 'jscc-edge[cuda]'",
    "matplotlib": "pip install 'jscc-edge[bench]'",
    "av": "pip install 'jscc-edge[digital]'",
    "sionna": "pip install 'jscc-edge[digital]'",
}

Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command line got wrong."""
        raise UsageError("E_USAGE", f"{printable(message)}. See {self.prog} --help.")


def run(program: str, main: Main, arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; errors become one line on stderr.

    Args:
        program: What the line begins with, such as ``"jscc receive"``.
        main: The command.
        arguments: What follows its name.
    """
    with _terminable():
        try:
            return _finish(main(arguments))
        except JsccError as error:
            return _fail(program, str(error), error.exit_status)
        except SystemExit as exit_:  # argparse after --help and --version
            return exit_.code if isinstance(exit_.code, int) else 0
        except ModuleNotFoundError as error:
            root = (error.name or "").partition(".")[0]
            if root not in INSTALL:
                raise
            return _fail(program, missing_module(root), 69)
        except KeyboardInterrupt:
            return _fail(program, "interrupted", INTERRUPTED)
        except BrokenPipeError:  # the reader of our stdout left; what it has is all it wanted
            sys.stdout = None  # no second complaint at exit
            return _fail(program, "stdout was closed [E_STDOUT]", 74)
        except MemoryError as error:
            message = f"memory: got {str(error) or 'too little'}, expected enough. "
            return _fail(program, message + "Use a smaller image. [E_MEMORY]", 69)
        except OSError as error:
            name = f" {error.filename!r}" if error.filename is not None else ""
            return _fail(program, f"file{name}: got {error.strerror or error} [E_IO]", 74)


def missing_module(name: str) -> str:
    """The line about a module that is not installed, with the command that installs it."""
    return f"module {name!r}: got nothing, expected it installed. Run: {INSTALL[name]} [E_MODULE]"


def say(text: str) -> None:
    """Write a line of the result to stdout."""
    sys.stdout.write(text + "\n")


def say_json(value: object) -> None:
    """Write `value` to stdout as strict JSON."""
    say(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def notice(text: str) -> None:
    """Write a line for a human to stderr, in place of a line of progress if one is shown."""
    sys.stderr.write((_ERASE if sys.stderr.isatty() else "") + printable(text) + "\n")


def printable(text: str) -> str:
    """`text` on one line of bounded length; control characters and lone surrogates escaped."""
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text[:_LONGEST_LINE]
    )
    return escaped if len(text) <= _LONGEST_LINE else escaped + "…"


def table(rows: Sequence[Sequence[str]], *, header: bool = False) -> str:
    """Columns aligned by spaces; with `header`, a rule under the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def pairs(values: Mapping[str, str]) -> str:
    """One ``name  value`` line for each of `values`, aligned."""
    return table([(name, value) for name, value in values.items()])


class Progress:
    """A line on stderr that counts what is done; silent unless stderr is a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = -math.inf
        self._counts: dict[str, int] = {}

    def advance(self, part: str) -> None:
        """Count one more `part`, such as a run of a stage."""
        self._counts[part] = self._counts.get(part, 0) + 1
        now = time.monotonic()
        if self._shown and now - self._drawn >= _REDRAW_S:
            self._drawn = now
            done = "  ".join(f"{name} {count}" for name, count in self._counts.items())
            sys.stderr.write(f"{_ERASE}{self._what}: {done}  {now - self._started:.1f} s")
            sys.stderr.flush()

    def close(self) -> None:
        """Remove the line."""
        if self._shown and self._counts:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()


def _finish(status: int) -> int:
    """Flush now, so that a full disk or a closed pipe behind stdout is met inside `run`."""
    sys.stdout.flush()
    return status


def _fail(program: str, message: str, status: int) -> int:
    notice(f"{program}: {message}")
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files are removed; status 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
