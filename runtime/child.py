"""Child: a command of this package in a process of its own, which never outlives this one.

What may crash, or be killed for its memory, costs that process only. Its priority is low, so that
this one goes on. It ends when it is told to, and by itself when this one is gone for any reason.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final

from jscc.runtime.terminal import TERMINATED, printable

NICER: Final = 10  # than this process, of 19
GRACE_S: Final = 10.0  # for a process that is asked to end; then it is killed
_LONGEST_LINE = 4000

# NOTE: with -c and with -m Python looks for modules in the working folder first, which may be
# anybody's.
_CODE: Final = (
    "import sys\n"
    "if sys.path[:1] == ['']: del sys.path[0]\n"
    "from jscc.runtime.child import end_with_parent\n"
    "end_with_parent()\n"
    "from jscc.__main__ import main\n"
    "sys.exit(main())\n"
)


def command_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """What runs ``jscc`` with these arguments, in this Python."""
    return (sys.executable, "-c", _CODE, *arguments)


class Child:
    """A process; the context ends it and gives back all that it took.

    Args:
        command: Program and arguments. It is to end when its stdin does; `command_line` sees to it.

    Raises:
        OSError: It does not start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # open for as long as this process lives
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        with suppress(OSError):  # it has ended already
            nicer = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICER)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nicer)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def follow(self, tell: Callable[[str], None]) -> int:
        """Pass on what it writes to stderr, in lines, until it ends.

        Returns:
            Its exit status; what ended it, negative, where that was a signal.
        """
        assert self._process.stderr is not None
        for line in iter(partial(self._process.stderr.readline, _LONGEST_LINE), ""):
            if line.strip():
                tell(printable(line.rstrip("\n")))
        return self._process.wait()

    def end(self) -> None:
        """Ask it to end, and kill it if it does not; any thread may. It is gone afterwards."""
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        for stream in (self._process.stdin, self._process.stderr):
            assert stream is not None
            stream.close()


def describe_end(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"status {status}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"


def end_with_parent() -> None:
    """In the child: end this process when its stdin does, as it does with the process behind it."""
    threading.Thread(target=_watch, name="end with parent", daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(TERMINATED)
