"""Metrics of connections that are no HTTP: while they are open, at the end, and as Telemetry changes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dataplane.control.metrics import WorkerTotals
from dataplane.worker.records import RecordQueue
from proto.mycelia import telemetry_pb2, waypoint_pb2
from tests.waypoint.resources import WEB, backend, endpoint, routes, web_service
from tests.waypoint.worker.kit import Log, ScriptedServer, connect, read_all, read_until
from tests.waypoint.worker.routing_kit import Waypoint
from tests.waypoint.worker.test_metric_overrides import Change, Override, changing
from waypoint.worker.plan import Declared, Source
from waypoint.worker.tcp_exchange import TcpExchange
from waypoint.worker.telemetry import Telemetry, pack_exchanges


class Counted(Log):
    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self.telemetry = telemetry

    def on_tcp_open(self, exchange: TcpExchange, source: Source) -> None:
        self.telemetry.on_tcp_open(exchange, source)

    def on_tcp(self, exchange: TcpExchange, source: Source) -> None:
        self.telemetry.on_tcp(exchange, source)
        super().on_tcp(exchange, source)


class Relaying(Waypoint):
    def __init__(self, port: int, *objects: telemetry_pb2.Telemetry) -> None:
        rule = waypoint_pb2.TcpRule(name="r", backends=[backend(WEB)])
        to_web = routes(protocol=waypoint_pb2.TCP, tcp=[rule])
        super().__init__(web_service(), endpoint("a", port), to_web, *objects)
        records = RecordQueue(self.reactor, lambda _: True, pack_exchanges, limit=1, is_on=False)
        self.telemetry = Telemetry(self.state, records, self.reactor)
        self.log = Counted(self.telemetry)
        self.proxy.observer = self.log

    def scraped(self) -> dict[str, dict[str, float]]:
        """By metric, without those that have no sample: labels as text -> value."""
        totals = WorkerTotals()
        totals.take(0, self.ask(lambda: [each.stats for each in self.telemetry.parts(1, [])]))
        return {
            description.name.removeprefix("istio_tcp_"): {
                description.label_text(labels): float(value) for labels, value in samples.items()
            }
            for description, samples in totals.families()
            if samples and description.name.startswith("istio_tcp_c") | description.name.endswith("_bytes")
        }

    def totals(self) -> dict[str, float]:
        return {name: sum(samples.values()) for name, samples in self.scraped().items()}


@contextlib.contextmanager
def relaying(*objects: telemetry_pb2.Telemetry) -> Iterator[tuple[Relaying, ScriptedServer]]:
    with ScriptedServer() as server, Relaying(server.port, *objects) as waypoint:
        yield waypoint, server


def talk(waypoint: Relaying, server: ScriptedServer) -> None:
    """4 octets there, 6 back, and both ends close."""
    with connect(waypoint.ports[Declared.TCP]) as client:
        client.sendall(b"ping")
        with server.accept() as upstream:
            read_until(upstream, b"ping")
            upstream.sendall(b"answer")
        assert read_all(client) == b"answer"
    waypoint.log.until(lambda log: len(log.tcp) == 1)


def test_an_open_connection_is_counted_with_what_it_has_carried_so_far() -> None:
    with relaying() as (waypoint, server), connect(waypoint.ports[Declared.TCP]) as client:
        client.sendall(b"ping")
        with server.accept() as upstream:
            read_until(upstream, b"ping")
            upstream.sendall(b"answer")
            read_until(client, b"answer")
            found = waypoint.totals()
            assert found == {"connections_opened": 1, "sent_bytes": 4, "received_bytes": 6}
            upstream.sendall(b"more")
            read_until(client, b"more")
            assert waypoint.totals() == {"connections_opened": 1, "sent_bytes": 4, "received_bytes": 10}
        assert read_all(client) == b""
        client.close()
        waypoint.log.until(lambda log: len(log.tcp) == 1)
        assert waypoint.totals() == {
            "connections_opened": 1,
            "connections_closed": 1,
            "sent_bytes": 4,
            "received_bytes": 10,
        }
        (labels,) = waypoint.scraped()["connections_closed"]
        assert 'destination_service_name="web"' in labels
        assert 'destination_workload_namespace="default"' in labels


def test_one_metric_of_connections_can_be_left_out() -> None:
    with relaying(changing(Override(metrics=128 | 256, disabled=True))) as (waypoint, server):
        talk(waypoint, server)
        assert waypoint.totals() == {"connections_opened": 1, "received_bytes": 6}


def test_labels_of_connections_are_changed_and_taken_away_each_metric_for_itself() -> None:
    changes = [
        Change(name="source_app", removed=True),
        Change(name="source_version", expression="destination.service + ':' + string(destination.port)"),
        Change(name="destination_app", expression="request.method"),
        Change(name="tenant", expression="'blue'"),  # of one's own: for requests only
    ]
    with relaying(changing(Override(metrics=512, tags=changes))) as (waypoint, server):
        talk(waypoint, server)
        found = waypoint.scraped()
    ((labels, octets),) = found["received_bytes"].items()
    assert octets == 6
    for label in ('source_app=""', 'source_version="web:80"', 'destination_app="unknown"'):
        assert label in labels
    assert "tenant" not in labels
    ((labels, octets),) = found["sent_bytes"].items()
    assert octets == 4
    assert 'source_version="unknown"' in labels


def test_a_connection_that_nobody_takes_counts_as_failed() -> None:
    with relaying() as (waypoint, server):
        server.close()
        with contextlib.suppress(ConnectionError), connect(waypoint.ports[Declared.TCP]) as client:
            read_all(client)
        waypoint.log.until(lambda log: len(log.tcp) == 1)
        found = waypoint.scraped()
    assert sum(found["connections_opened"].values()) == 1
    ((labels, count),) = found["connections_failed"].items()
    assert 'response_flags="UF,URX"' in labels
    assert count == 1
