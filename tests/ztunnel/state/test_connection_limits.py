"""Limits of connections: exact in every stretch of time, all or nothing, released once, per key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.state.buckets import Buckets
from dataplane.state.errors import ResourceRejected
from dataplane.state.model import Workload
from dataplane.state.policy import Connection
from proto.mycelia import connection_limit_pb2 as pb
from transport.spiffe import SpiffeId
from ztunnel.state.connection_limits import (
    CONNECTION_LIMITS_TYPE,
    Gate,
    LimitBook,
    NodeState,
    decode_limits,
)

Limit = pb.ConnectionLimits.Limit
Policy = pb.ConnectionLimits.Policy
A, B = SpiffeId("cluster.local", "shop", "a"), SpiffeId("cluster.local", "other", "b")
WEB = "shop/web.shop.svc.cluster.local"
OWN = Workload(uid="u", name="w", namespace="shop", identity=A, services={WEB: {80: 8080}})


def content(*limits: Limit, services: tuple[str, ...] = (), name: str = "calm") -> bytes:
    policy = Policy(namespace="shop", name=name, services=services, limits=limits)
    return pb.ConnectionLimits(uid="u", policies=[policy]).SerializeToString()


def gate_of(
    *limits: Limit,
    book: LimitBook | None = None,
    share: int = 1,
    connection: Connection | None = None,
    **more: Any,
) -> Gate | None:
    policies = decode_limits("u", content(*limits, **more))
    return (book or LimitBook(share)).gate(
        policies, connection or Connection("10.0.0.9", A, "10.0.0.1", 8080), OWN
    )


def admits(gate: Gate | None, now: float = 0.0) -> bool:
    assert gate is not None
    return gate.admit(now) is None


def test_open_connections_are_counted_exactly_and_given_back() -> None:
    gate = gate_of(Limit(name="l", open=2))
    assert gate is not None
    assert [admits(gate) for _ in range(3)] == [True, True, False]
    refused = gate.admit(0.0)
    assert str(refused) == "RateLimitPolicy/shop/calm l: 2 connections are open"
    gate.release()
    assert [admits(gate) for _ in range(2)] == [True, False]
    gate.release()
    gate.release()
    assert gate.entries[0][0].open_now == {}


def test_new_connections_come_in_a_burst_then_evenly() -> None:
    gate = gate_of(Limit(name="l", new_per_second=10, burst=3))
    assert [admits(gate) for _ in range(4)] == [True, True, True, False]
    assert not admits(gate, 0.09)
    assert admits(gate, 0.1)


def test_what_one_limit_refuses_takes_nothing_from_another() -> None:
    gate = gate_of(Limit(name="open", open=1), Limit(name="new", new_per_second=1, burst=5))
    assert gate is not None
    assert [admits(gate) for _ in range(50)] == [True] + [False] * 49
    gate.release()
    assert admits(gate)
    assert gate.entries[0][0].open_now == {b"": 1}


@pytest.mark.parametrize(
    ("key", "other", "is_apart"),
    [
        (pb.ConnectionLimits.CALLER, Connection("10.0.0.9", B, "10.0.0.1", 8080), True),
        (pb.ConnectionLimits.CALLER, Connection("10.0.0.9", None, "10.0.0.1", 8080), True),
        (pb.ConnectionLimits.CALLER, Connection("10.0.0.8", A, "10.0.0.1", 1), False),
        (pb.ConnectionLimits.CALLER_NAMESPACE, Connection("10.0.0.9", B, "10.0.0.1", 8080), True),
        (pb.ConnectionLimits.SOURCE_ADDRESS, Connection("10.0.0.8", A, "10.0.0.1", 8080), True),
        (pb.ConnectionLimits.PORT, Connection("10.0.0.8", B, "10.0.0.1", 8080), False),
        (pb.ConnectionLimits.PORT, Connection("10.0.0.8", B, "10.0.0.1", 9090), True),
    ],
)
def test_connections_count_apart_by_key(key: Any, other: Connection, is_apart: bool) -> None:
    book, limit = LimitBook(1), Limit(name="l", open=1, keys=[key])
    assert admits(gate_of(limit, book=book))
    assert admits(gate_of(limit, book=book, connection=other)) is is_apart


def test_a_service_s_limit_is_about_its_ports_only() -> None:
    limit = Limit(name="l", open=1)
    assert gate_of(limit, services=(WEB,)) is not None
    assert gate_of(limit, services=(WEB,), connection=Connection("::1", A, "::2", 9090)) is None
    assert gate_of(limit, services=("shop/other",)) is None


def test_counts_outlive_all_but_a_change_of_their_policy() -> None:
    book, limit = LimitBook(1), Limit(name="l", open=1)
    assert admits(gate_of(limit, book=book))
    assert not admits(gate_of(limit, book=book))
    assert admits(gate_of(Limit(name="l", open=2), book=book))
    book.retain(())
    assert admits(gate_of(Limit(name="l", open=2), book=book))


def test_workers_share_equally() -> None:
    gate = gate_of(Limit(name="l", open=10, new_per_second=10, burst=10), share=5)
    assert [admits(gate) for _ in range(3)] == [True, True, False]
    gate = gate_of(Limit(name="l", open=1), share=5)
    assert [admits(gate) for _ in range(2)] == [True, False]


def test_the_state_takes_limits_and_refuses_what_it_cannot_read() -> None:
    state = NodeState()
    good = content(Limit(name="l", open=1))
    assert state.apply(CONNECTION_LIMITS_TYPE, [("u", good)], ()) == {}
    assert state.generation == 1
    assert [str(each) for each in state.limits_of("u")] == ["RateLimitPolicy/shop/calm"]
    bad = [b"\xff", content(Limit(name="l")), content(Limit(name="l", open=1, keys=[99]))]  # type: ignore[list-item]
    for value in bad:
        assert state.apply(CONNECTION_LIMITS_TYPE, [("u", value)], ()).keys() == {"u"}
        assert len(state.limits_of("u")) == 1
    assert "under the name" in state.apply(CONNECTION_LIMITS_TYPE, [("v", good)], ())["v"]
    state.apply(CONNECTION_LIMITS_TYPE, (), ["u"])
    assert state.limits_of("u") == ()
    with pytest.raises(ResourceRejected):
        decode_limits("u", b"\xff")


@given(
    rate=st.integers(1, 10_000_000),
    burst=st.integers(1, 10_000_000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1_000_000)), max_size=50),
)
def test_bytes_never_exceed_the_bound_in_any_stretch(
    rate: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    buckets, now = Buckets(1 / rate, burst), 100.0
    taken: list[tuple[float, int]] = []
    for pause, wanted in steps:
        now += pause
        count = min(wanted, buckets.available(b"", now))
        buckets.take(b"", now, count)
        taken.append((now, count))
    for first in range(len(taken)):
        total = 0
        for at, count in taken[first:]:
            total += count
            assert total <= burst + rate * (at - taken[first][0]) + 1 + 1e-6 * rate


@given(
    open_=st.integers(1, 5),
    events=st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, None])), max_size=60),
)
def test_open_is_never_above_the_limit(open_: int, events: list[tuple[bool, SpiffeId | None]]) -> None:
    book = LimitBook(1)
    held: dict[SpiffeId | None, list[Gate]] = {A: [], B: [], None: []}
    for is_opening, identity in events:
        gate = gate_of(
            Limit(name="l", open=open_, keys=[pb.ConnectionLimits.CALLER]),
            book=book,
            connection=Connection("1.1.1.1", identity, "2.2.2.2", 1),
        )
        assert gate is not None
        if is_opening:
            is_full = len(held[identity]) >= open_
            assert (gate.admit(0.0) is not None) is is_full
            if not is_full:
                held[identity].append(gate)
        elif held[identity]:
            held[identity].pop().release()
