"""Every row of facts 3.2, 3.3 and 3.5, and the routing cases of 14.4."""

from __future__ import annotations

import pytest

from dataplane.state.store import MeshState
from proto.istio import workload_pb2 as pb
from tests.dataplane.state.builders import first, get, mesh, service, workload
from ztunnel.state.routing import NoRoute, Protocol, Route, RouteProblem, RoutingContext, route

CONTEXT = RoutingContext(network="", random=first)
SOURCE = workload("source", "10.0.0.1", node="n1", account="client")
HTTP = {"default/web.default": {80: 8080}}
WAYPOINT_SERVICE = {"default/wp.default": {15008: 15008}}
PASSTHROUGH, STRICT, FAILOVER = 3, 1, 2


def decide(
    *resources: pb.Workload | pb.Service,
    to: tuple[str, int],
    source: pb.Workload = SOURCE,
    context: RoutingContext = CONTEXT,
) -> Route | NoRoute:
    state = mesh(source, *resources)
    return route(get(state, source.uid), to, state, context)


def routed(result: Route | NoRoute) -> Route:
    assert isinstance(result, Route), result
    return result


def refused(result: Route | NoRoute) -> RouteProblem:
    assert isinstance(result, NoRoute), result
    return result.problem


def principals(route_: Route) -> list[str]:
    return [identity.principal for identity in route_.expected_identities]


def test_unknown_address_passes_through() -> None:
    found = routed(decide(to=("1.2.3.4", 80)))
    assert (found.protocol, found.address, found.authority) == (Protocol.TCP, ("1.2.3.4", 80), None)
    assert found.workload is None
    assert found.expected_identities == ()


def test_known_workload_without_tunnel_is_plain() -> None:
    found = routed(decide(workload("w", "10.0.0.2", hbone=False), to=("10.0.0.2", 80)))
    assert (found.protocol, found.address, found.authority) == (Protocol.TCP, ("10.0.0.2", 80), None)


def test_known_workload_with_hbone_is_tunnelled_to_15008() -> None:
    found = routed(decide(workload("w", "10.0.0.2", account="b"), to=("10.0.0.2", 80)))
    assert (found.protocol, found.address, found.authority) == (
        Protocol.HBONE,
        ("10.0.0.2", 15008),
        "10.0.0.2:80",
    )
    assert principals(found) == ["cluster.local/ns/default/sa/b"]


def test_same_node_is_no_exception() -> None:
    found = routed(decide(workload("w", "10.0.0.2", node="n1"), to=("10.0.0.2", 80)))
    assert found.address == ("10.0.0.2", 15008)


def test_ipv6_authority_is_bracketed() -> None:
    found = routed(decide(workload("w", "fd00::2"), to=("fd00::2", 80)))
    assert (found.address, found.authority) == (("fd00::2", 15008), "[fd00::2]:80")


def test_workload_of_another_network_is_unknown_by_address() -> None:
    found = routed(decide(workload("w", "10.0.0.2", network="other"), to=("10.0.0.2", 80)))
    assert found.protocol is Protocol.TCP


def test_host_network_workload_is_not_found_by_address() -> None:
    node = workload("w", "10.0.0.2", network_mode=pb.HOST_NETWORK)
    assert routed(decide(node, to=("10.0.0.2", 80))).protocol is Protocol.TCP


def test_workload_waypoint_by_address() -> None:
    found = routed(
        decide(
            workload("w", "10.0.0.2", waypoint="|10.0.0.9:15008"),
            workload("wp", "10.0.0.9", account="wp"),
            to=("10.0.0.2", 80),
        )
    )
    assert (found.protocol, found.address, found.authority) == (
        Protocol.HBONE,
        ("10.0.0.9", 15008),
        "10.0.0.2:80",
    )
    assert principals(found) == ["cluster.local/ns/default/sa/wp"]
    assert found.workload is not None
    assert found.workload.uid == "wp"


def test_workload_waypoint_by_service_hostname_accepts_the_services_identities() -> None:
    found = routed(
        decide(
            workload("w", "10.0.0.2", waypoint="default/wp.default:15008"),
            service(
                "wp.default",
                ports={15008: 15009},
                sans=["spiffe://cluster.local/ns/x/sa/extra", "not-spiffe"],
            ),
            workload("wp", "10.0.0.9", account="wp", services={"default/wp.default": {15008: 15009}}),
            to=("10.0.0.2", 80),
        )
    )
    assert found.address == ("10.0.0.9", 15009)
    assert principals(found) == ["cluster.local/ns/x/sa/extra", "cluster.local/ns/default/sa/wp"]


def test_waypoint_by_workload_hostname() -> None:
    found = routed(
        decide(
            workload("w", "10.0.0.2", waypoint="default/wp.example:15008"),
            workload("wp", "10.0.0.9", hostname="wp.example"),
            to=("10.0.0.2", 80),
        )
    )
    assert found.address == ("10.0.0.9", 15008)
    assert found.hostname_to_resolve == ""


@pytest.mark.parametrize("reference", ["|10.0.0.9:15008", "default/none.default:15008"])
def test_unknown_waypoint_is_refused(reference: str) -> None:
    result = decide(workload("w", "10.0.0.2", waypoint=reference), to=("10.0.0.2", 80))
    assert refused(result) is RouteProblem.UNKNOWN_WAYPOINT
    result = decide(service("web.default", "10.1.0.1", waypoint=reference), to=("10.1.0.1", 80))
    assert refused(result) is RouteProblem.UNKNOWN_WAYPOINT


def test_waypoint_without_healthy_endpoint_is_unknown() -> None:
    result = decide(
        service("web.default", "10.1.0.1", waypoint="default/wp.default:15008"),
        service("wp.default", ports={15008: 15008}),
        workload("wp", "10.0.0.9", services=WAYPOINT_SERVICE, healthy=False),
        to=("10.1.0.1", 80),
    )
    assert refused(result) is RouteProblem.UNKNOWN_WAYPOINT


def test_sources_own_waypoint_is_ignored() -> None:
    source = workload("source", "10.0.0.1", waypoint="|10.0.0.9:15008")
    found = routed(decide(workload("w", "10.0.0.2"), to=("10.0.0.2", 80), source=source))
    assert found.address == ("10.0.0.2", 15008)


@pytest.mark.parametrize("reference", ["|10.0.0.9:15008", "default/wp.default:15008"])
def test_traffic_from_the_waypoint_goes_on_directly(reference: str) -> None:
    waypoint = workload("wp", "10.0.0.9", services=WAYPOINT_SERVICE)
    found = routed(
        decide(
            service("wp.default", ports={15008: 15008}),
            workload("w", "10.0.0.2", waypoint=reference),
            to=("10.0.0.2", 80),
            source=waypoint,
        )
    )
    assert (found.address, found.authority) == (("10.0.0.2", 15008), "10.0.0.2:80")


def test_vip_leads_to_an_endpoint_at_its_target_port() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", sans=["spiffe://cluster.local/ns/x/sa/extra"]),
            workload("w", "10.0.0.2", account="b", services=HTTP),
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address, found.authority) == (
        Protocol.HBONE,
        ("10.0.0.2", 15008),
        "10.0.0.2:8080",
    )
    assert principals(found) == ["cluster.local/ns/x/sa/extra", "cluster.local/ns/default/sa/b"]
    assert found.service is not None
    assert found.service.hostname == "web.default"


def test_vip_with_plaintext_endpoint() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1"),
            workload("w", "10.0.0.2", hbone=False, services=HTTP),
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address, found.authority) == (Protocol.TCP, ("10.0.0.2", 8080), None)
    assert found.service is not None


def test_vip_with_service_waypoint_keeps_the_vip_as_authority() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", waypoint="default/wp.default:15008"),
            service("wp.default", ports={15008: 15008}),
            workload("wp", "10.0.0.9", account="wp", services=WAYPOINT_SERVICE),
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address, found.authority) == (
        Protocol.HBONE,
        ("10.0.0.9", 15008),
        "10.1.0.1:80",
    )
    assert found.service is not None
    assert found.service.hostname == "web.default"


def test_ipv6_vip_keeps_its_authority_with_an_ipv4_waypoint() -> None:
    found = routed(
        decide(
            service("web.default", "fd00:1::1", waypoint="|10.0.0.9:15008"),
            workload("wp", "10.0.0.9"),
            to=("fd00:1::1", 80),
        )
    )
    assert (found.address, found.authority) == (("10.0.0.9", 15008), "[fd00:1::1]:80")


def test_waypoint_by_hostname_follows_the_clients_family() -> None:
    found = routed(
        decide(
            service("web.default", "fd00:1::1", waypoint="default/wp.default:15008"),
            service("wp.default", ports={15008: 15008}),
            workload("wp", "10.0.0.9", "fd00::9", services=WAYPOINT_SERVICE),
            to=("fd00:1::1", 80),
        )
    )
    assert found.address == ("fd00::9", 15008)


def test_workload_waypoint_of_an_endpoint_is_ignored_for_service_traffic() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1"),
            workload("w", "10.0.0.2", services=HTTP, waypoint="|10.0.0.9:15008"),
            workload("wp", "10.0.0.9"),
            to=("10.1.0.1", 80),
        )
    )
    assert found.address == ("10.0.0.2", 15008)


def test_waypoint_service_need_not_declare_the_port_with_an_application_tunnel() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", waypoint="default/wp.default:15008"),
            service("wp.default", ports={}),
            workload("wp", "10.0.0.9", services={"default/wp.default": {}}, app_tunnel=(True, 15088)),
            to=("10.1.0.1", 80),
        )
    )
    assert found.address == ("10.0.0.9", 15008)


@pytest.mark.parametrize(("number", "expected"), [(0.0, "10.0.0.8"), (0.74, "10.0.0.8"), (0.76, "10.0.0.9")])
def test_weighted_waypoints_are_sampled(number: float, expected: str) -> None:
    numbers = iter([number, 0.0, 0.0])
    found = routed(
        decide(
            service(
                "web.default",
                "10.1.0.1",
                waypoint="|10.9.9.9:15008",
                weighted={"|10.0.0.8:15008": 75, "|10.0.0.9:15008": 25},
            ),
            workload("a", "10.0.0.8"),
            workload("b", "10.0.0.9"),
            to=("10.1.0.1", 80),
            context=RoutingContext("", lambda: next(numbers)),
        )
    )
    assert found.address[0] == expected


def test_weighted_waypoints_without_weight_fall_back_to_the_waypoint() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", waypoint="|10.0.0.9:15008", weighted={"|10.0.0.8:15008": 0}),
            workload("a", "10.0.0.8"),
            workload("b", "10.0.0.9"),
            to=("10.1.0.1", 80),
        )
    )
    assert found.address[0] == "10.0.0.9"


def test_passthrough_service_without_waypoint() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", mode=PASSTHROUGH),
            workload("w", "10.0.0.2", services=HTTP),
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address) == (Protocol.TCP, ("10.1.0.1", 80))


def test_passthrough_service_with_waypoint() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", mode=PASSTHROUGH, waypoint="|10.0.0.9:15008"),
            workload("wp", "10.0.0.9"),
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address) == (Protocol.HBONE, ("10.0.0.9", 15008))


def test_service_without_endpoints_or_port_is_refused() -> None:
    empty = decide(service("web.default", "10.1.0.1"), to=("10.1.0.1", 80))
    assert refused(empty) is RouteProblem.NO_HEALTHY_UPSTREAM
    assert isinstance(empty, NoRoute)
    assert empty.text == "no healthy upstream: 10.1.0.1:80"
    wrong_port = decide(
        service("web.default", "10.1.0.1"), workload("w", "10.0.0.2", services=HTTP), to=("10.1.0.1", 81)
    )
    assert refused(wrong_port) is RouteProblem.NO_HEALTHY_UPSTREAM


def test_private_service_elsewhere_is_an_unknown_address() -> None:
    private = service("web.other", "10.1.0.1", namespace="other", visibility=pb.Service.NAMESPACE)
    endpoint = workload("w", "10.0.0.2", namespace="other", services={"other/web.other": {80: 8080}})
    outside = routed(decide(private, endpoint, to=("10.1.0.1", 80)))
    assert (outside.protocol, outside.address) == (Protocol.TCP, ("10.1.0.1", 80))
    inside = decide(
        private, endpoint, to=("10.1.0.1", 80), source=workload("s", "10.0.0.1", namespace="other")
    )
    assert routed(inside).protocol is Protocol.HBONE


# --- 3.3 ---


def test_named_port_is_resolved_for_each_endpoint() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", ports={80: 0}),
            workload("none", "10.0.0.3", services={"default/web.default": {}}),
            workload("w", "10.0.0.2", services={"default/web.default": {80: 9090}}),
            to=("10.1.0.1", 80),
        )
    )
    assert found.authority == "10.0.0.2:9090"


def test_target_port_of_the_service_where_the_endpoint_has_none() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", ports={80: 7070}),
            workload("w", "10.0.0.2", services={"default/web.default": {}}),
            to=("10.1.0.1", 80),
        )
    )
    assert found.authority == "10.0.0.2:7070"


def test_the_dialled_address_is_kept_where_the_workload_has_several() -> None:
    found = routed(decide(workload("w", "10.0.0.2", "10.0.0.3"), to=("10.0.0.3", 80)))
    assert found.authority == "10.0.0.3:80"


@pytest.mark.parametrize(
    ("vip", "families", "expected"),
    [
        ("10.1.0.1", pb.AUTOMATIC, "10.0.0.2"),
        ("fd00:1::1", pb.AUTOMATIC, "fd00::2"),
        ("10.1.0.1", pb.IPV6_ONLY, "fd00::2"),
        ("fd00:1::1", pb.IPV4_ONLY, "10.0.0.2"),
        ("fd00:1::1", pb.DUAL, "fd00::2"),
    ],
)
def test_family_of_the_endpoint(vip: str, families: int, expected: str) -> None:
    found = routed(
        decide(
            service("web.default", vip, ip_families=families),
            workload("w", "10.0.0.2", "fd00::2", services=HTTP),
            to=(vip, 80),
        )
    )
    assert found.address[0] == expected


def test_endpoint_of_a_forbidden_family_only_is_no_valid_destination() -> None:
    result = decide(
        service("web.default", "fd00:1::1", ip_families=pb.IPV6_ONLY),
        workload("w", "10.0.0.2", services=HTTP),
        to=("fd00:1::1", 80),
    )
    assert refused(result) is RouteProblem.NO_VALID_DESTINATION


@pytest.mark.parametrize("hbone", [True, False])
def test_hostname_workload_is_left_to_be_resolved(hbone: bool) -> None:
    found = routed(
        decide(
            service("web.default", "fd00:1::1"),
            workload("w", hostname="web.example", hbone=hbone, services=HTTP),
            to=("fd00:1::1", 80),
        )
    )
    assert (found.hostname_to_resolve, found.is_ipv6_preferred) == ("web.example", True)
    final = found.with_ip("fd00::7")
    assert final.address == (("fd00::7", 15008) if hbone else ("fd00::7", 8080))
    assert final.authority == ("[fd00::7]:8080" if hbone else None)
    assert final.hostname_to_resolve == ""


def test_vip_counts_before_a_workload_of_the_same_address_for_the_upstream() -> None:
    found = routed(
        decide(
            service("web.default", "10.0.0.5"),
            workload("same", "10.0.0.5"),
            workload("w", "10.0.0.2", services=HTTP),
            to=("10.0.0.5", 80),
        )
    )
    assert found.authority == "10.0.0.2:8080"


# --- 3.4, other networks ---

REMOTE = workload(
    "remote", network="far", services=HTTP, network_gateway="|10.0.0.77:15010", namespace="default"
)
GATEWAY = workload("gw", "10.0.0.77", account="gw")


def test_endpoint_in_another_network_goes_through_its_gateway() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", sans=["spiffe://cluster.local/ns/far/sa/web"]),
            REMOTE,
            GATEWAY,
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.address, found.authority) == (
        Protocol.DOUBLE_HBONE,
        ("10.0.0.77", 15010),
        "web.default:80",
    )
    assert principals(found) == ["cluster.local/ns/default/sa/gw"]
    assert [identity.principal for identity in found.inner_identities] == ["cluster.local/ns/far/sa/web"]


def test_gateway_by_hostname() -> None:
    remote = workload("remote", network="far", services=HTTP, network_gateway="istio/gw.istio:15009")
    found = routed(
        decide(
            service("web.default", "10.1.0.1"),
            remote,
            service("gw.istio", namespace="istio", ports={15009: 15008}),
            workload("gw", "10.0.0.77", namespace="istio", services={"istio/gw.istio": {15009: 15008}}),
            to=("10.1.0.1", 80),
        )
    )
    assert found.address == ("10.0.0.77", 15008)


def test_remote_waypoint_goes_through_its_gateway() -> None:
    found = routed(
        decide(
            service("web.default", "10.1.0.1", waypoint="default/wp.default:15008"),
            service("wp.default", ports={15008: 15008}),
            workload("wp", network="far", services=WAYPOINT_SERVICE, network_gateway="|10.0.0.77:15010"),
            GATEWAY,
            to=("10.1.0.1", 80),
        )
    )
    assert (found.protocol, found.authority) == (Protocol.DOUBLE_HBONE, "web.default:80")


def test_remote_endpoint_without_gateway_is_not_chosen() -> None:
    result = decide(
        service("web.default", "10.1.0.1"),
        workload("remote", network="far", services=HTTP),
        to=("10.1.0.1", 80),
    )
    assert refused(result) is RouteProblem.NO_HEALTHY_UPSTREAM
    with_address = decide(
        service("web.default", "10.1.0.1"),
        workload("remote", "10.0.0.2", network="far", services=HTTP),
        to=("10.1.0.1", 80),
    )
    assert refused(with_address) is RouteProblem.NO_VALID_DESTINATION


def test_unknown_network_gateway() -> None:
    result = decide(service("web.default", "10.1.0.1"), REMOTE, to=("10.1.0.1", 80))
    assert refused(result) is RouteProblem.UNKNOWN_NETWORK_GATEWAY


def test_failover_prefers_the_local_network_and_uses_the_remote_when_it_is_all_there_is() -> None:
    web = service("web.default", "10.1.0.1", mode=FAILOVER, preferences=[6])
    local = workload("w", "10.0.0.2", services=HTTP)
    assert routed(decide(web, REMOTE, GATEWAY, local, to=("10.1.0.1", 80))).protocol is Protocol.HBONE
    only_remote = routed(decide(web, REMOTE, GATEWAY, to=("10.1.0.1", 80)))
    assert only_remote.protocol is Protocol.DOUBLE_HBONE


def test_trace_is_made_only_when_asked_for() -> None:
    state: MeshState = mesh(
        SOURCE,
        service("web.default", "10.1.0.1"),
        workload("w", "10.0.0.2", services=HTTP),
        workload("sick", "10.0.0.3", services=HTTP, healthy=False),
    )
    source = get(state, "source")
    assert route(source, ("10.1.0.1", 80), state, CONTEXT).trace == ()
    traced = route(source, ("10.1.0.1", 80), state, CONTEXT, is_traced=True)
    assert traced.trace == (
        "10.1.0.1 is a virtual address of service default/web.default",
        "endpoint sick left out: unhealthy",
        "endpoint w chosen, port 8080",
    )
