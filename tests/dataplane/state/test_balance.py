"""Facts 8: every row, weights, and that kept candidate tables follow every change."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dataplane.state.balance import candidates, target_port
from dataplane.state.model import ADDRESS_TYPE
from proto.istio import workload_pb2 as pb
from tests.dataplane.state.builders import address, apply, first, get, get_service, mesh, service, workload

KEY = "default/web.default"
HTTP = {KEY: {80: 8080}}
REGION, ZONE, SUBZONE, NODE, CLUSTER, NETWORK = range(1, 7)
STRICT, FAILOVER, PASSTHROUGH = 1, 2, 3
SOURCE = workload(
    "source", "10.0.0.1", node="n1", cluster_id="c1", locality=("r1", "z1", "s1"), namespace="other"
)


def usable(
    *endpoints: pb.Workload,
    port: int = 80,
    is_waypoint: bool = False,
    ports: dict[int, int] | None = None,
    mode: int = 0,
    preferences: tuple[int, ...] = (),
    health: int = 0,
) -> set[str]:
    web = service("web.default", ports=ports, mode=mode, preferences=preferences, health=health)
    state = mesh(SOURCE, web, *endpoints)
    found = state.endpoints(get_service(state, KEY))
    assert found is not None
    table = candidates(
        found.workloads.values(), get_service(state, KEY), port, get(state, "source"), is_waypoint=is_waypoint
    )
    return {workload.uid for workload in table.workloads}


def endpoint(uid: str, *ips: str, **fields: object) -> pb.Workload:
    return workload(uid, *(ips or ("10.0.0.9",)), services=HTTP, **fields)  # type: ignore[arg-type]


# --- filter ---


@pytest.mark.parametrize(
    ("candidate", "is_usable"),
    [
        (endpoint("w"), True),
        (workload("w", services=HTTP), False),
        (workload("w", services=HTTP, hostname="web.example"), True),
        (workload("w", services=HTTP, network_gateway="|10.0.0.7:15008"), False),
        (workload("w", services=HTTP, network="far", network_gateway="|10.0.0.7:15008"), True),
        (workload("w", services=HTTP, network="far"), False),
        (endpoint("w", capacity=0), False),
        (endpoint("w", healthy=False), False),
    ],
)
def test_candidate_filter(candidate: pb.Workload, is_usable: bool) -> None:
    assert usable(candidate) == ({"w"} if is_usable else set())


def test_the_service_must_have_the_port() -> None:
    assert usable(endpoint("w"), port=81) == set()


def test_a_named_port_needs_a_number_for_the_endpoint() -> None:
    named = workload("w", "10.0.0.2", services={KEY: {}})
    assert usable(named, ports={80: 0}) == set()
    assert usable(endpoint("w"), ports={80: 0}) == {"w"}


def test_waypoint_mode_wants_the_port_or_an_application_tunnel() -> None:
    assert usable(endpoint("w"), port=15008, is_waypoint=True) == set()
    assert usable(endpoint("w", app_tunnel=(True, 0)), port=15008, is_waypoint=True) == {"w"}
    assert usable(endpoint("w"), is_waypoint=True) == {"w"}


def test_unhealthy_endpoints_count_where_the_service_allows_all() -> None:
    assert usable(endpoint("w", healthy=False), health=1) == {"w"}


# --- modes ---

SAME_NODE = endpoint("node", node="n1", cluster_id="c1", locality=("r1", "z1", "s1"))
SAME_ZONE = endpoint("zone", node="n2", cluster_id="c1", locality=("r1", "z1", "s2"))
SAME_REGION = endpoint("region", node="n3", cluster_id="c2", locality=("r1", "z2", "s1"))
FAR = endpoint("far", node="n4", cluster_id="c2", locality=("r2", "z1", "s1"))
EVERYWHERE = (SAME_NODE, SAME_ZONE, SAME_REGION, FAR)
REMOTE = endpoint(
    "remote", network="far", node="n1", locality=("r1", "z1", "s1"), network_gateway="|10.0.0.7:15008"
)


@pytest.mark.parametrize(
    ("mode", "preferences", "expected"),
    [
        (0, (), {"node", "zone", "region", "far"}),
        (0, (NODE,), {"node", "zone", "region", "far"}),
        (STRICT, (NODE,), {"node"}),
        (STRICT, (REGION, ZONE), {"node", "zone"}),
        (STRICT, (ZONE,), {"node", "zone", "far"}),
        (STRICT, (CLUSTER,), {"node", "zone"}),
        (STRICT, (NETWORK, REGION), {"node", "zone", "region"}),
        (FAILOVER, (REGION, ZONE, SUBZONE, NODE), {"node"}),
        (FAILOVER, (REGION, ZONE), {"node", "zone"}),
        (FAILOVER, (NODE, REGION), {"node"}),
        (FAILOVER, (), {"node", "zone", "region", "far"}),
    ],
)
def test_modes(mode: int, preferences: tuple[int, ...], expected: set[str]) -> None:
    assert usable(*EVERYWHERE, mode=mode, preferences=preferences) == expected


def test_failover_stops_at_the_first_miss() -> None:
    """`far` shares the subzone's name, which counts for nothing after the region's miss."""
    assert usable(SAME_REGION, FAR, mode=FAILOVER, preferences=(REGION, ZONE, SUBZONE)) == {"region"}


def test_strict_with_nobody_left() -> None:
    assert usable(SAME_ZONE, FAR, mode=STRICT, preferences=(NODE,)) == set()


def test_network_first_outranks_everything_and_its_miss_ranks_on() -> None:
    local_far = endpoint("local", locality=("r9", "z9", "s9"), node="n9")
    order = (NETWORK, REGION, ZONE)
    assert usable(local_far, REMOTE, mode=FAILOVER, preferences=order) == {"local"}
    other_remote = endpoint(
        "worse", network="far", locality=("r2", "z2", "s2"), network_gateway="|10.0.0.7:15008"
    )
    assert usable(REMOTE, other_remote, mode=FAILOVER, preferences=order) == {"remote"}


def test_network_alone_is_a_preference_too() -> None:
    assert usable(SAME_NODE, REMOTE, mode=FAILOVER, preferences=(NETWORK,)) == {"node"}


def test_two_empty_localities_agree() -> None:
    source = workload("source", "10.0.0.1")
    state = mesh(source, service("web.default", mode=STRICT, preferences=[ZONE]), endpoint("w"))
    endpoints = state.endpoints(get_service(state, KEY))
    assert endpoints is not None
    picked = endpoints.pick(
        get_service(state, KEY), 80, get(state, "source"), is_waypoint=False, random=first
    )
    assert picked is not None


# --- pick ---


def shares(*endpoints: pb.Workload, picks: int = 4000) -> Counter[str]:
    state = mesh(SOURCE, service("web.default"), *endpoints)
    found = state.endpoints(get_service(state, KEY))
    assert found is not None
    numbers = random.Random(7)
    return Counter(
        chosen.uid
        for _ in range(picks)
        if (
            chosen := found.pick(
                get_service(state, KEY), 80, get(state, "source"), is_waypoint=False, random=numbers.random
            )
        )
    )


def test_equal_weights_share_equally() -> None:
    counts = shares(endpoint("a"), endpoint("b"), endpoint("c"), endpoint("d"))
    assert all(850 < counts[uid] < 1150 for uid in "abcd")


def test_capacity_is_the_weight() -> None:
    counts = shares(endpoint("a", capacity=3), endpoint("b"), endpoint("c", capacity=0))
    assert 2800 < counts["a"] < 3200
    assert counts["c"] == 0


@pytest.mark.parametrize("number", [0.0, 0.999999999999, 1.0])
def test_edges_of_the_random_number(number: float) -> None:
    for endpoints in ((endpoint("a"), endpoint("b")), (endpoint("a", capacity=2), endpoint("b"))):
        state = mesh(SOURCE, service("web.default"), *endpoints)
        found = state.endpoints(get_service(state, KEY))
        assert found is not None
        picked = found.pick(
            get_service(state, KEY), 80, get(state, "source"), is_waypoint=False, random=lambda: number
        )
        assert picked is not None


def test_kept_tables_follow_every_change() -> None:
    state = mesh(SOURCE, service("web.default"), endpoint("a"))

    def picked() -> str | None:
        endpoints = state.endpoints(get_service(state, KEY))
        if endpoints is None:
            return None
        chosen = endpoints.pick(
            get_service(state, KEY), 80, get(state, "source"), is_waypoint=False, random=first
        )
        return None if chosen is None else chosen.uid

    assert picked() == "a"
    apply(state, endpoint("a", healthy=False), endpoint("b"))
    assert picked() == "b"
    apply(state, service("web.default", health=1))
    assert picked() == "a"
    state.apply(ADDRESS_TYPE, (), ["a", "b"])
    assert picked() is None
    apply(state, endpoint("c"))
    assert picked() == "c"
    apply(state, service("web.default", ports={81: 81}))
    assert picked() is None
    state.apply(ADDRESS_TYPE, [address(workload("c", "10.0.0.9", services={KEY: {81: 1}}))], ())
    assert picked() is None


def test_target_port_order() -> None:
    state = mesh(
        service("web.default", ports={80: 7070, 81: 0}),
        workload("own", services={KEY: {80: 9090}}),
        workload("none", services={KEY: {}}),
        workload("tunnel", services={KEY: {}}, app_tunnel=(True, 15088)),
        workload("tunnel0", services={KEY: {}}, app_tunnel=(True, 0)),
    )
    web = get_service(state, KEY)
    assert target_port(get(state, "own"), web, 80) == 9090
    assert target_port(get(state, "none"), web, 80) == 7070
    assert target_port(get(state, "none"), web, 81) is None
    assert target_port(get(state, "tunnel"), web, 81) == 81
    assert target_port(get(state, "tunnel0"), web, 81) is None
