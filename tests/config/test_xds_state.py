"""Both sides' memory of a delta xDS stream, without a stream (ztunnel-facts 5.4, 5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from config.compile.resource import (
    ADDRESS,
    AUTHORIZATION,
    CONNECTION_LIMITS,
    DESTINATION,
    SERVICE_ROUTES,
    Delta,
)
from config.errors import TooManySubscriptions
from config.objects import Ref
from config.settings import MeshSettings
from config.xds import server_state
from config.xds.client_state import ClientState, NodeInfo
from config.xds.server_state import ServerState
from proto.envoy import discovery_pb2 as pb
from proto.mycelia import waypoint_pb2
from tests.config.support import Mesh, entry, istio, replica, service, waypoint

TYPES = (ADDRESS, AUTHORIZATION)
WEB = "Kubernetes/networking.istio.io/WorkloadEntry/shop/web"
DB = "Kubernetes/networking.istio.io/WorkloadEntry/shop/db"
SERVICE = "shop/web.shop.svc.cluster.local"
POLICY = "{selector: {matchLabels: {app: web}}}"


class Handler:
    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], list[str]]] = []
        self.rejected: dict[str, str] = {}

    def apply(
        self, type_url: str, upserts: Sequence[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> Mapping[str, str]:
        self.calls.append((type_url, [name for name, _, _ in upserts], list(removed)))
        return {name: self.rejected[name] for name, _, _ in upserts if name in self.rejected}


class Pair:
    """A client and a server that talk by hand."""

    def __init__(self, mesh: Mesh, *, is_on_demand: bool = False, node: str = "n1") -> None:
        self.mesh = mesh
        self.handler = Handler()
        self.client = ClientState(NodeInfo.of_ztunnel(node), TYPES, self.handler, is_on_demand=is_on_demand)
        self.node = node
        self.reconnect()

    def reconnect(self) -> None:
        self.server = ServerState(self.mesh.registry, self.node)
        for request in self.client.opening():
            self.server.request(request)

    def settle(self) -> list[pb.DeltaDiscoveryResponse]:
        """Exchanges messages until both are quiet; returns the responses."""
        seen = []
        while (response := self.server.next_response("1")) is not None:
            seen.append(response)
            answer, _ = self.client.receive(response)
            self.server.request(answer)
        return seen

    def change(self, delta: Delta) -> None:
        self.server.note(delta)


def names(response: pb.DeltaDiscoveryResponse) -> list[str]:
    return [resource.name for resource in response.resources]


def test_the_first_responses_bring_all_policies_before_addresses() -> None:
    pair = Pair(Mesh(entry("web", labels="app: web"), istio("AuthorizationPolicy", "p", POLICY)))
    was_synced = pair.client.is_synced
    first, second = pair.settle()
    assert (first.type_url, names(first)) == (AUTHORIZATION, ["shop/p"])
    assert (second.type_url, names(second)) == (ADDRESS, [WEB])
    assert second.resources[0].resource.type_url == ADDRESS
    assert second.nonce != first.nonce
    assert (was_synced, pair.client.is_synced) == (False, True)
    assert pair.settle() == []


def test_an_empty_mesh_is_answered_too() -> None:
    pair = Pair(Mesh())
    assert [(each.type_url, names(each)) for each in pair.settle()] == [(AUTHORIZATION, []), (ADDRESS, [])]
    assert pair.client.is_synced


def test_requests_of_an_istio_client_come_in_the_other_order_and_policies_still_go_first() -> None:
    server = ServerState(Mesh(entry("web")).registry, "n1")
    for type_url in TYPES:
        server.request(pb.DeltaDiscoveryRequest(type_url=type_url))
    response = server.next_response("1")
    assert response is not None
    assert response.type_url == AUTHORIZATION


def test_changes_wait_for_the_answer_and_go_together() -> None:
    mesh = Mesh(entry("web"))
    pair = Pair(mesh)
    pair.settle()
    pair.change(mesh.apply(entry("web", ip="10.0.0.2")))
    response = pair.server.next_response("2")
    assert response is not None
    pair.change(mesh.apply(entry("web", ip="10.0.0.3")))
    pair.change(mesh.apply(entry("db", ip="10.0.0.4")))
    pair.change(mesh.apply(entry("db", ip="10.0.0.5")))
    assert pair.server.next_response("3") is None
    answer, _ = pair.client.receive(response)
    pair.server.request(answer)
    assert [names(each) for each in pair.settle()] == [[DB, WEB]]
    assert pair.client.known[ADDRESS] == {
        name: resource.version for name, resource in mesh.registry.resources[ADDRESS].items()
    }


def test_what_came_and_went_between_answers_is_a_removal_at_most() -> None:
    mesh = Mesh(entry("web"))
    pair = Pair(mesh)
    pair.settle()
    pair.change(mesh.apply(entry("db")))
    pair.change(mesh.remove("WorkloadEntry", "shop", "db"))
    (response,) = pair.settle()
    assert (names(response), list(response.removed_resources)) == ([], [DB])


def test_an_answer_to_another_response_is_no_answer() -> None:
    mesh = Mesh(entry("web"))
    pair = Pair(mesh)
    pair.settle()
    pair.change(mesh.apply(entry("db")))
    assert pair.server.next_response("2") is not None
    pair.change(mesh.apply(entry("db", ip="10.0.0.9")))
    pair.server.request(pb.DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce="1"))
    assert pair.server.next_response("3") is None


def test_a_new_policy_goes_out_before_and_an_old_one_after_the_workloads_that_list_it() -> None:
    mesh = Mesh(entry("web", labels="app: web"))
    pair = Pair(mesh)
    pair.settle()
    pair.change(mesh.apply(istio("AuthorizationPolicy", "p", POLICY)))
    assert [each.type_url for each in pair.settle()] == [AUTHORIZATION, ADDRESS]
    pair.change(mesh.remove("AuthorizationPolicy", "shop", "p"))
    assert [(each.type_url, list(each.removed_resources)) for each in pair.settle()] == [
        (ADDRESS, []),
        (AUTHORIZATION, ["shop/p"]),
    ]


def test_addresses_wait_while_a_policy_cannot_be_sent_yet() -> None:
    mesh = Mesh(entry("web", labels="app: web"))
    pair = Pair(mesh)
    pair.settle()
    pair.change(mesh.apply(istio("AuthorizationPolicy", "other", "{}")))
    in_flight = pair.server.next_response("2")
    assert in_flight is not None
    pair.change(mesh.apply(istio("AuthorizationPolicy", "p", POLICY)))
    assert pair.server.next_response("3") is None
    answer, _ = pair.client.receive(in_flight)
    pair.server.request(answer)
    assert [each.type_url for each in pair.settle()] == [AUTHORIZATION, ADDRESS]


def test_a_refused_resource_is_told_and_the_good_ones_are_kept() -> None:
    mesh = Mesh(entry("web"), entry("db"))
    pair = Pair(mesh)
    pair.handler.rejected = {WEB: "bad address", "other": "x"}
    pair.settle()
    watch = pair.server.watches[ADDRESS]
    assert (watch.nacked, watch.last_nack) == (1, f"{WEB}: bad address")
    assert not pair.client.is_synced
    assert list(pair.client.known[ADDRESS]) == [DB]
    # Nothing is sent again until something changes.
    assert pair.settle() == []
    pair.handler.rejected = {}
    pair.change(mesh.apply(entry("db", ip="10.0.0.9")))
    pair.settle()
    assert (watch.acked, watch.last_nack) == (1, "")
    assert pair.client.is_synced


def test_a_nack_has_details_without_a_code() -> None:
    pair = Pair(Mesh(entry("web")))
    pair.handler.rejected = {WEB: "bad"}
    pair.server.next_response("1")
    response = pair.server.next_response("1")
    assert response is not None
    answer, _ = pair.client.receive(response)
    assert answer.HasField("error_detail")
    assert (answer.error_detail.code, answer.error_detail.message) == (0, f"{WEB}: bad")
    assert not answer.HasField("node")


def test_after_a_reconnect_only_what_differs_is_sent() -> None:
    mesh = Mesh(entry("web"), entry("db"), istio("AuthorizationPolicy", "p", "{}"))
    pair = Pair(mesh)
    pair.settle()
    mesh.apply(entry("web", ip="10.0.0.9"))
    mesh.remove("WorkloadEntry", "shop", "db")
    pair.reconnect()
    first, second = pair.settle()
    assert (names(first), list(first.removed_resources)) == ([], [])
    assert (names(second), list(second.removed_resources)) == ([WEB], [DB])
    assert list(pair.client.known[ADDRESS]) == [WEB]


def test_refused_resources_are_asked_for_again_after_a_reconnect() -> None:
    pair = Pair(Mesh(entry("web")))
    pair.handler.rejected = {WEB: "bad"}
    pair.settle()
    pair.reconnect()
    assert [names(each) for each in pair.settle()] == [[], [WEB]]


def test_unknown_types_are_answered_with_nothing_once() -> None:
    server = ServerState(Mesh(entry("web")).registry, "n1")
    server.request(pb.DeltaDiscoveryRequest(type_url="type.googleapis.com/other"))
    response = server.next_response("1")
    assert response is not None
    assert (response.type_url, len(response.resources)) == ("type.googleapis.com/other", 0)
    assert server.next_response("1") is None


def test_unknown_types_are_acked_and_not_handed_on() -> None:
    handler = Handler()
    client = ClientState(NodeInfo("x"), TYPES, handler)
    answer, _ = client.receive(pb.DeltaDiscoveryResponse(type_url="other", nonce="5"))
    assert (answer.type_url, answer.response_nonce, answer.HasField("error_detail")) == ("other", "5", False)
    assert handler.calls == []


def test_too_many_types_or_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_state, "MAX_KEYS", 2)
    server = ServerState(Mesh().registry, "n1")
    for number in range(server_state.MAX_TYPES):
        server.request(pb.DeltaDiscoveryRequest(type_url=f"t{number}", resource_names_subscribe=["a"]))
    with pytest.raises(TooManySubscriptions):
        server.request(pb.DeltaDiscoveryRequest(type_url="one more"))
    with pytest.raises(TooManySubscriptions):
        server.request(pb.DeltaDiscoveryRequest(type_url="t0", resource_names_subscribe=["b", "c"]))


def test_the_node_says_who_it_is() -> None:
    (request, other) = ClientState(
        NodeInfo.of_ztunnel("n1", further={"CLUSTER_ID": "c"}), TYPES, Handler()
    ).opening()
    assert request.node.id == "ztunnel~1.1.1.1~ztunnel.istio-system~istio-system.svc.cluster.local"
    assert dict(request.node.metadata) == {
        "NAME": "ztunnel",
        "NAMESPACE": "istio-system",
        "INSTANCE_IPS": "1.1.1.1",
        "NODE_NAME": "n1",
        "CLUSTER_ID": "c",
    }
    assert other.HasField("node")
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == ([], [])


# ---- on demand ----

MESH = (
    service("web", "clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]"),
    entry("web", ip="10.0.0.1", labels="app: web"),
    entry("db", ip="10.0.0.2", labels="app: db"),
    entry("local", ip="10.0.0.3", labels="mycelia.io/node: n1"),
)
LOCAL = "Kubernetes/networking.istio.io/WorkloadEntry/shop/local"


def on_demand(*texts: str) -> Pair:
    return Pair(Mesh(*(texts or MESH), settings=MeshSettings(network="net")), is_on_demand=True)


def ask(pair: Pair, key: str) -> list[pb.DeltaDiscoveryResponse]:
    request = pair.client.subscribe(key)
    assert request is not None
    pair.server.request(request)
    return pair.settle()


def test_on_demand_starts_with_the_workloads_of_the_own_node_only() -> None:
    pair = on_demand()
    request = pair.client.opening()[1]
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == (
        ["*"],
        ["*"],
    )
    assert [names(each) for each in pair.settle()] == [[], [LOCAL]]
    assert pair.client.is_synced


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("net/10.0.0.1", [WEB]),
        (WEB, [WEB]),
        (SERVICE, [WEB, SERVICE]),
        ("net/10.96.0.1", [WEB, SERVICE]),
    ],
)
def test_on_demand_keys_are_answered_under_their_own_name_too(key: str, expected: list[str]) -> None:
    pair = on_demand()
    pair.settle()
    (response,) = ask(pair, key)
    assert set(names(response)) == {*expected, key}
    assert pair.handler.calls[-1][1] == expected
    assert not pair.client.is_pending(key)
    assert all(list(each.aliases) for each in response.resources if each.name in expected)


def test_on_demand_what_is_not_there_is_told_as_removed_and_comes_later() -> None:
    pair = on_demand()
    pair.settle()
    (response,) = ask(pair, "net/10.9.9.9")
    assert list(response.removed_resources) == ["net/10.9.9.9"]
    assert not pair.client.is_pending("net/10.9.9.9")
    pair.change(pair.mesh.apply(entry("new", ip="10.9.9.9")))
    (response,) = pair.settle()
    assert "net/10.9.9.9" in names(response)


def test_on_demand_follows_what_it_asked_for_and_nothing_else() -> None:
    pair = on_demand()
    pair.settle()
    ask(pair, SERVICE)
    pair.change(pair.mesh.apply(entry("db", ip="10.0.0.22", labels="app: db")))
    assert pair.settle() == []
    pair.change(pair.mesh.apply(entry("web2", ip="10.0.0.11", labels="app: web")))
    (response,) = pair.settle()
    assert names(response) == ["Kubernetes/networking.istio.io/WorkloadEntry/shop/web2"]
    pair.change(pair.mesh.remove("WorkloadEntry", "shop", "web"))
    (response,) = pair.settle()
    assert list(response.removed_resources) == [WEB]
    pair.change(pair.mesh.remove("WorkloadEntry", "shop", "db"))
    assert pair.settle() == []


def test_on_demand_a_reconnect_asks_for_what_is_held_and_what_is_pending() -> None:
    pair = on_demand()
    pair.settle()
    ask(pair, "net/10.0.0.1")
    assert pair.client.subscribe("net/10.0.0.2") is not None
    assert pair.client.subscribe("net/10.0.0.2") is None
    request = pair.client.opening()[1]
    assert request.initial_resource_versions["net/10.0.0.2"] == ""
    assert request.initial_resource_versions[WEB] != ""
    pair.reconnect()
    pair.settle()
    assert sorted(pair.client.known[ADDRESS]) == [DB, LOCAL, WEB]
    assert not pair.client.is_pending("net/10.0.0.2")


def test_on_demand_keys_can_be_given_up() -> None:
    pair = on_demand()
    pair.settle()
    ask(pair, DB)
    pair.server.request(pb.DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_unsubscribe=[DB]))
    pair.change(pair.mesh.apply(entry("db", ip="10.0.0.22", labels="app: db")))
    assert pair.settle() == []


# ---- waypoints ----

USES_WP = "istio.io/use-waypoint: wp"


def bound(name: str, labels: str = USES_WP) -> str:
    return service(name, "ports: [{port: 80}]", labels=labels)


class Waypoint(Pair):
    """A replica of shop/wp."""

    def reconnect(self) -> None:
        types = (ADDRESS, AUTHORIZATION, SERVICE_ROUTES, DESTINATION)
        info = NodeInfo.of_waypoint("n1", "shop/wp")
        known = self.client.known if hasattr(self, "server") else {}
        self.client = ClientState(info, types, self.handler, known=known)
        self.server = ServerState(self.mesh.registry, self.node, "shop/wp")
        for request in self.client.opening():
            self.server.request(request)

    def told(self) -> list[tuple[list[str], list[str]]]:
        """What it hears of routes now, as short service names: (sent, removed)."""
        return [
            (
                [name.partition(".")[0] for name in names(each)],
                [name.partition(".")[0] for name in each.removed_resources],
            )
            for each in self.settle()
            if each.type_url == SERVICE_ROUTES
        ]


def with_waypoints(*texts: str) -> Waypoint:
    others = (waypoint("b"), replica("b-0", "b", ip="10.9.0.2"))
    return Waypoint(Mesh(waypoint(), replica(), *others, *texts))


def test_a_waypoint_hears_of_its_own_services_after_addresses() -> None:
    pair = with_waypoints(bound("web"), bound("db", "istio.io/use-waypoint: b"), bound("free", ""))
    responses = pair.settle()
    assert [each.type_url for each in responses] == [AUTHORIZATION, ADDRESS, DESTINATION, SERVICE_ROUTES]
    assert names(responses[2]) == names(responses[3]) == ["shop/web.shop.svc.cluster.local"]
    assert not responses[3].resources[0].aliases


def test_a_service_that_goes_to_another_waypoint_is_a_removal_for_this_one() -> None:
    pair = with_waypoints(bound("web"), bound("db", "istio.io/use-waypoint: b"))
    pair.settle()
    pair.change(pair.mesh.apply(bound("web", "istio.io/use-waypoint: b")))
    assert pair.told() == [([], ["shop/web"])]
    pair.change(pair.mesh.apply(bound("db")))
    assert pair.told() == [(["shop/db"], [])]
    pair.change(pair.mesh.apply(bound("web", "")))
    assert pair.told() == []
    pair.change(pair.mesh.remove("Service", "shop", "db"))
    assert pair.told() == [([], ["shop/db"])]


def test_a_waypoint_that_comes_back_hears_what_changed_only() -> None:
    pair = with_waypoints(bound("web"), bound("db"), bound("old"))
    pair.settle()
    pair.mesh.apply(bound("db", "istio.io/use-waypoint: b"))
    pair.mesh.apply(service("old", "ports: [{port: 81}]", labels=USES_WP))
    pair.reconnect()
    assert pair.told() == [(["shop/old"], ["shop/db"])]


def leading_to(name: str) -> str:
    """A VirtualService of web."""
    return istio(
        "VirtualService", "vs", f"{{hosts: [web], http: [{{route: [{{destination: {{host: {name}}}}}]}}]}}"
    )


def test_destinations_come_before_the_routes_to_them_and_go_after_them() -> None:
    pair = with_waypoints(bound("web"), bound("v1", ""), bound("v2", ""), leading_to("v1"))
    pair.settle()
    pair.change(pair.mesh.apply(leading_to("v2")))
    told = [
        (
            each.type_url,
            [name.partition(".")[0] for name in names(each)],
            [name.partition(".")[0] for name in each.removed_resources],
        )
        for each in pair.settle()
    ]
    assert told == [
        (DESTINATION, ["shop/v2"], []),
        (SERVICE_ROUTES, ["shop/web"], []),
        (DESTINATION, [], ["shop/v1"]),
    ]


def subsets_told(responses: Sequence[pb.DeltaDiscoveryResponse]) -> list[object]:
    """Subsets of each destination that is sent, and where routes come among them."""
    told: list[object] = []
    for each in responses:
        if each.type_url == DESTINATION:
            told += [
                [subset.name for subset in waypoint_pb2.Destination.FromString(one.resource.value).subsets]
                for one in each.resources
            ]
        else:
            told.append(each.type_url)
    return told


def split(*names: str) -> tuple[str, str]:
    """A rule with these subsets, and a VirtualService that sends to the first."""
    subsets = ", ".join(f"{{name: {name}}}" for name in names)
    route = f"{{destination: {{host: web, subset: {names[0]}}}}}"
    return (
        istio("DestinationRule", "dr", f"{{host: web, subsets: [{subsets}]}}"),
        istio("VirtualService", "vs", f"{{hosts: [web], http: [{{route: [{route}]}}]}}"),
    )


def test_a_subset_goes_only_after_the_routes_to_it() -> None:
    pair = with_waypoints(bound("web"), *split("a", "b"))
    pair.settle()
    pair.change(pair.mesh.apply(*split("c", "b")))
    assert subsets_told(pair.settle()) == [["c", "b", "a"], SERVICE_ROUTES, ["c", "b"]]
    gone = [Ref("DestinationRule", "shop", "dr"), Ref("VirtualService", "shop", "vs")]
    pair.change(pair.mesh.registry.apply({}, gone))
    assert subsets_told(pair.settle()) == [["c", "b"], SERVICE_ROUTES, []]
    pair.change(pair.mesh.apply(split("a")[0]))
    assert subsets_told(pair.settle()) == [["a"]]


def test_a_destination_that_is_removed_while_its_subsets_wait_is_removed() -> None:
    pair = with_waypoints(bound("web"), *split("a", "b"))
    pair.settle()
    pair.change(pair.mesh.apply(*split("c")))
    pair.server.next_response("2")  # the wide one, without an answer yet
    pair.change(pair.mesh.remove("Service", "shop", "web"))
    (watch,) = [each for type_url, each in pair.server.watches.items() if type_url == DESTINATION]
    assert watch.removed
    pair.reconnect()
    removed = [name for each in pair.settle() for name in each.removed_resources]
    assert removed.count("shop/web.shop.svc.cluster.local") == 3  # address, destination, routes


def test_addresses_go_after_the_routes_to_them() -> None:
    pair = with_waypoints(bound("web"), bound("v1", ""), leading_to("v1"))
    pair.settle()
    gone = [Ref("VirtualService", "shop", "vs"), Ref("Service", "shop", "v1")]
    pair.change(pair.mesh.registry.apply({}, gone))
    assert [each.type_url for each in pair.settle()] == [SERVICE_ROUTES, ADDRESS, DESTINATION]


def test_a_waypoint_calls_destinations_by_the_service_also_when_it_comes_back() -> None:
    pair = with_waypoints(bound("web"), bound("v1", ""), leading_to("v1"))
    pair.settle()
    pair.mesh.apply(
        istio("DestinationRule", "v1", "{host: v1, trafficPolicy: {loadBalancer: {simple: RANDOM}}}")
    )
    pair.reconnect()
    (told,) = [names(each) for each in pair.settle() if each.type_url == DESTINATION]
    assert told == ["shop/v1.shop.svc.cluster.local"]


def test_a_node_proxy_is_told_no_routes() -> None:
    server = ServerState(Mesh(waypoint(), replica(), bound("web")).registry, "n1")
    server.request(pb.DeltaDiscoveryRequest(type_url=SERVICE_ROUTES))
    response = server.next_response("1")
    assert response is not None
    assert names(response) == []


def test_a_client_does_not_wait_for_a_type_that_the_control_plane_does_not_know() -> None:
    types = (AUTHORIZATION, CONNECTION_LIMITS, ADDRESS)
    client = ClientState(NodeInfo.of_ztunnel("n1"), types, Handler())
    assert [each.type_url for each in client.opening()] == list(types)
    client.receive(pb.DeltaDiscoveryResponse(type_url=AUTHORIZATION, nonce="1"))
    assert not client.is_synced
    client.receive(pb.DeltaDiscoveryResponse(type_url=ADDRESS, nonce="2"))
    assert client.is_synced
