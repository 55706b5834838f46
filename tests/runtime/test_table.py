"""Table: samplers by file name, levels spaced as the official code spaces them."""

import numpy as np
import pytest

from jscc.runtime.errors import UsageError
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.schedule import schedule_from
from jscc.runtime.spacing import linspace
from jscc.runtime.table import Row, Table, names, table_for

SCHEDULE = schedule_from(ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000))


def test_samplers_are_the_files_of_their_folder():
    assert names() == ("ddim", "ddnm", "ddpm", "dpmpp2m", "lcm", "tcd", "unipc")


def test_an_unknown_sampler_lists_the_choices():
    message = "got 'euler', expected one of ddim, ddnm, ddpm, dpmpp2m, lcm, tcd, unipc"
    with pytest.raises(UsageError, match=message) as caught:
        table_for(SCHEDULE, "euler", 4, 999)
    assert caught.value.code == "E_SAMPLER"


@pytest.mark.parametrize("steps", [2, 3, 10, 50, 99, 100])
def test_levels_are_those_of_linspace_rounded(steps):
    expected = np.linspace(0, 999, steps).round().astype(int)
    assert linspace(SCHEDULE, steps, 999) == tuple(expected)


def test_halves_round_to_even():
    assert linspace(SCHEDULE, 3, 5) == (0, 2, 5)  # 2.5
    assert linspace(SCHEDULE, 3, 7) == (0, 4, 7)  # 3.5


def test_one_step_starts_at_the_last_level():
    assert linspace(SCHEDULE, 1, 999) == (999,)
    assert linspace(SCHEDULE, 1, 0) == (0,)


def test_every_level_can_be_a_step():
    assert linspace(SCHEDULE, 6, 5) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("steps", "last", "shown"),
    [(0, 999, "got 0, expected 1 to 1000"), (-3, 999, "got -3"), (7, 5, "got 7, expected 1 to 6")],
)
def test_steps_that_no_schedule_has(steps, last, shown):
    with pytest.raises(UsageError, match=shown) as caught:
        linspace(SCHEDULE, steps, last)
    assert caught.value.code == "E_STEPS"


def test_a_spacing_replaces_the_samplers_own():
    for sampler in names():
        levels = [row.t for row in table_for(SCHEDULE, sampler, 5, 999, spacing="trailing").rows]
        assert levels == [999, 799, 599, 399, 199]
        row = table_for(SCHEDULE, sampler, 5, 999, spacing="trailing").rows[-1]
        assert (row.a, row.b, row.c, row.e, row.s) == pytest.approx((0, 1, 0, 0, 0), abs=1e-12)


def test_an_unknown_spacing_lists_the_choices():
    with pytest.raises(UsageError, match="got 'cosine', expected one of linspace, trailing, kar"):
        table_for(SCHEDULE, "ddim", 4, 999, spacing="cosine")


def test_the_guide_goes_into_every_row():
    table = Table((Row(9, 0.5, 0.5), Row(0, 0.0, 1.0))).guided(0.25)
    assert [row.g for row in table.rows] == [0.25, 0.25]
    assert [row.t for row in table.rows] == [9, 0]
