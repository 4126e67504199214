"""The access log's default formats: Istio's order and keys. The operators, and that no client breaks a line,
are tried in tests/telemetry/test_access_format.py.
"""

from __future__ import annotations

import json

from proto.mycelia.worker_pb2 import Exchange
from telemetry import access_defaults
from telemetry.access_format import parse_format, parse_labels

TEXT, JSON = parse_format(access_defaults.TEXT), parse_labels(access_defaults.LABELS)

WHOLE = Exchange(
    time=1_700_000_000.25,
    method=b"GET",
    path=b"/a?b=c",
    protocol="HTTP/1.1",
    status=200,
    flags="-",
    details="via_upstream",
    request_body_bytes=3,
    response_body_bytes=64,
    duration_s=0.0123,
    upstream_time_s=0.011,
    user_agent=b"curl/8",
    request_id=b"id-1",
    authority=b"shop:80",
    upstream_host="10.0.0.3:8080",
    upstream_cluster="default/shop:80",
    downstream_local="10.97.0.1:80",
    downstream_remote="10.0.0.1:4242",
    source_principal="spiffe://cluster.local/ns/default/sa/client",
    route_name="HTTPRoute/default/shop/0",
    attempts=1,
)


def test_text_has_the_fields_in_istios_order() -> None:
    assert TEXT.line(WHOLE) == (
        '[2023-11-14T22:13:20.250Z] "GET /a?b=c HTTP/1.1" 200 - via_upstream - "-" 3 64 12 11 "-" "curl/8" '
        '"id-1" "shop:80" "10.0.0.3:8080" default/shop:80 - 10.97.0.1:80 10.0.0.1:4242 - '
        "HTTPRoute/default/shop/0"
    )


def test_json_has_istios_keys_and_null_for_nothing() -> None:
    told = json.loads(JSON.line(WHOLE))
    assert (told["response_code"], told["bytes_sent"], told["upstream_service_time"]) == (200, 64, 11)
    assert told["x_forwarded_for"] is None
    assert told["source_principal"] == WHOLE.source_principal
    nothing = json.loads(JSON.line(Exchange(upstream_time_s=-1.0)))
    assert nothing["upstream_service_time"] is None
    assert nothing["method"] is None
    assert nothing.keys() == told.keys()


def test_the_default_formats_ask_for_no_header_that_the_record_does_not_have() -> None:
    assert not TEXT.request_headers | TEXT.response_headers | JSON.request_headers | JSON.response_headers
