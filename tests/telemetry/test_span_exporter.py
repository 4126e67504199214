"""Spans to real collectors: a gRPC server of grpcio and an HTTP server that decode what they get."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import grpc
import pytest
import trio
import trio.testing

from proto.opentelemetry import trace_pb2 as pb
from telemetry.batch_exporter import BATCH, MAX_QUEUED, TRIES, BatchExporter
from telemetry.http_post import Target
from telemetry.span_exporter import Destination, SpanExporter, Wire
from telemetry.spans import Span

TRACE, SPAN, PARENT = bytes(range(16)), bytes(range(8)), b"\x09" * 8
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PATIENCE_S = 15.0
Exporter = TypeVar("Exporter", bound=BatchExporter[Any])


def span(name: str = "web:80/*", **fields: Any) -> Span:
    return Span(TRACE, SPAN, name, 1000.0, 0.25, tags=(("http.method", "GET"), ("error", "true")), **fields)


class Collector(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`answers` are the statuses of calls to come; OK when there are none left."""

    def __init__(self) -> None:
        self.requests: list[pb.ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.answers: list[grpc.StatusCode] = []
        self.calls = 0

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == METHOD
        metadata = dict(handler_call_details.invocation_metadata)

        def export(
            request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
        ) -> pb.ExportTraceServiceResponse:
            self.calls += 1
            if self.answers:
                context.abort(self.answers.pop(0), "not now")
            self.metadata.append(metadata)
            self.requests.append(request)
            return pb.ExportTraceServiceResponse()

        return grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=pb.ExportTraceServiceRequest.FromString,
            response_serializer=pb.ExportTraceServiceResponse.SerializeToString,
        )

    def spans(self) -> list[pb.Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, int]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[collector])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, port
    server.stop(None).wait()


class HttpCollector:
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


@contextlib.contextmanager
def collecting_http() -> Iterator[HttpCollector]:
    collector = HttpCollector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(f"{event} {fields['reason']}")

    def info(self, event: str, **_: object) -> None:
        self.events.append(event)


def exporter(wire: Wire, port: int, path: str = "/", **headers: str) -> SpanExporter:
    target = Target("127.0.0.1", port, path, tuple(headers.items()))
    return SpanExporter(Destination(wire, target), "wp.shop", "1.2", Log(), flush_s=0.01)


@contextlib.asynccontextmanager
async def running(made: Exporter) -> AsyncIterator[Exporter]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        with trio.fail_after(PATIENCE_S):
            yield made
        nursery.cancel_scope.cancel()


async def settled(made: BatchExporter[Any], count: int) -> None:
    """Until so many items are sent or lost."""
    while made.sent + made.dropped < count:
        await trio.lowlevel.checkpoint()


async def test_otlp_over_grpc() -> None:
    with collecting() as (collector, port):
        async with running(exporter(Wire.OTLP_GRPC, port, token="t")) as made:
            made.put(span(parent_id=PARENT, state="a=1", is_error=True))
            made.put(span("root"))
            await settled(made, 2)
    first, second = collector.spans()
    assert (first.trace_id, first.span_id, first.parent_span_id) == (TRACE, SPAN, PARENT)
    assert (first.name, first.kind, first.trace_state) == ("web:80/*", pb.Span.SPAN_KIND_SERVER, "a=1")
    assert first.end_time_unix_nano - first.start_time_unix_nano == 250_000_000
    assert first.start_time_unix_nano == 1000 * 10**9
    tags = {each.key: each.value.string_value for each in first.attributes}
    assert tags == {"http.method": "GET", "error": "true"}
    assert first.status.code == pb.Status.STATUS_CODE_ERROR
    assert (second.parent_span_id, second.status.code) == (b"", pb.Status.STATUS_CODE_UNSET)
    resource = collector.requests[0].resource_spans[0]
    assert resource.resource.attributes[0].value.string_value == "wp.shop"
    assert (resource.scope_spans[0].scope.name, resource.scope_spans[0].scope.version) == ("mycelia", "1.2")
    assert collector.metadata[0]["token"] == "t"


async def test_otlp_over_http() -> None:
    with collecting_http() as collector:
        async with running(exporter(Wire.OTLP_HTTP, collector.port, "/v1/traces", authorization="x")) as made:
            made.put(span())
            await settled(made, 1)
    ((path, headers, body),) = collector.seen
    assert (path, headers["content-type"], headers["authorization"]) == (
        "/v1/traces",
        "application/x-protobuf",
        "x",
    )
    request = pb.ExportTraceServiceRequest.FromString(body)
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "web:80/*"


async def test_zipkin() -> None:
    with collecting_http() as collector:
        async with running(exporter(Wire.ZIPKIN, collector.port, "/api/v2/spans")) as made:
            made.put(span(parent_id=PARENT))
            await settled(made, 1)
    ((path, headers, body),) = collector.seen
    assert (path, headers["content-type"]) == ("/api/v2/spans", "application/json")
    assert json.loads(body) == [
        {
            "traceId": TRACE.hex(),
            "id": SPAN.hex(),
            "parentId": PARENT.hex(),
            "name": "web:80/*",
            "kind": "SERVER",
            "timestamp": 1000 * 10**6,
            "duration": 250_000,
            "localEndpoint": {"serviceName": "wp.shop"},
            "tags": {"http.method": "GET", "error": "true"},
        }
    ]


async def test_a_collector_that_is_busy_is_asked_again(autojump_backoff: None) -> None:
    with collecting() as (collector, port):
        collector.answers = [grpc.StatusCode.UNAVAILABLE]
        async with running(exporter(Wire.OTLP_GRPC, port)) as made:
            made.put(span())
            await settled(made, 1)
            assert (made.sent, made.dropped, collector.calls) == (1, 0, 2)


async def test_what_a_collector_refuses_is_lost_and_counted_at_once() -> None:
    with collecting() as (collector, port), collecting_http() as http:
        collector.answers = [grpc.StatusCode.INVALID_ARGUMENT]
        http.statuses = [400]
        for made in (exporter(Wire.OTLP_GRPC, port), exporter(Wire.OTLP_HTTP, http.port)):
            async with running(made):
                made.put(span())
                await settled(made, 1)
                assert (made.sent, made.dropped) == (0, 1)
                made.put(span())
                await settled(made, 2)
                assert (made.sent, made.dropped) == (1, 1)
        assert (collector.calls, len(http.seen)) == (2, 2)


@pytest.mark.parametrize("wire", list(Wire))
async def test_a_collector_that_is_away_costs_spans_and_two_lines(wire: Wire, autojump_backoff: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made = exporter(wire, port)
    async with running(made):
        made.put(span())
        await settled(made, 1)
        made.put(span())
        await settled(made, 2)
    assert (made.sent, made.dropped) == (0, 2)
    log = made._log
    assert isinstance(log, Log)
    assert len(log.events) == 1
    assert log.events[0].startswith("spans_not_exported")
    assert TRIES > 1


async def test_the_queue_is_bounded_and_batches_are() -> None:
    with collecting() as (collector, port):
        made = exporter(Wire.OTLP_GRPC, port)
        for _ in range(MAX_QUEUED + 7):
            made.put(span())
        assert made.dropped == 7
        async with running(made):
            await settled(made, MAX_QUEUED + 7)
        assert made.sent == MAX_QUEUED
        sizes = [len(each.resource_spans[0].scope_spans[0].spans) for each in collector.requests]
        assert sizes == [BATCH] * (MAX_QUEUED // BATCH)


async def test_what_is_left_at_the_end_is_tried_once_more_or_counted() -> None:
    with collecting() as (collector, port):
        made = exporter(Wire.OTLP_GRPC, port)
        made.put(span())
        await made.drain(PATIENCE_S)
        assert (made.sent, len(collector.spans())) == (1, 1)
    made.put(span())
    await made.drain(0.0)
    assert made.dropped == 1


@pytest.fixture
def autojump_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause between tries is a setting that no test waits for."""
    monkeypatch.setattr("telemetry.batch_exporter._BACKOFF_S", 0.0)
