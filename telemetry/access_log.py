"""One line for each connection, as Istio's node proxy writes it (facts 11.4), plain or JSON.

Control characters in any value are escaped: names come from the control plane, texts may come from peers.
"""

from __future__ import annotations

from collections.abc import Iterator

from proto.mycelia.worker_pb2 import Flow
from telemetry.text import bare, json_line, quoted, rfc3339

SCOPE = "access"

_LEVELS = {Flow.OPENED: "debug", Flow.COMPLETE: "info", Flow.FAILED: "error", Flow.REFUSED: "warn"}
_MESSAGES = {
    Flow.OPENED: "connection opened",
    Flow.COMPLETE: "connection complete",
    Flow.FAILED: "connection complete",
    Flow.REFUSED: "connection failed",
}
# Keys whose values stand without quotes: addresses and host names.
_BARE_KEYS = frozenset({"src.addr", "dst.addr", "dst.hbone_addr"})
_ALWAYS = frozenset({"src.addr", "dst.addr", "direction"})


def level_of(flow: Flow) -> str:
    return _LEVELS[flow.outcome]


def format_flow(flow: Flow, *, is_json: bool = False) -> str:
    """The line of one flow record, without newline."""
    level, message = _LEVELS[flow.outcome], _MESSAGES[flow.outcome]
    if is_json:
        return json_line(
            {
                "level": level,
                "time": rfc3339(flow.time),
                "scope": SCOPE,
                "message": message,
                **dict(_fields(flow)),
            }
        )
    fields = " ".join(f"{key}={_plain(key, value)}" for key, value in _fields(flow))
    return f"{rfc3339(flow.time)}\t{level}\t{SCOPE}\t{message}\t{fields}"


def _plain(key: str, value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return bare(value) if key in _BARE_KEYS else quoted(value)


def _fields(flow: Flow) -> Iterator[tuple[str, str | int]]:
    """The keys of this record in the documented order."""
    if flow.outcome == Flow.REFUSED:
        yield "src.addr", flow.src_addr
        yield "dst.addr", flow.dst_addr
        yield "direction", _direction(flow)
        yield "error", flow.error
        return
    for key, value in (
        ("src.addr", flow.src_addr),
        ("src.workload", flow.src_workload),
        ("src.namespace", flow.src_namespace),
        ("src.identity", flow.src_identity),
        ("src.cluster", flow.src_cluster),
        ("dst.addr", flow.dst_addr),
        ("dst.hbone_addr", flow.dst_hbone_addr),
        ("dst.service", flow.dst_service),
        ("dst.workload", flow.dst_workload),
        ("dst.namespace", flow.dst_namespace),
        ("dst.identity", flow.dst_identity),
        ("dst.cluster", flow.dst_cluster),
        ("direction", _direction(flow)),
    ):
        if value or key in _ALWAYS:
            yield key, value
    if flow.outcome == Flow.OPENED:
        return
    yield "bytes_sent", flow.bytes_sent
    yield "bytes_recv", flow.bytes_received
    yield "duration", f"{int(flow.duration_s * 1000)}ms"
    if flow.error:
        yield "error", flow.error


def _direction(flow: Flow) -> str:
    return "inbound" if flow.is_inbound else "outbound"
