"""Access logs to a real collector: a gRPC server of grpcio that decodes what it gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import grpc

from proto.mycelia.worker_pb2 import Exchange, Span
from proto.opentelemetry import logs_pb2 as pb
from proto.opentelemetry import trace_pb2
from telemetry.access_format import parse_format, parse_labels
from telemetry.http_post import Target
from telemetry.otlp_logs import LogExporter, RecordFormat, Resource
from tests.telemetry.test_span_exporter import Log, running, settled

METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
RESOURCE = Resource("wp.shop", "node", "1.2")
FORMAT = RecordFormat(
    parse_format("%REQ(:METHOD)% %RESPONSE_CODE%"),
    parse_labels({"code": "%RESPONSE_CODE%", "tenant": "%REQ(X-TENANT)%", "none": "%RESP(X-NONE)%"}),
)
EXCHANGE = Exchange(
    time=1000.0,
    duration_s=0.5,
    method=b"GET",
    status=503,
    span=Span(trace_id=bytes(range(16)), span_id=bytes(range(8))),
    request_headers={"x-tenant": b'blue "one"'},
)


class Collector(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`is_away`: calls are turned away."""

    def __init__(self) -> None:
        self.requests: list[pb.ExportLogsServiceRequest] = []
        self.is_away = False

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == METHOD

        def export(
            request: pb.ExportLogsServiceRequest, context: grpc.ServicerContext
        ) -> pb.ExportLogsServiceResponse:
            if self.is_away:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
            self.requests.append(request)
            return pb.ExportLogsServiceResponse()

        return grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=pb.ExportLogsServiceRequest.FromString,
            response_serializer=pb.ExportLogsServiceResponse.SerializeToString,
        )

    def records(self) -> list[pb.LogRecord]:
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@contextlib.contextmanager
def collecting_logs() -> Iterator[tuple[Collector, int]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[collector])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, port
    server.stop(None).wait()


def pairs(found: Iterable[trace_pb2.KeyValue]) -> dict[str, str]:
    return {each.key: each.value.string_value for each in found}


async def test_a_record_has_a_body_attributes_and_its_place_in_the_trace() -> None:
    with collecting_logs() as (collector, port):
        target = Target("127.0.0.1", port)
        async with running(LogExporter(target, RESOURCE, "mine", Log(), flush_s=0.01)) as made:
            made.put(FORMAT.record(EXCHANGE))
            await settled(made, 1)
    (record,) = collector.records()
    assert record.body.string_value == "GET 503"
    assert pairs(record.attributes) == {"code": "503", "tenant": 'blue "one"', "none": "-"}
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (1000 * 10**9, 1000_500_000_000)
    assert (record.trace_id, record.span_id) == (bytes(range(16)), bytes(range(8)))
    (resource,) = collector.requests[0].resource_logs
    assert pairs(resource.resource.attributes) == {
        "service.name": "wp.shop",
        "node_name": "node",
        "log_name": "mine",
    }


async def test_what_a_collector_does_not_take_is_counted_and_said_once() -> None:
    log = Log()
    with collecting_logs() as (collector, port):
        collector.is_away = True
        target = Target("127.0.0.1", port)
        async with running(LogExporter(target, RESOURCE, "mine", log, flush_s=0.01)) as made:
            made.put(FORMAT.record(EXCHANGE))
            await settled(made, 1)
            collector.is_away = False
            made.put(FORMAT.record(EXCHANGE))
            await settled(made, 2)
        assert (made.sent, made.dropped) == (1, 1)
    assert [event.partition(" ")[0] for event in log.events] == [
        "access_logs_not_exported",
        "access_logs_exported_again",
    ]


def test_the_headers_that_it_needs_are_asked_for() -> None:
    assert FORMAT.request_headers == {"x-tenant"}
    assert FORMAT.response_headers == {"x-none"}
