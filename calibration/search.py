"""Search: few layers that must keep full precision for a budget to hold.

Layers are given back worst first, as they were ranked by themselves. What hurts the received image
most need not be in front: of those that were given back before it, as many as possible are then
converted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jscc.calibration.trials import Budget, Cost

Key = tuple[str, str]  # stage and layer

ROUNDS: Final = 4  # at most so many layers are told to be needed, one after the other


@dataclass(frozen=True)
class Trial:
    """One attempt: so many layers were given back, at this cost."""

    returned: int
    cost: Cost
    holds: bool


@dataclass(frozen=True)
class Found:
    """What the search ended with.

    Attributes:
        returned: Layers given back to full precision, worst first.
        cost: Of that.
        trials: Every attempt, in order.
    """

    returned: tuple[Key, ...]
    cost: Cost
    trials: tuple[Trial, ...]


def search(
    worst_first: Sequence[Key], cost_of: Callable[[frozenset[Key]], Cost], budget: Budget
) -> Found | None:
    """Give the worst layers back, 0, 1, 2, 4, … of them, until the budget holds; then bisect.

    The last of them is needed. Without it in question, the fewest of those in front of it are
    looked for that make the budget hold with it, none first; the last of those is needed too, and
    so on, `ROUNDS` times at most. With costs that never rise where more is given back, and so few
    layers that are needed, these alone are returned. Whatever the costs, what is returned was
    measured and holds.

    Args:
        worst_first: The layers that would be quantised, the most sensitive in front.
        cost_of: Measures the bundle in which these layers keep their precision.
        budget: What must hold.

    Returns:
        None where it does not hold even with every layer given back.
    """
    attempts = _Attempts(cost_of, budget)
    failing, count = -1, 0
    while not attempts.hold(worst_first[:count]):
        if count == len(worst_first):
            return None
        failing, count = count, min(max(1, 2 * count), len(worst_first))
    needed: tuple[Key, ...] = ()
    count = attempts.least(worst_first, needed, failing, count)
    for _ in range(ROUNDS):
        if count == 0:
            break
        needed = (worst_first[count - 1], *needed)
        before = worst_first[: count - 1]
        known = len(before)  # with all of them it held
        count = 0 if attempts.hold(needed) else attempts.least(before, needed, 0, known)
    returned = (*worst_first[:count], *needed)
    return Found(returned, attempts.known[frozenset(returned)].cost, tuple(attempts.trials))


class _Attempts:
    """What was measured so far; nothing is measured twice."""

    def __init__(self, cost_of: Callable[[frozenset[Key]], Cost], budget: Budget) -> None:
        self._cost_of = cost_of
        self._budget = budget
        self.known: dict[frozenset[Key], Trial] = {}

    @property
    def trials(self) -> Sequence[Trial]:
        """In the order in which they were made."""
        return tuple(self.known.values())

    def hold(self, returned: Sequence[Key]) -> bool:
        """Whether the budget holds with these given back."""
        asked = frozenset(returned)
        if asked not in self.known:
            cost = self._cost_of(asked)
            self.known[asked] = Trial(len(asked), cost, self._budget.holds(cost))
        return self.known[asked].holds

    def least(self, layers: Sequence[Key], more: Sequence[Key], failing: int, count: int) -> int:
        """The least number of `layers` that holds with `more`, between two that are known."""
        while count - failing > 1:
            middle = (failing + count) // 2
            if self.hold((*layers[:middle], *more)):
                count = middle
            else:
                failing = middle
        return count
