"""Search: the fewest layers that must keep full precision for a budget to hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jscc.calibration.trials import Budget, Cost

Key = tuple[str, str]  # stage and layer


@dataclass(frozen=True)
class Trial:
    """One attempt: so many of the worst layers were given back, at this cost."""

    returned: int
    cost: Cost
    holds: bool


@dataclass(frozen=True)
class Found:
    """What the search ended with.

    Attributes:
        returned: Layers given back to full precision, worst first.
        trials: Every attempt, in order.
    """

    returned: tuple[Key, ...]
    trials: tuple[Trial, ...]

    @property
    def cost(self) -> Cost:
        """Of what was found."""
        return next(t.cost for t in self.trials if t.returned == len(self.returned))


def search(
    worst_first: Sequence[Key], cost_of: Callable[[frozenset[Key]], Cost], budget: Budget
) -> Found | None:
    """Give the worst layers back, 0, 1, 2, 4, … of them, until the budget holds; then bisect.

    That cost falls as more layers are given back is assumed; what is returned was measured.

    Args:
        worst_first: The layers that would be quantised, the most sensitive in front.
        cost_of: Measures the bundle in which these layers keep their precision.
        budget: What must hold.

    Returns:
        None where it does not hold even with every layer given back.
    """
    trials: dict[int, Trial] = {}

    def holds(count: int) -> bool:
        cost = cost_of(frozenset(worst_first[:count]))
        trials[count] = Trial(count, cost, budget.holds(cost))
        return trials[count].holds

    failing, count = -1, 0
    while not holds(count):
        if count == len(worst_first):
            return None
        failing, count = count, min(max(1, 2 * count), len(worst_first))
    while count - failing > 1:
        middle = (failing + count) // 2
        if holds(middle):
            count = middle
        else:
            failing = middle
    return Found(tuple(worst_first[:count]), tuple(trials.values()))
