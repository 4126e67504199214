"""CONNECT requests and responses of ztunnel-facts 2.3 and 2.5."""

from __future__ import annotations

import re

import pytest

from transport.hbone.connect import (
    ConnectRequest,
    Headers,
    MalformedRequest,
    RequestTemplate,
    new_traceparent,
    parse_request,
    response_status,
)
from transport.hbone.errors import MalformedTunnelResponse

CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]


def test_a_request_has_only_method_and_authority_as_pseudo_headers() -> None:
    template = RequestTemplate("10.0.0.1:80", baggage=b"k8s.cluster.name=c", service_host="web.default.svc")
    assert template.headers("10.0.0.9", 4321, b"trace") == [
        (b":method", b"CONNECT"),
        (b":authority", b"10.0.0.1:80"),
        (b"baggage", b"k8s.cluster.name=c"),
        (b"forwarded", b'for="10.0.0.9:4321";host=web.default.svc'),
        (b"traceparent", b"trace"),
    ]


def test_an_ipv6_source_is_bracketed_and_a_missing_service_left_out() -> None:
    headers = dict(RequestTemplate("[fd00::1]:80", baggage=b"").headers("fd00::9", 1, b"t"))
    assert headers[b"forwarded"] == b'for="[fd00::9]:1"'
    assert b"x-forwarded-network" not in headers


def test_the_network_is_named_only_when_asked_for() -> None:
    template = RequestTemplate("h:80", baggage=b"", forwarded_network="east")
    assert dict(template.headers("10.0.0.9", 1, b"t"))[b"x-forwarded-network"] == b"east"


def test_trace_contexts_are_well_formed_and_differ() -> None:
    contexts = {new_traceparent() for _ in range(100)}
    assert len(contexts) == 100
    assert all(re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", context) for context in contexts)


def test_a_request_is_read() -> None:
    trace = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"
    headers = [
        *CONNECT,
        (b"baggage", b"a=1"),
        (b"baggage", b"b=2"),
        (b"forwarded", b'for="1.2.3.4:5"; host="web.svc"'),
        (b"traceparent", trace),
        (b"x-forwarded-network", b"east"),
    ]
    assert parse_request(headers) == ConnectRequest(
        b"10.0.0.1:80", "web.svc", trace, "east", (b"a=1", b"b=2")
    )


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"for=1;host=a.b", "a.b"),
        (b'host="a.b"', "a.b"),
        (b"host=", ""),
        (b"for=1", ""),
        (b"host=\xff", ""),
        (b"HOST=a", ""),
    ],
)
def test_only_the_host_part_of_forwarded_is_read(value: bytes, host: str) -> None:
    request = parse_request([*CONNECT, (b"forwarded", value)])
    assert isinstance(request, ConnectRequest)
    assert request.forwarded_host == host


@pytest.mark.parametrize("value", [b"", b"00-12-34-00", b"00-" + b"g" * 32 + b"-" + b"1" * 16 + b"-00"])
def test_a_malformed_trace_context_is_ignored(value: bytes) -> None:
    request = parse_request([*CONNECT, (b"traceparent", value)])
    assert isinstance(request, ConnectRequest)
    assert request.traceparent == b""


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"GET"), (b":authority", b"a:1")],
        [(b":method", b"CONNECT")],
        [(b":method", b"CONNECT"), (b":authority", b"")],
        [(b":method", b"CONNECT"), (b":authority", b"a b:1")],
        [(b":method", b"CONNECT"), (b":authority", b"x" * 300 + b":1")],
        [*CONNECT, (b":path", b"/")],
        [*CONNECT, (b":scheme", b"https")],
        [*CONNECT, (b":protocol", b"websocket")],
    ],
)
def test_what_is_no_tunnel_request_is_answered_400(headers: Headers) -> None:
    request = parse_request(headers)
    assert isinstance(request, MalformedRequest)
    assert request.status == 400


def test_a_status_is_three_digits() -> None:
    assert response_status([(b":status", b"200")]) == 200
    for headers in ([], [(b":status", b"20")], [(b":status", b"abc")], [(b"status", b"200")]):
        with pytest.raises(MalformedTunnelResponse):
            response_status(headers)
