"""Access logs as OTLP's log records: a text is the body, labels are attributes (Istio's envoyOtelAls)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from proto.mycelia.worker_pb2 import Exchange
from proto.opentelemetry import logs_pb2 as pb
from proto.opentelemetry import trace_pb2
from telemetry.access_format import Format, LabelFormat
from telemetry.batch_exporter import FLUSH_S, BatchExporter, Log, call
from telemetry.http_post import Target
from telemetry.spans import SCOPE

DEFAULT_LOG_NAME: Final = "otel_envoy_accesslog"
_EXPORT: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """What a record says: its body, and perhaps attributes."""

    text: Format
    labels: LabelFormat

    @property
    def request_headers(self) -> frozenset[str]:
        return self.text.request_headers | self.labels.request_headers

    @property
    def response_headers(self) -> frozenset[str]:
        return self.text.response_headers | self.labels.response_headers

    def record(self, exchange: Exchange) -> pb.LogRecord:
        """Nothing is escaped but the body, as in lines: attributes are values, not text in text."""
        values = ((name, format_.value(exchange)) for name, format_ in self.labels.labels)
        began = int(exchange.time * 1e9)
        return pb.LogRecord(
            time_unix_nano=began,
            observed_time_unix_nano=began + int(exchange.duration_s * 1e9),
            body=trace_pb2.AnyValue(string_value=self.text.line(exchange)),
            attributes=[_pair(name, "-" if value is None else str(value)) for name, value in values],
            trace_id=exchange.span.trace_id,
            span_id=exchange.span.span_id,
        )


@dataclass(frozen=True, slots=True)
class Resource:
    """Who tells: `service` names the waypoint, `node` its replica."""

    service: str
    node: str
    version: str


def encode(records: Sequence[pb.LogRecord], resource: Resource, log_name: str) -> bytes:
    """An ExportLogsServiceRequest."""
    attributes = {"service.name": resource.service, "node_name": resource.node, "log_name": log_name}
    scope = trace_pb2.InstrumentationScope(name=SCOPE, version=resource.version)
    made = pb.ResourceLogs(
        resource=trace_pb2.Resource(attributes=[_pair(name, value) for name, value in attributes.items()]),
        scope_logs=[pb.ScopeLogs(scope=scope, log_records=records)],
    )
    return pb.ExportLogsServiceRequest(resource_logs=[made]).SerializeToString()


def _pair(key: str, value: str) -> trace_pb2.KeyValue:
    return trace_pb2.KeyValue(key=key, value=trace_pb2.AnyValue(string_value=value))


class LogExporter(BatchExporter[pb.LogRecord]):
    """Over gRPC, in plaintext. Bounds and failures: batch_exporter.py."""

    def __init__(
        self,
        target: Target,
        resource: Resource,
        log_name: str,
        log: Log,
        *,
        locate: Callable[[], tuple[str, int]] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        super().__init__(target, self._export, "access_logs", log, locate=locate, flush_s=flush_s)
        self._resource = resource
        self._log_name = log_name

    async def _export(self, target: Target, batch: list[pb.LogRecord]) -> None:
        await call(target, _EXPORT, encode(batch, self._resource, self._log_name))
