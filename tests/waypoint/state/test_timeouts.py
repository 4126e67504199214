"""Route, per-try and gRPC timeouts together (waypoint-facts 4, authz-cases 11)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.builders import entry, rule
from waypoint.state.rules import HttpRule, RetryPolicy
from waypoint.state.timeouts import (
    MAXIMUM_S,
    Timeouts,
    format_grpc_timeout,
    parse_grpc_timeout,
    timeouts,
)

ACTION = entry(rule()).rule.action


@pytest.mark.parametrize(
    ("route_s", "try_s", "header", "expected"),
    [
        (None, None, None, Timeouts()),
        (2.0, None, None, Timeouts(2.0)),
        (None, 1.0, None, Timeouts(None, 1.0)),
        (2.0, 1.0, None, Timeouts(2.0, 1.0)),
        (None, None, b"500m", Timeouts(0.5)),
        (2.0, None, b"500m", Timeouts(0.5)),
        (2.0, None, b"5S", Timeouts(2.0)),
        (2.0, None, b"bad", Timeouts(2.0)),
        (None, 1.0, b"0n", Timeouts(0.0, 1.0)),
    ],
)
def test_the_earlier_of_route_and_client_ends_the_exchange(
    route_s: float | None, try_s: float | None, header: bytes | None, expected: Timeouts
) -> None:
    retries = None if try_s is None else RetryPolicy(1, per_try_timeout_s=try_s)
    assert timeouts(HttpRule("r", ACTION, timeout_s=route_s, retries=retries), header) == expected


@pytest.mark.parametrize(
    ("limits", "attempt_at", "expected"),
    [
        (Timeouts(), 10.0, (None, False)),
        (Timeouts(2.0), 11.0, (12.0, True)),
        (Timeouts(None, 1.0), 11.0, (12.0, False)),
        (Timeouts(5.0, 1.0), 11.0, (12.0, False)),
        (Timeouts(5.0, 1.0), 14.5, (15.0, True)),
        (Timeouts(2.0, 2.0), 10.0, (12.0, True)),
    ],
)
def test_a_try_never_outlives_the_whole(
    limits: Timeouts, attempt_at: float, expected: tuple[float | None, bool]
) -> None:
    assert limits.try_ends_at(10.0, attempt_at) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0), (b"2M", 120.0), (b"3S", 3.0), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9),
        (b"99999999H", MAXIMUM_S), (b"99999999S", MAXIMUM_S), (b"0S", 0.0),
        (b"999999999S", None), (b"1h", None), (b"S", None), (b"", None), (b"-1S", None), (b"1.5S", None),
        (b"\xb2S", None), (b" 1S", None),
    ],
)  # fmt: skip
def test_grpc_timeouts_are_read_or_ignored(value: bytes, seconds: float | None) -> None:
    parsed = parse_grpc_timeout(value)
    assert parsed == (None if seconds is None else pytest.approx(seconds))


@given(st.binary(max_size=12))
def test_no_grpc_timeout_ends_the_proxy(value: bytes) -> None:
    parsed = parse_grpc_timeout(value)
    assert parsed is None or 0 <= parsed <= MAXIMUM_S


@given(st.floats(-1, MAXIMUM_S))
def test_what_is_passed_on_is_never_more_than_what_remains(remaining_s: float) -> None:
    parsed = parse_grpc_timeout(format_grpc_timeout(remaining_s))
    assert parsed is not None
    assert parsed <= max(remaining_s, 0.0) * (1 + 1e-9)
    assert parsed >= remaining_s * (1 - 1e-5) - 1e-9
