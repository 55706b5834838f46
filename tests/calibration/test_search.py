"""Search on costs that are made up: the least count, few attempts, and only what was measured."""

import math

from hypothesis import given
from hypothesis import strategies as st

from jscc.calibration.search import search
from jscc.calibration.trials import Budget, Cost

BUDGET = Budget(psnr=0.1)


def layers(count):
    return tuple(("denoise", f"layer{index}") for index in range(count))


def cost(psnr):
    return Cost(psnr, None, 50.0, {})


class Bench:
    """Costs too much while fewer than `needed` of the worst layers were given back."""

    def __init__(self, worst_first, needed):
        self.worst_first = worst_first
        self.needed = needed
        self.asked = []

    def __call__(self, returned):
        count = len(returned)
        assert returned == frozenset(self.worst_first[:count])
        self.asked.append(count)
        return cost(0.05 if count >= self.needed else 0.2 + 1 / (1 + count))


@given(st.integers(0, 300), st.data())
def test_the_least_count_is_found_in_few_attempts(total, data):
    needed = data.draw(st.integers(0, total))
    worst_first = layers(total)
    bench = Bench(worst_first, needed)
    found = search(worst_first, bench, BUDGET)
    assert found.returned == worst_first[:needed]
    assert len(bench.asked) == len(set(bench.asked))
    assert len(bench.asked) <= 2 * math.ceil(math.log2(needed + 1)) + 2


@given(st.integers(0, 100))
def test_what_cannot_hold_is_none(total):
    bench = Bench(layers(total), total + 1)
    assert search(bench.worst_first, bench, BUDGET) is None
    assert bench.asked[-1] == total
    assert len(bench.asked) <= math.log2(total + 1) + 3


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=40))
def test_on_any_costs_the_result_was_measured_and_holds(costs):
    """Costs that rise again where more is given back may cost layers, but never the budget."""
    worst_first = layers(len(costs) - 1)
    found = search(worst_first, lambda returned: cost(costs[len(returned)]), BUDGET)
    if found is None:
        assert costs[-1] > 0.1
        return
    assert found.cost.psnr == costs[len(found.returned)] <= 0.1
    assert [(t.cost.psnr, t.holds) for t in found.trials] == [
        (costs[t.returned], costs[t.returned] <= 0.1) for t in found.trials
    ]


def test_nothing_is_given_back_where_nothing_need_be():
    bench = Bench(layers(9), 0)
    found = search(bench.worst_first, bench, BUDGET)
    assert (found.returned, bench.asked) == ((), [0])
