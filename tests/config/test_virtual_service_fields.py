"""The actions of a VirtualService, what is refused in it, and that waypoints take it."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from config.compile.resource import SERVICE_ROUTES
from config.kinds.virtual_actions import RETRY_CONDITIONS
from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, replica, service, warnings_of, waypoint
from tests.config.virtual_services import (
    BASE,
    TCP_TO_V1,
    TO_V1,
    TO_V2,
    USE,
    WEB,
    as_dict,
    only,
    virtual,
)
from waypoint.state import rules as waypoint_rules
from waypoint.state.regex import is_available
from waypoint.state.routes import parse_routes

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
