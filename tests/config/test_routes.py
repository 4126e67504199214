"""Routes to what a waypoint tries: config-api 6.1 to 6.6, waypoint-facts 6."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from config.compile.resource import SERVICE_ROUTES
from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, istio, parent, replica, service, waypoint
from waypoint.state.regex import is_available
from waypoint.state.routes import parse_routes

USE = "istio.io/use-waypoint: wp"
BASE = (
    waypoint(),
    replica(),
    service("web", "ports: [{name: http, port: 80}]", labels=USE),
    service("v1", "ports: [{port: 80}]"),
    service("v2", "ports: [{port: 80}]"),
)
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
V1 = "backendRefs: [{name: v1, port: 80}]"


def route(
    name: str, *rules: str, kind: str = "HTTPRoute", created: str = "", space: str = "shop", of: str = ""
) -> str:
    """Each rule in flow style, without braces."""
    spec = f"{{{of or parent()}, rules: [{', '.join(f'{{{rule}}}' for rule in rules)}]}}"
    return istio(kind, name, spec, space=space, metadata=f"creationTimestamp: {created!r}" if created else "")


def rules_of(*routes: str) -> list[pb.HttpRule]:
    return Mesh(*BASE, *routes).http_rules()


def only(*routes: str) -> pb.HttpRule:
    (rule,) = rules_of(*routes)
    return rule


def order(*routes: str) -> list[str]:
    return [rule.name.removeprefix("HTTPRoute/shop/") for rule in rules_of(*routes)]


def match(text: str) -> str:
    return f"matches: [{{{text}}}]"


EXACT = match("path: {type: Exact, value: /a}")
SHORT = match("path: {value: /a}")
LONG = match("path: {value: /a/bcd}")
REGEX = match("path: {type: RegularExpression, value: /a/very/long/expression.*}")
ANY = match("")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (EXACT, LONG),
        (EXACT, REGEX),
        (LONG, SHORT),
        (SHORT, REGEX),
        (SHORT, ANY),
        (EXACT, match("path: {value: /a}, method: GET, headers: [{name: a, value: b}]")),
        (match("path: {value: /a}, method: GET"), SHORT),
        (match("method: GET"), match("headers: [{name: a, value: b}, {name: c, value: d}]")),
        (
            match("headers: [{name: a, value: b}, {name: c, value: d}]"),
            match("headers: [{name: a, value: b}]"),
        ),
        (
            match("headers: [{name: a, value: b}, {name: c, value: d}]"),
            match("headers: [{name: a, value: b}, {name: A, value: d}, {name: A, value: e}]"),
        ),
        (match("headers: [{name: a, value: b}]"), match("queryParams: [{name: a, value: b}]")),
        (
            match("queryParams: [{name: a, value: b}, {name: A, value: b}]"),
            match("queryParams: [{name: a, value: b}]"),
        ),
    ],
)
def test_the_more_specific_match_comes_first_whatever_the_order_of_rules_and_routes(
    first: str, second: str
) -> None:
    assert order(route("r", second, first)) == ["r/1", "r/0"]
    assert order(route("r", first, second)) == ["r/0", "r/1"]
    assert order(route("a", second, created=OLD), route("b", first, created=NEW)) == ["b/0", "a/0"]


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([route("b", SHORT, created=OLD), route("a", SHORT, created=NEW)], ["b/0", "a/0"]),
        ([route("b", SHORT, created=NEW), route("a", SHORT)], ["b/0", "a/0"]),
        ([route("b", SHORT, created=OLD), route("a", SHORT, created=OLD)], ["a/0", "b/0"]),
        ([route("b", SHORT), route("a", SHORT)], ["a/0", "b/0"]),
        ([route("b", SHORT, SHORT), route("a", SHORT)], ["a/0", "b/0", "b/1"]),
        ([route("a", SHORT, SHORT)], ["a/0", "a/1"]),
        ([route("a", "name: x", "name: y, matches: [{path: {value: /a}}]")], ["a/y", "a/x"]),
    ],
)
def test_between_equals_age_then_name_then_position_decide(routes: list[str], expected: list[str]) -> None:
    assert order(*routes) == expected


def test_precedence_is_decided_for_each_match_of_a_rule() -> None:
    many = (
        "matches: [{path: {value: /a}}, {path: {type: Exact, value: /x}}, {path: {value: /a}, method: GET}]"
    )
    found = rules_of(route("r", many, match("path: {value: /abc}")))
    assert [(rule.name[-1], rule.matches[0].path.WhichOneof("kind")) for rule in found] == [
        ("0", "exact"),
        ("1", "prefix"),
        ("0", "prefix"),
        ("0", "prefix"),
    ]
    assert [rule.matches[0].method for rule in found] == ["", "", "GET", ""]
    assert all(len(rule.matches) == 1 for rule in found)


GRPC_EXACT = "matches: [{method: {service: a.B, method: Get}}]"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("matches: [{method: {service: a.Bcd}}]", "matches: [{method: {service: a.B}}]"),
        (GRPC_EXACT, "matches: [{method: {service: a.B}}]"),
        ("matches: [{method: {service: a.B}}]", "matches: [{method: {method: GetAllOfThem}}]"),
        (
            "matches: [{method: {service: a.B}, headers: [{name: a, value: b}]}]",
            "matches: [{method: {service: a.B}}]",
        ),
        (GRPC_EXACT, "matches: [{method: {type: RegularExpression, service: 'a.very.long.*'}}]"),
        ("matches: [{method: {method: Get}}]", "matches: [{}]"),
    ],
)
def test_precedence_of_grpc_matches(first: str, second: str) -> None:
    found = rules_of(route("r", second, first, kind="GRPCRoute"))
    assert [rule.name for rule in found] == ["GRPCRoute/shop/r/1", "GRPCRoute/shop/r/0"]
    assert all(rule.is_grpc for rule in found)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("{service: a.B, method: Get}", {"exact": "/a.B/Get"}),
        ("{service: a.B}", {"string_prefix": "/a.B/"}),
        ("{method: Get}", {"regex": "/[^/]+/Get"}),
        ("{type: RegularExpression, service: 'a|b'}", {"regex": "/(?:a|b)/[^/]+"}),
        ("{type: RegularExpression, service: x, method: y}", {"regex": "/(?:x)/(?:y)"}),
    ],
)
def test_grpc_methods_are_paths(method: str, expected: dict[str, str]) -> None:
    rule = only(route("r", f"matches: [{{method: {method}}}]", kind="GRPCRoute"))
    assert json_format.MessageToDict(rule.matches[0].path, preserving_proto_field_name=True) == expected


def test_a_match_has_all_its_parts() -> None:
    rule = only(
        route(
            "r",
            match(
                "path: {value: /foo/}, method: PUT, headers: [{name: X-A, value: b}, "
                "{type: RegularExpression, name: c, value: d.*}], queryParams: [{name: Q, value: v}]"
            ),
        )
    )
    (found,) = rule.matches
    assert (found.path.prefix, found.method) == ("/foo", "PUT")
    assert [(each.name, each.exact, each.regex) for each in found.headers] == [
        ("x-a", "b", ""),
        ("c", "", "d.*"),
    ]
    assert [(each.name, each.exact) for each in found.query_parameters] == [("Q", "v")]


# ---- filters (6.3) ----


def test_filters_go_with_the_rule() -> None:
    rule = only(
        route(
            "r",
            "filters: ["
            "{type: RequestHeaderModifier, "
            "requestHeaderModifier: {set: [{name: A, value: '1'}], remove: [B]}}, "
            "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: C, value: '2'}]}}, "
            "{type: URLRewrite, urlRewrite: {hostname: h.example, "
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}, "
            "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 5}}, "
            "{type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 80}}}, "
            "{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}, "
            "{type: CORS, cors: {allowOrigins: ['https://*.a.com:80', 'http://b.c']}}]",
        )
    )
    assert [(each.name, each.value) for each in rule.request_headers.set] == [("a", "1")]
    assert list(rule.request_headers.remove) == ["b"]
    assert [(each.name, each.value) for each in rule.response_headers.add] == [("c", "2")]
    assert (rule.rewrite.authority, rule.rewrite.path.prefix) == ("h.example", "/x")
    assert [
        (each.backend.service, each.share.numerator, each.share.denominator) for each in rule.mirrors
    ] == [("shop/v2.shop.svc.cluster.local", 5, 100), ("shop/v1.shop.svc.cluster.local", 100, 100)]
    assert [each.regex or each.exact for each in rule.cors.allow_origins] == [
        r"https://[-A-Za-z0-9.]+\.a\.com:80",
        "http://b.c",
    ]
    assert rule.cors.max_age.seconds == 5


def test_a_redirect_takes_the_place_of_backends() -> None:
    rule = only(
        route(
            "r",
            "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, "
            "path: {type: ReplaceFullPath, replaceFullPath: /n}}}]",
        )
    )
    assert rule.WhichOneof("action") == "redirect"
    assert (rule.redirect.scheme, rule.redirect.port, rule.redirect.status) == ("https", 8443, 302)
    assert rule.redirect.path.full == "/n"


def test_an_unsupported_filter_refuses_the_requests_of_its_rule_only() -> None:
    extension = "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]"
    first, second = rules_of(route("r", f"{EXACT}, {extension}, {V1}", V1))
    assert (first.WhichOneof("action"), first.direct_response.status) == ("direct_response", 500)
    assert second.WhichOneof("action") == "forward"


# ---- weights and backends (6.4) ----


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ("", []),
        ("backendRefs: []", []),
        (V1, [("v1", 1, 0)]),
        (
            "backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80, weight: 0}]",
            [("v1", 0, 0), ("v2", 0, 0)],
        ),
        (
            "backendRefs: [{name: v1, port: 80, weight: 9}, {name: gone, port: 80}]",
            [("v1", 9, 0), ("", 1, 500)],
        ),
        ("backendRefs: [{name: v1, port: 81}]", [("", 1, 500)]),
        ("backendRefs: [{name: v1, namespace: bank, port: 80}]", [("", 1, 500)]),
        ("backendRefs: [{group: apps, kind: Deployment, name: v1, port: 80}]", [("", 1, 500)]),
        (
            "backendRefs: [{group: networking.istio.io, kind: Hostname, name: v2.shop.svc.cluster.local}]",
            [("v2", 1, 0)],
        ),
        (
            "backendRefs: [{name: v1, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}]",
            [("", 1, 500)],
        ),
    ],
)
def test_backends_keep_their_share_valid_or_not(backends: str, expected: list[tuple[str, int, int]]) -> None:
    rule = only(route("r", backends))
    assert rule.WhichOneof("action") == "forward"
    assert [
        (each.service.removeprefix("shop/").partition(".")[0], each.weight, each.failure_status)
        for each in rule.forward.backends
    ] == expected
    assert all(bool(each.problem) == bool(each.failure_status) for each in rule.forward.backends)


def test_a_backend_that_comes_and_goes_changes_the_routes_that_name_it() -> None:
    mesh = Mesh(*BASE, route("r", "backendRefs: [{name: later, namespace: bank, port: 80}]"))
    assert mesh.http_rules()[0].forward.backends[0].failure_status == 500
    mesh.apply(service("later", "ports: [{port: 80}]", space="bank"))
    assert mesh.http_rules()[0].forward.backends[0].service == "bank/later.bank.svc.cluster.local"
    mesh.remove("Service", "bank", "later")
    assert mesh.http_rules()[0].forward.backends[0].problem == (
        "Service bank/later is not there, or has no part in the mesh"
    )


# ---- timeouts and retries (6.1, waypoint-facts 6) ----

STANZA = ["connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes", "reset"]


@pytest.mark.parametrize(
    ("rule", "timeout", "per_try", "attempts", "is_asked"),
    [
        ("", 0, 0, None, False),
        ("timeouts: {request: 10s}", 10, 0, None, False),
        ("timeouts: {request: 0s}", 0, 0, None, False),
        ("timeouts: {backendRequest: 2s}", 2, 0, None, False),
        ("timeouts: {request: 10s, backendRequest: 2s}", 2, 0, None, False),
        ("timeouts: {request: 10s, backendRequest: 2s}, retry: {}", 10, 2, 2, True),
        ("timeouts: {request: 10s, backendRequest: 0s}, retry: {attempts: 3}", 10, 0, 3, True),
        ("retry: {attempts: 0}", 0, 0, 0, False),
    ],
)
def test_timeouts_and_attempts(
    rule: str, timeout: int, per_try: int, attempts: int | None, is_asked: bool
) -> None:
    """Attempts None: nothing is said, and the mesh's default holds."""
    made = only(route("r", rule))
    assert (made.timeout.seconds, made.HasField("timeout")) == (timeout, bool(timeout))
    assert made.retries.per_try_timeout.seconds == per_try
    assert made.HasField("retries") == (attempts is not None)
    assert (made.retries.attempts, bool(made.retries.on)) == (attempts or 0, is_asked)


def test_a_retry_stanza_means_more_than_the_default() -> None:
    asked = only(route("r", "retry: {codes: [503, 500], backoff: 100ms}"))
    assert list(asked.retries.on) == STANZA
    assert list(asked.retries.statuses) == [503, 500]
    assert asked.retries.backoff.ToMilliseconds() == 100
    assert only(route("r", "retry: {attempts: 0}")).retries == pb.RetryPolicy()


def test_session_persistence() -> None:
    rule = only(
        route("r", "sessionPersistence: {absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}")
    )
    found = rule.session_persistence
    assert (found.name, found.is_header, found.is_permanent) == ("mycelia-session", False, True)
    assert found.absolute_timeout.seconds == 3600


# ---- ports ----


def test_protocols_of_ports_and_what_is_served_without_routes() -> None:
    names = ["http", "http2-x", "grpc", "tcp", "tls", "x"]
    ports = ", ".join(f"{{name: {name}, port: {80 + number}}}" for number, name in enumerate(names))
    mesh = Mesh(
        waypoint(), replica(), service("web", f"ports: [{ports}, {{name: db, port: 3306}}]", labels=USE)
    )
    found = mesh.routes("shop/web.shop.svc.cluster.local")
    assert [(each.service_port, pb.Protocol.Name(each.protocol)) for each in found.ports] == [
        (80, "HTTP"),
        (81, "HTTP2"),
        (82, "GRPC"),
        (83, "TCP"),
        (84, "TCP"),
        (85, "DETECT"),
        (3306, "TCP"),
    ]
    assert not any(each.http_rules or each.tcp_rules for each in found.ports)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("", [80, 81]),
        ("port: 80", [80]),
        ("port: 82", []),
        ("sectionName: b", [81]),
        ("port: 80, sectionName: b", []),
    ],
)
def test_a_parent_reference_can_mean_one_port(reference: str, expected: list[int]) -> None:
    web = service("web", "ports: [{name: a, port: 80}, {name: b, port: 81}]", labels=USE)
    mesh = Mesh(*BASE, web, route("r", V1, of=parent("web", reference)))
    ports = mesh.routes("shop/web.shop.svc.cluster.local").ports
    assert [each.service_port for each in ports if each.http_rules] == expected


def test_http_and_grpc_routes_do_not_share_a_port() -> None:
    mesh = Mesh(
        *BASE,
        route("young", V1, kind="GRPCRoute", created=NEW),
        route("old", V1, created=OLD),
        route("younger", V1),
    )
    assert [rule.name for rule in mesh.http_rules()] == ["HTTPRoute/shop/old/0", "HTTPRoute/shop/younger/0"]
    assert mesh.conditions("GRPCRoute", "young", "Accepted") == [
        "Accepted=False Conflicted: HTTPRoute shop/old is older and of the other kind; "
        "a port has HTTPRoutes or GRPCRoutes"
    ]
    mesh.remove("HTTPRoute", "shop", "old")
    assert [rule.name for rule in mesh.http_rules()] == ["GRPCRoute/shop/young/0"]


def test_connections_go_by_server_name_then_to_the_oldest_route() -> None:
    sni = istio(
        "TLSRoute", "sni", f"{{{parent()}, hostnames: [web.shop.svc.cluster.local], rules: [{{{V1}}}]}}"
    )
    mesh = Mesh(
        *BASE,
        route("b", V1, kind="TCPRoute", created=OLD),
        route("a", V1, kind="TCPRoute", created=NEW),
        sni,
        sni.replace("name: sni", "name: alien").replace("web.shop.svc.cluster.local", "x.example"),
    )
    (port,) = mesh.routes("shop/web.shop.svc.cluster.local").ports
    assert [(rule.name, list(rule.sni_hosts)) for rule in port.tcp_rules] == [
        ("TLSRoute/shop/sni/0", ["web.shop.svc.cluster.local"]),
        ("TCPRoute/shop/b/0", []),
    ]
    assert not port.http_rules
    assert mesh.conditions("TCPRoute", "a", "Accepted") == [
        "Accepted=False Conflicted: TCPRoute shop/b is older and has the port"
    ]
    assert "NoMatchingListenerHostname" in mesh.conditions("TLSRoute", "alien", "Accepted")[0]


# ---- which routes count ----


@pytest.mark.parametrize(("space", "is_counted"), [("shop", True), ("edge", True), ("bank", False)])
def test_routes_count_in_the_namespace_of_the_service_or_of_its_waypoint(
    space: str, is_counted: bool
) -> None:
    mesh = Mesh(
        waypoint(space="edge", allowed="from: All"),
        replica(space="edge"),
        service("web", "ports: [{port: 80}]", labels=f"{USE}, istio.io/use-waypoint-namespace: edge"),
        route("r", "", space=space, of=parent("web", "namespace: shop")),
    )
    (port,) = mesh.routes("shop/web.shop.svc.cluster.local").ports
    assert bool(port.http_rules) == is_counted
    assert mesh.conditions("HTTPRoute", "r", "Accepted")[0].startswith(f"Accepted={is_counted} ")


def test_a_service_entry_is_a_parent_for_each_of_its_hosts() -> None:
    spec = (
        "{hosts: [a.example, b.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}"
    )
    mesh = Mesh(
        waypoint(),
        replica(),
        istio("ServiceEntry", "out", spec, metadata=f"labels: {{{USE}}}"),
        route("r", "", of="parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: out}]"),
    )
    assert len(mesh.http_rules("shop/a.example")) == len(mesh.http_rules("shop/b.example")) == 1


# ---- the other side ----

EVERYTHING = (
    route(
        "http",
        f"{EXACT}, {V1}, timeouts: {{request: 5s, backendRequest: 1s}}, retry: {{codes: [503]}}, "
        "sessionPersistence: {type: Header, sessionName: x-session, idleTimeout: 5m}",
        "matches: [{path: {value: /b}, method: GET, headers: [{name: a, value: b}], "
        "queryParams: [{name: q, value: v}]}], filters: ["
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x.example}]}}, "
        "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}, "
        "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}}, "
        "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 0}}, "
        "{type: CORS, cors: {allowOrigins: ['*'], allowMethods: ['*'], allowCredentials: true}}], "
        "backendRefs: [{name: v1, port: 80, weight: 0}, {name: gone, port: 80}]",
        "matches: [{path: {value: /r}}], filters: [{type: RequestRedirect, requestRedirect: "
        "{hostname: a.b, path: {type: ReplacePrefixMatch, replacePrefixMatch: /s}}}]",
        "matches: [{path: {value: /none}}], retry: {attempts: 0}",
        "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]",
    ),
    route(
        "grpc",
        "matches: [{method: {service: a.B}}, {method: {service: a.B, method: C}}, {}]",
        kind="GRPCRoute",
    ),
    route("tcp", V1, kind="TCPRoute"),
    istio("TLSRoute", "tls", f"{{{parent()}, hostnames: [web.shop.svc.cluster.local], rules: [{{{V1}}}]}}"),
)
EXPRESSIONS = (
    route(
        "regex",
        f"{REGEX}, filters: [{{type: CORS, cors: {{allowOrigins: ['https://*.a.com']}}}}]",
        match("headers: [{type: RegularExpression, name: a, value: 'b|c'}]"),
    ),
    route("regex", "matches: [{method: {method: Get}}]", kind="GRPCRoute"),
)


@pytest.mark.parametrize("text", EVERYTHING)
def test_a_waypoint_takes_what_is_compiled(text: str) -> None:
    for resource in Mesh(*BASE, text).registry.resources[SERVICE_ROUTES].values():
        parse_routes(resource.payload)


@pytest.mark.skipif(not is_available(), reason="the RE2 engine is not installed")
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_a_waypoint_takes_expressions(text: str) -> None:
    for resource in Mesh(*BASE, text).registry.resources[SERVICE_ROUTES].values():
        parse_routes(resource.payload)
