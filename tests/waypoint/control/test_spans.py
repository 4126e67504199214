"""Spans find their collector: the provider that is named, as it is now, wherever it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import trio
import trio.testing

from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.worker_pb2 import Exchange, Span
from tests.telemetry.test_span_exporter import PATIENCE_S, collecting_http
from tests.waypoint.resources import PLACE, endpoint, put, web_service
from waypoint.control.spans import SpanSink, Teller
from waypoint.state.store import WaypointState
from waypoint.state.telemetry import TELEMETRY_TYPE

EXCHANGE = Exchange(
    time=1.0,
    status=200,
    method=b"GET",
    span=Span(provider="zip", trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name="web:80/*"),
)


def zipkin(port: int, host: str = "127.0.0.1", path: str = "/spans") -> pb.Telemetry:
    provider = pb.Telemetry.SpanProvider(
        name="zip", wire=pb.Telemetry.SpanProvider.ZIPKIN, host=host, port=port, path=path
    )
    return pb.Telemetry(namespace="istio-system", name="traces", span_providers=[provider])


def empty_state() -> WaypointState:
    return WaypointState(PLACE, clock=lambda: 0.0, random=lambda: 0.5)


@contextlib.asynccontextmanager
async def sinking(state: WaypointState) -> AsyncIterator[SpanSink]:
    sink = SpanSink(state.telemetry, state.mesh, Teller("wp.default", "node", "1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE_S):
            yield sink
        nursery.cancel_scope.cancel()


async def test_what_is_left_goes_to_the_collector_at_the_end() -> None:
    state = empty_state()
    with collecting_http() as collector:
        put(state, zipkin(collector.port))
        async with sinking(state) as sink:
            sink.take(EXCHANGE)
            await sink.drain()
            assert (sink.sent, sink.dropped) == (1, 0)
        ((path, _, body),) = collector.seen
    (span,) = json.loads(body)
    assert (path, span["name"], span["localEndpoint"]) == (
        "/spans",
        "web:80/*",
        {"serviceName": "wp.default"},
    )
    assert span["tags"]["node_id"] == "node"


async def test_a_provider_that_changes_is_followed_and_one_that_is_gone_loses_its_spans() -> None:
    state = empty_state()
    with collecting_http() as collector:
        put(state, zipkin(collector.port))
        async with sinking(state) as sink:
            sink.take(EXCHANGE)
            put(state, zipkin(collector.port, path="/other"))
            sink.take(EXCHANGE)
            assert sink.dropped == 1  # it waited for the former
            state.apply(TELEMETRY_TYPE, (), ["istio-system/traces"])
            sink.take(EXCHANGE)
            assert (sink.sent, sink.dropped) == (0, 3)
            put(state, zipkin(collector.port))
            sink.take(EXCHANGE)
            await sink.drain()
            assert (sink.sent, sink.dropped) == (1, 3)
        assert [path for path, _, _ in collector.seen] == ["/spans"]


async def test_a_service_of_the_mesh_is_called_at_one_of_its_workloads() -> None:
    state = empty_state()
    with collecting_http() as collector:
        put(state, web_service(), endpoint("a", collector.port), zipkin(80, host="web"))
        async with sinking(state) as sink:
            sink.take(EXCHANGE)
            await sink.drain()
            assert (sink.sent, sink.dropped) == (1, 0)
