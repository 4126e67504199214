"""Binding to waypoints, canaries, readiness and conditions: config-api 5 and 7."""

from __future__ import annotations

import pytest

from config.compile.resource import SERVICE_ROUTES
from config.registry.review import review
from tests.config.support import (
    Mesh,
    istio,
    namespace,
    parent,
    pod,
    replica,
    service,
    waypoint,
)

USE = "istio.io/use-waypoint: wp"
CANARY = "istio.io/use-waypoint-canary: next"
WEIGHT = "istio.io/use-waypoint-canary-weight: '10'"
WEB = "shop/web.shop.svc.cluster.local"
PORTS = "ports: [{name: http, port: 80}]"
V1 = "backendRefs: [{name: web, port: 80}]"


def web(labels: str = USE, annotations: str = "") -> str:
    return service("web", PORTS, labels=labels, annotations=annotations)


def published(mesh: Mesh) -> dict[str, int]:
    """Waypoint host -> weight, of the service web; 100 for a waypoint without canary."""
    found = mesh.service(WEB)
    if found.weighted_waypoints:
        return {each.destination.hostname.hostname: each.weight for each in found.weighted_waypoints}
    return {found.waypoint.hostname.hostname: 100} if found.HasField("waypoint") else {}


def serving(mesh: Mesh) -> tuple[str, ...]:
    held = mesh.registry.resources[SERVICE_ROUTES].get(WEB)
    return held.waypoints if held is not None else ()


# ---- a waypoint's own workloads ----


def test_a_waypoint_has_an_address_once_it_has_a_workload_and_keeps_it_while_none_is_ready() -> None:
    mesh = Mesh(waypoint(), web())
    assert (published(mesh), serving(mesh), mesh.services()) == ({}, (), [WEB])
    mesh.apply(replica())
    assert published(mesh) == {"wp.shop.svc.cluster.local": 100}
    assert serving(mesh) == ("shop/wp",)
    mesh.apply(replica(is_ready=False))
    assert published(mesh) == {"wp.shop.svc.cluster.local": 100}
    assert "no workload of shop/wp is ready: what goes to it fails" in mesh.conditions("Service", "web")[0]
    mesh.remove("WorkloadEntry", "shop", "wp-0")
    assert (published(mesh), serving(mesh), mesh.services()) == ({}, (), [WEB])


def test_its_workloads_are_the_endpoints_of_its_service() -> None:
    mesh = Mesh(waypoint(), replica(), replica("wp-1", ip="10.9.0.2"), web())
    name = "shop/wp.shop.svc.cluster.local"
    assert [port.service_port for port in mesh.service(name).ports] == [15021, 15008]
    assert mesh.service(name).addresses
    assert not mesh.service(name).HasField("waypoint")
    ports = mesh.workload("shop/wp-1").services[name].ports
    assert [(port.service_port, port.target_port) for port in ports] == [(15021, 15021), (15008, 15008)]
    assert not any("wp" in str(note.ref) and "selector" in note.text for note in review(mesh.registry))


def test_the_authors_own_service_stands_for_the_waypoint() -> None:
    own = service("wp", "clusterIP: 10.96.1.1, selector: {a: b}, ports: [{port: 15008}]")
    mesh = Mesh(waypoint(), replica(), web(), own)
    assert [port.service_port for port in mesh.service("shop/wp.shop.svc.cluster.local").ports] == [15008]
    assert published(mesh) == {"wp.shop.svc.cluster.local": 100}
    assert not any("already has the host" in note for note in mesh.notes())


def test_only_workloads_of_the_namespace_count() -> None:
    assert published(Mesh(waypoint(), replica(space="bank"), web())) == {}


# ---- classes and allowed namespaces ----


def test_the_class_says_what_a_waypoint_is_for_where_the_gateway_does_not() -> None:
    def class_for(traffic: str) -> str:
        return (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n"
            f"metadata: {{name: istio-waypoint, labels: {{istio.io/waypoint-for: {traffic}}}}}\n"
            "spec: {controllerName: istio.io/mesh-controller}\n"
        )

    mesh = Mesh(waypoint(), replica(), web(), class_for("workload"))
    assert published(mesh) == {}
    mesh.apply(class_for("all"))
    assert published(mesh)
    mesh.apply(class_for("none"), waypoint(labels="istio.io/waypoint-for: service"))
    assert published(mesh)


@pytest.mark.parametrize(
    ("expression", "labels", "is_taken"),
    [
        ("{key: team, operator: In, values: [a, b]}", "team: b", True),
        ("{key: team, operator: In, values: [a, b]}", "team: c", False),
        ("{key: team, operator: In, values: [a]}", "", False),
        ("{key: team, operator: NotIn, values: [a]}", "", True),
        ("{key: team, operator: NotIn, values: [a]}", "team: a", False),
        ("{key: team, operator: Exists}", "team: x", True),
        ("{key: team, operator: Exists}", "", False),
        ("{key: team, operator: DoesNotExist}", "", True),
        ("{key: team, operator: DoesNotExist}", "team: x", False),
        ("{key: kubernetes.io/metadata.name, operator: In, values: [shop]}", "", True),
    ],
)
def test_namespaces_are_allowed_by_expressions(expression: str, labels: str, is_taken: bool) -> None:
    mesh = Mesh(
        waypoint(space="edge", allowed=f"from: Selector, selector: {{matchExpressions: [{expression}]}}"),
        replica(space="edge"),
        namespace("shop", labels),
        web(f"{USE}, istio.io/use-waypoint-namespace: edge"),
    )
    assert bool(published(mesh)) == is_taken
    expected = "WaypointAccepted" if is_taken else "AttachmentDenied"
    assert f"istio.io/WaypointBound={is_taken} {expected}" in mesh.conditions("Service", "web")[0]


# ---- canaries ----

TWO = (waypoint(), replica(), waypoint("next"), replica("next-0", "next", ip="10.9.0.3"))
PRIMARY = {"wp.shop.svc.cluster.local": 100}
SPLIT = {"wp.shop.svc.cluster.local": 90, "next.shop.svc.cluster.local": 10}


@pytest.mark.parametrize(
    ("labels", "annotations", "spaces", "expected", "reason"),
    [
        (f"{USE}, {CANARY}", WEIGHT, ("", ""), SPLIT, ""),
        (f"{USE}, {CANARY}", "", ("", ""), PRIMARY, ""),
        ("", "", (f"{USE}, {CANARY}", WEIGHT), SPLIT, ""),
        (USE, "", (f"{USE}, {CANARY}", WEIGHT), PRIMARY, ""),
        (CANARY, WEIGHT, (USE, ""), SPLIT, ""),
        ("istio.io/use-waypoint: none", "", (f"{USE}, {CANARY}", WEIGHT), {}, ""),
        (
            f"{USE}, {CANARY}",
            "istio.io/use-waypoint-canary-weight: '101'",
            ("", ""),
            PRIMARY,
            "CanaryInvalidWeight",
        ),
        (
            f"{USE}, {CANARY}",
            "istio.io/use-waypoint-canary-weight: ten",
            ("", ""),
            PRIMARY,
            "CanaryInvalidWeight",
        ),
        (f"{USE}, istio.io/use-waypoint-canary: wp", WEIGHT, ("", ""), PRIMARY, "CanarySameAsPrimary"),
        (f"{USE}, istio.io/use-waypoint-canary: gone", WEIGHT, ("", ""), PRIMARY, "CanaryIsNotReady"),
        (f"{USE}, istio.io/use-waypoint-canary: none", WEIGHT, ("", ""), PRIMARY, ""),
    ],
)
def test_canaries(
    labels: str, annotations: str, spaces: tuple[str, str], expected: dict[str, int], reason: str
) -> None:
    mesh = Mesh(*TWO, namespace("shop", *spaces), web(labels, annotations))
    assert published(mesh) == expected
    assert any(f": {reason}: " in note for note in mesh.notes()) == bool(reason)
    if expected:
        assert mesh.conditions("Service", "web")[0].startswith("istio.io/WaypointBound=True WaypointAccepted")


def test_a_canary_that_is_the_waypoint_itself_can_be_taken_back() -> None:
    mesh = Mesh(*TWO, web(f"{USE}, istio.io/use-waypoint-canary: wp", WEIGHT))
    mesh.apply(web(""))
    assert published(mesh) == {}


def test_a_canary_without_ready_workload_takes_no_traffic() -> None:
    mesh = Mesh(*TWO, web(f"{USE}, {CANARY}", WEIGHT))
    assert (published(mesh), serving(mesh)) == (SPLIT, ("shop/wp", "shop/next"))
    assert "10 % of new connections go to canary shop/next" in mesh.conditions("Service", "web")[0]
    mesh.apply(replica("next-0", "next", ip="10.9.0.3", is_ready=False))
    assert (published(mesh), serving(mesh)) == (PRIMARY, ("shop/wp",))


# ---- conditions ----


def test_conditions_of_a_gateway_follow_its_workloads() -> None:
    mesh = Mesh(waypoint())
    assert mesh.conditions("Gateway", "wp") == [
        "Accepted=True Accepted: one HBONE listener on port 15008",
        "Programmed=False AddressNotAssigned: "
        "no workload has the label gateway.networking.k8s.io/gateway-name=wp",
    ]
    mesh.apply(replica(is_ready=False))
    assert mesh.conditions("Gateway", "wp", "Programmed") == [
        "Programmed=False AddressNotAssigned: none of its 1 workloads is ready"
    ]
    mesh.apply(replica("wp-1", ip="10.9.0.2"))
    assert mesh.conditions("Gateway", "wp", "Programmed") == [
        "Programmed=True Programmed: 1 of 2 workloads are ready"
    ]


def http(of: str, rules: str = f"[{{{V1}}}]") -> str:
    return istio("HTTPRoute", "r", f"{{{of}, rules: {rules}}}")


EXTENSION = "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]}"
AUTH = (
    "{filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC}}], backendRefs: [{name: web, port: 80}]}"
)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (
            http(parent()),
            [
                "Accepted=True Accepted: attached to port 80",
                "ResolvedWaypoints=True Resolved: Service shop/web goes through waypoint shop/wp",
                "ResolvedRefs=True ResolvedRefs: all backends are there",
            ],
        ),
        (http(parent("gone")), ["Accepted=False NoMatchingParent: there is no Service shop/gone"]),
        (
            http(parent("web", "port: 81")),
            ["Accepted=False NoMatchingParent: Service shop/web has no such port"],
        ),
        (
            http("parentRefs: [{name: wp}]"),
            ['Accepted=False NoMatchingParent: kind "Gateway" of group "gateway.networking.k8s.io" takes'],
        ),
        (http("parentRefs: []"), ["Accepted=False NoMatchingParent: has no parentRefs"]),
        (
            http(parent(), f"[{EXTENSION}]"),
            ["Accepted=False UnsupportedValue: rules[0]: filter ExtensionRef is not supported; "],
        ),
        (
            http(parent(), f"[{{{V1}}}, {AUTH}]"),
            [
                "Accepted=True",
                "PartiallyInvalid=True UnsupportedValue: rules[1]: filter ExternalAuth is not supported; "
                "requests that match get 500",
            ],
        ),
        (
            http(parent("free")),
            [
                "Accepted=True",
                "ResolvedWaypoints=False WaypointIsNotReady: Service shop/free goes through no waypoint: "
                "nothing applies the route",
            ],
        ),
        (
            http(parent(), "[{backendRefs: [{name: gone, port: 80}]}]"),
            ["ResolvedRefs=False BackendNotFound: Service shop/gone is not there, or has no part"],
        ),
        (
            http(parent(), "[{backendRefs: [{group: apps, kind: Pod, name: x, port: 80}]}]"),
            ['ResolvedRefs=False InvalidKind: kind "Pod" of group "apps" is not supported'],
        ),
    ],
)
def test_conditions_of_routes(route: str, expected: list[str]) -> None:
    mesh = Mesh(waypoint(), replica(), web(), service("free", PORTS), namespace("shop"), route)
    found = mesh.conditions("HTTPRoute", "r")
    missing = [each for each in expected if not any(each in condition for condition in found)]
    assert missing == [], found
    told = [note.text for note in review(mesh.registry) if note.ref.kind == "HTTPRoute"]
    assert bool(told) == any("=False" in each or "PartiallyInvalid=True" in each for each in found)


def test_a_bound_service_without_waypoint_keeps_working_and_says_so() -> None:
    mesh = Mesh(waypoint(), web(), pod("web", labels="app: web"), http(parent()))
    assert published(mesh) == {}
    assert mesh.conditions("Service", "web") == [
        "istio.io/WaypointBound=False WaypointIsNotReady: waypoint shop/wp has no address yet: its status "
        "names none, and no workload has the label gateway.networking.k8s.io/gateway-name=wp; "
        "traffic goes without it"
    ]
    (found,) = mesh.conditions("HTTPRoute", "r", "ResolvedWaypoints")
    assert found.endswith("traffic goes without it): nothing applies the route")
