"""The documented layout of an access line (facts 11.4), plain and JSON, with hostile values too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.mycelia.worker_pb2 import Flow
from telemetry.access_log import format_flow, level_of

TIME = 1787227200.123456  # 2026-08-20T12:00:00.123456Z
COMPLETE = Flow(
    time=TIME,
    outcome=Flow.COMPLETE,
    src_addr="10.0.0.5:43210",
    src_workload="sleep-abc",
    src_namespace="default",
    src_identity="spiffe://cluster.local/ns/default/sa/sleep",
    src_cluster="Kubernetes",
    dst_addr="10.0.1.7:15008",
    dst_hbone_addr="10.0.1.7:8080",
    dst_service="web.default.svc.cluster.local",
    dst_workload="web-xyz",
    dst_namespace="default",
    dst_identity="spiffe://cluster.local/ns/default/sa/web",
    dst_cluster="Kubernetes",
    bytes_sent=84,
    bytes_received=1024,
    duration_s=0.0139,
)


def test_the_documented_sample() -> None:
    assert format_flow(COMPLETE) == (
        "2026-08-20T12:00:00.123456Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.0.5:43210 src.workload="sleep-abc" src.namespace="default" '
        'src.identity="spiffe://cluster.local/ns/default/sa/sleep" src.cluster="Kubernetes" '
        "dst.addr=10.0.1.7:15008 dst.hbone_addr=10.0.1.7:8080 "
        'dst.service="web.default.svc.cluster.local" dst.workload="web-xyz" dst.namespace="default" '
        'dst.identity="spiffe://cluster.local/ns/default/sa/web" dst.cluster="Kubernetes" '
        'direction="outbound" bytes_sent=84 bytes_recv=1024 duration="13ms"'
    )


def test_the_same_as_json() -> None:
    line = format_flow(COMPLETE, is_json=True)
    assert "\n" not in line
    found = json.loads(line)
    assert list(found)[:4] == ["level", "time", "scope", "message"]
    assert (found["level"], found["scope"], found["message"]) == ("info", "access", "connection complete")
    assert found["time"] == "2026-08-20T12:00:00.123456Z"
    assert (found["src.addr"], found["bytes_sent"], found["duration"]) == ("10.0.0.5:43210", 84, "13ms")


def variant(**changes: Any) -> Flow:
    flow = Flow()
    flow.CopyFrom(COMPLETE)
    for name, value in changes.items():
        setattr(flow, name, value)
    return flow


def keys(flow: Flow) -> list[str]:
    return list(json.loads(format_flow(flow, is_json=True)))[4:]


def test_failure_is_an_error_with_the_text_last() -> None:
    flow = variant(outcome=Flow.FAILED, error="http status: 401 Unauthorized", is_inbound=True)
    line = format_flow(flow)
    assert line.split("\t")[1:4] == ["error", "access", "connection complete"]
    assert line.endswith(' duration="13ms" error="http status: 401 Unauthorized"')
    assert 'direction="inbound"' in line


def test_refused_has_four_keys_only() -> None:
    flow = variant(outcome=Flow.REFUSED, error="unknown source")
    assert format_flow(flow).split("\t")[1:4] == ["warn", "access", "connection failed"]
    assert keys(flow) == ["src.addr", "dst.addr", "direction", "error"]


def test_opened_is_debug_without_counts() -> None:
    flow = variant(outcome=Flow.OPENED)
    assert level_of(flow) == "debug"
    assert format_flow(flow).split("\t")[3] == "connection opened"
    assert keys(flow)[-1] == "direction"


def test_unknown_values_are_left_out() -> None:
    flow = Flow(time=TIME, src_addr="1.2.3.4:5", dst_addr="5.6.7.8:9")
    assert keys(flow) == ["src.addr", "dst.addr", "direction", "bytes_sent", "bytes_recv", "duration"]


HOSTILE = st.text(min_size=1, max_size=40)


@settings(deadline=None)
@given(HOSTILE, HOSTILE)
def test_no_value_breaks_the_line(name: str, address: str) -> None:
    try:
        flow = variant(dst_workload=name, dst_addr=address, error=name, outcome=Flow.FAILED)
    except (UnicodeEncodeError, ValueError):  # protobuf takes no lone surrogates
        return
    line = format_flow(flow)
    assert line.count("\t") == 4
    assert all(character.isprintable() or character == "\t" for character in line if not _is_plain(character))
    as_json = format_flow(flow, is_json=True)
    assert len(as_json.splitlines()) == 1
    assert json.loads(as_json)["dst.workload"] == name


def _is_plain(character: str) -> bool:
    """Unassigned and space-like characters that break nothing are left as they are."""
    return ord(character) > 0x9F and character not in "\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e"


@pytest.mark.parametrize(
    "evil", ["a\nb", "a\tb", 'a"b', "a b=c", "\x1b[31m", "\x7f", "\x9b31m", "\u202e", "\u2028"]
)
def test_forged_lines_and_keys_are_escaped(evil: str) -> None:
    line = format_flow(variant(src_addr=evil, src_workload=evil))
    fields = line.split("\t")[4]
    assert fields.startswith("src.addr=")
    assert " " not in fields.split(" src.workload=")[0]
    assert evil not in fields or evil in ('a"b', "a b=c")
    assert fields.index("dst.addr=10.0.1.7:15008") > 0
