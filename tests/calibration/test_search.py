"""Search on costs that are made up: few layers, few attempts, and only what was measured."""

import math

from hypothesis import given
from hypothesis import strategies as st

from jscc.calibration.search import ROUNDS, search
from jscc.calibration.trials import Budget, Cost

BUDGET = Budget(psnr=0.1)


def layers(count):
    return tuple(("denoise", f"layer{index}") for index in range(count))


def cost(psnr):
    return Cost(psnr, None, 50.0, {})


class Bench:
    """Costs too much while one of `needed` was not given back."""

    def __init__(self, needed):
        self.needed = frozenset(needed)
        self.asked = []

    def __call__(self, returned):
        self.asked.append(returned)
        return cost(0.05 if self.needed <= returned else 0.2 + 1 / (1 + len(returned)))


def log2(count):
    return math.ceil(math.log2(count + 1))


@given(st.integers(0, 300), st.data())
def test_those_that_are_needed_are_found_in_few_attempts(total, data):
    worst_first = layers(total)
    most = min(total, ROUNDS)
    needed = data.draw(
        st.sets(st.sampled_from(worst_first), max_size=most) if total else st.just(())
    )
    bench = Bench(needed)
    found = search(worst_first, bench, BUDGET)
    assert found.returned == tuple(sorted(needed, key=worst_first.index))
    assert len(bench.asked) == len(set(bench.asked))
    assert len(bench.asked) <= 2 * log2(total) + 2 + len(needed) * (1 + log2(total))


@given(st.integers(ROUNDS + 1, 40), st.data())
def test_where_many_are_needed_the_worst_are_given_back_in_a_row(total, data):
    worst_first = layers(total)
    needed = data.draw(st.sets(st.sampled_from(worst_first), min_size=ROUNDS + 1))
    found = search(worst_first, Bench(needed), BUDGET)
    last = sorted(needed, key=worst_first.index)[-ROUNDS:]
    assert found.returned[-ROUNDS:] == tuple(last)
    count = len(found.returned) - ROUNDS
    assert found.returned[:count] == worst_first[:count]
    assert worst_first[count - 1] in needed
    assert needed <= set(found.returned)


def test_one_that_was_ranked_late_does_not_take_those_before_it_along():
    worst_first = layers(60)
    found = search(worst_first, Bench({worst_first[50]}), BUDGET)
    assert found.returned == (worst_first[50],)
    assert (found.trials[-1].returned, found.trials[-1].holds) == (1, True)


@given(st.integers(0, 100))
def test_what_cannot_hold_is_none(total):
    bench = Bench({("decode", "another")})
    assert search(layers(total), bench, BUDGET) is None
    assert len(bench.asked[-1]) == total
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
    bench = Bench(())
    found = search(layers(9), bench, BUDGET)
    assert (found.returned, bench.asked) == ((), [frozenset()])
