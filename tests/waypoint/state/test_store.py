"""The state of a waypoint: what was applied last counts, and hosts live through what happens to others."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.state.model import ADDRESS_TYPE, Locality
from proto.istio import workload_pb2 as mesh_pb
from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import service, workload
from tests.waypoint.resources import (
    PLACE,
    VIP,
    WEB,
    Resource,
    destination,
    put,
    routes,
    rule,
    seconds,
    web_service,
)
from waypoint.state.cluster import Cluster, ClusterKey
from waypoint.state.destinations import DESTINATION_TYPE
from waypoint.state.hosts import Application, Endpoint
from waypoint.state.members import application, distance
from waypoint.state.place import Place
from waypoint.state.routes import ROUTES_TYPE
from waypoint.state.store import WaypointState


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state_of(*resources: Resource, place: Place = PLACE, clock: Clock | None = None) -> WaypointState:
    state = WaypointState(place, clock=clock or Clock(), random=random.Random(1).random)
    assert put(state, *resources) == {}
    return state


def member(uid: str, *ips: str, **fields: object) -> mesh_pb.Workload:
    ports = {WEB: {80: 8080}}
    return workload(uid, *(ips or ("10.0.0.1",)), services=ports, **fields)  # type: ignore[arg-type]


def web_cluster(state: WaypointState, subset: str = "") -> Cluster:
    cluster = state.cluster(WEB, 80, subset)
    assert cluster is not None
    return cluster


def uids(cluster: Cluster) -> list[str]:
    return [host.member.uid for host in cluster.hosts]


# --- members ---


class Case(NamedTuple):
    workload: mesh_pb.Workload
    problem: str  # empty: it is used


@pytest.mark.parametrize(
    "case",
    [
        Case(member("a"), ""),
        Case(member("a", capacity=3), ""),
        Case(member("a", healthy=False), "is not ready"),
        Case(member("a", capacity=0), "has no capacity"),
        Case(member("a", network="other"), "is in network 'other'"),
        Case(workload("a", "10.0.0.1", services={WEB: {}}), "has no port"),
        Case(workload("a", services={WEB: {80: 1}}), "has no address"),
        Case(workload("a", services={WEB: {80: 1}}, hostname="h.example"), ""),
        Case(workload("a", "10.0.0.1", services={WEB: {}}, app_tunnel=(True, 15088)), ""),
    ],
)
def test_who_is_a_member(case: Case) -> None:
    cluster = web_cluster(state_of(web_service(), case.workload))
    assert uids(cluster) == ([] if case.problem else ["a"])
    assert case.problem in cluster.unavailable().details


def test_an_unready_endpoint_is_used_where_the_service_says_so() -> None:
    unready = web_service(health=mesh_pb.LoadBalancing.ALLOW_ALL)
    assert uids(web_cluster(state_of(unready, member("a", healthy=False)))) == ["a"]


def test_where_and_as_whom_an_endpoint_is_reached() -> None:
    cluster = web_cluster(
        state_of(
            web_service(sans=["spiffe://cluster.local/ns/x/sa/y"]),
            member("a", "10.0.0.1", "2001:db8::1"),
            member("b", "10.0.0.2", hbone=False),
        )
    )
    first, second = cluster.hosts
    assert first.endpoint.address == ("10.0.0.1", 8080)
    assert first.endpoint6 is not None
    assert first.endpoint6.address == ("2001:db8::1", 8080)
    assert [str(each) for each in first.endpoint.identities] == [
        "spiffe://cluster.local/ns/x/sa/y",
        "spiffe://cluster.local/ns/default/sa/app",
    ]
    assert second.endpoint.identities == ()
    assert second.endpoint6 is None


@pytest.mark.parametrize(
    ("protocol", "pool", "spoken"),
    [
        (pb.HTTP, pb.ConnectionPool(), Application.HTTP1),
        (pb.HTTP2, pb.ConnectionPool(), Application.HTTP2),
        (pb.GRPC, pb.ConnectionPool(), Application.HTTP2),
        (pb.DETECT, pb.ConnectionPool(), None),
        (pb.HTTP, pb.ConnectionPool(upgrades_to_http2=True), Application.HTTP2),
        (pb.HTTP, pb.ConnectionPool(uses_client_protocol=True), None),
        (pb.HTTP2, pb.ConnectionPool(uses_client_protocol=True), None),
    ],
)
def test_the_protocol_that_is_spoken(
    protocol: int, pool: pb.ConnectionPool, spoken: Application | None
) -> None:
    state = state_of(
        web_service(), routes(protocol=protocol), destination(pb.TrafficPolicy(connection_pool=pool))
    )
    cluster = web_cluster(state)
    assert cluster.application is spoken
    assert application(protocol, cluster.policy) is spoken


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Locality("r", "z", "s"), 0),
        (Locality("r", "z", "t"), 1),
        (Locality("r", "y", "s"), 2),
        (Locality("q", "z", "s"), 3),
    ],
)
def test_distance(other: Locality, expected: int) -> None:
    assert distance(Locality("r", "z", "s"), other) == expected


NODE, ZONE, REGION, NETWORK = (
    mesh_pb.LoadBalancing.NODE,
    mesh_pb.LoadBalancing.ZONE,
    mesh_pb.LoadBalancing.REGION,
    mesh_pb.LoadBalancing.NETWORK,
)


def test_internal_traffic_policy_local_means_the_waypoints_node() -> None:
    local = web_service(mode=mesh_pb.LoadBalancing.STRICT, preferences=[NODE])
    place = Place("default", "waypoint", node="n1")
    state = state_of(local, member("a", node="n1"), member("b", node="n2"), place=place)
    assert uids(web_cluster(state)) == ["a"]


def test_traffic_distribution_prefers_and_does_not_exclude() -> None:
    near = web_service(mode=mesh_pb.LoadBalancing.FAILOVER, preferences=[NETWORK, REGION, ZONE])
    place = Place("default", "waypoint", locality=Locality("r", "z"))
    state = state_of(
        near,
        member("far", locality=("q", "z", "")),
        member("near", locality=("r", "z", "")),
        member("middle", locality=("r", "y", "")),
        place=place,
    )
    cluster = web_cluster(state)
    ranked = sorted(cluster.hosts, key=lambda host: host.member.preference)
    assert [host.member.uid for host in ranked] == ["near", "middle", "far"]
    picked = {cluster.balancer.pick(100.0) for _ in range(20)}
    assert picked == {ranked[0]}


def test_a_waypoint_that_learns_where_it_is_prefers_what_is_near() -> None:
    detection = pb.TrafficPolicy(outlier_detection=pb.OutlierDetection(consecutive_5xx=5))
    state = state_of(
        web_service(),
        member("near", locality=("r", "z", "")),
        member("far", locality=("q", "z", "")),
        destination(detection),
    )
    cluster = web_cluster(state)
    assert len({host.member.preference for host in cluster.hosts}) == 1
    hosts = list(cluster.hosts)
    state.stand_at(Place("default", "waypoint", locality=Locality("r", "z")))
    assert cluster.hosts == hosts
    assert [host.member.preference for host in cluster.hosts] == [0, 3]
    state.stand_at(Place("default", "waypoint", network="other"))
    assert cluster.hosts == []


def test_a_backend_behind_another_waypoint_is_reached_directly() -> None:
    other = "default/other-waypoint.default.svc.cluster.local:15008"
    behind = web_service(waypoint=other)
    cluster = web_cluster(state_of(behind, member("a", "10.0.0.7", waypoint=other, account="app")))
    (host,) = cluster.hosts
    assert host.endpoint.address == ("10.0.0.7", 8080)
    assert host.endpoint.hbone_address is None  # its own port 15008
    assert [each.service_account for each in host.endpoint.identities] == ["app"]


# --- changes ---


def test_a_refused_resource_keeps_its_last_good_version() -> None:
    state = state_of(web_service(), routes(rule("good")))
    assert "not a ServiceRoutes" in state.apply(ROUTES_TYPE, [(WEB, b"\xff")], ())[WEB]
    wrong = routes(rule("bad")).SerializeToString()
    assert "about" in state.apply(ROUTES_TYPE, [("default/other", wrong)], ())["default/other"]
    assert "not a Destination" in state.apply(DESTINATION_TYPE, [(WEB, b"\xff")], ())[WEB]
    table = state.table(WEB, 80)
    assert table is not None
    assert state.tables.keys() == {WEB}
    state.apply(ROUTES_TYPE, (), [WEB])
    assert state.table(WEB, 80) is None


def test_a_host_lives_through_changes_of_others_and_comes_back_as_it_was() -> None:
    clock = Clock()
    gone: list[Endpoint] = []
    state = state_of(web_service(), member("a"), member("b", "10.0.0.2"), clock=clock)
    state.on_gone = gone.append
    cluster = web_cluster(state)
    first, second = cluster.hosts
    first.active = 3
    second.ejections = 2
    put(state, member("c", "10.0.0.3"), member("a", "10.0.0.1", capacity=5))
    assert first in cluster.hosts
    assert (first.active, first.member.weight) == (3, 5)
    clock.now = 200.0
    state.apply(ADDRESS_TYPE, (), ["b"])
    assert gone == [second.endpoint]
    assert second not in cluster.hosts
    clock.now = 300.0
    put(state, member("b", "10.0.0.2"))
    assert second in cluster.hosts
    assert (second.ejections, second.joined_at) == (2, 300.0)
    put(state, member("b", "10.0.0.9"))
    assert [each.address[0] for each in gone] == ["10.0.0.2", "10.0.0.2"]
    assert second.endpoint.address[0] == "10.0.0.9"


def test_the_first_hosts_are_not_young() -> None:
    clock = Clock()
    state = state_of(
        web_service(), member("a"), destination(pb.TrafficPolicy(slow_start=seconds(30))), clock=clock
    )
    cluster = web_cluster(state)
    assert cluster.hosts[0].joined_at < 0
    put(state, member("b", "10.0.0.2"))
    assert {host.member.uid: host.joined_at for host in cluster.hosts}["b"] == clock.now


def test_a_policy_changes_while_requests_are_counted() -> None:
    state = state_of(web_service(), member("a"))
    cluster = web_cluster(state)
    granted = [cluster.circuit.may_request()]
    pool = pb.ConnectionPool(maximum_requests=1)
    put(state, destination(pb.TrafficPolicy(connection_pool=pool)))
    assert web_cluster(state) is cluster
    granted.append(cluster.circuit.may_request())
    cluster.circuit.end_request()
    granted.append(cluster.circuit.may_request())
    assert granted == [True, False, True]


def test_ejection_survives_changes_and_ends_with_detection() -> None:
    clock = Clock()
    detection = pb.OutlierDetection(consecutive_5xx=1, maximum_ejection_percent=100)
    policy = destination(pb.TrafficPolicy(outlier_detection=detection))
    state = state_of(web_service(), member("a"), member("b", "10.0.0.2"), policy, clock=clock)
    cluster = web_cluster(state)
    cluster.on_response(cluster.hosts[0], 500, clock.now)
    put(state, member("c", "10.0.0.3"))
    bad = next(host for host in cluster.hosts if host.member.uid == "a")
    seen = [bad.is_available]
    clock.now += 31
    state.sweep()
    seen.append(bad.is_available)
    cluster.on_response(bad, 500, clock.now)
    seen.append(bad.is_available)
    state.apply(DESTINATION_TYPE, (), [WEB])
    seen.append(bad.is_available)
    assert seen == [False, True, False, True]


def test_a_cluster_goes_with_its_service_or_subset_after_a_while() -> None:
    clock = Clock()
    subsets = [pb.Subset(name="v1", workloads=["a"])]
    with_subset = destination(subsets=subsets)
    state = state_of(web_service(), member("a"), with_subset, clock=clock)
    gone: list[Endpoint] = []
    state.on_gone = gone.append
    assert uids(web_cluster(state, "v1")) == ["a"]
    assert state.cluster(WEB, 80, "v2") is None
    assert state.cluster("default/nobody", 80) is None
    web_cluster(state)
    state.apply(DESTINATION_TYPE, (), [WEB])
    assert uids(web_cluster(state, "v1")) == ["a"]  # routes that still lead there are on their way out
    clock.now += 4.0
    state.sweep()
    put(state, with_subset)  # it is back
    clock.now += 4.0
    state.sweep()
    assert uids(web_cluster(state, "v1")) == ["a"]
    state.apply(DESTINATION_TYPE, (), [WEB])
    before = state.generation
    clock.now += 5.0
    state.sweep()
    assert state.clusters.keys() == {ClusterKey(WEB, 80)}
    assert len(gone) == 1
    assert state.generation > before
    assert state.cluster(WEB, 80, "v1") is None
    state.apply(ADDRESS_TYPE, (), [WEB])
    clock.now += 5.0
    state.sweep()
    assert state.clusters == {}
    assert len(gone) == 2


def test_the_number_of_clusters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waypoint.state.store._MAX_CLUSTERS", 8)
    own = "default/waypoint.default.svc.cluster.local:15008"
    state = state_of(workload("a", "10.0.0.1", waypoint=own))
    found = state.served_workload("10.0.0.1")
    assert found is not None
    for port in range(1, 100):
        cluster = state.workload_cluster(found, ("10.0.0.1", port))
        assert cluster is not None
        assert cluster.hosts[0].endpoint.address == ("10.0.0.1", port)
        assert len(state.clusters) <= 8


def test_a_workload_is_called_by_the_very_address() -> None:
    clock = Clock()
    state = state_of(member("a", "10.0.0.1", "10.0.0.2", healthy=False), clock=clock)
    found = state.mesh.workload_by_uid("a")
    assert found is not None
    cluster = state.workload_cluster(found, ("10.0.0.2", 9))
    assert cluster is not None
    assert cluster.hosts[0].endpoint.address == ("10.0.0.2", 9)
    put(state, member("a", "10.0.0.1"))
    clock.now += 5.0
    state.sweep()
    assert state.clusters == {}


# --- the same as from scratch ---

UIDS = ("a", "b", "c", "d")
step = st.one_of(
    st.builds(
        lambda uid, ip, healthy, capacity, named: member(
            uid, f"10.0.0.{ip}", healthy=healthy, capacity=capacity, hbone=named
        ),
        st.sampled_from(UIDS),
        st.integers(1, 3),
        st.booleans(),
        st.integers(0, 2),
        st.booleans(),
    ),
    st.builds(lambda uid: ("remove", uid), st.sampled_from(UIDS)),
    st.builds(
        lambda port, first: service("web", VIP, ports={80: port} if first else {81: port}),
        st.sampled_from([0, 8080, 9090]),
        st.booleans(),
    ),
    st.builds(
        lambda limit, uids: destination(
            pb.TrafficPolicy(connection_pool=pb.ConnectionPool(maximum_requests=limit)),
            subsets=[pb.Subset(name="v1", workloads=uids)],
        ),
        st.integers(1, 5),
        st.lists(st.sampled_from(UIDS), max_size=3),
    ),
    st.builds(lambda kind: routes(protocol=kind), st.sampled_from([pb.HTTP, pb.GRPC, pb.DETECT])),
)


def facts(state: WaypointState, subset: str) -> object:
    cluster = state.cluster(WEB, 80, subset)
    if cluster is None:
        return None
    hosts = {
        host.member.uid: (host.member, host.endpoint._key[:-1], host.endpoint6, host.workload)
        for host in cluster.hosts
    }
    return cluster.policy, cluster.application, cluster.service, hosts, sorted(cluster.problems)


@settings(max_examples=150, deadline=None)
@given(st.lists(step, max_size=14))
def test_changes_one_by_one_lead_to_the_same_as_all_at_once(steps: list[object]) -> None:
    clock = Clock()
    state = state_of(web_service(), clock=clock)
    latest: dict[object, Resource] = {"service": web_service()}
    for each in steps:
        for subset in ("", "v1"):
            state.cluster(WEB, 80, subset)
        match each:
            case ("remove", str(uid)):
                state.apply(ADDRESS_TYPE, (), [uid])
                latest.pop(uid, None)
            case mesh_pb.Workload():
                put(state, each)
                latest.pop(each.uid, None)
                latest[each.uid] = each
            case mesh_pb.Service():
                put(state, each)
                latest["service"] = each
            case pb.Destination() | pb.ServiceRoutes():
                put(state, each)
                latest[type(each)] = each
            case _:
                raise AssertionError(each)
    clock.now += 5.0
    state.sweep()
    rebuilt = state_of(*latest.values())
    for subset in ("", "v1"):
        assert facts(state, subset) == facts(rebuilt, subset)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None)
def test_weights_of_endpoints_converge(weights: list[int], seed: int) -> None:
    members = [
        member(f"w{number}", f"10.0.1.{number + 1}", capacity=weight) for number, weight in enumerate(weights)
    ]
    state = WaypointState(PLACE, clock=Clock(), random=random.Random(seed).random)
    put(
        state,
        web_service(),
        *members,
        destination(pb.TrafficPolicy(balancer=pb.TrafficPolicy.ROUND_ROBIN)),
    )
    cluster = web_cluster(state)
    rounds = sum(weights) * 4
    found = dict.fromkeys(uids(cluster), 0)
    for _ in range(rounds):
        host = cluster.balancer.pick(100.0)
        assert host is not None
        found[host.member.uid] += 1
    for (uid, count), weight in zip(sorted(found.items()), weights, strict=True):
        assert abs(count - rounds * weight / sum(weights)) <= 2, uid


def test_ranges_and_addresses_denote_one_service() -> None:
    mine = service("same", "10.96.5.5", namespace="default")
    canonical = service("same", "10.96.5.5", namespace="other", canonical=True)
    for order in itertools.permutations([mine, canonical]):
        state = state_of(*order, routes(key="default/same"), routes(key="other/same"))
        found = state.served_service("10.96.5.5")
        assert found is not None
        assert found.key == "default/same"  # the waypoint's own namespace first
