"""Facts 5.9 and the VIP rules of 3.2; then any history against a rebuild from what is left of it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.state.model import ADDRESS_TYPE, WORKLOAD_TYPE, Service, Workload, decode_address
from dataplane.state.store import MeshState
from proto.istio import workload_pb2 as pb
from tests.dataplane.state.builders import address, apply, get, get_service, mesh, service, workload

KEY = "default/web.default"
HTTP = {KEY: {80: 8080}}


def remove(state: MeshState, *names: str) -> None:
    assert state.apply(ADDRESS_TYPE, (), names) == {}


def endpoint_uids(state: MeshState, key: str = KEY) -> list[str]:
    endpoints = state.endpoints(get_service(state, key))
    return [] if endpoints is None else list(endpoints.workloads)


def holder(state: MeshState, ip: str, network: str = "") -> str | None:
    found = state.workload_by_ip(network, ip)
    return None if found is None else found.uid


def test_replacing_a_workload_forgets_its_former_addresses_and_services() -> None:
    state = mesh(service("web.default"), workload("w", "10.0.0.1", services=HTTP))
    apply(state, workload("w", "10.0.0.2"))
    assert (holder(state, "10.0.0.1"), holder(state, "10.0.0.2")) == (None, "w")
    assert endpoint_uids(state) == []


def test_host_network_workloads_have_no_address_entry() -> None:
    state = mesh(workload("w", "10.0.0.1", network_mode=pb.HOST_NETWORK))
    assert holder(state, "10.0.0.1") is None
    assert get(state, "w").addresses == ("10.0.0.1",)


def test_networks_are_apart() -> None:
    state = mesh(workload("a", "10.0.0.1"), workload("b", "10.0.0.1", network="far"))
    assert (holder(state, "10.0.0.1"), holder(state, "10.0.0.1", "far")) == ("a", "b")


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (workload("c//Pod/ns/a", "10.0.0.1"), workload("c/x/WorkloadEntry/ns/b", "10.0.0.1")),
        (workload("c//Pod/ns/a", "10.0.0.1", hbone=False), workload("c/x/WorkloadEntry/ns/b", "10.0.0.1")),
        (workload("c//Pod/ns/a", "10.0.0.1"), workload("c//Pod/ns/b", "10.0.0.1", hbone=False)),
        (workload("c//Pod/ns/a", "10.0.0.1"), workload("c//Pod/ns/b", "10.0.0.1", healthy=False)),
    ],
)
def test_conflict_on_an_address(winner: pb.Workload, loser: pb.Workload, is_reversed: bool) -> None:
    state = mesh(*((loser, winner) if is_reversed else (winner, loser)))
    assert holder(state, "10.0.0.1") == winner.uid
    remove(state, winner.uid)
    assert holder(state, "10.0.0.1") == loser.uid
    remove(state, loser.uid)
    assert holder(state, "10.0.0.1") is None


def test_the_later_of_two_equals_has_the_address() -> None:
    state = mesh(workload("c//Pod/ns/old", "10.0.0.1"), workload("c//Pod/ns/new", "10.0.0.1"))
    assert holder(state, "10.0.0.1") == "c//Pod/ns/new"
    remove(state, "c//Pod/ns/old")
    assert holder(state, "10.0.0.1") == "c//Pod/ns/new"


def test_the_same_address_twice_in_one_workload() -> None:
    state = mesh(workload("w", "10.0.0.1", "10.0.0.1"))
    assert get(state, "w").addresses == ("10.0.0.1",)
    apply(state, workload("c//Pod/ns/a", "10.0.0.1"), workload("w", "10.0.0.1", "::ffff:10.0.0.1"))
    remove(state, "c//Pod/ns/a")
    assert holder(state, "10.0.0.1") == "w"
    remove(state, "w")
    assert holder(state, "10.0.0.1") is None


def test_endpoints_wait_for_their_service() -> None:
    state = mesh(workload("w", "10.0.0.1", services=HTTP))
    assert [key for key, _ in state.staged_services()] == [KEY]
    apply(state, service("web.default"))
    assert endpoint_uids(state) == ["w"]
    assert list(state.staged_services()) == []


def test_a_service_that_comes_back_has_its_endpoints_again() -> None:
    state = mesh(service("web.default"), workload("w", "10.0.0.1", services=HTTP))
    remove(state, KEY)
    assert KEY not in state.services
    apply(state, service("web.default"))
    assert endpoint_uids(state) == ["w"]


def test_service_update_keeps_endpoints() -> None:
    state = mesh(service("web.default"), workload("w", "10.0.0.1", services=HTTP))
    apply(state, service("web.default", "10.1.0.1"))
    assert endpoint_uids(state) == ["w"]


def test_removal_by_name_tries_workload_then_service() -> None:
    state = mesh(workload(KEY, "10.0.0.1"), service("web.default"))
    remove(state, KEY)
    assert state.workload_by_uid(KEY) is None
    assert KEY in state.services
    remove(state, KEY)
    assert KEY not in state.services
    remove(state, KEY, "never/heard/of")


def test_a_refused_version_leaves_the_good_one() -> None:
    state = mesh(workload("w", "10.0.0.1"))
    bad = workload("w", "10.0.0.9")
    bad.tunnel_protocol = pb.LEGACY_ISTIO_MTLS
    generation = state.generation
    rejected = state.apply(ADDRESS_TYPE, [address(bad)], ())
    assert rejected == {"w": "unknown tunnel protocol 2"}
    assert holder(state, "10.0.0.1") == "w"
    assert state.generation == generation


def test_the_good_resources_of_a_partly_bad_batch_are_applied() -> None:
    state = MeshState()
    rejected = state.apply(ADDRESS_TYPE, [("x", b"\xff"), address(workload("w", "10.0.0.1"))], ())
    assert set(rejected) == {"x"}
    assert holder(state, "10.0.0.1") == "w"


def test_removals_come_after_upserts() -> None:
    state = MeshState()
    state.apply(ADDRESS_TYPE, [address(workload("w", "10.0.0.1"))], ["w"])
    assert state.workload_by_uid("w") is None


def test_the_older_workload_type_is_understood() -> None:
    state = MeshState()
    data = workload("w", "10.0.0.1").SerializeToString()
    assert state.apply(WORKLOAD_TYPE, [("w", data)], ()) == {}
    assert holder(state, "10.0.0.1") == "w"


def test_watcher_sees_old_and_new() -> None:
    seen: list[tuple[str | None, str | None]] = []

    def watch(old: Workload | None, new: Workload | None) -> None:
        seen.append((None if old is None else old.node, None if new is None else new.node))

    state = MeshState(watch)
    apply(state, workload("w", node="n1"), workload("w", node="n2"))
    remove(state, "w")
    assert seen == [(None, "n1"), ("n1", "n2"), ("n2", None)]


def test_local_workload_needs_name_namespace_account_and_node() -> None:
    state = mesh(workload("w", name="p", namespace="ns", account="sa", node="n1"))
    assert state.local_workload("p", "ns", "sa", "n1") is not None
    assert state.local_workload("p", "ns", "sa", "") is not None
    assert state.local_workload("p", "ns", "sa", "n2") is None
    assert state.local_workload("p", "ns", "other", "n1") is None
    assert state.local_workload("p", "other", "sa", "n1") is None
    assert state.local_workload("q", "ns", "sa", "n1") is None


# --- virtual addresses ---


def best(state: MeshState, ip: str, namespace: str = "default") -> str | None:
    found = state.service_by_vip("", ip, namespace)
    return None if found is None else found.key


PRIVATE = pb.Service.NAMESPACE


def test_several_services_on_one_address() -> None:
    first = service("a", "10.1.0.1", namespace="n1")
    canonical = service("b", "10.1.0.1", namespace="n2", canonical=True)
    own = service("c", "10.1.0.1", namespace="default")
    hidden = service("d", "10.1.0.1", namespace="n3", visibility=PRIVATE)
    assert best(mesh(first, canonical, own, hidden), "10.1.0.1") == "default/c"
    assert best(mesh(first, canonical, hidden), "10.1.0.1") == "n2/b"
    assert best(mesh(first, hidden), "10.1.0.1") == "n1/a"
    assert best(mesh(hidden), "10.1.0.1") is None
    assert best(mesh(hidden), "10.1.0.1", "n3") == "n3/d"
    two_own = mesh(own, service("e", "10.1.0.1", namespace="default", canonical=True))
    assert best(two_own, "10.1.0.1") == "default/e"


def test_exact_beats_range_and_ranges_prefer_namespace_then_length_then_canonical() -> None:
    wide = service("wide", "10.0.0.0/8", namespace="n1")
    narrow = service("narrow", "10.1.0.0/16", namespace="n2")
    narrow_canonical = service("canon", "10.1.0.0/16", namespace="n3", canonical=True)
    exact = service("exact", "10.1.0.1", namespace="n4")
    state = mesh(wide, narrow, narrow_canonical, exact)
    assert best(state, "10.1.0.1") == "n4/exact"
    assert best(state, "10.1.0.2") == "n3/canon"
    assert best(state, "10.1.0.2", "n1") == "n1/wide"
    assert best(state, "10.2.0.2") == "n1/wide"
    assert best(state, "11.0.0.1") is None
    remove(state, "n3/canon")
    assert best(state, "10.1.0.2") == "n2/narrow"
    remove(state, "n2/narrow", "n1/wide", "n4/exact")
    assert best(state, "10.1.0.2") is None


def test_hidden_exact_address_falls_through_to_a_range() -> None:
    state = mesh(
        service("hidden", "10.1.0.1", namespace="n1", visibility=PRIVATE), service("wide", "10.0.0.0/8")
    )
    assert best(state, "10.1.0.1") == "default/wide"


def test_ranges_of_both_families() -> None:
    state = mesh(service("v4", "0.0.0.0/0"), service("v6", "fd00::/8"))
    assert best(state, "1.2.3.4") == "default/v4"
    assert best(state, "fd12::1") == "default/v6"
    assert best(state, "fe80::1") is None


# --- any history ---

UIDS = ["c//Pod/a/1", "c//Pod/a/2", "c/x/WorkloadEntry/a/3", "default/h1"]
HOSTS = ["h1", "h2"]
NAMESPACES = ["default", "other"]
IPS = ["10.0.0.1", "10.0.0.2", "fd00::1"]
RANGES = ["10.0.0.0/8", "10.0.0.0/24", "fd00::/16", "10.0.0.1"]
SERVICE_KEYS = [f"{namespace}/{host}" for namespace in NAMESPACES for host in HOSTS]

workloads = st.builds(
    lambda uid, ips, hbone, healthy, services, host_network, namespace: workload(
        uid,
        *ips,
        hbone=hbone,
        healthy=healthy,
        namespace=namespace,
        services={key: {80: 8080} for key in services},
        hostname="h1" if host_network else "",
        network_mode=pb.HOST_NETWORK if host_network else pb.STANDARD,
    ),
    st.sampled_from(UIDS),
    st.lists(st.sampled_from(IPS), max_size=2),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(SERVICE_KEYS), max_size=2, unique=True),
    st.booleans(),
    st.sampled_from(NAMESPACES),
)
services = st.builds(
    lambda host, vips, namespace, canonical, private: service(
        host,
        *vips,
        namespace=namespace,
        canonical=canonical,
        visibility=PRIVATE if private else pb.Service.PUBLIC,
    ),
    st.sampled_from(HOSTS),
    st.lists(st.sampled_from(IPS + RANGES), max_size=3),
    st.sampled_from(NAMESPACES),
    st.booleans(),
    st.booleans(),
)
steps = st.lists(st.one_of(workloads, services, st.sampled_from(UIDS + SERVICE_KEYS)), max_size=25)


class NaiveMesh:
    """Only the resources, in order of arrival; every question is answered by looking at all of them."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}

    def step(self, step: pb.Workload | pb.Service | str) -> None:
        if isinstance(step, str):
            if self.workloads.pop(step, None) is None:
                self.services.pop(step, None)
            return
        found = decode_address(address(step)[1])
        if isinstance(found, Workload):
            self.workloads.pop(found.uid, None)
            self.workloads[found.uid] = found
        else:
            self.services.pop(found.key, None)
            self.services[found.key] = found

    def workload_by_ip(self, ip: str) -> Workload | None:
        claims = [w for w in self.workloads.values() if ip in w.addresses and not w.is_host_network]
        ranked = sorted(
            enumerate(claims),
            key=lambda c: (2 * ("//Pod/" in c[1].uid) + c[1].is_hbone, c[1].is_healthy, c[0]),
        )
        return ranked[-1][1] if ranked else None

    def endpoints(self, key: str) -> list[str]:
        return [w.uid for w in self.workloads.values() if key in w.services]

    def best(self, found: list[Service], namespace: str) -> Service | None:
        visible = [s for s in found if s.is_visible_to(namespace)]
        visible.sort(key=lambda s: (s.namespace != namespace, not s.is_canonical))
        return visible[0] if visible else None

    def service_by_vip(self, ip: str, namespace: str) -> Service | None:
        exact = [
            s for s in self.services.values() if any(v.address == ip and v.length is None for v in s.vips)
        ]
        if found := self.best(exact, namespace):
            return found
        hits = [
            (network.prefixlen, s)
            for s in self.services.values()
            for v in s.vips
            if v.length is not None
            for network in [ip_network(f"{v.address}/{v.length}", strict=False)]
            if ip_address(ip) in network and s.is_visible_to(namespace)
        ]
        hits.sort(key=lambda hit: (hit[1].namespace != namespace, -hit[0], not hit[1].is_canonical))
        return hits[0][1] if hits else None


@settings(max_examples=300, deadline=None)
@given(steps)
def test_any_history_answers_like_a_rebuild(history: list[pb.Workload | pb.Service | str]) -> None:
    state, naive = MeshState(), NaiveMesh()
    for step in history:
        naive.step(step)
        if isinstance(step, str):
            remove(state, step)
        else:
            apply(state, step)
    assert list(state.workloads) == list(naive.workloads)
    assert list(state.services) == list(naive.services)
    for ip in IPS:
        assert state.workload_by_ip("", ip) == naive.workload_by_ip(ip)
        for namespace in [*NAMESPACES, "third"]:
            assert state.service_by_vip("", ip, namespace) == naive.service_by_vip(ip, namespace)
    for key in SERVICE_KEYS:
        if key in state.services:
            found = state.endpoints(state.services[key])
            assert ([] if found is None else list(found.workloads)) == naive.endpoints(key)
    for namespace in NAMESPACES:
        for host in HOSTS:
            same_name = [s for s in naive.services.values() if s.hostname == host]
            assert state.service_by_hostname(host, namespace) == naive.best(same_name, namespace)
    for step in [*state.workloads, *state.services]:
        remove(state, step)
    assert is_empty(state)


def is_empty(state: MeshState) -> bool:
    """Nothing is left in any index once everything is removed."""
    leftovers = {
        name: value
        for name, value in vars(state).items()
        if isinstance(value, dict) and value and name != "_policy_sets"
    }
    return leftovers == {} and not state._ranges.is_used
