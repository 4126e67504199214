"""Access logs as the Telemetry kind chooses them, from a request to the record for the control process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dataplane.worker.records import RecordQueue
from proto.mycelia import attachment_pb2, telemetry_pb2, worker_pb2
from telemetry.access_format import Format
from tests.waypoint.resources import WEB, endpoint, prefix, routes, rule, web_service
from tests.waypoint.worker.kit import Log
from tests.waypoint.worker.routing_kit import App, Waypoint
from waypoint.state.telemetry import TELEMETRY_TYPE
from waypoint.worker.exchange import Exchange
from waypoint.worker.plan import Source
from waypoint.worker.telemetry import Telemetry, pack_exchanges

Step = telemetry_pb2.Telemetry.Logging


def telemetry(*steps: Step, level: int = telemetry_pb2.Telemetry.MESH) -> telemetry_pb2.Telemetry:
    return telemetry_pb2.Telemetry(
        namespace="istio-system",
        name="logs",
        logging=steps,
        level=level,  # type: ignore[arg-type]
        attachment=attachment_pb2.Attachment(services=[WEB]),
    )


class Tee(Log):
    """Passes on what is over, then notes it."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self.telemetry = telemetry

    def on_exchange(self, exchange: Exchange, source: Source) -> None:
        self.telemetry.on_exchange(exchange, source)
        super().on_exchange(exchange, source)


class Logged(Waypoint):
    """`told` are the records that the control process got."""

    def __init__(self, app: App, *objects: telemetry_pb2.Telemetry, is_on: bool = False) -> None:
        answer = rule("gone", prefix("/gone"), direct_response={"status": 410})
        super().__init__(web_service(), endpoint("a", app.port), routes(answer, rule()), *objects)
        self.told: list[worker_pb2.Exchange] = []
        records = RecordQueue(self.reactor, self._take, pack_exchanges, limit=100, is_on=is_on)
        self.records = records
        self.log = Tee(Telemetry(self.state, records, self.reactor))
        self.proxy.observer = self.log

    def _take(self, message: worker_pb2.ToControl) -> bool:
        self.told.extend(message.exchanges.exchanges)
        return True

    def logged(self, *paths: str, **headers: str) -> list[tuple[str, int, list[str]]]:
        """What requests to these paths leave in the logs."""
        del self.told[:]
        before = len(self.log.exchanges)
        for path in paths:
            self.get(path, "GET", None, **headers)
        self.log.until(lambda log: len(log.exchanges) == before + len(paths))
        self.ask(self.records.flush)
        return [(each.path.decode(), each.status, list(each.logs)) for each in self.told]


@contextlib.contextmanager
def logged(*objects: telemetry_pb2.Telemetry, is_on: bool = False) -> Iterator[Logged]:
    with App() as app, Logged(app, *objects, is_on=is_on) as waypoint:
        yield waypoint


def test_nothing_is_logged_until_somebody_says_so_and_from_then_on() -> None:
    with logged() as waypoint:
        assert waypoint.logged("/a") == []
        waypoint.put(telemetry(Step(providers=["envoy"])))
        assert waypoint.logged("/a", "/gone") == [("/a", 200, ["envoy"]), ("/gone", 410, ["envoy"])]
        waypoint.put(telemetry(Step(providers=["envoy", "file"])))
        assert waypoint.logged("/a") == [("/a", 200, ["envoy", "file"])]
        waypoint.remove(TELEMETRY_TYPE, "istio-system/logs")
        assert waypoint.logged("/a") == []


def test_the_waypoint_s_own_setting_is_the_default_and_can_be_switched_off_for_a_service() -> None:
    with logged(is_on=True) as waypoint:
        assert waypoint.logged("/a") == [("/a", 200, ["envoy"])]
        waypoint.put(telemetry(Step(disabled=True), level=telemetry_pb2.Telemetry.TARGET))
        assert waypoint.logged("/a") == []


def test_a_filter_chooses_among_requests() -> None:
    errors = Step(providers=["envoy"], filter="response.code >= 400 || request.headers['x-debug'] == 'yes'")
    with logged(telemetry(errors)) as waypoint:
        assert waypoint.logged("/a", "/gone") == [("/gone", 410, ["envoy"])]
        assert waypoint.logged("/a", x_debug="yes") == [("/a", 200, ["envoy"])]


def test_a_filter_sees_where_a_request_went_and_what_came_back() -> None:
    conditions = (
        "request.method == 'GET' && request.url_path == '/a' && request.query == 'b=1'",
        "request.path == '/a?b=1' && request.protocol == 'HTTP/1.1' && has(request.id)",
        "destination.service == 'web' && destination.namespace == 'default' && destination.port == 80",
        "upstream.address == '127.0.0.1' && upstream.request_attempt_count == 1",
        "response.code_details == 'via_upstream' && response.flags_text == '-'",
        "response.headers['server'] == 'mycelia' && response.total_size > response.size",
        "xds.route_name == 'r' && xds.cluster_name.startsWith('default/web')",
        "!has(upstream.transport_failure_reason) && !has(response.grpc_status) && !has(request.referer)",
    )
    with logged(*(telemetry(Step(providers=["envoy"], filter=each)) for each in conditions)) as waypoint:
        for condition in conditions:
            waypoint.put(telemetry(Step(providers=["envoy"], filter=condition)))
            assert waypoint.logged("/a?b=1"), condition


def test_a_broken_object_changes_nothing_and_stops_nothing() -> None:
    with logged(telemetry(Step(providers=["envoy"]))) as waypoint:
        assert waypoint.put(telemetry(Step(filter="metadata.x"))) != {}
        assert waypoint.logged("/a") == [("/a", 200, ["envoy"])]


def test_a_format_gets_the_headers_that_it_asks_for_and_no_others() -> None:
    provider = telemetry_pb2.Telemetry.LogProvider(
        name="file", text="%REQ(X-Tenant)% %RESP(Server)% %RESPONSE_CODE%"
    )
    chosen = telemetry(Step(providers=["file", "envoy"]))
    chosen.log_providers.append(provider)
    with logged(chosen) as waypoint:
        assert waypoint.logged("/a", x_tenant='a"b', x_other="c") == [("/a", 200, ["file", "envoy"])]
        (exchange,) = waypoint.told
        assert dict(exchange.request_headers) == {"x-tenant": b'a"b'}
        assert dict(exchange.response_headers) == {"server": b"mycelia"}
        format_ = waypoint.state.telemetry.formats["file"]
        assert isinstance(format_, Format)
        line = format_.line(exchange)
        assert line == 'a\\"b mycelia 200'
