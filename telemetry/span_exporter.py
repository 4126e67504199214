"""Spans to a collector: OTLP over gRPC or HTTP, or Zipkin. Bounds and failures: batch_exporter.py."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from telemetry.batch_exporter import FLUSH_S, TIMEOUT_S, BatchExporter, Log, call
from telemetry.http_post import Target, post
from telemetry.spans import Span, otlp, zipkin

_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Wire(enum.Enum):
    OTLP_GRPC = "OTLP/gRPC"
    OTLP_HTTP = "OTLP/HTTP"
    ZIPKIN = "Zipkin"


@dataclass(frozen=True, slots=True)
class Destination:
    """`path` and `headers` (gRPC: metadata) as configured."""

    wire: Wire
    target: Target


class SpanExporter(BatchExporter[Span]):
    """`service` names the resource."""

    def __init__(
        self,
        destination: Destination,
        service: str,
        version: str,
        log: Log,
        *,
        locate: Callable[[], tuple[str, int]] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        super().__init__(destination.target, self._export, "spans", log, locate=locate, flush_s=flush_s)
        self._wire = destination.wire
        self._service = service
        self._version = version

    async def _export(self, target: Target, batch: list[Span]) -> None:
        match self._wire:
            case Wire.OTLP_GRPC:
                await call(target, _EXPORT, otlp(batch, self._service, self._version))
            case Wire.OTLP_HTTP:
                body = otlp(batch, self._service, self._version)
                await post(target, "application/x-protobuf", body, TIMEOUT_S)
            case Wire.ZIPKIN:
                await post(target, "application/json", zipkin(batch, self._service), TIMEOUT_S)
