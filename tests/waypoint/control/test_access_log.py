"""The access log's lines: Istio's order and keys, and nothing that a client sends can break out of them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.mycelia.worker_pb2 import Exchange
from waypoint.control.access_log import json_line, text_line

QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
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
    assert text_line(WHOLE) == (
        '[2023-11-14T22:13:20.250Z] "GET /a?b=c HTTP/1.1" 200 - via_upstream - "-" 3 64 12 11 "-" "curl/8" '
        '"id-1" "shop:80" "10.0.0.3:8080" default/shop:80 - 10.97.0.1:80 10.0.0.1:4242 - '
        "HTTPRoute/default/shop/0"
    )


def test_json_has_istios_keys_and_null_for_nothing() -> None:
    told = json.loads(json_line(WHOLE))
    assert (told["response_code"], told["bytes_sent"], told["upstream_service_time"]) == (200, 64, 11)
    assert told["x_forwarded_for"] is None
    assert told["source_principal"] == WHOLE.source_principal
    nothing = json.loads(json_line(Exchange(upstream_time_s=-1.0)))
    assert nothing["upstream_service_time"] is None
    assert nothing["method"] is None


@pytest.mark.parametrize("value", [b'a" 200 "b', b"a\nb", b"a\\", b"\x00\x1b[31m", b"\xff\xfe"])
def test_what_a_client_chose_stays_within_its_quotation_marks(value: bytes) -> None:
    exchange = Exchange()
    exchange.CopyFrom(WHOLE)
    exchange.user_agent = value
    line = text_line(exchange)
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(QUOTED.findall(line)) == len(QUOTED.findall(text_line(WHOLE)))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_octets_make_one_line_with_as_many_fields(path: bytes, agent: bytes) -> None:
    exchange = Exchange()
    exchange.CopyFrom(WHOLE)
    exchange.path, exchange.user_agent = path, agent
    line = text_line(exchange)
    assert not any(ord(char) < 32 or ord(char) == 127 for char in line)
    assert len(QUOTED.findall(line)) == len(QUOTED.findall(text_line(WHOLE)))
    json.loads(json_line(exchange))
