"""Intervals and tests: published values, and the verdict that few rows allow."""

import numpy as np
import pytest

from glmtune.use.evaluate.statistics import (
    Measured,
    as_array,
    compare,
    interval,
    mcnemar,
    wilson,
)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    low, high = interval(Measured(as_array([100] * 98 + [0] * 4), is_share=True))
    assert (low, high) == pytest.approx((90.347, 98.465), abs=1e-3)


def test_the_test_of_changed_rows_is_the_exact_binomial_one() -> None:
    assert mcnemar(15, 5) == pytest.approx(0.04138946533203125)
    assert mcnemar(5, 15) == mcnemar(15, 5)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0
    assert mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert 0 < mcnemar(60_000, 59_000) < 0.01  # does not overflow


def test_a_bootstrap_interval_is_that_of_the_normal_distribution_where_there_are_many_rows() -> (
    None
):
    values = np.random.default_rng(1).normal(50, 10, 2000)
    low, high = interval(Measured(values))
    half = 1.96 * values.std() / 2000**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.1)
    assert high == pytest.approx(values.mean() + half, abs=0.1)
    assert interval(Measured(values)) == (low, high)  # the same every time


def shares(*right: int) -> Measured:
    return Measured(as_array([100 * each for each in right]), is_share=True)


def test_a_verdict_needs_rows_that_changed_in_one_direction() -> None:
    base = shares(*[0] * 20, *[1] * 20)
    better = compare(base, shares(*[1] * 15, *[0] * 5, *[1] * 20))
    assert (better.verdict, better.test, better.value) == ("better", "mcnemar", 37.5)
    assert compare(shares(*[1] * 40), base).verdict == "worse"
    assert compare(base, shares(1, *[0] * 19, *[1] * 20)).verdict == "not distinguishable"
    same = compare(base, base)
    assert (same.value, same.p, same.verdict) == (0, 1, "not distinguishable")


def test_few_rows_give_no_verdict_however_large_the_difference() -> None:
    one, other = Measured(as_array([10, 20, 30])), Measured(as_array([50, 60, 70]))
    assert compare(one, other).verdict == "not distinguishable"
    assert compare(Measured(as_array([1])), Measured(as_array([9]))).p == 1
    many = Measured(np.arange(30.0)), Measured(np.arange(30.0) + 1)
    assert compare(*many).verdict == "better"


def test_lower_is_better_for_perplexity_and_neither_for_length() -> None:
    nats, tokens = np.linspace(20, 30, 40), np.full(40, 10.0)
    base = Measured(nats, tokens, np.exp, better="lower")
    tuned = Measured(nats - 5, tokens, np.exp, better="lower")
    assert base.total() == pytest.approx(np.exp(2.5))
    assert compare(base, tuned).verdict == "better"
    low, high = interval(base)
    assert low < base.total() < high
    length = Measured(nats, better=None), Measured(nats + 9, better=None)
    assert compare(*length).verdict is None
