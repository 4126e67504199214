"""Traces through a real proxy: what the application gets, what is reported, and who decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.worker.records import RecordQueue
from proto.mycelia import attachment_pb2, worker_pb2
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.waypoint_pb2 import HttpMatch, PathMatch
from tests.waypoint.resources import WEB, backend, endpoint, forward, prefix, routes, rule, web_service
from tests.waypoint.worker.routing_kit import App, Waypoint
from tests.waypoint.worker.test_access_logging import Tee
from waypoint.control.spans import Teller, span_of
from waypoint.worker.telemetry import Telemetry, pack_exchanges
from waypoint.worker.tracing import RequestTracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NEW_SPAN, NEW_TRACE = f"{0xABC:016x}", f"{0xDEF:032x}"
Wire = pb.Telemetry.SpanProvider
OTLP = Wire(name="otel", host="collector", port=4317)
ZIPKIN = Wire(name="zipkin", host="zipkin", port=9411, wire=Wire.ZIPKIN)

TELLER = Teller("wp.default", "node", "1", (("istio.namespace", "default"),))
# Of the one workload there is: the client calls from its address.
PEER = {
    **dict.fromkeys(("workload", "canonical_service", "canonical_revision", "app", "app_version"), "unknown"),
    "namespace": "default",
    "cluster_id": "Kubernetes",
    "workload_type": "deployment",
    "instance_name": "a",
}


def tracing(provider: Wire = OTLP, *, is_silent: bool = False, **fields: Any) -> pb.Telemetry:
    step = pb.Telemetry.Tracing(provider=provider.name, is_silent=is_silent, **fields)
    return pb.Telemetry(
        namespace="istio-system",
        name="traces",
        attachment=attachment_pb2.Attachment(services=[WEB]),
        tracing=[step],
        span_providers=[provider],
    )


class Traced(Waypoint):
    """`spans` are those that the control process got; chance stands still at 0.5."""

    def __init__(self, app: App, *objects: pb.Telemetry) -> None:
        answer = rule("gone", prefix("/gone"), direct_response={"status": 503})
        super().__init__(web_service(), endpoint("a", app.port), routes(answer, rule()), *objects)
        self.app = app
        self.spans: list[worker_pb2.Exchange] = []
        self.records = RecordQueue(self.reactor, self._take, pack_exchanges, limit=100, is_on=False)
        self.log = Tee(Telemetry(self.state, self.records, self.reactor))
        self.proxy.observer = self.log
        self.proxy.tracer = RequestTracer(self.state, lambda: 0.5, {64: 0xABC, 128: 0xDEF}.__getitem__)

    def _take(self, message: worker_pb2.ToControl) -> bool:
        self.spans.extend(message.exchanges.exchanges)
        return True

    def ask_for(self, path: str = "/a", **headers: str) -> dict[str, str]:
        """What the application got."""
        before = len(self.log.exchanges)
        self.get(path, "GET", None, **headers)
        self.log.until(lambda log: len(log.exchanges) == before + 1)
        self.ask(self.records.flush)
        return {name.lower(): value for name, value in self.app.seen[-1].headers} if self.app.seen else {}


@contextlib.contextmanager
def traced(*objects: pb.Telemetry) -> Iterator[Traced]:
    with App() as app, Traced(app, *objects) as waypoint:
        yield waypoint


def test_without_telemetry_a_client_s_headers_pass_unchanged() -> None:
    with traced() as waypoint:
        seen = waypoint.ask_for(traceparent=f"00-{TRACE}-{SPAN}-01", b3="1")
        assert (seen["traceparent"], seen["b3"]) == (f"00-{TRACE}-{SPAN}-01", "1")
        assert waypoint.spans == []


def test_a_new_trace_is_sampled_by_chance_and_the_id_says_so() -> None:
    with traced(tracing(percent=51.0)) as waypoint:
        seen = waypoint.ask_for()
        assert seen["traceparent"] == f"00-{NEW_TRACE}-{NEW_SPAN}-01"
        assert seen["x-request-id"][14] == "9"
        (record,) = waypoint.spans
        assert list(record.logs) == []
        assert record.span.trace_id.hex() == NEW_TRACE
        assert record.request_id.decode() == seen["x-request-id"]
        waypoint.put(tracing(percent=50.0))
        seen = waypoint.ask_for()
        assert seen["traceparent"] == f"00-{NEW_TRACE}-{NEW_SPAN}-00"
        assert seen["x-request-id"][14] == "4"
        assert len(waypoint.spans) == 1


@pytest.mark.parametrize(("flags", "count"), [("01", 1), ("00", 0)])
def test_a_client_s_decision_holds(flags: str, count: int) -> None:
    with traced(tracing(percent=100.0 if flags == "00" else 0.0)) as waypoint:
        seen = waypoint.ask_for(traceparent=f"00-{TRACE}-{SPAN}-{flags}", tracestate="a=1")
        assert seen["traceparent"] == f"00-{TRACE}-{NEW_SPAN}-{flags}"
        assert seen["tracestate"] == "a=1"
        assert len(waypoint.spans) == count
        assert [record.span.parent_id.hex() for record in waypoint.spans] == [SPAN] * count


def test_an_id_s_decision_holds() -> None:
    with traced(tracing(percent=0.0)) as waypoint:
        request_id = "6a2ba3f0-5c2b-9c7a-9d2a-0123456789ab"
        assert waypoint.ask_for(x_request_id=request_id)["x-request-id"] == request_id
        assert len(waypoint.spans) == 1
        waypoint.put(tracing(percent=0.0, uses_request_id=False))
        waypoint.ask_for(x_request_id=request_id)
        assert len(waypoint.spans) == 1


def test_zipkin_speaks_b3() -> None:
    with traced(tracing(ZIPKIN, percent=100.0)) as waypoint:
        seen = waypoint.ask_for(x_b3_traceid=TRACE, x_b3_spanid=SPAN)
        b3 = {name[5:]: value for name, value in seen.items() if name.startswith("x-b3-")}
        assert b3 == {"traceid": TRACE, "spanid": NEW_SPAN, "parentspanid": SPAN, "sampled": "1"}
        assert "traceparent" not in seen
        both = Wire(name="zipkin", host="zipkin", port=9411, wire=Wire.ZIPKIN, adds_w3c=True)
        waypoint.put(tracing(both, percent=100.0))
        assert {"traceparent", "x-b3-traceid"} <= waypoint.ask_for().keys()


def test_silence_passes_contexts_on_and_reports_nothing() -> None:
    with traced(tracing(percent=100.0, is_silent=True)) as waypoint:
        assert waypoint.ask_for()["traceparent"].endswith("-01")
        assert waypoint.spans == []


def test_a_provider_that_is_not_known_traces_nothing() -> None:
    objects = tracing(percent=100.0)
    objects.tracing[0].provider = "other"
    with traced(objects) as waypoint:
        assert "traceparent" not in waypoint.ask_for()


def test_tags() -> None:
    tags = [
        pb.Telemetry.Tag(name="stage", literal="test"),
        pb.Telemetry.Tag(name="tenant", header="X-Tenant", default="nobody"),
        pb.Telemetry.Tag(name="none", header="x-none"),
        pb.Telemetry.Tag(name="home", environment="NO_SUCH_VARIABLE", default="nowhere"),
    ]
    with traced(tracing(percent=100.0, tags=tags)) as waypoint:
        waypoint.ask_for("/a?b=1", x_tenant="blue", user_agent="me")
        waypoint.ask_for("/gone")
        first, second = (span_of(record, TELLER) for record in waypoint.spans)
    assert (first.name, first.is_error) == ("web:80/*", False)
    found = dict(first.tags)
    assert {name: found[name] for name in ("stage", "tenant", "home")} == {
        "stage": "test",
        "tenant": "blue",
        "home": "nowhere",
    }
    assert "none" not in found
    assert (found["http.method"], found["http.status_code"], found["http.protocol"]) == (
        "GET",
        "200",
        "HTTP/1.1",
    )
    assert found["http.url"].endswith("/a?b=1")
    assert (found["user_agent"], found["peer.address"], found["node_id"]) == ("me", "127.0.0.1", "node")
    assert found["upstream_cluster"].startswith("default/web")
    istio = {name[6:]: value for name, value in found.items() if name.startswith("istio.")}
    assert istio == {
        "namespace": "default",
        **{f"{side}_{name}": value for side in ("source", "destination") for name, value in PEER.items()},
    }
    assert len(found["guid:x-request-id"]) == 36
    assert "error" not in found
    assert second.is_error
    tags_of_second = dict(second.tags)
    assert (tags_of_second["error"], tags_of_second["http.status_code"]) == ("true", "503")
    assert tags_of_second["tenant"] == "nobody"


def test_istio_s_tags_can_be_left_out() -> None:
    with traced(tracing(percent=100.0, istio_tags=False)) as waypoint:
        waypoint.ask_for()
        assert not waypoint.spans[0].span.tags
        assert "istio.namespace" not in dict(span_of(waypoint.spans[0], TELLER).tags)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/gone/x", "web:80/gone*"),
        ("/exact", "web:80/exact"),
        ("/items/7", "web:80/items/[0-9]+"),
        ("/sole", "other:80/sole*"),
        ("/split", "web:80/split*"),
        ("/none", "web:80/*"),
    ],
)
def test_a_span_is_named_by_the_match_and_the_only_backend(path: str, name: str) -> None:
    with traced(tracing(percent=100.0)) as waypoint:
        other = backend("default/other")
        waypoint.put(
            web_service("10.96.0.2", key="default/other"),
            routes(
                rule("gone", prefix("/gone"), direct_response={"status": 503}),
                rule("exact", HttpMatch(path=PathMatch(exact="/exact"))),
                rule("regex", HttpMatch(path=PathMatch(regex="/items/[0-9]+"))),
                rule("sole", prefix("/sole"), forward=forward(other)),
                rule("split", prefix("/split"), forward=forward(backend(WEB), other)),
            ),
        )
        waypoint.ask_for(path)
        assert waypoint.spans[0].span.name == name
