"""Spans of requests on their way to collectors, as the Telemetry kind chose them.

An exporter for each provider that a span named; it lives as long as the process, and starts anew where the
provider has changed. A provider that is gone loses its spans, which are counted. Where a provider's host is a
service of the mesh, one of its endpoints is called directly, in plaintext; else the name is resolved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

from dataplane.state.store import MeshState
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.worker_pb2 import Exchange
from telemetry.http_post import Target
from telemetry.logging import get_logger
from telemetry.metrics import Description, Kind
from telemetry.span_exporter import Destination, SpanExporter, Wire
from telemetry.spans import Span
from waypoint.settings import Settings
from waypoint.state.telemetry import TelemetryBook

SPANS_SENT: Final = Description("mycelia_spans_exported", Kind.COUNTER, "Spans that a collector took")
SPANS_DROPPED: Final = Description("mycelia_spans_dropped", Kind.COUNTER, "Spans that no collector took")
_DRAIN_S: Final = 1.0
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


class SpanSink:
    """`run` owns the exporters' tasks."""

    def __init__(self, book: TelemetryBook, mesh: MeshState, teller: Teller) -> None:
        self._book = book
        self._mesh = mesh
        self._teller = teller
        self._log = get_logger("spans")
        self._exporters: dict[str, tuple[pb.Telemetry.SpanProvider, SpanExporter, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._gone_sent = 0
        self._gone_dropped = 0

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def drain(self) -> None:
        """What has not been sent yet is tried once more, briefly."""
        for _, _, scope in self._exporters.values():
            scope.cancel()
        with trio.move_on_after(_DRAIN_S):
            for _, exporter, _ in self._exporters.values():
                await exporter.drain(_DRAIN_S)

    def take(self, exchange: Exchange) -> None:
        """Never waits."""
        exporter = self._exporter(exchange.span.provider)
        if exporter is None:
            self._gone_dropped += 1
        else:
            exporter.put(span_of(exchange, self._teller))

    @property
    def sent(self) -> int:
        return self._gone_sent + sum(each.sent for _, each, _ in self._exporters.values())

    @property
    def dropped(self) -> int:
        return self._gone_dropped + sum(each.dropped for _, each, _ in self._exporters.values())

    def _exporter(self, name: str) -> SpanExporter | None:
        wanted, held = self._book.span_providers.get(name), self._exporters.get(name)
        if held is not None and held[0] == wanted:
            return held[1]
        if held is not None:
            _, former, scope = self._exporters.pop(name)
            scope.cancel()
            self._gone_sent += former.sent
            self._gone_dropped += former.dropped + former.queued
        if wanted is None or self._nursery is None:
            return None
        target = Target(
            wanted.host,
            wanted.port,
            wanted.path or "/",
            tuple((header.name, header.value) for header in wanted.headers),
        )
        exporter = SpanExporter(
            Destination(_WIRES[wanted.wire], target),
            self._teller.service,
            self._teller.version,
            self._log,
            locate=lambda: self._locate(wanted),
        )
        scope = trio.CancelScope()
        self._exporters[name] = (wanted, exporter, scope)
        self._nursery.start_soon(_run_within, scope, exporter)
        return exporter

    def _locate(self, provider: pb.Telemetry.SpanProvider) -> tuple[str, int]:
        mesh = self._mesh
        service = mesh.service_by_hostname(provider.host, provider.namespace)
        if service is None or (provider.namespace and service.namespace != provider.namespace):
            return provider.host, provider.port
        endpoints = mesh.endpoints(service)
        for workload in () if endpoints is None else endpoints.workloads.values():
            ports = workload.services.get(service.key, {})
            port = ports.get(provider.port) or service.ports.get(provider.port) or provider.port
            if workload.is_healthy and workload.addresses:
                return workload.addresses[0], port
        return provider.host, provider.port


async def _run_within(scope: trio.CancelScope, exporter: SpanExporter) -> None:
    with scope:
        await exporter.run()


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
