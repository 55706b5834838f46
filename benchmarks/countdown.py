"""Countdown: how much of a known number of things is done, on stderr."""

import sys
import time

from jscc.runtime.terminal import notice

_QUIET_S = 60.0
_WIDTH = 24


class Countdown:
    """A bar on a terminal; elsewhere a line a minute.

    Args:
        what: What is counted.
        total: How many there are.
        done: How many of them were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._started = self._told = time.monotonic()
        self._bar = sys.stderr.isatty()

    def advance(self) -> None:
        """Count one more."""
        self._done += 1
        now = time.monotonic()
        if self._bar:
            filled = _WIDTH * self._done // max(1, self._total)
            bar = "█" * filled + "·" * (_WIDTH - filled)
            sys.stderr.write(f"\r\x1b[K{bar} {self._line(now)}")
            sys.stderr.flush()
        elif now - self._told >= _QUIET_S:
            self._told = now
            notice(self._line(now))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, now: float) -> str:
        fresh = self._done - self._before
        left = (now - self._started) / fresh * (self._total - self._done) if fresh else 0.0
        return f"{self._what} {self._done}/{self._total}, {left / 60:.1f} min left"
