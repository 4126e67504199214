"""VirtualServices to what a waypoint tries: config-api 12."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, istio, parent, replica, service, waypoint
from tests.config.virtual_services import (
    BASE,
    NEW,
    OLD,
    TCP_TO_V1,
    TO_V1,
    TO_V2,
    USE,
    as_dict,
    ids,
    only,
    rules_of,
    targets,
    virtual,
)

# ---- matches ----


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("uri: {exact: /a}", {"path": {"exact": "/a"}}),
        ("uri: {prefix: /a}", {"path": {"string_prefix": "/a"}}),
        ("uri: {regex: '/a.*'}", {"path": {"regex": "/a.*"}}),
        (
            "uri: {prefix: /A}, ignoreUriCase: true",
            {"path": {"string_prefix": "/A", "is_case_ignored": True}},
        ),
        ("scheme: {exact: http}", {"scheme": {"exact": "http"}}),
        ("method: {exact: GET}", {"method": "GET"}),
        ("method: {regex: 'GET|PUT'}", {"headers": [{"name": ":method", "regex": "GET|PUT"}]}),
        ("authority: {prefix: api.}", {"authority": {"prefix": "api."}}),
        ("headers: {X-A: {exact: b}}", {"headers": [{"name": "x-a", "exact": "b"}]}),
        ("headers: {x: {}}", {"headers": [{"name": "x", "is_present": True}]}),
        ("headers: {x: {regex: '*'}}", {"headers": [{"name": "x", "is_present": True}]}),
        ("headers: {':path': {prefix: /a}}", {"headers": [{"name": ":path", "prefix": "/a"}]}),
        ("withoutHeaders: {X: {exact: ''}}", {"without_headers": [{"name": "x", "exact": ""}]}),
        ("withoutHeaders: {x: {}}", {"without_headers": [{"name": "x", "is_present": True}]}),
        ("queryParams: {Q: {prefix: v}}", {"query_parameters": [{"name": "Q", "prefix": "v"}]}),
        ("sourceNamespace: edge", {"source_namespace": "edge"}),
        ("port: 80, uri: {exact: /a}", {"path": {"exact": "/a"}}),
        ("gateways: [mesh], uri: {exact: /a}", {"path": {"exact": "/a"}}),
    ],
)
def test_every_field_of_a_match(match: str, expected: dict[str, object]) -> None:
    rule = only(f"match: [{{{match}}}], {TO_V1}")
    assert [as_dict(each) for each in rule.matches] == [expected]


def test_matches_of_a_route_are_alternatives_and_routes_keep_their_order() -> None:
    found = rules_of(
        virtual(
            f"match: [{{uri: {{prefix: /}}, headers: {{a: {{}}}}}}, {{uri: {{exact: /b}}}}], {TO_V1}",
            f"name: long, match: [{{uri: {{prefix: /very/long}}}}], {TO_V2}",
            TO_V2,
        )
    )
    assert ids(found) == ["shop/vs/0", "shop/vs/long", "shop/vs/2"]
    assert [len(rule.matches) for rule in found] == [2, 1, 1]


@pytest.mark.parametrize(
    "match",
    ["port: 81", "sourceLabels: {app: a}", "gateways: [ns/edge]", "port: 81}, {sourceLabels: {a: b}"],
)
def test_what_cannot_hold_on_a_port_is_left_out(match: str) -> None:
    found = rules_of(virtual(f"match: [{{{match}}}], {TO_V1}", TO_V2))
    assert ids(found) == ["shop/vs/1"]


def test_what_follows_a_route_for_every_request_is_left_out() -> None:
    found = rules_of(
        virtual(
            f"match: [{{uri: {{exact: /a}}}}, {{uri: {{prefix: /}}}}, {{uri: {{exact: /c}}}}], {TO_V1}", TO_V2
        )
    )
    assert [[match.path.exact or match.path.string_prefix for match in rule.matches] for rule in found] == [
        ["/a"],
        ["/"],
    ]


def test_several_virtual_services_follow_each_other_what_takes_everything_last() -> None:
    exact = "match: [{uri: {exact: /a}}]"
    found = rules_of(
        virtual(f"{exact}, {TO_V1}", TO_V1, name="old", created=OLD),
        virtual(f"{exact}, {TO_V1}", TO_V1, name="new", created=NEW),
        virtual(TO_V1, name="wild", hosts="'*.shop.svc.cluster.local'", created="2019-01-01T00:00:00Z"),
    )
    assert ids(found) == ["shop/old/0", "shop/new/0", "shop/old/1", "shop/new/1", "shop/wild/0"]


# ---- destinations ----


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("{destination: {host: v1}}", [("v1", 8080, 1)]),  # its only port
        ("{destination: {host: v2}}", [("v2", 80, 1)]),  # the port that was called
        ("{destination: {host: v2, port: {number: 81}}}", [("v2", 81, 1)]),
        ("{destination: {host: v1.shop.svc.cluster.local}}", [("v1", 8080, 1)]),
        ("{destination: {host: V1}}", [("v1", 8080, 1)]),
        ("{destination: {host: v1}, weight: 0}", [("v1", 8080, 1)]),
        (
            "{destination: {host: v1}, weight: 90}, {destination: {host: v2}, weight: 10}",
            [("v1", 8080, 90), ("v2", 80, 10)],
        ),
        ("{destination: {host: v1}, weight: 0}, {destination: {host: v2}, weight: 10}", [("v2", 80, 10)]),
        (
            "{destination: {host: gone}, weight: 9}, {destination: {host: v2}, weight: 1}",
            [("", 503, 9), ("v2", 80, 1)],
        ),
        ("{destination: {host: v1.shop}}", [("", 503, 1)]),
        ("{destination: {host: v1, port: {number: 9}}}", [("", 503, 1)]),
        ("{destination: {host: web, subset: blue}}", [("web", 80, 1)]),
        ("{destination: {host: web, subset: green}}", [("", 503, 1)]),
    ],
)
def test_where_destinations_lead(route: str, expected: list[tuple[str, int, int]]) -> None:
    assert targets(only(f"route: [{route}]")) == expected


def test_short_names_are_looked_up_in_the_namespace_of_the_virtual_service() -> None:
    mesh = Mesh(
        waypoint(space="edge", allowed="from: All"),
        replica(space="edge"),
        service("web", "ports: [{port: 80}]", labels=f"{USE}, istio.io/use-waypoint-namespace: edge"),
        service("v1", "ports: [{port: 1}]"),
        service("v1", "ports: [{port: 2}]", space="edge"),
        virtual(TO_V1, hosts="web.shop.svc.cluster.local", space="edge"),
    )
    (rule,) = mesh.http_rules()
    (backend,) = rule.forward.backends
    assert (backend.service, backend.port) == ("edge/v1.edge.svc.cluster.local", 2)


def test_a_subset_that_comes_and_goes_changes_the_routes_that_name_it() -> None:
    mesh = Mesh(*BASE, virtual("route: [{destination: {host: v1, subset: a}}]"))
    assert mesh.http_rules()[0].forward.backends[0].problem == (
        "no DestinationRule for v1.shop.svc.cluster.local has a subset a"
    )
    mesh.apply(istio("DestinationRule", "v1", "{host: v1, subsets: [{name: a}]}"))
    assert mesh.http_rules()[0].forward.backends[0].subset == "a"
    mesh.remove("DestinationRule", "shop", "v1")
    assert mesh.http_rules()[0].forward.backends[0].failure_status == 503


# ---- delegates ----


def delegated(root_match: str, own: str) -> list[pb.HttpRule]:
    """`own` are the routes of the delegate."""
    match = f"match: [{{{root_match}}}], " if root_match else ""
    return rules_of(
        virtual(f"name: root, {match}timeout: 5s, delegate: {{name: child}}", TO_V2),
        istio("VirtualService", "child", f"{{http: [{own}]}}"),
    )


def test_a_delegates_routes_take_the_place_of_the_route_that_delegates() -> None:
    found = delegated(
        "uri: {prefix: /a}, headers: {x: {exact: '1'}}",
        f"{{name: one, match: [{{uri: {{exact: /a/b}}, queryParams: {{q: {{}}}}}}], {TO_V1}, timeout: 1s}}, "
        f"{{{TO_V1}}}",
    )
    assert ids(found) == ["shop/child/root-one", "shop/child/root", "shop/vs/1"]
    assert [as_dict(each) for each in found[0].matches] == [
        {
            "path": {"exact": "/a/b"},
            "headers": [{"name": "x", "exact": "1"}],
            "query_parameters": [{"name": "q", "is_present": True}],
        }
    ]
    assert [rule.timeout.seconds for rule in found] == [1, 5, 0]
    assert found[1].matches[0].path.string_prefix == "/a"


@pytest.mark.parametrize(
    ("root", "own", "fits"),
    [
        ("uri: {prefix: /a}", "uri: {prefix: /a/b}", True),
        ("uri: {prefix: /a}", "uri: {exact: /ab}", True),
        ("uri: {prefix: /a/b}", "uri: {prefix: /a}", False),
        ("uri: {exact: /a}", "uri: {exact: /a}", True),
        ("uri: {exact: /a}", "uri: {prefix: /a}", False),
        ("uri: {regex: '/a.*'}", "uri: {exact: /ab}", False),
        ("uri: {regex: '/a.*'}", "headers: {x: {}}", True),
        ("method: {exact: GET}", "method: {exact: PUT}", False),
        ("headers: {x: {exact: a}}", "headers: {x: {exact: b}}", False),
        ("headers: {x: {exact: a}}", "headers: {x: {}}", False),
        ("headers: {x: {}}", "headers: {x: {exact: a}}", True),
        ("withoutHeaders: {x: {exact: a}}", "withoutHeaders: {x: {exact: b}}", False),
        ("port: 80", "port: 81", False),
        ("uri: {prefix: /a}, ignoreUriCase: true", "uri: {prefix: /a}", False),
        ("uri: {prefix: /a}, ignoreUriCase: true", "headers: {x: {}}", True),
    ],
)
def test_a_delegate_takes_only_what_it_was_given(root: str, own: str, fits: bool) -> None:
    found = delegated(root, f"{{match: [{{{own}}}], {TO_V1}}}")
    assert ids(found) == (["shop/child/root", "shop/vs/1"] if fits else ["shop/vs/1"])


def test_a_delegate_that_comes_and_goes_changes_the_routes_of_its_root() -> None:
    mesh = Mesh(*BASE, virtual("delegate: {name: child, namespace: teams}", TO_V2))
    assert ids(mesh.http_rules()) == ["shop/vs/1"]
    (text,) = mesh.conditions("VirtualService", "vs", "PartiallyInvalid")
    assert "http[0].delegate: there is no VirtualService teams/child; the route is left out" in text
    child = istio("VirtualService", "child", f"{{http: [{{{TO_V1}}}]}}", space="teams")
    mesh.apply(child, service("v1", "ports: [{port: 1}]", space="teams"))
    (rule,) = mesh.http_rules()
    assert rule.name == "VirtualService/teams/child/0"
    assert rule.forward.backends[0].service == "teams/v1.teams.svc.cluster.local"
    assert mesh.conditions("VirtualService", "child", "Accepted") == [
        "Accepted=True Accepted: its routes are taken over by VirtualService shop/vs"
    ]
    mesh.apply(child.replace("{http", "{exportTo: ['.'], http"))
    assert ids(mesh.http_rules()) == ["shop/vs/1"]
    mesh.remove("VirtualService", "shop", "vs")
    assert "no VirtualService delegates to it" in mesh.conditions("VirtualService", "child", "Accepted")[0]


# ---- connections ----


def streams(spec: str, *, address: str = "10.96.0.1") -> list[tuple[str, list[str], list[str]]]:
    mesh = Mesh(
        *BASE,
        service("db", f"clusterIP: {address}, ports: [{{name: tcp, port: 5432}}]", labels=USE),
        virtual(hosts="db", more=spec),
    )
    (port,) = mesh.routes("shop/db.shop.svc.cluster.local").ports
    return [
        (
            rule.name.removeprefix("VirtualService/shop/vs/"),
            list(rule.sni_hosts),
            [each.service.removeprefix("shop/").partition(".")[0] for each in rule.backends],
        )
        for rule in port.tcp_rules
    ]


def test_connections_go_by_server_name_then_by_port_then_to_the_service() -> None:
    tls = f"tls: [{{match: [{{sniHosts: [DB.example, '*.x.example'], port: 5432}}], {TCP_TO_V1}}}]"
    assert streams(f"{tls}, tcp: [{{match: [{{port: 5432}}], {TCP_TO_V1}}}]") == [
        ("tls/0", ["db.example", "*.x.example"], ["v1"]),
        ("tcp/0", [], ["v1"]),
    ]
    assert streams(tls) == [
        ("tls/0", ["db.example", "*.x.example"], ["v1"]),
        ("default", [], ["db"]),
    ]


@pytest.mark.parametrize(
    ("match", "address", "is_taken"),
    [
        ("destinationSubnets: [10.96.0.0/16]", "10.96.0.1", True),
        ("destinationSubnets: [10.97.0.0/16, 10.96.0.1]", "10.96.0.1", True),
        ("destinationSubnets: [10.97.0.0/16]", "10.96.0.1", False),
        ("destinationSubnets: ['fd00::/8']", "10.96.0.1", False),
        ("port: 1", "10.96.0.1", False),
        ("sourceLabels: {a: b}", "10.96.0.1", False),
        ("sourceNamespace: a", "10.96.0.1", False),
        ("sourceSubnet: 10.0.0.0/8", "10.96.0.1", False),
        ("gateways: [edge]", "10.96.0.1", False),
    ],
)
def test_what_a_connection_can_be_matched_by(match: str, address: str, is_taken: bool) -> None:
    found = streams(f"tcp: [{{match: [{{{match}}}], {TCP_TO_V1}}}]", address=address)
    assert [targets for _, _, targets in found] == ([["v1"]] if is_taken else [])


# ---- which count ----


@pytest.mark.parametrize(
    ("space", "more", "counts"),
    [
        ("shop", "", True),
        ("edge", "", True),
        ("bank", "", False),
        ("shop", "gateways: [mesh, ns/edge]", True),
        ("shop", "gateways: [ns/edge]", False),
        ("shop", "exportTo: [edge]", True),
        ("shop", "exportTo: ['.']", False),
        ("edge", "exportTo: ['.']", True),
        ("shop", "exportTo: ['*']", True),
    ],
)
def test_who_may_say_how_requests_to_a_service_go(space: str, more: str, counts: bool) -> None:
    mesh = Mesh(
        waypoint(space="edge", allowed="from: All"),
        replica(space="edge"),
        service("web", "ports: [{port: 80}]", labels=f"{USE}, istio.io/use-waypoint-namespace: edge"),
        virtual("directResponse: {status: 200}", hosts="web.shop.svc.cluster.local", space=space, more=more),
    )
    assert bool(mesh.http_rules()) == counts
    assert mesh.conditions("VirtualService", "vs", "Accepted")[0].startswith(f"Accepted={counts} ")


def test_routes_of_the_gateway_api_come_first() -> None:
    route = istio("HTTPRoute", "r", f"{{{parent()}, rules: [{{}}]}}")
    mesh = Mesh(*BASE, virtual(TO_V1, created=OLD), route)
    assert [rule.name for rule in mesh.http_rules()] == ["HTTPRoute/shop/r/0"]
    assert mesh.conditions("VirtualService", "vs", "Accepted") == [
        "Accepted=False Conflicted: HTTPRoute shop/r has the port: "
        "routes of the Gateway API come before VirtualServices"
    ]
    mesh.remove("HTTPRoute", "shop", "r")
    assert ids(mesh.http_rules()) == ["shop/vs/0"]
    two = service("web", "ports: [{name: http, port: 80}, {name: b, port: 81}]", labels=USE)
    mesh.apply(two, route.replace("name: web", "name: web, port: 80"))
    assert "attached to port 81" in mesh.conditions("VirtualService", "vs", "Accepted")[0]


def test_conditions_tell_requests_from_connections() -> None:
    both = virtual(TO_V1, more=f"tcp: [{{{TCP_TO_V1}}}]")
    route = istio("TCPRoute", "r", f"{{{parent()}, rules: [{{backendRefs: [{{name: v1, port: 8080}}]}}]}}")
    mesh = Mesh(*BASE, service("web", "ports: [{port: 80}]", labels=USE), both, route)
    assert mesh.conditions("VirtualService", "vs", "Accepted") == [
        "Accepted=True Accepted: attached to port 80 of host web.shop.svc.cluster.local; tls and tcp not on "
        "port 80: TCPRoute shop/r has the port: routes of the Gateway API come before VirtualServices"
    ]
    mesh.apply(service("web", "ports: [{name: http, port: 80}]", labels=USE))
    assert "; tls and tcp" not in mesh.conditions("VirtualService", "vs", "Accepted")[0]
    mesh.apply(virtual(more=f"tcp: [{{{TCP_TO_V1}}}]"))
    assert mesh.conditions("VirtualService", "vs", "Accepted") == [
        "Accepted=False NoMatchingParent: no port of Service shop/web speaks what it has routes for"
    ]


def test_conditions_say_what_it_applies_to_and_what_is_wrong() -> None:
    mesh = Mesh(
        *BASE,
        virtual(
            f"match: [{{sourceLabels: {{a: b}}}}, {{uri: {{exact: /a}}}}], {TO_V1}",
            "route: [{destination: {host: gone}}]",
            hosts="web, nobody.example",
        ),
        virtual(TO_V1, name="edge", more="gateways: [edge]"),
    )
    assert mesh.conditions("VirtualService", "vs") == [
        "Accepted=False NoMatchingParent: no service has the host nobody.example",
        "Accepted=True Accepted: attached to port 80 of host web.shop.svc.cluster.local",
        "ResolvedWaypoints=True Resolved: Service shop/web goes through waypoint shop/wp",
        "PartiallyInvalid=True UnsupportedValue: http[0].match[0]: sourceLabels is unknown to waypoints: "
        "it never matches",
        "ResolvedRefs=False BackendNotFound: no service has the host gone.shop.svc.cluster.local; "
        "requests that go there get 503",
    ]
    assert mesh.conditions("VirtualService", "edge") == [
        "Accepted=False UnsupportedValue: gateways leave the mesh out (mesh is not among them): "
        "it applies to nothing here"
    ]


def test_a_change_costs_what_it_concerns() -> None:
    others = [service(f"s{number}", "ports: [{port: 80}]", labels=USE) for number in range(50)]
    mesh = Mesh(*BASE, *others, virtual(TO_V1))
    before = mesh.registry.compiled
    mesh.apply(virtual(TO_V2))
    assert mesh.registry.compiled - before <= 4  # web, and the destinations web, v1 and v2
    before = mesh.registry.compiled
    assert not mesh.apply(virtual(TO_V2, name="idle", hosts="nobody.example"))
    assert mesh.registry.compiled == before
