"""One line for each request, in Istio's default text or as JSON (waypoint-facts 13).

Everything that a client chose is escaped: no request can write a second line or close a quotation.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Final

from proto.mycelia.worker_pb2 import Exchange

Formatter = Callable[[Exchange], str]
_ABSENT: Final = "-"
_MAX_CHARS: Final = 4096  # of one value


def text_line(exchange: Exchange) -> str:
    """The fields in Istio's order, `-` where there is none."""
    upstream = exchange.upstream_time_s
    request = f"{_plain(exchange.method)} {_plain(exchange.path)} {exchange.protocol or _ABSENT}"
    return " ".join(
        (
            f"[{_time(exchange.time)}]",
            f'"{request}"',
            str(exchange.status),
            exchange.flags or _ABSENT,
            exchange.details or _ABSENT,
            _ABSENT,  # connection termination details
            f'"{_escaped(exchange.failure) or _ABSENT}"',
            str(exchange.request_body_bytes),
            str(exchange.response_body_bytes),
            str(round(exchange.duration_s * 1000)),
            _ABSENT if upstream < 0 else str(round(upstream * 1000)),
            f'"{_plain(exchange.forwarded_for)}"',
            f'"{_plain(exchange.user_agent)}"',
            f'"{_plain(exchange.request_id)}"',
            f'"{_plain(exchange.authority)}"',
            f'"{exchange.upstream_host or _ABSENT}"',
            exchange.upstream_cluster or _ABSENT,
            _ABSENT,  # upstream local address
            exchange.downstream_local,
            exchange.downstream_remote,
            _ABSENT,  # requested server name
            exchange.route_name or _ABSENT,
        )
    )


def json_line(exchange: Exchange) -> str:
    """The same under Istio's JSON keys, with the client's identity and the number of tries; null where
    none."""
    upstream = exchange.upstream_time_s
    return json.dumps(
        {
            "start_time": _time(exchange.time),
            "method": _text(exchange.method),
            "path": _text(exchange.path),
            "protocol": exchange.protocol or None,
            "response_code": exchange.status,
            "response_flags": exchange.flags or None,
            "response_code_details": exchange.details or None,
            "upstream_transport_failure_reason": exchange.failure[:_MAX_CHARS] or None,
            "bytes_received": exchange.request_body_bytes,
            "bytes_sent": exchange.response_body_bytes,
            "duration": round(exchange.duration_s * 1000),
            "upstream_service_time": None if upstream < 0 else round(upstream * 1000),
            "x_forwarded_for": _text(exchange.forwarded_for),
            "user_agent": _text(exchange.user_agent),
            "request_id": _text(exchange.request_id),
            "authority": _text(exchange.authority),
            "upstream_host": exchange.upstream_host or None,
            "upstream_cluster": exchange.upstream_cluster or None,
            "downstream_local_address": exchange.downstream_local,
            "downstream_remote_address": exchange.downstream_remote,
            "route_name": exchange.route_name or None,
            "source_principal": exchange.source_principal or None,
            "grpc_status": _text(exchange.grpc_status),
            "attempts": exchange.attempts,
            "policy": exchange.policy or None,
        }
    )


def _time(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _text(value: bytes) -> str | None:
    return value[:_MAX_CHARS].decode("utf-8", "replace") or None


def _plain(value: bytes) -> str:
    return _escaped(value.decode("utf-8", "replace")) or _ABSENT


def _escaped(text: str) -> str:
    """Quotation marks, backslashes and everything that does not print, as JSON writes it."""
    return json.dumps(text[:_MAX_CHARS], ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
