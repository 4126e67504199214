"""Buckets: exact in every stretch of time, bounded, and nobody resets his own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.mycelia import attachment_pb2
from proto.mycelia import rate_limit_pb2 as pb
from tests.waypoint.state.policy_builders import facts
from waypoint.state import rate_limits
from waypoint.state.errors import RoutesRejected
from waypoint.state.rate_limits import Asked, Counting, Limit, ask, parse_rate_limits

Key = pb.RateLimitPolicy.Key


def limit(requests: int = 10, per_s: float = 1.0, burst: int = 0, **fields: Any) -> pb.RateLimitPolicy.Limit:
    made = pb.RateLimitPolicy.Limit(requests=requests, burst=burst, **{"name": "l", **fields})
    made.per.FromNanoseconds(int(per_s * 1e9))
    return made


def policy(*limits: pb.RateLimitPolicy.Limit, name: str = "calm", **fields: Any) -> pb.RateLimitPolicy:
    attachment = attachment_pb2.Attachment(**(fields.pop("attachment", None) or {"whole_mesh": True}))
    return pb.RateLimitPolicy(
        namespace="shop", name=name, attachment=attachment, limits=limits, **{"tells": True, **fields}
    )


def counting(*limits: pb.RateLimitPolicy.Limit, share: int = 1) -> Counting:
    return Counting(parse_rate_limits("shop/calm", policy(*limits).SerializeToString()), share)


def asked(
    path: str = "/", route: str = "HTTPRoute/shop/r/0", service: str = "shop/web", **more: Any
) -> Asked:
    return Asked(facts(path, **more), route, service)


def passes(found: Counting, now: float, request: Asked | None = None) -> bool:
    return ask([found], request or asked(), now)[1] is None


def test_a_burst_then_evenly() -> None:
    found = counting(limit(10, 1.0, 5))
    assert [passes(found, 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not passes(found, 100.099)
    assert passes(found, 100.1)
    assert not passes(found, 100.11)
    assert [passes(found, 200.0) for _ in range(6)] == [True] * 5 + [False]


def test_what_is_told() -> None:
    found = counting(limit(10, 1.0, 5))
    room, refusing = ask([found], asked(), 0.0)
    assert room is not None
    assert refusing is None
    assert (room.remaining, room.limit.burst) == (4, 5)
    assert room.reset_s == pytest.approx(0.1)
    for _ in range(4):
        room, _ = ask([found], asked(), 0.0)
    assert room is not None
    assert room.remaining == 0
    room, refusing = ask([found], asked(), 0.0)
    assert refusing is found
    assert room is not None
    assert room.wait_s == pytest.approx(0.1)


def test_a_refusal_takes_nothing_from_other_limits() -> None:
    wide, narrow = counting(limit(100, 1.0)), counting(limit(1, 1.0))
    assert ask([wide, narrow], asked(), 0.0)[1] is None
    for _ in range(50):
        assert ask([wide, narrow], asked(), 0.0)[1] is narrow
    room, _ = ask([wide], asked(), 0.0)
    assert room is not None
    assert room.remaining == 98


CART, TILL = "spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/bank/sa/till"


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        (Key(caller=True), asked(caller=CART), asked(caller=TILL)),
        (Key(caller=True), asked(caller=CART), asked(caller=None)),
        (Key(source_address=True), asked(ip="10.0.0.1"), asked(ip="10.0.0.2")),
        (Key(header="X-Tenant"), asked(headers=[("x-tenant", "a")]), asked(headers=[("x-tenant", "b")])),
        (Key(header="X-Tenant"), asked(headers=[("x-tenant", "a")]), asked()),
        (Key(claim="sub"), asked(claims={"sub": "a"}), asked(claims={"sub": "b"})),
        (Key(claim="deep.er"), asked(claims={"deep": {"er": 1}}), asked(claims={"sub": "b"})),
        (Key(route=True), asked(route="a"), asked(route="b")),
        (Key(service=True), asked(service="a"), asked(service="b")),
    ],
)
def test_keys_count_apart(key: pb.RateLimitPolicy.Key, one: Asked, other: Asked) -> None:
    found = counting(limit(1, 1.0, keys=[key]))
    assert passes(found, 0.0, one)
    assert not passes(found, 0.0, one)
    assert passes(found, 0.0, other)
    assert not passes(found, 0.0, other)


def test_only_what_matches_counts() -> None:
    found = counting(limit(1, 1.0, methods=["POST"], paths=["/api/*"]))
    for request in (asked("/api/x"), asked("/other", method="POST")):
        assert [passes(found, 0.0, request) for _ in range(3)] == [True] * 3
    assert [passes(found, 0.0, asked("/api/x", method="POST")) for _ in range(2)] == [True, False]


def test_keys_with_a_separator_do_not_mix() -> None:
    found = counting(limit(1, 1.0, keys=[Key(claim="a"), Key(claim="b")]))
    assert passes(found, 0.0, asked(claims={"a": "x", "b": "y"}))
    assert passes(found, 0.0, asked(claims={"a": "xy", "b": ""}))
    assert passes(found, 0.0, asked(claims={"a": "", "b": "xy"}))


def test_workers_share_a_limit() -> None:
    shares = [counting(limit(10, 1.0), share=2) for _ in range(2)]
    assert sum(passes(each, 0.0) for each in shares for _ in range(20)) == 10
    assert sum(passes(each, 0.5) for each in shares for _ in range(20)) in (4, 5, 6)


def test_a_full_table_forgets_only_full_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_KEYS", 10)
    made = Limit(limit(1, 10.0), 1)

    def take(key: bytes, now: float) -> bool:
        if made.look(key, now).wait_s > 0:
            return False
        made.take(key, now)
        return True

    assert take(b"mine", 0.0)
    assert all(take(b"%d" % number, 0.0) for number in range(9))
    # The table is full of buckets in use: whoever else comes shares one, and mine is still empty.
    assert [take(b"other-%d" % number, 1.0) for number in range(5)] == [True] + [False] * 4
    assert not take(b"mine", 1.0)
    # They are all full again: new keys get a bucket of their own.
    assert all(take(b"late-%d" % number, 20.0) for number in range(5))
    assert take(b"mine", 20.0)
    assert not take(b"mine", 20.0)


@pytest.mark.parametrize(
    "broken", [limit(0), limit(1, 0), limit(1, keys=[Key()])], ids=["no requests", "no time", "no key"]
)
def test_what_cannot_be_counted_is_refused(broken: pb.RateLimitPolicy.Limit) -> None:
    with pytest.raises(RoutesRejected):
        parse_rate_limits("shop/calm", policy(broken).SerializeToString())


@given(
    st.integers(1, 50),
    st.floats(0.05, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_no_stretch_of_time_has_more_than_the_limit(
    requests: int, per_s: float, burst: int, pauses: Sequence[float]
) -> None:
    found = counting(limit(requests, per_s, burst))
    now, passed = 1000.0, []
    for pause in pauses:
        now += pause
        if passes(found, now):
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            count = last - first + 1
            allowed = burst + (passed[last] - passed[first]) * requests / per_s
            assert count <= allowed + 1e-3 * count + 1


@given(st.integers(1, 20), st.floats(0.1, 10), st.integers(1, 20))
def test_whoever_keeps_to_the_rate_always_passes(requests: int, per_s: float, burst: int) -> None:
    found = counting(limit(requests, per_s, burst))
    interval = per_s / requests
    assert all(passes(found, 1000.0 + number * interval * 1.000001) for number in range(200))
