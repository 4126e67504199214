"""Access logs find their collector, by the provider that a record names."""

from __future__ import annotations

import trio
import trio.testing

from proto.mycelia import telemetry_pb2 as pb
from telemetry.otlp_logs import RecordFormat
from tests.telemetry.test_otlp_logs import EXCHANGE, RESOURCE, collecting_logs
from tests.telemetry.test_span_exporter import PATIENCE_S
from tests.waypoint.control.test_spans import empty_state
from tests.waypoint.resources import put
from waypoint.control.otlp_logs import LogSink


async def test_a_provider_s_records_are_sent_and_those_of_one_that_is_gone_are_counted() -> None:
    state = empty_state()
    with collecting_logs() as (collector, port):
        provider = pb.Telemetry.LogProvider(
            name="otel", text="%RESPONSE_CODE%", host="127.0.0.1", port=port, log_name="mine"
        )
        logging = [pb.Telemetry.Logging(providers=["otel"])]
        put(state, pb.Telemetry(namespace="a", name="b", logging=logging, log_providers=[provider]))
        format_ = state.telemetry.formats["otel"]
        assert isinstance(format_, RecordFormat)
        sink = LogSink(state.telemetry, state.mesh, RESOURCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(PATIENCE_S):
                sink.take("otel", EXCHANGE, format_)
                sink.take("gone", EXCHANGE, format_)
                await sink.drain()
            nursery.cancel_scope.cancel()
    assert (sink.sent, sink.dropped) == (1, 1)
    assert [record.body.string_value for record in collector.records()] == ["503"]
