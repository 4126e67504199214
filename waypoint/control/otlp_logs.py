"""Access logs on their way to collectors, for providers that are none of standard output (exporters.py)."""

from __future__ import annotations

from typing import Final

from dataplane.state.store import MeshState
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.worker_pb2 import Exchange
from proto.opentelemetry.logs_pb2 import LogRecord
from telemetry.logging import get_logger
from telemetry.metrics import Description, Kind
from telemetry.otlp_logs import LogExporter, RecordFormat, Resource
from waypoint.control.exporters import Exporters, Locate, target_of
from waypoint.state.telemetry import TelemetryBook

LOGS_SENT: Final = Description(
    "mycelia_access_log_records_exported", Kind.COUNTER, "Records of access logs that a collector took"
)
LOGS_DROPPED: Final = Description(
    "mycelia_access_log_records_not_exported",
    Kind.COUNTER,
    "Records of access logs that no collector took",
)


class LogSink(Exporters[pb.Telemetry.LogProvider, LogRecord]):
    """An exporter for each provider that a record named."""

    def __init__(self, book: TelemetryBook, mesh: MeshState, resource: Resource) -> None:
        super().__init__(mesh, lambda: book.log_providers, self._make_exporter)
        self._resource = resource
        self._log = get_logger("access_logs")

    def take(self, name: str, exchange: Exchange, format_: RecordFormat) -> None:
        """Never waits."""
        self.put(name, lambda: format_.record(exchange))

    def _make_exporter(self, wanted: pb.Telemetry.LogProvider, locate: Locate) -> LogExporter:
        target = target_of(wanted)
        return LogExporter(target, self._resource, wanted.log_name, self._log, locate=locate)
