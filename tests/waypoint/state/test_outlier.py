"""Outlier detection and circuit breakers, row by row, and what always holds (waypoint-facts 8, 9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.builders import hosts
from waypoint.state.circuit import Circuit
from waypoint.state.destinations import ConnectionPool, OutlierSettings, RetryBudget
from waypoint.state.flags import http_status_of
from waypoint.state.outlier import Cause, OutlierDetector


def settings(**fields: bool | float) -> OutlierSettings:
    return OutlierSettings(**fields)  # type: ignore[arg-type]


LOCAL = -1
TIMEOUT = -2


def run(
    detector: OutlierDetector, statuses: list[int], count: int = 10, now: float = 0.0
) -> list[Cause | None]:
    """What the first host's answers lead to; LOCAL and TIMEOUT stand for failures without a response."""
    first = hosts(1)[0]
    return [
        detector.on_local_failure(first, count, now, is_timeout=status == TIMEOUT)
        if status < 0
        else detector.on_response(first, status, count, now)
        for status in statuses
    ]


@pytest.mark.parametrize(
    ("configured", "statuses", "cause"),
    [
        (settings(), [500] * 5, Cause.CONSECUTIVE_5XX),
        (settings(), [500] * 4, None),
        (settings(), [500, 500, 500, 500, 200, 500], None),
        (settings(), [500, 501, 502, 503, 504], Cause.CONSECUTIVE_5XX),
        (settings(), [404] * 9, None),
        (settings(consecutive_5xx=0), [500] * 9, None),
        (settings(), [LOCAL] * 5, Cause.CONSECUTIVE_5XX),
        (settings(), [TIMEOUT] * 5, Cause.CONSECUTIVE_5XX),
        (settings(consecutive_gateway_errors=2), [503, 502], Cause.CONSECUTIVE_GATEWAY_ERRORS),
        (settings(consecutive_gateway_errors=2), [504, 500, 502], None),
        (settings(consecutive_gateway_errors=2), [LOCAL, LOCAL], Cause.CONSECUTIVE_GATEWAY_ERRORS),
        (settings(consecutive_gateway_errors=0, consecutive_5xx=0), [503] * 9, None),
        (settings(splits_local_failures=True), [LOCAL] * 5, Cause.CONSECUTIVE_LOCAL_FAILURES),
        (settings(splits_local_failures=True), [LOCAL] * 4, None),
        (settings(splits_local_failures=True), [LOCAL] * 4 + [200, LOCAL], None),
        (settings(splits_local_failures=True, consecutive_local_failures=0), [LOCAL] * 9, None),
        (settings(splits_local_failures=True), [500, LOCAL, 500, 500, 500, 500], Cause.CONSECUTIVE_5XX),
        (settings(consecutive_5xx=1), [http_status_of(14)], Cause.CONSECUTIVE_5XX),
        (settings(consecutive_5xx=1), [http_status_of(5)], None),
    ],
)
def test_what_ejects_a_host(configured: OutlierSettings, statuses: list[int], cause: Cause | None) -> None:
    *before, last = run(OutlierDetector(configured), statuses)
    assert set(before) <= {None}
    assert last is cause


def test_an_ejection_lasts_longer_each_time_and_shrinks_with_health() -> None:
    detector = OutlierDetector(settings(consecutive_5xx=1))
    chosen = hosts(2)
    lengths = []
    now = 0.0
    for _ in range(3):
        detector.on_response(chosen[0], 500, 2, now)
        until = chosen[0].ejected_until
        assert until is not None
        lengths.append(until - now)
        assert detector.sweep(chosen, until - 0.001) == []
        assert detector.sweep(chosen, until) == [chosen[0]]
        now = until
    assert lengths == [30.0, 60.0, 90.0]
    detector.sweep(chosen, now)
    detector.sweep(chosen, now)
    assert chosen[0].ejections == 1


@pytest.mark.parametrize(
    ("base", "times", "length"), [(30.0, 10, 300.0), (30.0, 50, 300.0), (400.0, 3, 400.0)]
)
def test_an_ejection_is_bounded(base: float, times: int, length: float) -> None:
    detector = OutlierDetector(settings(consecutive_5xx=1, base_ejection_s=base))
    first = hosts(1)[0]
    first.ejections = times - 1
    detector.on_response(first, 500, 1, 0.0)
    assert first.ejected_until == length


@pytest.mark.parametrize(
    ("count", "percent", "ejected"),
    [(10, 10, 1), (3, 10, 1), (1, 0, 1), (10, 50, 5), (10, 100, 10), (19, 10, 1), (20, 10, 2)],
)
def test_no_more_than_the_share_and_at_least_one_is_ejected(count: int, percent: int, ejected: int) -> None:
    detector = OutlierDetector(settings(consecutive_5xx=1, maximum_ejection_percent=percent))
    for each in hosts(count):
        detector.on_response(each, 500, count, 0.0)
    assert detector.ejected == ejected
    assert detector.overflows == count - ejected


def test_a_host_that_leaves_makes_room() -> None:
    detector = OutlierDetector(settings(consecutive_5xx=1))
    first, second = hosts(2)
    detector.on_response(first, 500, 2, 0.0)
    assert detector.on_response(second, 500, 2, 0.0) is None
    detector.forget(first)
    assert detector.on_response(second, 500, 1, 0.0) is Cause.CONSECUTIVE_5XX


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("response"), st.integers(0, 5), st.sampled_from([200, 404, 500, 503])),
        st.tuples(st.just("local"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("sweep"), st.integers(0, 5), st.sampled_from([0, 5, 40, 400])),
        st.tuples(st.just("forget"), st.integers(0, 5), st.just(0)),
    ),
    max_size=60,
)


@given(_STEPS, st.integers(0, 100), st.booleans())
def test_what_always_holds(steps: list[tuple[str, int, int]], percent: int, splits: bool) -> None:
    configured = settings(
        consecutive_5xx=2,
        consecutive_gateway_errors=1,
        consecutive_local_failures=2,
        splits_local_failures=splits,
        maximum_ejection_percent=percent,
    )
    detector = OutlierDetector(configured)
    chosen = hosts(6)
    now = 0.0
    for kind, index, value in steps:
        each = chosen[index]
        was_ejected = each.ejected_until is not None
        cause = None
        match kind:
            case "response":
                cause = detector.on_response(each, value, 6, now)
                assert cause is None or value >= 500
            case "local":
                cause = detector.on_local_failure(each, 6, now)
            case "sweep":
                now += value
                for back in detector.sweep(chosen, now):
                    assert back.is_available
            case _:
                detector.forget(each)
        assert (cause is not None) <= (not was_ejected and each.ejected_until is not None)
        away = [other for other in chosen if other.ejected_until is not None]
        assert len(away) == detector.ejected <= max(1, percent * 6 // 100)
        assert all(now - 400 < (other.ejected_until or 0) <= now + 300 for other in away if kind == "sweep")
        assert all(other.ejections >= 0 for other in chosen)


# --- circuit breakers ---


@pytest.mark.parametrize(
    ("limit", "take", "give"),
    [
        ("maximum_connections", Circuit.may_connect, Circuit.end_connection),
        ("maximum_pending", Circuit.may_wait, Circuit.end_wait),
        ("maximum_requests", Circuit.may_request, Circuit.end_request),
        ("maximum_retries", Circuit.may_retry, Circuit.end_retry),
    ],
)
def test_a_circuit_opens_at_its_limit_and_closes_again(limit: str, take, give) -> None:  # type: ignore[no-untyped-def]
    circuit = Circuit(ConnectionPool(**{limit: 2}))  # type: ignore[arg-type]
    assert [take(circuit) for _ in range(3)] == [True, True, False]
    assert circuit.overflows == 1
    give(circuit)
    assert take(circuit)


def test_a_budget_takes_the_place_of_the_limit_of_retries() -> None:
    circuit = Circuit(ConnectionPool(maximum_retries=1), RetryBudget(20, 3))
    assert [circuit.may_retry() for _ in range(4)] == [True, True, True, False]
    for _ in range(20):
        circuit.may_request()
    assert circuit.may_retry()


def test_a_connection_is_used_up_after_its_requests() -> None:
    circuit = Circuit(ConnectionPool(requests_per_connection=2))
    assert [circuit.is_used_up(served) for served in (0, 1, 2)] == [False, False, True]
    assert not Circuit(ConnectionPool()).is_used_up(10**6)
