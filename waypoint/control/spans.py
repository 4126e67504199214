"""Spans of requests on their way to collectors, as the Telemetry kind chose them (exporters.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dataplane.state.store import MeshState
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.worker_pb2 import Exchange
from telemetry.logging import get_logger
from telemetry.metrics import Description, Kind
from telemetry.span_exporter import Destination, SpanExporter, Wire
from telemetry.spans import Span
from waypoint.control.exporters import Exporters, Locate, target_of
from waypoint.settings import Settings
from waypoint.state.telemetry import TelemetryBook

SPANS_SENT: Final = Description("mycelia_spans_exported", Kind.COUNTER, "Spans that a collector took")
SPANS_DROPPED: Final = Description("mycelia_spans_dropped", Kind.COUNTER, "Spans that no collector took")
_MAX_TAG_CHARACTERS: Final = 256  # Envoy's
_WIRES: Final = {
    pb.Telemetry.SpanProvider.OTLP_GRPC: Wire.OTLP_GRPC,
    pb.Telemetry.SpanProvider.OTLP_HTTP: Wire.OTLP_HTTP,
    pb.Telemetry.SpanProvider.ZIPKIN: Wire.ZIPKIN,
}


@dataclass(frozen=True, slots=True)
class Teller:
    """Who tells the spans: `service` names the resource, `tags` are Istio's of the proxy itself."""

    service: str
    node: str
    version: str
    tags: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: Settings, version: str) -> Teller:
        identity = settings.identity
        tags = {
            "canonical_service": settings.gateway,
            "canonical_revision": "latest",
            "namespace": settings.namespace,
            "mesh_id": settings.spiffe_id.trust_domain,
            "cluster_id": identity.cluster_id,
        }
        return cls(
            f"{settings.gateway}.{settings.namespace}",
            identity.node_id,
            version,
            tuple((f"istio.{name}", value) for name, value in tags.items()),
        )


class SpanSink(Exporters[pb.Telemetry.SpanProvider, Span]):
    """An exporter for each provider that a span named."""

    def __init__(self, book: TelemetryBook, mesh: MeshState, teller: Teller) -> None:
        super().__init__(mesh, lambda: book.span_providers, self._make_exporter)
        self._teller = teller
        self._log = get_logger("spans")

    def take(self, exchange: Exchange) -> None:
        """Never waits."""
        self.put(exchange.span.provider, lambda: span_of(exchange, self._teller))

    def _make_exporter(self, wanted: pb.Telemetry.SpanProvider, locate: Locate) -> SpanExporter:
        headers = tuple((header.name, header.value) for header in wanted.headers)
        target = target_of(wanted, wanted.path or "/", headers)
        destination = Destination(_WIRES[wanted.wire], target)
        teller = self._teller
        return SpanExporter(destination, teller.service, teller.version, self._log, locate=locate)


def span_of(exchange: Exchange, teller: Teller) -> Span:
    """With Envoy's and Istio's tags (waypoint-facts 14)."""
    span = exchange.span
    own = teller.tags if span.istio_tags else ()
    tags = (*_tags(exchange, teller.node), *own, *((tag.name, tag.value) for tag in span.tags))
    return Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_id,
        name=span.name,
        began=exchange.time,
        duration_s=exchange.duration_s,
        state=span.state,
        tags=tags,
        is_error=_is_error(exchange),
    )


def _is_error(exchange: Exchange) -> bool:
    return exchange.status >= 500 or exchange.status == 0


def _tags(exchange: Exchange, node: str) -> Iterator[tuple[str, str]]:
    yield "component", "proxy"
    yield "node_id", node
    yield "guid:x-request-id", _text(exchange.request_id)
    yield "http.method", _text(exchange.method)
    yield "http.url", _text(b"http://" + exchange.authority + (exchange.original_path or exchange.path))
    yield "http.protocol", exchange.protocol
    yield "http.status_code", str(exchange.status)
    yield "user_agent", _text(exchange.user_agent)
    yield "request_size", str(exchange.request_body_bytes)
    yield "response_size", str(exchange.response_body_bytes)
    yield "response_flags", exchange.flags
    yield "peer.address", exchange.downstream_remote.rpartition(":")[0].strip("[]")
    if exchange.upstream_cluster:
        yield "upstream_cluster", exchange.upstream_cluster
        yield "upstream_cluster.name", exchange.upstream_cluster
    if exchange.upstream_host:
        yield "upstream_address", exchange.upstream_host
    if exchange.grpc_status:
        yield "grpc.status_code", _text(exchange.grpc_status)
    if _is_error(exchange):
        yield "error", "true"


def _text(value: bytes) -> str:
    return value[:_MAX_TAG_CHARACTERS].decode("utf-8", "replace")
