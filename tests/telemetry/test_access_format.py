"""Formats of access logs: every operator, what is refused, and that nothing a client sends breaks a line."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.mycelia.worker_pb2 import Exchange, Span
from telemetry.access_format import (
    MAX_CHARACTERS,
    MAX_LABELS,
    FormatRejected,
    parse_format,
    parse_labels,
)

TWO_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*"').fullmatch
WHOLE = Exchange(
    time=1_700_000_000.25,
    method=b"GET",
    path=b"/a?b=c",
    protocol="HTTP/1.1",
    status=503,
    flags="UH",
    details="no_healthy_upstream",
    failure="refused",
    request_body_bytes=3,
    response_body_bytes=64,
    duration_s=0.0123,
    upstream_time_s=0.011,
    forwarded_for=b"1.2.3.4",
    user_agent=b"curl/8",
    request_id=b"id-1",
    authority=b"shop:80",
    upstream_host="10.0.0.3:8080",
    upstream_cluster="default/shop:80",
    downstream_local="10.97.0.1:80",
    downstream_remote="[fd00::1]:4242",
    source_principal="spiffe://cluster.local/ns/default/sa/client",
    route_name="HTTPRoute/default/shop/0",
    attempts=2,
    termination="rbac_access_denied_matched_policy[none]",
    server_name="shop.example",
    policy="AuthorizationPolicy/a/b",
    request_header_bytes=70,
    response_header_bytes=80,
    original_path=b"/before",
    grpc_status=b"14",
    span=Span(trace_id=bytes(range(16))),
    request_headers={"x-tenant": b"blue"},
    response_headers={"server": b"mycelia"},
)


@pytest.mark.parametrize(
    ("operator", "shown", "absent"),
    [
        ("%START_TIME%", "2023-11-14T22:13:20.250Z", "1970-01-01T00:00:00.000Z"),
        ("%REQ(:METHOD)%", "GET", "-"),
        ("%REQ(:PATH)%", "/a?b=c", "-"),
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/before", "-"),
        ("%REQ(:AUTHORITY)%", "shop:80", "-"),
        ("%REQ(Host)%", "shop:80", "-"),
        ("%REQ(USER-AGENT)%", "curl/8", "-"),
        ("%REQ(X-REQUEST-ID)%", "id-1", "-"),
        ("%REQ(X-FORWARDED-FOR)%", "1.2.3.4", "-"),
        ("%REQ(X-Tenant)%", "blue", "-"),
        ("%REQ(X-None?X-Tenant):2%", "bl", "-"),
        ("%REQ(X-None)%", "-", "-"),
        ("%RESP(Server)%", "mycelia", "-"),
        ("%RESP(X-None?Server)%", "mycelia", "-"),
        ("%PROTOCOL%", "HTTP/1.1", "-"),
        ("%RESPONSE_CODE%", "503", "0"),
        ("%RESPONSE_FLAGS%", "UH", "-"),
        ("%RESPONSE_CODE_DETAILS%", "no_healthy_upstream", "-"),
        ("%CONNECTION_TERMINATION_DETAILS%", "rbac_access_denied_matched_policy[none]", "-"),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "11", "0"),
        ("%RESPONSE_DURATION%", "11", "0"),
        ("%REQUEST_HEADERS_BYTES%", "70", "0"),
        ("%RESPONSE_HEADERS_BYTES%", "80", "0"),
        ("%UPSTREAM_REMOTE_ADDRESS%", "10.0.0.3:8080", "-"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.3", "-"),
        ("%UPSTREAM_REMOTE_PORT%", "8080", "-"),
        ("%DOWNSTREAM_LOCAL_PORT%", "80", "-"),
        ("%DOWNSTREAM_REMOTE_PORT%", "4242", "-"),
        ("%GRPC_STATUS%", "Unavailable", "-"),
        ("%POLICY%", "AuthorizationPolicy/a/b", "-"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "refused", "-"),
        ("%BYTES_RECEIVED%", "3", "0"),
        ("%BYTES_SENT%", "64", "0"),
        ("%DURATION%", "12", "0"),
        ("%UPSTREAM_HOST%", "10.0.0.3:8080", "-"),
        ("%UPSTREAM_CLUSTER%", "default/shop:80", "-"),
        ("%UPSTREAM_CLUSTER_RAW%", "default/shop:80", "-"),
        ("%UPSTREAM_LOCAL_ADDRESS%", "-", "-"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "2", "0"),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "10.97.0.1:80", "-"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.97.0.1", "-"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "[fd00::1]:4242", "-"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "fd00::1", "-"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/default/sa/client", "-"),
        ("%REQUESTED_SERVER_NAME%", "shop.example", "-"),
        ("%ROUTE_NAME%", "HTTPRoute/default/shop/0", "-"),
        ("%GRPC_STATUS_NUMBER%", "14", "-"),
        ("%TRACE_ID%", bytes(range(16)).hex(), "-"),
        ("%ROUTE_NAME:4%", "HTTP", "-"),
    ],
)
def test_operators(operator: str, shown: str, absent: str) -> None:
    found = parse_format(f"a {operator} 100%%\n")
    assert found.line(WHOLE) == f"a {shown} 100%"
    assert found.line(Exchange()) == f"a {absent} 100%"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("%FILTER_STATE(a)%", "%FILTER_STATE(a)%"),
        ("%DYNAMIC_METADATA(a:b)%", "%DYNAMIC_METADATA(a:b)%"),
        ("%START_TIME(%s)%", "START_TIME"),
        ("%RESPONSE_CODE(1)%", "%RESPONSE_CODE(1)%"),
        ("%REQ()%", "names no header"),
        ("%REQ(a?b?c)%", "names no header"),
        ("%REQ(a b)%", "names no header"),
        ("%REQ%", "names no header"),
        ("%response_code%", "is no operator"),
        ("100%", "is no operator"),
        ("a\nb", "one line"),
        ("\x1b[31m", "control"),
        ("x" * (MAX_CHARACTERS + 1), "at most"),
    ],
)
def test_what_is_not_of_the_subset_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(FormatRejected) as raised:
        parse_format(text)
    assert named in str(raised.value)


def test_labels_make_json_with_numbers_and_null() -> None:
    found = parse_labels(
        {
            "code": "%RESPONSE_CODE%",
            "line": "%REQ(:METHOD)% %REQ(X-None)%",
            "none": "%REQ(X-None)%",
            "word": "fixed",
            "server": "%RESP(Server)%",
        }
    )
    assert json.loads(found.line(WHOLE)) == {
        "code": 503,
        "line": "GET -",
        "none": None,
        "word": "fixed",
        "server": "mycelia",
    }
    assert set(found.request_headers) == {"x-none"}
    assert set(found.response_headers) == {"server"}
    with pytest.raises(FormatRejected, match="labels"):
        parse_labels({str(number): "" for number in range(MAX_LABELS + 1)})


def test_only_headers_that_the_record_does_not_have_anyway_are_asked_for() -> None:
    found = parse_format("%REQ(:PATH)% %REQ(User-Agent)% %REQ(X-A?X-B)%")
    assert found.request_headers == {"x-a", "x-b"}


@given(st.binary(max_size=60))
def test_nothing_that_a_client_sends_breaks_a_line(value: bytes) -> None:
    exchange = Exchange(path=value, user_agent=value, request_headers={"x-a": value})
    line = parse_format('"%REQ(:PATH)%" "%REQ(X-A)%"').line(exchange)
    assert line.isascii()
    assert line.isprintable()
    assert TWO_QUOTED(line)
    told = parse_labels({"a": "%REQ(X-A)%", "b": "<%REQ(X-A)%>"}).line(exchange)
    assert told.isprintable()
    assert set(json.loads(told)) == {"a", "b"}
