"""Advance's CUDA source, compiled for the host, against the references: bit for bit."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_kernels import guarded
from jscc.kernels.advance.reference import advance
from jscc.kernels.philox_normal.reference import philox_normal
from table_rows import ROW, Row

TERMS = ("x", "clean", "clean_prev", "clean_prev2", "grad", "direction")


ADDRESS = (7, 3, 2)
factors = st.sampled_from([0.0, 1.0, -0.25]) | st.floats(-4, 4, width=64)


def terms_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(count).astype(np.float32) for name in TERMS}


def expected(row, terms, address):
    noise = philox_normal(*address, len(terms["x"])) if row.s else None
    given = [terms[name] for name in TERMS]
    return advance(*given[:4], noise, *given[4:], row)


def shifted(array, skip):
    """A copy, `skip` floats behind an aligned address."""
    copy = np.empty(len(array) + skip, np.float32)[skip:]
    copy[:] = array
    return copy


def carried(host, row, terms, address, *, threads=1, skip=0, in_place=False):
    """What the compiled kernel writes, `skip` floats behind an aligned address."""
    count = len(terms["x"])
    memory = np.full(count + skip + 2, np.nan, np.float32)
    after = memory[skip : skip + count]
    if in_place:
        after[:] = terms["x"]
        terms = {**terms, "x": after}
    start(host, row, terms, address, after, threads=threads)
    assert np.isnan(memory[skip + count :]).all()
    return after


def start(host, row, terms, address, after, *, threads=1):
    names = ("a", "b", "c", "e", "s", "g", "d", "seed", "frame", "step", "count")
    values = dict(zip(names, (*astuple(row), *address, len(after)), strict=True))
    host.start("advance", {"after": after, **terms, **values}, threads=threads)


def same_bits(got, wanted):
    return np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@settings(max_examples=300, deadline=None)
@given(
    row=st.builds(Row, *[factors] * 7),
    count=st.integers(1, 37),
    seed=st.integers(0, 99),
    skips=st.tuples(*[st.integers(0, 3)] * 7),
)
def test_any_row_gives_the_same_bits(host, row, count, seed, skips):
    terms = terms_of(count, seed)
    there = {name: shifted(terms[name], skip) for name, skip in zip(TERMS, skips, strict=False)}
    got = carried(host, row, there, ADDRESS, skip=skips[-1])
    assert same_bits(got, expected(row, terms, ADDRESS))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1023])
def test_nothing_is_read_or_written_behind_the_end(host, count):
    terms = terms_of(count)
    there = {name: guarded(term) for name, term in terms.items()}
    got = carried(host, ROW, there, ADDRESS, in_place=True)
    after = guarded(np.zeros(count, np.float32))
    start(host, ROW, there, ADDRESS, after)
    assert same_bits(got, expected(ROW, terms, ADDRESS))
    assert same_bits(after, got)


@pytest.mark.parametrize("count", [1023, 1024, 1025])
@pytest.mark.parametrize("threads", [1, 3, 256, 300])
def test_any_grid_gives_the_same_bits(host, count, threads):
    terms = terms_of(count)
    got = carried(host, ROW, terms, ADDRESS, threads=threads)
    assert same_bits(got, expected(ROW, terms, ADDRESS))


def test_the_state_may_be_overwritten(host):
    terms = terms_of(333)
    got = carried(host, ROW, terms, ADDRESS, threads=5, in_place=True)
    assert same_bits(got, expected(ROW, terms, ADDRESS))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_without_a_factor_is_not_read(host, name):
    """Null where a term is absent: reading it would end the process."""
    letter = dict(zip(TERMS, "abcegd", strict=True))[name]
    row = Row(**{**dict.fromkeys("abcesgd", 0.5), letter: 0.0})
    terms = terms_of(10)
    wanted = expected(row, terms, ADDRESS)
    absent = {**terms, name: None}
    after = np.empty(10, np.float32)
    start(host, row, absent, ADDRESS, after)
    assert same_bits(after, wanted)


def test_signs_of_zero_and_subnormal_numbers_are_kept(host):
    terms = terms_of(6)
    terms["x"] = np.array([-0.0, 0.0, 1e-45, -1e-40, 1e-38, -1e-38], np.float32)
    for row in (Row(), Row(a=1.0), Row(a=-0.5), Row(a=0.5, b=1e-38)):
        got = carried(host, row, terms, ADDRESS)
        assert same_bits(got, expected(row, terms, ADDRESS))
