"""Advance against exact arithmetic, term by term."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from jscc.kernels.advance.reference import advance
from table_rows import ROW, Row


def arrays(shape=(4, 33, 65)):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(7))


def test_it_is_the_sum_within_float32_rounding():
    x, clean, before, earlier, noise, grad, way = (a.astype(np.float64) for a in arrays())
    exact = 0.9 * x + 0.3 * clean - 0.1 * before + 0.02 * earlier
    exact += 0.25 * noise - 0.05 * grad + 0.7 * way
    got = advance(*arrays(), ROW)
    assert got.dtype == np.float32
    assert np.abs(got - exact).max() < 1e-6


def test_every_operation_rounds_once_in_the_order_of_the_formula():
    """What another implementation must match bit for bit."""
    values = arrays((50,))
    got = advance(*values, ROW)
    factors = [np.float32(f) for f in (ROW.a, ROW.b, ROW.c, ROW.e, ROW.s, -ROW.g, ROW.d)]
    for index in range(50):
        total = None
        for factor, array in zip(factors, values, strict=True):
            product = nearest(Fraction(float(factor)) * Fraction(float(array[index])))
            total = product if total is None else nearest(Fraction(total) + Fraction(product))
        assert got[index] == np.float32(total)


def nearest(exact):
    """`exact` rounded once to float32, as a float; half to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(sign * np.inf)) for sign in (-1, 1)]
    candidates = [near, *around]
    gaps = [abs(Fraction(float(candidate)) - exact) for candidate in candidates]
    best = [c for c, gap in zip(candidates, gaps, strict=True) if gap == min(gaps)]
    return float(min(best, key=lambda value: int(value.view(np.uint32)) & 1))


@pytest.mark.parametrize(
    ("name", "position"), [("a", 0), ("b", 1), ("c", 2), ("e", 3), ("s", 4), ("g", 5), ("d", 6)]
)
def test_each_coefficient_has_its_own_term(name, position):
    values = arrays((7,))
    got = advance(*values, replace(Row(), **{name: 0.5}))
    sign = -1 if name == "g" else 1
    assert np.array_equal(got, np.float32(0.5 * sign) * values[position])


def test_terms_without_a_coefficient_may_be_absent_or_not_finite():
    x, clean, *_ = arrays((3,))
    got = advance(x, clean, None, None, None, None, None, Row(a=0.5, b=0.5))
    assert np.array_equal(got, x * np.float32(0.5) + clean * np.float32(0.5))
    poisoned = np.full_like(x, np.nan)
    assert np.array_equal(advance(poisoned, clean, None, None, None, None, None, Row(b=1.0)), clean)


def test_no_coefficients_at_all_give_zero():
    assert not advance(*arrays((3,)), Row()).any()


@pytest.mark.parametrize(
    ("name", "coefficient"),
    [("clean_prev", "c"), ("clean_prev2", "e"), ("noise", "s"), ("grad", "g"), ("direction", "d")],
)
def test_an_absent_term_with_a_coefficient_is_an_error(name, coefficient):
    x, clean, *_ = arrays((3,))
    with pytest.raises(ValueError, match=f"got no {name}, expected one: its factor is -?0.5"):
        advance(x, clean, None, None, None, None, None, replace(Row(), **{coefficient: 0.5}))


def test_the_inputs_stay_as_they_are():
    values = arrays((9,))
    copies = [value.copy() for value in values]
    advance(*values, ROW)
    assert all(np.array_equal(value, copy) for value, copy in zip(values, copies, strict=True))
