"""Sessions that stay with an endpoint (config-api 6.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.builders import request
from waypoint.state.rules import Backend, Forward, SessionPersistence, forward
from waypoint.state.session import (
    Session,
    backend_token,
    cookie,
    decode,
    encode,
    endpoint_token,
    read_session,
    session_backend,
    session_header,
)

WEB = Backend("shop/web", 80)
CANARY = Backend("shop/canary", 80)
COOKIE = SessionPersistence(b"stay")


def policy(**fields: object) -> SessionPersistence:
    return SessionPersistence(**{"name": b"stay", **fields})  # type: ignore[arg-type]


def session(created: int = 1000, used: int = 1000) -> Session:
    return Session(backend_token(WEB), endpoint_token("pod-1"), created, used)


def read(rule: SessionPersistence, value: bytes, now: int) -> Session | None:
    name = rule.name if rule.is_header else b"cookie"
    line = value if rule.is_header else b"a=b; " + rule.name + b"=" + value
    return read_session(rule, request("/", (name, line)), now)


def test_a_session_comes_back_as_it_was_given() -> None:
    header = session_header(COOKIE, WEB, "pod-1", 1000, None)
    assert header is not None
    name, value = header
    assert name == b"set-cookie"
    assert value.endswith(b"; Path=/; HttpOnly")
    facts = request("/", (b"cookie", value.split(b";")[0]))
    assert read_session(COOKIE, facts, 1001) == session()


def test_a_client_learns_neither_name_nor_address() -> None:
    header = session_header(COOKIE, WEB, "Kubernetes//Pod/shop/web-1", 1000, None)
    assert header is not None
    assert b"web" not in header[1]
    assert b"shop" not in header[1]


@pytest.mark.parametrize(
    ("rule", "created", "used", "now", "is_valid"),
    [
        (policy(), 0, 0, 10**9, True),
        (policy(absolute_timeout_s=60), 1000, 1000, 1059, True),
        (policy(absolute_timeout_s=60), 1000, 1059, 1060, False),
        (policy(idle_timeout_s=10), 1000, 1050, 1059, True),
        (policy(idle_timeout_s=10), 1000, 1050, 1060, False),
        (policy(is_header=True), 1000, 1000, 1001, True),
        (policy(absolute_timeout_s=60), 10**9, 10**9, 1000, False),  # from the future
    ],
)
def test_a_session_ends_by_age_or_idleness(
    rule: SessionPersistence, created: int, used: int, now: int, is_valid: bool
) -> None:
    found = read(rule, encode(session(created, used)), now)
    assert (found is not None) is is_valid


@pytest.mark.parametrize(
    ("rule", "current", "endpoint", "expected"),
    [
        (policy(), session(), "pod-1", None),
        (policy(), session(), "pod-2", Session(backend_token(WEB), endpoint_token("pod-2"), 1030, 1030)),
        (policy(idle_timeout_s=60), session(), "pod-1", session(1000, 1030)),
        (policy(is_header=True), None, "pod-1", session(1030, 1030)),
    ],
)
def test_the_client_is_told_what_is_new(
    rule: SessionPersistence, current: Session | None, endpoint: str, expected: Session | None
) -> None:
    header = session_header(rule, WEB, endpoint, 1030, current)
    if expected is None:
        assert header is None
        return
    assert header is not None
    value = header[1] if rule.is_header else header[1].partition(b"=")[2].partition(b";")[0]
    assert decode(value) == expected


def test_a_permanent_cookie_lives_as_long_as_its_session() -> None:
    rule = policy(is_permanent=True, absolute_timeout_s=60, idle_timeout_s=50)
    header = session_header(rule, WEB, "pod-1", 1020, session())
    assert header is not None
    assert b"; Max-Age=40;" in header[1]


@pytest.mark.parametrize(
    ("action", "current", "backend"),
    [
        (forward([CANARY, WEB]), session(), WEB),
        (forward([CANARY]), session(), None),
        (forward([WEB]), None, None),
    ],
)
def test_a_session_outweighs_the_weights(
    action: Forward, current: Session | None, backend: Backend | None
) -> None:
    assert session_backend(action, current) is backend


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"....",
        b"a.b.c.d",
        b"0" * 100,
        b"00000000.0000000000000000.zz.0",
        b"00000000.0000000000000000..0",
        b"\xff",
    ],
)
def test_a_value_that_was_not_made_here_is_no_session(value: bytes) -> None:
    assert decode(value) is None


@given(st.binary(max_size=80))
def test_no_value_ends_the_proxy(value: bytes) -> None:
    assert decode(value) is None or len(value) <= 66


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        ([b"a=1"], b"1"), ([b"b=2; a=1"], b"1"), ([b"b=2", b"a=1"], b"1"), ([b"a=1; a=2"], b"1"),
        ([b"xa=1"], None), ([b"a"], None), ([], None), ([b"a="], b""),
    ],
)  # fmt: skip
def test_cookies_are_found_by_their_whole_name(lines: list[bytes], value: bytes | None) -> None:
    assert cookie(request("/", *((b"cookie", line) for line in lines)), b"a") == value
