"""VirtualServices to what a waypoint tries: config-api 12."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from config.compile.resource import SERVICE_ROUTES
from config.kinds.virtual_actions import RETRY_CONDITIONS
from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, parent, replica, service, warnings_of, waypoint
from waypoint.state import rules as waypoint_rules
from waypoint.state.regex import is_available
from waypoint.state.routes import parse_routes

USE = "istio.io/use-waypoint: wp"
WEB = "shop/web.shop.svc.cluster.local"
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
BASE = (
    waypoint(),
    replica(),
    service("web", "ports: [{name: http, port: 80}]", labels=USE),
    service("v1", "ports: [{port: 8080}]"),
    service("v2", "ports: [{name: a, port: 80}, {name: b, port: 81}]"),
    istio("DestinationRule", "web", "{host: web, subsets: [{name: blue, labels: {color: blue}}]}"),
)
TO_V1 = "route: [{destination: {host: v1}}]"
TO_V2 = "route: [{destination: {host: v2}}]"


def virtual(
    *http: str,
    name: str = "vs",
    hosts: str = "web",
    more: str = "",
    space: str = "shop",
    created: str = "",
) -> str:
    """Each route in flow style, without braces."""
    parts = [f"hosts: [{hosts}]" if hosts else "", more]
    if http:
        parts.append(f"http: [{', '.join(f'{{{each}}}' for each in http)}]")
    metadata = f"creationTimestamp: {created!r}" if created else ""
    spec = f"{{{', '.join(filter(None, parts))}}}"
    return istio("VirtualService", name, spec, space=space, metadata=metadata)


def rules_of(*texts: str) -> list[pb.HttpRule]:
    return Mesh(*BASE, *texts).http_rules()


def only(*http: str) -> pb.HttpRule:
    (rule,) = rules_of(virtual(*http))
    return rule


def as_dict(message: pb.HttpMatch | pb.Redirect | pb.Fault | pb.RetryPolicy | pb.Cors) -> dict[str, object]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def targets(rule: pb.HttpRule) -> list[tuple[str, int, int]]:
    """(service, port, weight); a backend that leads nowhere has the status in place of the port."""
    return [
        (each.service.partition("/")[2].partition(".")[0], each.port or each.failure_status, each.weight)
        for each in rule.forward.backends
    ]


def ids(found: list[pb.HttpRule]) -> list[str]:
    return [rule.name.removeprefix("VirtualService/") for rule in found]


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


# ---- actions ----


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ("{uri: /n}", {"path": {"full": "/n"}, "status": 301}),
        ("{authority: a.b, redirectCode: 308}", {"hostname": "a.b", "status": 308}),
        ("{scheme: https, port: 8443}", {"scheme": "https", "port": 8443, "status": 301}),
        ("{derivePort: FROM_PROTOCOL_DEFAULT}", {"status": 301}),
        ("{derivePort: FROM_REQUEST_PORT}", {"status": 301}),
        ("{derivePort: FROM_REQUEST_PORT, scheme: https}", {"scheme": "https", "port": 80, "status": 301}),
        (
            "{uriRegexRewrite: {match: '/a(.*)', rewrite: '/b\\1'}}",
            {"path": {"regex": {"match": "/a(.*)", "substitution": "/b\\1"}}, "status": 301},
        ),
    ],
)
def test_redirects(redirect: str, expected: dict[str, object]) -> None:
    found = as_dict(only(f"redirect: {redirect}").redirect)
    assert found.pop("keeps_port_of_host") is True
    assert found == expected


def test_the_port_that_was_called_is_named_where_the_scheme_does_not_imply_it() -> None:
    mesh = Mesh(
        waypoint(),
        replica(),
        service("web", "ports: [{name: http-a, port: 80}, {name: http-b, port: 8080}]", labels=USE),
        virtual("redirect: {derivePort: FROM_REQUEST_PORT}"),
    )
    assert [port.http_rules[0].redirect.port for port in mesh.routes(WEB).ports] == [0, 8080]


@pytest.mark.parametrize(
    ("rewrite", "match", "path", "expected"),
    [
        ("{uri: /n}", "uri: {prefix: /a}", "/a", {"prefix": "/n"}),
        ("{uri: /n}", "headers: {a: {}}", "/", {"prefix": "/n"}),
        (
            "{uriRegexRewrite: {match: a, rewrite: b}}",
            "headers: {a: {}}",
            "",
            {"regex": {"match": "a", "substitution": "b"}},
        ),
    ],
)
def test_rewrites(rewrite: str, match: str, path: str, expected: dict[str, object]) -> None:
    rule = only(f"match: [{{{match}}}], rewrite: {rewrite}, {TO_V1}")
    assert json_format.MessageToDict(rule.rewrite.path, preserving_proto_field_name=True) == expected
    assert rule.matches[0].path.string_prefix == path


def test_a_direct_response() -> None:
    response = only("directResponse: {status: 418, body: {string: tea}}").direct_response
    assert (response.status, response.body) == (418, b"tea")
    assert only("directResponse: {status: 200, body: {bytes: dGVh}}").direct_response.body == b"tea"


@pytest.mark.parametrize(
    ("retries", "expected"),
    [
        ("", {}),
        ("retries: {attempts: 0}", {}),
        ("retries: {}", {}),
        (
            "retries: {attempts: 3}",
            {
                "attempts": 3,
                "on": [
                    "connect-failure",
                    "refused-stream",
                    "unavailable",
                    "cancelled",
                    "retriable-status-codes",
                ],
                "backoff": "0.025s",
            },
        ),
        (
            "retries: {attempts: 1, retryOn: '5xx, 429,gateway-error', perTryTimeout: 1.5s, backoff: 100ms, "
            "retryRemoteLocalities: true, retryIgnorePreviousHosts: false}",
            {
                "attempts": 1,
                "per_try_timeout": "1.500s",
                "on": ["5xx", "gateway-error"],
                "statuses": [429],
                "backoff": "0.100s",
                "may_use_remote_localities": True,
                "may_repeat_hosts": True,
            },
        ),
        (
            "retries: {attempts: 1, retryOn: '503', retryIgnorePreviousHosts: true}",
            {"attempts": 1, "on": ["retriable-status-codes"], "statuses": [503], "backoff": "0.025s"},
        ),
    ],
)
def test_retries(retries: str, expected: dict[str, object]) -> None:
    made = only(", ".join(filter(None, (retries, TO_V1))))
    assert made.HasField("retries") == bool(retries)  # else the mesh's default
    assert as_dict(made.retries) == expected


def test_the_conditions_of_retries_are_those_that_waypoints_know() -> None:
    assert RETRY_CONDITIONS == waypoint_rules.RETRY_CONDITIONS


@pytest.mark.parametrize(
    ("timeout", "milliseconds"), [("1.5s", 1500), ("2m", 120_000), ("1h1m", 3_660_000), ("0s", 0)]
)
def test_timeouts(timeout: str, milliseconds: int) -> None:
    rule = only(f"timeout: {timeout}, {TO_V1}")
    assert rule.timeout.ToMilliseconds() == milliseconds
    assert rule.HasField("timeout") == bool(milliseconds)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "{delay: {percentage: {value: 0.5}, fixedDelay: 2s}}",
            {"delay_share": {"numerator": 5000, "denominator": 1_000_000}, "delay": "2s"},
        ),
        (
            "{delay: {percent: 7, fixedDelay: 2s}}",
            {"delay_share": {"numerator": 70_000, "denominator": 1_000_000}, "delay": "2s"},
        ),
        (
            "{abort: {percentage: {value: 100}, httpStatus: 503}}",
            {"abort_share": {"numerator": 1_000_000, "denominator": 1_000_000}, "abort_status": 503},
        ),
        (
            "{abort: {percentage: {value: 1}, grpcStatus: UNAVAILABLE}}",
            {"abort_share": {"numerator": 10_000, "denominator": 1_000_000}, "abort_grpc_status": 14},
        ),
        ("{abort: {httpStatus: 503}, delay: {fixedDelay: 1s}}", {}),
    ],
)
def test_faults(fault: str, expected: dict[str, object]) -> None:
    assert as_dict(only(f"fault: {fault}, {TO_V1}").fault) == expected


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("mirror: {host: v2}", [("v2", 1_000_000)]),
        ("mirror: {host: v2}, mirrorPercentage: {value: 0.1}", [("v2", 1000)]),
        ("mirror: {host: v2}, mirrorPercent: 50", [("v2", 500_000)]),
        ("mirror: {host: v2}, mirrorPercentage: {value: 0}", []),
        ("mirror: {host: gone}", []),
        (
            "mirrors: [{destination: {host: v2}, percentage: {value: 10}}, {destination: {host: v1}}]",
            [("v2", 100_000), ("v1", 1_000_000)],
        ),
    ],
)
def test_mirrors(mirror: str, expected: list[tuple[str, int]]) -> None:
    rule = only(f"{mirror}, {TO_V1}")
    assert [
        (each.backend.service.removeprefix("shop/").partition(".")[0], each.share.numerator)
        for each in rule.mirrors
    ] == expected


def test_cors() -> None:
    rule = only(
        "corsPolicy: {allowOrigins: [{exact: 'https://a.b'}, {prefix: 'http'}], allowMethods: [GET, PUT], "
        f"allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 24h, allowCredentials: true}}, {TO_V1}"
    )
    assert as_dict(rule.cors) == {
        "allow_origins": [{"exact": "https://a.b"}, {"prefix": "http"}],
        "allow_methods": ["GET", "PUT"],
        "allow_headers": ["x-a"],
        "expose_headers": ["x-b"],
        "max_age": "86400s",
        "allow_credentials": True,
        "forwards_unmatched_preflights": True,
    }
    ignoring = only(f"corsPolicy: {{allowOrigin: ['*'], unmatchedPreflights: IGNORE}}, {TO_V1}").cors
    assert as_dict(ignoring) == {"allow_origins": [{"exact": "*"}]}


def fields_of(changes: pb.HeaderChanges) -> list[tuple[str, str]]:
    return [(each.name, each.value) for each in (*changes.set, *changes.add)]


def test_headers_of_routes_and_of_destinations() -> None:
    rule = only(
        "headers: {request: {set: {X-A: '100%%'}, add: {b: '2'}, remove: [C]}, "
        "response: {remove: [server]}}, "
        "route: [{destination: {host: v1}, headers: {request: {set: {d: '4'}}, response: {add: {e: '5'}}}}]"
    )
    assert fields_of(rule.request_headers) == [("x-a", "100%"), ("b", "2")]
    assert list(rule.request_headers.remove) == ["c"]
    assert list(rule.response_headers.remove) == ["server"]
    (backend,) = rule.forward.backends
    assert fields_of(backend.request_headers) == [("d", "4")]
    assert fields_of(backend.response_headers) == [("e", "5")]


@pytest.mark.parametrize(
    ("more", "authority", "of_rule", "of_backend"),
    [
        ("", "", [], [("host", "d")]),
        ("headers: {request: {set: {':authority': r}}}, ", "", [("host", "r")], []),
        ("rewrite: {authority: w}, headers: {request: {set: {Host: r}}}, ", "w", [], []),
    ],
)
def test_the_host_is_the_rewrites_then_the_routes_then_the_destinations(
    more: str, authority: str, of_rule: list[tuple[str, str]], of_backend: list[tuple[str, str]]
) -> None:
    rule = only(f"{more}route: [{{destination: {{host: v1}}, headers: {{request: {{set: {{host: d}}}}}}}}]")
    assert rule.rewrite.authority == authority
    assert fields_of(rule.request_headers) == of_rule
    assert fields_of(rule.forward.backends[0].request_headers) == of_backend


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


TCP_TO_V1 = "route: [{destination: {host: v1}}]"


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


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hosts: [web], http: [{}]", "http[0]: found none of them; allowed: one of route, redirect"),
        (f"hosts: [web], http: [{{{TO_V1}, redirect: {{uri: /a}}}}]", "found route and redirect"),
        ("hosts: ['*'], http: [{redirect: {uri: /a}}]", "* is allowed only where gateways name no mesh"),
        ("hosts: ['a.*.b'], http: [{redirect: {uri: /a}}]", "hosts[0]: found text"),
        ("hosts: [web, web], http: [{redirect: {uri: /a}}]", "host"),
        ("hosts: [web]", "has no route"),
        ("tcp: [{route: [{destination: {host: a}}]}]", "a delegate has http only"),
        ("gateways: [mesh], http: [{redirect: {uri: /a}}]", "a delegate has no gateways"),
        ("http: [{delegate: {name: a}}]", "a delegate cannot delegate further"),
        (
            "http: [{match: [{sourceNamespace: a}], redirect: {uri: /a}}]",
            "a delegate has no gateways, source",
        ),
        (f"hosts: [web], http: [{{match: [{{uri: {{exact: a}}}}], {TO_V1}}}]", "does not begin with /"),
        (f"hosts: [web], http: [{{match: [{{uri: {{}}}}], {TO_V1}}}]", "uri: says nothing"),
        (
            f"hosts: [web], http: [{{match: [{{uri: {{exact: /a, prefix: /}}}}], {TO_V1}}}]",
            "exclude each other",
        ),
        (f"hosts: [web], http: [{{match: [{{uri: {{regex: '('}}}}], {TO_V1}}}]", "not a regular expression"),
        (f"hosts: [web], http: [{{match: [{{urI: {{exact: /a}}}}], {TO_V1}}}]", "did you mean uri?"),
        (
            f"hosts: [web], http: [{{match: [{{headers: {{a: {{}}, A: {{}}}}}}], {TO_V1}}}]",
            "A is there twice",
        ),
        (f"hosts: [web], http: [{{timeout: 5, {TO_V1}}}]", "timeout: found whole number 5"),
        (f"hosts: [web], http: [{{timeout: 1us, {TO_V1}}}]", "a duration of at most a year"),
        (f"hosts: [web], http: [{{retries: {{attempts: 1, retryOn: sometimes}}, {TO_V1}}}]", "sometimes"),
        (f"hosts: [web], http: [{{retries: {{attempts: 1, retryOn: '99'}}, {TO_V1}}}]", "99 is not a status"),
        (f"hosts: [web], http: [{{retries: {{retryOn: 5xx}}, {TO_V1}}}]", "attempts is missing or 0"),
        (
            f"hosts: [web], http: [{{fault: {{delay: {{fixedDelay: 1s, exponentialDelay: 1s}}}}, {TO_V1}}}]",
            "exponentialDelay",
        ),
        (
            f"hosts: [web], http: [{{fault: {{abort: {{grpcStatus: OK}}}}, {TO_V1}}}]",
            "gRPC status other than OK",
        ),
        (
            "hosts: [web], http: [{fault: {abort: {httpStatus: 500}}, redirect: {uri: /a}}]",
            "fault does not go",
        ),
        ("hosts: [web], http: [{redirect: {port: 1, derivePort: FROM_REQUEST_PORT}}]", "exclude each other"),
        ("hosts: [web], http: [{redirect: {prefixRewrite: /b}}]", "prefixRewrite needs a uri prefix"),
        ("hosts: [web], http: [{redirect: {uri: /a, redirectCode: 304}}]", "301, 302, 303, 307, 308"),
        ("hosts: [web], http: [{directResponse: {status: 600}}]", "status: found whole number 600"),
        ("hosts: [web], http: [{directResponse: {status: 200, body: {}}}]", "string or bytes"),
        (f"hosts: [web], http: [{{rewrite: {{}}, {TO_V1}}}]", "rewrite: says nothing"),
        (
            f"hosts: [web], http: [{{headers: {{request: {{set: {{':path': a}}}}}}, {TO_V1}}}]",
            "only :authority",
        ),
        (
            f"hosts: [web], http: [{{headers: {{request: {{set: {{Connection: a}}}}}}, {TO_V1}}}]",
            "Connection",
        ),
        (f"hosts: [web], http: [{{headers: {{request: {{remove: [Host]}}}}, {TO_V1}}}]", "cannot be removed"),
        (
            f"hosts: [web], http: [{{headers: {{response: {{set: {{Host: a}}}}}}, {TO_V1}}}]",
            "a header of requests",
        ),
        (
            f"hosts: [web], http: [{{headers: {{request: {{set: {{a: '%REQ(b)%'}}}}}}, {TO_V1}}}]",
            "operator of Envoy",
        ),
        (
            "hosts: [web], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]",
            "all weights are 0",
        ),
        ("hosts: [web], http: [{route: [{destination: {host: '*.a'}}]}]", "without wildcard"),
        (
            f"hosts: [w], http: [{{mirror: {{host: a}}, mirrors: [{{destination: {{host: b}}}}], {TO_V2}}}]",
            "exclude",
        ),
        (f"hosts: [web], tls: [{{match: [{{port: 1}}], {TCP_TO_V1}}}]", "sniHosts: found nothing"),
    ],
)
def test_what_is_wrong_is_named(text: str, error: str) -> None:
    found = errors_of(istio("VirtualService", "vs", f"{{{text}}}"))
    assert found
    assert error in found[0], found
    assert "VirtualService shop/vs: spec" in found[0]


def test_what_is_probably_not_meant_is_a_warning() -> None:
    assert [
        each.partition("spec.")[2]
        for each in warnings_of(
            virtual(f"fault: {{abort: {{httpStatus: 500}}, delay: {{fixedDelay: 1s}}}}, {TO_V1}", TO_V2)
        )
    ] == [
        "http[0].fault.delay: without percentage.value it delays no request",
        "http[0].fault.abort: without percentage.value it aborts no request",
        "http[0]: takes every request that comes to it: what follows has no effect on any port",
    ]


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_all_versions_are_read_alike(version: str) -> None:
    assert not errors_of(virtual(TO_V1).replace("io/v1", f"io/{version}"))


# ---- the other side ----

EVERYTHING = (
    f"match: [{{uri: {{prefix: /a}}, ignoreUriCase: true, method: {{exact: GET}}, headers: {{x: {{}}}}, "
    "withoutHeaders: {y: {exact: ''}}, queryParams: {q: {prefix: a}}, authority: {prefix: w}, "
    f"scheme: {{exact: http}}, sourceNamespace: edge}}], rewrite: {{uri: /b, authority: c}}, {TO_V1}",
    f"retries: {{attempts: 2, retryOn: '5xx,429', perTryTimeout: 1s}}, timeout: 3s, {TO_V2}",
    f"fault: {{delay: {{percentage: {{value: 1}}, fixedDelay: 1s}}, abort: {{percentage: {{value: 2}}, "
    f"grpcStatus: '14'}}}}, {TO_V1}",
    "redirect: {authority: 'a.b:81', scheme: https, redirectCode: 307}",
    "match: [{uri: {prefix: /a}}], redirect: {prefixRewrite: /c}",
    "directResponse: {status: 204}",
    f"mirrors: [{{destination: {{host: v2}}, percentage: {{value: 0.01}}}}], {TO_V1}",
    f"corsPolicy: {{allowOrigins: [{{prefix: 'h://'}}], maxAge: 1m, unmatchedPreflights: IGNORE}}, {TO_V1}",
    "headers: {request: {set: {':authority': a, x: y}, remove: [z]}, response: {add: {a: b}}}, "
    "route: [{destination: {host: gone}, weight: 1}, {destination: {host: web, subset: blue}, weight: 2, "
    "headers: {request: {set: {Host: q}}}}]",
)
EXPRESSIONS = (
    f"match: [{{uri: {{regex: '/a.*'}}, method: {{regex: 'A|B'}}}}], {TO_V1}",
    f"rewrite: {{uriRegexRewrite: {{match: '/(a)', rewrite: '/\\1'}}}}, {TO_V1}",
    f"corsPolicy: {{allowOrigins: [{{regex: 'a+'}}]}}, {TO_V1}",
)


@pytest.mark.parametrize("http", EVERYTHING)
def test_a_waypoint_takes_what_is_compiled(http: str) -> None:
    for resource in Mesh(*BASE, virtual(http)).registry.resources[SERVICE_ROUTES].values():
        parse_routes(resource.payload)


@pytest.mark.skipif(not is_available(), reason="the RE2 engine is not installed")
@pytest.mark.parametrize("http", EXPRESSIONS)
def test_a_waypoint_takes_expressions(http: str) -> None:
    for resource in Mesh(*BASE, virtual(http)).registry.resources[SERVICE_ROUTES].values():
        parse_routes(resource.payload)


def test_a_waypoint_takes_rules_for_connections() -> None:
    mesh = Mesh(
        *BASE,
        service("db", "ports: [{name: tcp, port: 5432}]", labels=USE),
        virtual(
            hosts="db",
            more=f"tls: [{{match: [{{sniHosts: ['*.db']}}], {TCP_TO_V1}}}], "
            "tcp: [{match: [{port: 1}], route: [{destination: {host: gone}}]}]",
        ),
    )
    for resource in mesh.registry.resources[SERVICE_ROUTES].values():
        parse_routes(resource.payload)
