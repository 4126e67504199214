"""A plan gives back what it took, whatever happens in whatever order; and a person can ask why."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import (
    PLACE,
    VIP,
    WEB,
    backend,
    destination,
    endpoint,
    forward,
    prefix,
    put,
    routes,
    rule,
    seconds,
    web_service,
)
from transport.reactor import Reactor
from waypoint.state.cluster import Cluster
from waypoint.state.hosts import Endpoint
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.dial import TcpDialler
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.headers import Request
from waypoint.worker.plan import Outcome, Plan, Source
from waypoint.worker.upstreams import Upstreams

SOURCE = Source(("10.0.0.9", 1234), (VIP, 80))


@pytest.fixture
def decider() -> Iterator[RoutingDecider]:
    with Reactor() as reactor:
        source = random.Random(7)
        state = WaypointState(PLACE, clock=lambda: reactor.now, random=source.random)
        upstreams = Upstreams(reactor, TcpDialler(reactor, memoryview(bytearray(16))))
        made = RoutingDecider(state, reactor, upstreams, random=source.random, wall_clock=lambda: 0.0)
        yield made
        made.close()


def request(path: bytes = b"/", method: bytes = b"GET") -> Request:
    return Request(method, b"http", b"web", path, None, [(b"x-request-id", b"1")])


def cluster_of(decider: RoutingDecider) -> Cluster:
    cluster = decider.state.cluster(WEB, 80)
    assert cluster is not None
    return cluster


ends = st.one_of(
    st.sampled_from(list(Cause)),
    st.sampled_from([200, 404, 500, 503]),
    st.sampled_from(["reset by the client", "late"]),
)


# One state for all examples: what one leaves counted shows in the next.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(ends, min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.sampled_from([1, 2, 1000]),
    st.booleans(),
)
def test_nothing_stays_counted(
    decider: RoutingDecider, exchanges: list[list[Cause | int | str]], attempts: int, limit: int, held: bool
) -> None:
    policy = pb.RetryPolicy(attempts=attempts, on=["5xx", "reset", "connect-failure"])
    pool = pb.ConnectionPool(maximum_requests=limit, maximum_retries=limit)
    put(
        decider.state,
        web_service(),
        endpoint("a", 1),
        endpoint("b", 2),
        routes(rule("r", retries=policy)),
        destination(pb.TrafficPolicy(connection_pool=pool)),
    )
    running = [_exchange(decider, script, held=held) for script in exchanges]
    while running:  # in turns, so that they are under way together
        running = [each for each in running if next(each, None) is not None]
    cluster = cluster_of(decider)
    circuit = cluster.circuit
    assert (circuit.requests, circuit.retries, circuit.pending, circuit.connections) == (0, 0, 0, 0)
    assert [host.active for host in cluster.hosts] == [0, 0]


def _exchange(decider: RoutingDecider, script: list[Cause | int | str], *, held: bool) -> Iterator[bool]:
    """What an Exchange does with its plan when its tries end as the script says."""
    plan = decider.choose(request(), SOURCE)
    assert not isinstance(plan, Answer)
    tried: list[Endpoint] = []
    for end in script:
        picked = plan.pick(tried)
        if isinstance(picked, Answer):
            break
        tried.append(picked)
        yield True
        if not _is_repeated(plan, tried, end, held=held):
            break
        yield True  # a backoff
    plan.on_over(Outcome())


def _is_repeated(plan: Plan, tried: list[Endpoint], end: Cause | int | str, *, held: bool) -> bool:
    match end:
        case Cause():
            plan.on_try_over(tried[-1], 0, Failure(end), b"")
            return plan.retry_after_failure(Failure(end), tried, is_body_held=held) is not None
        case int():
            wait_s = plan.retry_after_response(end, [], tried, is_body_held=held)
            plan.on_try_over(tried[-1], end, None, b"")
            return wait_s is not None
        case _:
            plan.on_try_over(tried[-1], 0, None, b"")
            return False


def test_a_person_is_told_why(decider: RoutingDecider) -> None:
    only = pb.HttpMatch(method="POST")
    put(
        decider.state,
        web_service(),
        endpoint("a", 1),
        endpoint("far", 2, network="elsewhere"),
        routes(
            rule("posts", only),
            rule("split", prefix("/split"), forward=forward(backend(WEB, 3), backend("default/no", 1))),
            rule("away", prefix("/away"), redirect=pb.Redirect(hostname="b")),
        ),
        destination(),
    )
    assert decider.explain(request(b"/split"), SOURCE) == (
        f"{VIP} port 80 is service {WEB}",
        "posts: no, method POST",
        "split: matches",
        f"weight 3: {WEB}:80, 1 of 1 hosts usable",
        "endpoint far is in network 'elsewhere', and this waypoint reaches '' only",
        "weight 1: 503, cluster_not_found{default/no}",
    )
    assert decider.explain(request(b"/away"), SOURCE)[-1] == "answered by the rule: Redirect"
    assert decider.explain(request(b"/none"), SOURCE)[-1] == "no rule matches"
    elsewhere = Source(("10.0.0.9", 1), ("10.9.9.9", 80))
    assert "no address" in decider.explain(request(), elsewhere)[0]


def test_the_time_left_is_told_anew_for_each_try(decider: RoutingDecider) -> None:
    policy = pb.RetryPolicy(attempts=1, per_try_timeout=seconds(2), on=["5xx"])
    put(decider.state, web_service(), endpoint("a", 1), routes(rule("r", timeout=seconds(3), retries=policy)))
    asked = request()
    asked.is_grpc = True
    asked.grpc_timeout_s = 2.5
    asked.headers.append((b"grpc-timeout", b"2500m"))
    plan = decider.choose(asked, SOURCE)
    assert not isinstance(plan, Answer)
    assert (plan.timeout_s, plan.try_timeout_s) == (2.5, 2.0)
    first = plan.pick([])
    assert isinstance(first, Endpoint)
    assert dict(asked.headers)[b"x-envoy-expected-rq-timeout-ms"] == b"2000"
    assert dict(asked.headers)[b"grpc-timeout"] == b"2000000u"
    failure = Failure(Cause.TRY_TIMEOUT)
    plan.on_try_over(first, 0, failure, b"")
    assert plan.retry_after_failure(failure, [first], is_body_held=True) is not None
    decider.reactor.now += 2.0
    assert isinstance(plan.pick([first]), Endpoint)
    assert dict(asked.headers)[b"x-envoy-expected-rq-timeout-ms"] == b"500"
    assert len(asked.headers) == 3
    plan.on_try_over(first, 200, None, b"")
    plan.on_over(Outcome())
