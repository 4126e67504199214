"""How a destination's policy is read, and which one holds (config-api 11)."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.client_tls import ClientTls
from waypoint.state.destinations import (
    DEFAULT_TRAFFIC_POLICY,
    UNLIMITED,
    Algorithm,
    CookieKey,
    Destination,
    HeaderKey,
    OutlierSettings,
    RetryBudget,
    TrafficPolicy,
    parse_destination,
)
from waypoint.state.errors import RoutesRejected
from waypoint.state.locality import LocalityPolicy, Scope

RANDOM = pb.TrafficPolicy(balancer=pb.TrafficPolicy.RANDOM)
MAGLEV = pb.TrafficPolicy(balancer=pb.TrafficPolicy.MAGLEV)
RING = pb.TrafficPolicy(balancer=pb.TrafficPolicy.RING_HASH)
ROUND = pb.TrafficPolicy(balancer=pb.TrafficPolicy.ROUND_ROBIN)


def parsed(**fields: object) -> Destination:
    message = pb.Destination(namespace="shop", hostname="web", **fields)  # type: ignore[arg-type]
    return parse_destination(message.SerializeToString())


def policy(**fields: object) -> TrafficPolicy:
    return parsed(policy=pb.TrafficPolicy(**fields)).policy  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("port", "subset", "algorithm"),
    [
        (80, "", Algorithm.RANDOM),
        (81, "", Algorithm.MAGLEV),
        (80, "own", Algorithm.RING_HASH),
        (81, "own", Algorithm.RING_HASH),
        (82, "own", Algorithm.ROUND_ROBIN),
        (80, "plain", Algorithm.RANDOM),
        (81, "plain", Algorithm.MAGLEV),
        (80, "unknown", Algorithm.RANDOM),
    ],
)
def test_the_most_specific_policy_holds(port: int, subset: str, algorithm: Algorithm) -> None:
    found = parsed(
        policy=RANDOM,
        port_policies={81: MAGLEV},
        subsets=[
            pb.Subset(name="own", workloads=["a"], policy=RING, port_policies={82: ROUND}),
            pb.Subset(name="plain", workloads=["b"]),
        ],
    )
    assert found.policy_for(port, subset).algorithm is algorithm


def test_nothing_said_is_istios_default() -> None:
    assert parsed().policy_for(80) is DEFAULT_TRAFFIC_POLICY
    assert policy() == DEFAULT_TRAFFIC_POLICY
    assert DEFAULT_TRAFFIC_POLICY.algorithm is Algorithm.LEAST_REQUEST
    assert DEFAULT_TRAFFIC_POLICY.pool.maximum_requests == UNLIMITED
    assert DEFAULT_TRAFFIC_POLICY.panic_percent == 50


def test_all_fields_are_read() -> None:
    found = policy(
        balancer=pb.TrafficPolicy.RING_HASH,
        hash_key=pb.HashKey(header="X-User"),
        minimum_ring_size=2048,
        slow_start=Duration(seconds=5),
        outlier_detection=pb.OutlierDetection(
            consecutive_5xx=3,
            interval=Duration(seconds=1),
            maximum_ejection_percent=40,
            minimum_health_percent=30,
        ),
        connection_pool=pb.ConnectionPool(maximum_requests=7, connect_timeout=Duration(nanos=500_000_000)),
        locality=pb.Locality(terms=[pb.Locality.Term(same=pb.Locality.ZONE)], is_strict=True),
        table_size=251,
        slow_start_minimum_percent=20,
        slow_start_aggression=2,
        refusal="tls mode SIMPLE",
        retry_budget=pb.RetryBudget(percent=10, minimum_concurrency=1),
    )
    assert found.hash_key == HeaderKey(b"x-user")
    assert (found.minimum_ring_size, found.slow_start_s) == (2048, 5.0)
    assert found.outlier_detection == OutlierSettings(
        3, 0, 0, interval_s=1.0, maximum_ejection_percent=40, minimum_health_percent=30
    )
    assert found.panic_percent == 30
    assert (found.pool.maximum_requests, found.pool.maximum_pending) == (7, UNLIMITED)
    assert (found.pool.connect_timeout_s, found.pool.http_idle_s) == (0.5, 3600.0)
    assert found.locality == LocalityPolicy((Scope.ZONE,), is_strict=True)
    assert (found.table_size, found.slow_start_minimum, found.slow_start_aggression) == (251, 0.2, 2.0)
    assert found.refusal == "tls mode SIMPLE"
    assert found.retry_budget == RetryBudget(10, 1)


@pytest.mark.parametrize(
    ("cookie", "key"),
    [
        (pb.HashKey.Cookie(name="id"), CookieKey(b"id", b"/", None)),
        (pb.HashKey.Cookie(name="id", ttl=Duration()), CookieKey(b"id", b"/", 0)),
        (pb.HashKey.Cookie(name="id", path="/a", ttl=Duration(seconds=9)), CookieKey(b"id", b"/a", 9)),
    ],
)
def test_a_cookie_without_a_time_differs_from_one_of_zero(cookie: pb.HashKey.Cookie, key: CookieKey) -> None:
    assert policy(hash_key=pb.HashKey(cookie=cookie)).hash_key == key


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xff", "not a Destination"),
        (pb.Destination(hostname="web").SerializeToString(), "without a namespace"),
        (
            pb.Destination(
                namespace="a", hostname="b", policy=pb.TrafficPolicy(hash_key=pb.HashKey())
            ).SerializeToString(),
            "says nothing",
        ),
        (
            pb.Destination(
                namespace="a", hostname="b", policy=pb.TrafficPolicy(slow_start=Duration(seconds=-1))
            ).SerializeToString(),
            "negative",
        ),
        *[
            (
                pb.Destination(namespace="a", hostname="b", policy=policy).SerializeToString(),
                reason,
            )
            for policy, reason in (
                (pb.TrafficPolicy(table_size=250), "not prime"),
                (pb.TrafficPolicy(slow_start_minimum_percent=101), "from 101.0 percent"),
                (pb.TrafficPolicy(slow_start_aggression=0.5), "aggression 0.5"),
                (pb.TrafficPolicy(locality=pb.Locality(terms=[pb.Locality.Term()])), "says nothing"),
                (
                    pb.TrafficPolicy(
                        locality=pb.Locality(distributions=[pb.Locality.Distribution(to={"a": 99})])
                    ),
                    "add up to 100",
                ),
            )
        ],
    ],
)
def test_what_cannot_be_meant_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(RoutesRejected, match=reason):
        parse_destination(content)


def test_a_table_is_no_larger_than_is_built_in_time() -> None:
    assert policy(table_size=5_000_011).table_size == policy().table_size == 65537


# ---- TLS ----


def test_tls_is_read_as_it_is_said() -> None:
    found = policy(
        tls=pb.ClientTls(
            server_name="a.example",
            names=["b.example"],
            roots_pem="roots",
            chain_pem="chain",
            key_pem="secret-key",
        )
    )
    assert found.tls == ClientTls("a.example", ("b.example",), "roots", False, "chain", "secret-key")
    assert found.refusal == ""
    assert "secret-key" not in repr(found)


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (pb.ClientTls(server_name="a.example", roots_pem="r"), "without a name to expect"),
        (pb.ClientTls(names=["a"], chain_pem="c"), "half a client certificate"),
        (pb.ClientTls(names=["a"], key_pem="k"), "half a client certificate"),
        (pb.ClientTls(server_name="ä.example", names=["a"]), "cannot be sent"),
        (pb.ClientTls(server_name="a" * 254, names=["a"]), "cannot be sent"),
    ],
)
def test_tls_that_cannot_be_used_refuses_and_never_leaves_a_version_without_it(
    message: pb.ClientTls, part: str
) -> None:
    found = policy(tls=message)
    assert found.tls is None
    assert part in found.refusal
