"""An open loop's times are fixed beforehand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.schedule import intended_times

SECOND = 1_000_000_000


@given(st.floats(min_value=0.5, max_value=5000), st.integers(min_value=0, max_value=10**15))
def test_even_times_do_not_drift(rate: float, start: int) -> None:
    times = list(intended_times(rate, start, start + SECOND))
    assert times[0] == start
    assert all(abs(at - start - index * SECOND / rate) <= 1 for index, at in enumerate(times))
    assert times[-1] < start + SECOND


@given(st.integers(), st.floats(min_value=10, max_value=2000))
def test_poisson_times_rise_and_stay_inside(seed: int, rate: float) -> None:
    times = list(intended_times(rate, 0, SECOND, seed=seed))
    assert all(early <= late for early, late in pairwise(times))
    assert all(0 <= at < SECOND for at in times)


def test_poisson_times_repeat_with_the_seed_and_keep_the_rate() -> None:
    first = list(intended_times(1000, 0, 10 * SECOND, seed=7))
    assert first == list(intended_times(1000, 0, 10 * SECOND, seed=7))
    assert 9_500 < len(first) < 10_500


def test_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        next(intended_times(0, 0, 1))
