"""Progress: what is said while an engine is built: how far it is, and about how long it takes."""

import time
from collections.abc import Callable

EVERY_S = 5.0
_EARLY = 0.02  # of the work; an estimate from less is worth nothing


class Announcer:
    """Says at once what begins, every few seconds how far it is, and at last what it took.

    Args:
        tell: Hears the lines.
        what: What takes long.
        clock: Seconds.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        what: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._what = what
        self._clock = clock
        self._begun = self._told = clock()
        tell(f"{what} …")

    def advance(self, share: float) -> None:
        """Hear how much is done, from 0 to 1."""
        now = self._clock()
        if now - self._told < EVERY_S:
            return
        self._told = now
        self._tell(f"{self._what}: {100 * share:.0f} %{left(share, now - self._begun)}")

    def finish(self) -> None:
        """Say that it is done."""
        self._tell(f"{self._what}: done in {self._clock() - self._begun:.1f} s")


def left(share: float, elapsed_s: float) -> str:
    """About how long the rest takes, at the pace so far; empty where that cannot be told.

    Args:
        share: Of the work that is done.
        elapsed_s: What it took.
    """
    if not _EARLY <= share < 1:
        return ""
    return f", about {elapsed_s * (1 - share) / share:.0f} s left"
