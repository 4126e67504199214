"""An exchange as expressions of the Telemetry kind see it (telemetry/cel_attributes.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from transport.http2.events import Header
from waypoint.worker.exchange import Exchange


class ExchangeFacts:
    """Implements cel.Facts for an exchange that is over."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def attribute(self, path: str) -> str | int | bool | None:
        read = _READ.get(path)
        return None if read is None else read(self._exchange)

    def header(self, path: str, name: str) -> str | None:
        exchange = self._exchange
        is_request = path == "request.headers"
        fields = exchange.request.headers if is_request else exchange.outcome.response_headers
        return _header(fields, name)


def _header(fields: Sequence[Header], name: str) -> str | None:
    """Its lines joined, as Envoy shows a header that is there more than once."""
    wanted = name.encode("utf-8", "replace")
    lines = [value for key, value in fields if key == wanted]
    return _text(b",".join(lines)) if lines else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _grpc_status(exchange: Exchange) -> int | None:
    status = exchange.outcome.grpc_status
    return int(status) if status.isdigit() and len(status) < 10 else None


def _identity(exchange: Exchange) -> str | None:
    identity = exchange.source.identity
    return None if identity is None else str(identity)


def _upstream(exchange: Exchange, index: int) -> str | int | None:
    upstream = exchange.outcome.upstream
    return None if upstream is None else upstream.address[index]


Read = Callable[[Exchange], "str | int | bool | None"]
_READ: Final[Mapping[str, Read]] = MappingProxyType(
    {
        "request.path": lambda exchange: _text(exchange.request.target),
        "request.url_path": lambda exchange: _text(exchange.request.path),
        "request.query": lambda exchange: _text(exchange.request.query or b""),
        "request.host": lambda exchange: _text(exchange.request.authority),
        "request.scheme": lambda exchange: _text(exchange.request.scheme),
        "request.method": lambda exchange: _text(exchange.request.method),
        "request.protocol": lambda exchange: exchange.protocol,
        "request.id": lambda exchange: _text(exchange.request.request_id) or None,
        "request.referer": lambda exchange: _header(exchange.request.headers, "referer"),
        "request.useragent": lambda exchange: _header(exchange.request.headers, "user-agent"),
        "request.size": lambda exchange: exchange.outcome.request_body_bytes,
        "request.total_size": lambda exchange: (
            exchange.outcome.request_body_bytes + exchange.outcome.request_header_bytes
        ),
        # 0: no response began.
        "response.code": lambda exchange: exchange.outcome.status,
        "response.code_details": lambda exchange: exchange.outcome.details or None,
        "response.flags_text": lambda exchange: exchange.outcome.flag,
        "response.grpc_status": _grpc_status,
        "response.size": lambda exchange: exchange.outcome.response_body_bytes,
        "response.total_size": lambda exchange: (
            exchange.outcome.response_body_bytes + exchange.outcome.response_header_bytes
        ),
        "source.address": lambda exchange: exchange.source.address[0],
        "source.port": lambda exchange: exchange.source.address[1],
        "source.principal": _identity,
        "connection.uri_san_peer_certificate": _identity,
        "connection.mtls": lambda exchange: exchange.source.identity is not None,
        "destination.address": lambda exchange: exchange.source.destination[0],
        "destination.port": lambda exchange: exchange.source.destination[1],
        "destination.service": lambda exchange: (
            None if exchange.outcome.service is None else exchange.outcome.service.hostname
        ),
        "destination.namespace": lambda exchange: (
            None if exchange.outcome.service is None else exchange.outcome.service.namespace
        ),
        "upstream.address": lambda exchange: _upstream(exchange, 0),
        "upstream.port": lambda exchange: _upstream(exchange, 1),
        "upstream.request_attempt_count": lambda exchange: exchange.outcome.attempts,
        "upstream.transport_failure_reason": lambda exchange: exchange.outcome.failure_text or None,
        "xds.route_name": lambda exchange: exchange.outcome.route_name or None,
        "xds.cluster_name": lambda exchange: exchange.outcome.cluster or None,
    }
)
