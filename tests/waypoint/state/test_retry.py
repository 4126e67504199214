"""Each row of the retry table, the safe default, backoff and budget (waypoint-facts 6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.state.flags import Flag
from waypoint.state.retry import (
    DEFAULT_POLICY,
    MAXIMUM_BODY_BYTES,
    NO_RETRIES,
    Attempt,
    Denial,
    Failure,
    Outcome,
    backoff_s,
    choose_other,
    is_within_budget,
    judge,
    may_hold_body,
)
from waypoint.state.rules import RETRY_CONDITIONS, RetryPolicy


def answered(status: int, grpc_status: int | None = None, *, limited: bool = False) -> Outcome:
    return Outcome(Failure.RESPONSE, status, grpc_status, limited)


CONNECT, REFUSED, GOAWAY, BEFORE, RESET, TRY, OVERFLOW = (
    Outcome(failure)
    for failure in (
        Failure.CONNECT,
        Failure.REFUSED_STREAM,
        Failure.GOAWAY,
        Failure.RESET_BEFORE_REQUEST,
        Failure.RESET,
        Failure.PER_TRY_TIMEOUT,
        Failure.OVERFLOW,
    )
)
FIRST = Attempt(b"POST", 0)

# condition -> outcomes that are repeated; the rest of all outcomes is not
TABLE = {
    "connect-failure": [CONNECT],
    "refused-stream": [REFUSED, GOAWAY],
    "reset": [CONNECT, REFUSED, GOAWAY, BEFORE, RESET],
    "reset-before-request": [CONNECT, BEFORE],
    "5xx": [CONNECT, REFUSED, GOAWAY, BEFORE, RESET, TRY]
    + [answered(status) for status in (500, 501, 502, 503, 504, 599)],
    "gateway-error": [CONNECT, REFUSED, GOAWAY, BEFORE, RESET, TRY]
    + [answered(status) for status in (502, 503, 504)],
    "retriable-4xx": [answered(409)],
    "retriable-status-codes": [],
    "envoy-ratelimited": [answered(429, limited=True)],
    "cancelled": [answered(200, 1)],
    "deadline-exceeded": [answered(200, 4)],
    "resource-exhausted": [answered(200, 8)],
    "internal": [answered(200, 13)],
    "unavailable": [answered(200, 14)],
    "http3-post-connect-failure": [],
}
OUTCOMES = [
    CONNECT, REFUSED, GOAWAY, BEFORE, RESET, TRY, OVERFLOW,
    *(answered(status) for status in (200, 304, 400, 404, 409, 429, 500, 501, 502, 503, 504, 599)),
    *(answered(200, status) for status in (0, 1, 2, 4, 8, 13, 14)),
    answered(429, limited=True),
]  # fmt: skip


def test_the_table_has_every_condition() -> None:
    assert set(TABLE) == RETRY_CONDITIONS


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("condition", TABLE)
def test_a_condition_repeats_its_outcomes_and_no_other(condition: str, outcome: Outcome) -> None:
    verdict = judge(RetryPolicy(1, frozenset({condition})), outcome, FIRST)
    assert verdict.is_granted is (outcome in TABLE[condition])


@pytest.mark.parametrize(
    ("outcome", "method", "denial"),
    [
        (CONNECT, b"POST", None),
        (REFUSED, b"POST", None),
        (GOAWAY, b"POST", None),
        (BEFORE, b"POST", None),
        (RESET, b"POST", Denial.NOT_IDEMPOTENT),
        (RESET, b"PATCH", Denial.NOT_IDEMPOTENT),
        (RESET, b"GET", None),
        (RESET, b"HEAD", None),
        (RESET, b"PUT", None),
        (RESET, b"DELETE", None),
        (TRY, b"POST", Denial.NOT_IDEMPOTENT),
        (TRY, b"GET", None),
        (OVERFLOW, b"GET", Denial.CONDITION),
        (answered(503), b"GET", Denial.CONDITION),
        (answered(200, 14), b"POST", Denial.CONDITION),
        (answered(200), b"GET", Denial.NOT_FAILED),
    ],
)
def test_unconfigured_only_what_was_never_processed_or_is_idempotent(
    outcome: Outcome, method: bytes, denial: Denial | None
) -> None:
    assert judge(DEFAULT_POLICY, outcome, Attempt(method, 0)).denial is denial


def test_listed_statuses_are_repeated_beside_the_safe_default() -> None:
    policy = RetryPolicy(1, statuses=frozenset({503, 425}))
    assert judge(policy, answered(425), FIRST).is_granted
    assert judge(policy, CONNECT, FIRST).is_granted
    assert judge(policy, answered(500), FIRST).denial is Denial.CONDITION
    assert judge(policy, RESET, FIRST).denial is Denial.NOT_IDEMPOTENT


def test_a_rate_limited_answer_is_not_repeated_for_its_status() -> None:
    policy = RetryPolicy(1, frozenset({"5xx"}), frozenset({429}))
    assert judge(policy, answered(429, limited=True), FIRST).denial is Denial.CONDITION


@pytest.mark.parametrize(
    ("policy", "attempt", "denial", "flag"),
    [
        (DEFAULT_POLICY, Attempt(b"GET", 1), None, Flag.NONE),
        (DEFAULT_POLICY, Attempt(b"GET", 2), Denial.EXHAUSTED, Flag.RETRY_LIMIT),
        (NO_RETRIES, Attempt(b"GET", 0), Denial.EXHAUSTED, Flag.NONE),
        (DEFAULT_POLICY, Attempt(b"GET", 0, has_forwarded_head=True), Denial.FORWARDED, Flag.NONE),
        (DEFAULT_POLICY, Attempt(b"GET", 0, is_body_held=False), Denial.BODY, Flag.NONE),
    ],
)
def test_what_forbids_another_attempt(
    policy: RetryPolicy, attempt: Attempt, denial: Denial | None, flag: Flag
) -> None:
    verdict = judge(policy, CONNECT, attempt)
    assert (verdict.denial, verdict.flag) == (denial, flag)


@pytest.mark.parametrize(
    ("retry", "longest"), [(1, 0.025), (2, 0.075), (3, 0.175), (4, 0.25), (5, 0.25), (1000, 0.25)]
)
def test_backoff_is_anywhere_below_a_growing_limit(retry: int, longest: float) -> None:
    assert backoff_s(DEFAULT_POLICY, retry, 0.0) == 0.0
    assert backoff_s(DEFAULT_POLICY, retry, 1.0) == pytest.approx(longest)
    assert backoff_s(RetryPolicy(1, backoff_s=1.0), retry, 1.0) == pytest.approx(longest * 40)


@pytest.mark.parametrize(
    ("retries", "requests", "budget", "is_granted"),
    [
        (2, 0, {"percent": 20, "minimum": 3}, True),
        (3, 0, {"percent": 20, "minimum": 3}, False),
        (19, 100, {"percent": 20, "minimum": 3}, True),
        (20, 100, {"percent": 20, "minimum": 3}, False),
        (20, 100, {"percent": 20, "minimum": 3, "maximum": 1000}, False),
        (0, 10, {"percent": 0, "minimum": 0}, False),
        (10**6, 0, {}, True),
        (3, 0, {"maximum": 3}, False),
        (2, 0, {"maximum": 3}, True),
    ],
)
def test_the_budget_bounds_retries_in_flight(
    retries: int, requests: int, budget: dict[str, int], is_granted: bool
) -> None:
    assert is_within_budget(retries, requests, **budget) is is_granted


def test_the_retry_buffer_holds_one_mebibyte() -> None:
    assert may_hold_body(0, MAXIMUM_BODY_BYTES)
    assert not may_hold_body(1, MAXIMUM_BODY_BYTES)


@pytest.mark.parametrize(
    ("offered", "tried", "chosen"),
    [
        ("a", "", "a"),
        ("aab", "a", "b"),
        ("aaaab", "a", "b"),
        ("aaaaab", "a", "a"),
        ("bcaaa", "bc", "a"),
    ],
)
def test_hosts_tried_before_are_avoided_for_five_selections(offered: str, tried: str, chosen: str) -> None:
    offers = iter(offered)
    assert choose_other(lambda: next(offers), tried) == chosen


def test_hosts_may_be_repeated_if_the_policy_says_so() -> None:
    assert choose_other(lambda: "a", "a", may_repeat=True) == "a"


@given(
    st.sampled_from(OUTCOMES),
    st.sets(st.sampled_from(sorted(TABLE))),
    st.sampled_from([b"GET", b"POST"]),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_never_after_the_head_or_beyond_the_attempts(
    outcome: Outcome, on: set[str], method: bytes, attempts: int, made: int
) -> None:
    policy = RetryPolicy(attempts, frozenset(on))
    assert not judge(policy, outcome, Attempt(method, made, has_forwarded_head=True)).is_granted
    assert not judge(policy, outcome, Attempt(method, made, is_body_held=False)).is_granted
    assert not (judge(policy, outcome, Attempt(method, made)).is_granted and made >= attempts)
