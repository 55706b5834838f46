"""Time travel: which levels are visited, and that the way up is the way down reversed."""

import math

import numpy as np
import pytest

from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import schedule_from
from jscc.runtime.table import Row, names, table_for

SCHEDULE = schedule_from(ScheduleSpec("linear", 1e-4, 0.02, 1000))


def visited(table):
    """Numbers of the noise levels that the state passes, the clean image as -1."""
    level = {float(left): t for t, left in enumerate(SCHEDULE.alphas_cumprod)} | {1.0: -1}
    return [table.first_level, *(level[row.alpha_bar_next] for row in table.rows)]


def repaint(steps, length, repeat):
    """The levels of RePaint's schedule (arXiv:2201.09865, appendix), each way up at once."""
    jumps = dict.fromkeys(range(0, steps - length, length), repeat - 1)
    level, levels = steps, []
    while level >= 1:
        level -= 1
        levels.append(level)
        if jumps.get(level, 0) > 0:
            jumps[level] -= 1
            level += length
            levels.append(level)
    return [*levels, -1]


@pytest.mark.parametrize("sampler", names())
@pytest.mark.parametrize(
    ("steps", "length", "repeat"), [(10, 1, 1), (10, 1, 3), (10, 3, 2), (8, 2, 4), (5, 9, 2)]
)
def test_levels_are_those_of_repaint(sampler, steps, length, repeat):
    table = table_for(SCHEDULE, sampler, steps, 999, (length, repeat))
    plain = sorted(row.t for row in table_for(SCHEDULE, sampler, steps, 999).rows)
    expected = [
        plain[index] if index >= 0 else -1 for index in repaint(steps, length, repeat)
    ]  # fmt: skip
    assert visited(table) == expected


def test_the_network_is_not_asked_on_the_way_up():
    table = table_for(SCHEDULE, "ddim", 6, 999, (2, 3))
    ups = [row for row in table.rows if row.t is None]
    assert len(ups) == 4  # at two places, twice more each
    assert table.evaluations == 6 + 4 * 2
    for row in ups:
        assert (row.a, row.b, row.d) == (0.0, 0.0, 0.0)
        assert row.c == pytest.approx(math.sqrt(row.alpha_bar_next))
        assert row.s == pytest.approx(math.sqrt(1 - row.alpha_bar_next))
        assert row.alpha_bar_next < row.alpha_bar


@pytest.mark.parametrize("sampler", names())
def test_known_data_keeps_its_mean_and_its_noise_on_the_way(sampler):
    """As without travel: at level abar the state is sqrt(abar) m and noise of 1 - abar."""
    table = table_for(SCHEDULE, sampler, 9, 999, (3, 2))
    first = table.rows[0].alpha_bar
    mean, variance = math.sqrt(first), 1 - first
    for row in table.rows:
        if row.t is not None:
            assert row.alpha_bar == pytest.approx(float(SCHEDULE.alphas_cumprod[row.t]))
        mean = row.a * mean + row.b + row.c + row.e
        variance = row.a**2 * variance + row.s**2 + row.d**2 * (1 - row.alpha_bar_next)
        assert mean == pytest.approx(math.sqrt(row.alpha_bar_next), abs=1e-12)
        assert variance == pytest.approx(1 - row.alpha_bar_next, abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["dpmpp2m", "unipc"])
def test_a_multi_step_sampler_forgets_on_the_way_up(sampler, length):
    """What is asked next has no step before it, what follows has one, then there are two."""
    table = table_for(SCHEDULE, sampler, 7, 999, (length, 2))
    by_level = {row.t: row for row in table_for(SCHEDULE, sampler, 7, 999).rows}
    since = len(table.rows)
    forgot = 0
    for row in table.rows:
        since = 0 if row.t is None else since + 1
        if row.t is None:
            continue
        plain = by_level[row.t]
        assert row.b + row.c + row.e == pytest.approx(plain.b + plain.c + plain.e)
        if since == 1:
            forgot += 1
            assert (row.c, row.e) == (0.0, 0.0)
        elif since == 2:
            assert (row.b, row.e) == (plain.b, 0.0)
        else:
            assert row == plain
    assert forgot == len(range(6 % length, 6, length))


def test_guides_go_into_every_kth_row_that_asks():
    table = table_for(SCHEDULE, "ddim", 5, 999, (2, 2)).guided(0.5, every=2)
    asked = [row for row in table.rows if row.t is not None]
    assert [row.g for row in asked] == [0.5 if index % 2 == 0 else 0.0 for index in range(9)]
    assert all(row.g == 0.0 for row in table.rows if row.t is None)


def test_ddnm_takes_multiples_of_the_length_of_a_step():
    rows = table_for(SCHEDULE, "ddnm", 10, 999).rows
    assert [row.t for row in rows] == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    after = [*(float(SCHEDULE.alphas_cumprod[row.t]) for row in rows[1:]), 1.0]
    for row, left in zip(rows, after, strict=True):
        assert (row.a, row.c, row.s, row.d) == (0.0, 0.0, 0.0, 1.0)
        assert row.b == pytest.approx(math.sqrt(left))
    assert [row.t for row in table_for(SCHEDULE, "ddnm", 3, 100).rows] == [66, 33, 0]
    assert [row.t for row in table_for(SCHEDULE, "ddnm", 1, 70).rows] == [70]
    with pytest.raises(UsageError, match="steps: got 9, expected 1 to 6"):
        table_for(SCHEDULE, "ddnm", 9, 5)


def test_levels_stand_in_every_row():
    for name in names():
        for row in table_for(SCHEDULE, name, 4, 600).rows:
            assert isinstance(row, Row)
            assert row.alpha_bar == float(SCHEDULE.alphas_cumprod[row.t])
        ends = [row.alpha_bar_next for row in table_for(SCHEDULE, name, 4, 600).rows]
        assert np.all(np.diff(ends) > 0)
        assert ends[-1] == 1.0
