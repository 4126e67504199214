"""Messages of gRPC calls are counted, however their octets are cut."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from concurrent import futures

import grpc
from hypothesis import given
from hypothesis import strategies as st

from dataplane.worker.records import RecordQueue
from proto.mycelia import waypoint_pb2
from proto.mycelia import worker_pb2 as pb
from tests.waypoint.control.test_metrics import of, samples
from tests.waypoint.resources import endpoint, routes, web_service
from tests.waypoint.worker.kit import PATIENCE_S
from tests.waypoint.worker.routing_kit import Waypoint
from waypoint.control.metrics import HttpTotals
from waypoint.state.http_labels import MESSAGE_LABEL_NAMES, message_labels
from waypoint.worker.grpc_messages import CallMessages, FrameCounter
from waypoint.worker.telemetry import Telemetry, pack_exchanges


def frame(size: int) -> bytes:
    return b"\0" + size.to_bytes(4, "big") + b"m" * size


@given(st.lists(st.integers(0, 40), max_size=12), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_the_count_does_not_depend_on_the_cuts(sizes: list[int], cuts: list[int]) -> None:
    octets, counter, at, turn = b"".join(map(frame, sizes)), FrameCounter(), 0, 0
    while at < len(octets):
        size = cuts[turn % len(cuts)]
        counter.feed(memoryview(octets)[at : at + size])
        at, turn = at + size, turn + 1
    assert counter.count == len(sizes)


def test_a_message_counts_when_it_has_begun() -> None:
    counter = FrameCounter()
    counter.feed(b"\0\0\0\0")
    assert counter.count == 0
    counter.feed(b"\x64")
    assert counter.count == 1
    counter.feed(b"x" * 0x64)
    assert counter.count == 1


def test_messages_are_told_once() -> None:
    messages = CallMessages()
    messages.requests.feed(frame(3) + frame(0))
    messages.responses.feed(frame(1))
    assert messages.take() == (2, 1)
    messages.responses.feed(frame(1))
    assert messages.take() == (0, 1)


def test_the_totals_survive_a_worker() -> None:
    labels = message_labels(None, None, None, None)
    assert len(labels) == len(MESSAGE_LABEL_NAMES)
    totals = HttpTotals()
    for _ in range(2):
        totals.take(0, [pb.Stats(messages=[pb.Stats.Messages(labels=labels, requests=3, responses=4)])])
        totals.on_lost(0)
    totals.take(1, [pb.Stats(messages=[pb.Stats.Messages(labels=labels, requests=1, responses=1)])])
    found = samples(totals)
    assert list(of(found, "istio_request_messages_total", request_protocol="grpc")) == [7]
    assert list(of(found, "istio_response_messages_total", reporter="waypoint")) == [9]


class Doubling(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Two messages for each that comes."""

    def service(self, details: grpc.HandlerCallDetails) -> object:
        return grpc.stream_stream_rpc_method_handler(self._double)

    def _double(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield request
            yield request


@contextlib.contextmanager
def doubling_server() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Doubling()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_messages_of_a_call_that_is_open_are_told_at_a_scrape() -> None:
    """Through a real client, a real waypoint and a real server."""
    with (
        doubling_server() as port,
        Waypoint(web_service(), endpoint("a", port), routes(protocol=waypoint_pb2.GRPC)) as waypoint,
        grpc.insecure_channel(f"127.0.0.1:{waypoint.port}") as channel,
    ):
        records = RecordQueue(waypoint.reactor, lambda _: True, pack_exchanges, limit=1, is_on=False)
        telemetry = Telemetry(waypoint.state, records, waypoint.reactor)
        waypoint.ask(lambda: setattr(waypoint.proxy, "observer", telemetry))

        def told() -> tuple[list[float], list[float]]:
            parts = waypoint.ask(lambda: [each.stats for each in telemetry.parts(1, [])])
            totals = HttpTotals()
            totals.take(0, parts)
            found = samples(totals)
            service = {
                "destination_service": "web",
                "destination_principal": "spiffe://cluster.local/ns/default/sa/app",
            }
            return (
                list(of(found, "istio_request_messages_total", **service)),
                list(of(found, "istio_response_messages_total", **service)),
            )

        sent: queue.Queue[bytes | None] = queue.Queue()
        answers = channel.stream_stream("/t/double")(iter(sent.get, None), timeout=PATIENCE_S)
        sent.put(b"x" * 100_000)
        assert [len(next(answers)), len(next(answers))] == [100_000, 100_000]
        assert told() == ([1], [2])
        sent.put(b"")
        sent.put(None)
        assert list(answers) == [b"", b""]
        assert told() == ([2], [4])
