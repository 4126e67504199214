"""Which addresses a waypoint serves, and what happens to connections that are no HTTP."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence

import pytest

from proto.istio import workload_pb2 as mesh_pb
from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import service, workload
from tests.waypoint.resources import VIP, WEB, backend, destination, endpoint, routes, seconds, web_service
from tests.waypoint.worker.kit import (
    PATIENCE_S,
    ScriptedServer,
    connect,
    exchange,
    free_port,
    read_all,
)
from tests.waypoint.worker.routing_kit import App, Waypoint
from transport.reactor import Reactor
from waypoint.state.hosts import Endpoint
from waypoint.worker.client_hello import Peeked, server_name
from waypoint.worker.dial import TcpDialler
from waypoint.worker.plan import Declared
from waypoint.worker.resolver import Resolver, ResolvingDialler

GET = b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n"


# --- what is served ---

SERVED = (
    web_service(VIP, "2001:db8::1"),
    routes(),
    web_service("10.96.0.2", key="default/raw"),
    routes(key="default/raw", protocol=pb.TCP),
    web_service("10.96.0.3", key="default/sniffed"),
    routes(key="default/sniffed", protocol=pb.DETECT),
    web_service("10.96.0.4", key="default/unserved"),
    service("wide", "192.0.2.0/24", ports={80: 80}),
    routes(key="default/wide", protocol=pb.TCP),
    service("narrow", "192.0.2.128/25", ports={80: 80}),
    routes(key="default/narrow"),
    service("narrow6", "2001:db8:1::/64", ports={80: 80}),
    routes(key="default/narrow6"),
    workload("own", "10.0.0.1", waypoint="default/waypoint.default.svc.cluster.local:15008"),
    workload("other", "10.0.0.2", waypoint="default/another.default.svc.cluster.local:15008"),
    workload("free", "10.0.0.3"),
)


@pytest.mark.parametrize(
    ("ip", "port", "declared"),
    [
        (VIP, 80, Declared.HTTP),
        (VIP, 81, None),  # a port that is not declared
        ("2001:db8::1", 80, Declared.HTTP),
        ("10.96.0.2", 80, Declared.TCP),
        ("10.96.0.3", 80, Declared.DETECT),
        ("10.96.0.4", 80, None),  # a service without routes here
        ("10.96.0.5", 80, None),
        ("192.0.2.1", 80, Declared.TCP),
        ("192.0.2.200", 80, Declared.HTTP),  # the more specific range
        ("2001:db8:1::7", 80, Declared.HTTP),
        ("10.0.0.1", 1234, Declared.DETECT),
        ("10.0.0.2", 80, None),  # behind another waypoint
        ("10.0.0.3", 80, None),  # behind none
        ("127.0.0.1", 15000, None),
    ],
)
def test_only_what_is_served_is_resolved(ip: str, port: int, declared: Declared | None) -> None:
    with Waypoint(*SERVED) as waypoint:
        assert waypoint.ask(lambda: waypoint.decider.resolve((ip, port))) is declared


def test_a_workload_is_served_when_an_address_names_its_waypoint() -> None:
    resources = (
        service("waypoint", "10.96.9.9", ports={15008: 15008}),
        workload("own", "10.0.0.1", waypoint="|10.96.9.9:15008"),
        workload("other", "10.0.0.2", waypoint="|10.96.9.8:15008"),
    )
    with Waypoint(*resources) as waypoint:
        assert waypoint.ask(lambda: waypoint.decider.resolve(("10.0.0.1", 80))) is Declared.DETECT
        assert waypoint.ask(lambda: waypoint.decider.resolve(("10.0.0.2", 80))) is None


def test_a_workloads_own_address_leads_to_it_and_to_no_other() -> None:
    own = "default/waypoint.default.svc.cluster.local:15008"
    with App("a") as app, App("b") as other:
        resources = (
            web_service(),
            routes(),
            workload("a", "127.0.0.1", hbone=False, waypoint=own, services={WEB: {80: other.port}}),
        )
        with Waypoint(*resources, destination=("127.0.0.1", app.port)) as waypoint:
            assert exchange(waypoint.ports[Declared.DETECT], GET).endswith(b"\r\n\r\na")
            waypoint.log.until(lambda log: len(log.exchanges) == 1)
            outcome = waypoint.log.exchanges[0].outcome
            assert outcome.service is None
            assert outcome.workload is not None
            assert outcome.workload.uid == "a"


# --- connections that are no HTTP ---


def tcp(name: str, *backends: pb.Backend, sni: Sequence[str] = ()) -> pb.TcpRule:
    return pb.TcpRule(name=name, backends=backends, sni_hosts=sni)


def greeter(name: bytes) -> tuple[socket.socket, int]:
    """A server that says its name and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.sendall(name)

    threading.Thread(target=run, daemon=True).start()
    return listener, listener.getsockname()[1]


def hello(port: int, name: bytes = b"") -> bytes:
    try:
        with connect(port) as sock:
            if name:
                sock.sendall(name)
            return read_all(sock)
    except ConnectionResetError:  # as early as that: nobody took it
        return b""


def test_tcp_routes_share_by_weight_and_try_another_host() -> None:
    one, one_port = greeter(b"one")
    two, two_port = greeter(b"two")
    with one, two:
        weighted = tcp("split", backend("default/v1", 3), backend("default/v2", 1))
        resources = (
            web_service(),
            web_service("10.96.0.2", key="default/v1"),
            web_service("10.96.0.3", key="default/v2"),
            endpoint("one", one_port, key="default/v1"),
            endpoint("dead", free_port(), key="default/v1"),
            endpoint("two", two_port, key="default/v2"),
            routes(protocol=pb.TCP, tcp=[weighted]),
        )
        with Waypoint(*resources) as waypoint:
            said = [hello(waypoint.ports[Declared.TCP]) for _ in range(80)]
            assert said.count(b"two") == pytest.approx(20, abs=14)
            assert said.count(b"one") >= 80 - said.count(b"two") - 8
            waypoint.log.until(lambda log: len(log.tcp) == 80)
            outcome = waypoint.log.tcp[0]
            assert outcome.route_name == "split"
            assert outcome.workload is not None
            clusters = waypoint.ask(lambda: list(waypoint.state.clusters.values()))
            assert [each.circuit.connections for each in clusters] == [0] * len(clusters)
        one.shutdown(socket.SHUT_RDWR)
        two.shutdown(socket.SHUT_RDWR)


def client_hello(name: str | None) -> bytes:
    """What a real TLS client says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_the_server_name_of_a_real_client_is_found() -> None:
    whole = client_hello("Some.Example")
    assert server_name(whole) == "some.example"
    for length in range(len(whole)):
        assert server_name(whole[:length]) is Peeked.MORE
    assert server_name(client_hello(None)) is Peeked.NO_NAME
    # in several records
    body = whole[5:]
    split = b"".join(
        b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in (body[:3], body[3:50], body[50:])
    )
    assert server_name(split) == "some.example"


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * 16,
        b"\x16\x03\x01\xff\xff\x01\x00\x41\x00",
    ],
)
def test_what_is_no_client_hello_has_no_name(first: bytes) -> None:
    assert server_name(first) is Peeked.NO_TLS


def test_tls_routes_go_by_server_name() -> None:
    one, one_port = greeter(b"one")
    two, two_port = greeter(b"two")
    with one, two:
        resources = (
            web_service(),
            web_service("10.96.0.2", key="default/v1"),
            web_service("10.96.0.3", key="default/v2"),
            endpoint("one", one_port, key="default/v1"),
            endpoint("two", two_port, key="default/v2"),
            routes(
                protocol=pb.TCP,
                tcp=[
                    tcp("one", backend("default/v1"), sni=["one.example"]),
                    tcp("two", backend("default/v2"), sni=["*.two.example"]),
                ],
            ),
        )
        with Waypoint(*resources) as waypoint:
            port = waypoint.ports[Declared.TCP]
            assert hello(port, client_hello("one.example")) == b"one"
            assert hello(port, client_hello("a.two.example")) == b"two"
            assert hello(port, client_hello("three.example")) == b""
            waypoint.log.until(lambda log: len(log.tcp) == 3)
            assert [each.server_name for each in waypoint.log.tcp][:2] == ["one.example", "a.two.example"]
            assert waypoint.log.tcp[2].flag == "NR"
        one.shutdown(socket.SHUT_RDWR)
        two.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("pool", "flag", "word"),
    [
        (pb.ConnectionPool(tcp_idle=seconds(0.2)), "-", "no byte"),
        (pb.ConnectionPool(longest_connection=seconds(0.2)), "DT", "the limit"),
    ],
)
def test_a_connection_ends_when_its_time_is_over(pool: pb.ConnectionPool, flag: str, word: str) -> None:
    with (
        ScriptedServer() as server,
        Waypoint(
            web_service(),
            endpoint("a", server.port),
            routes(protocol=pb.TCP),
            destination(pb.TrafficPolicy(connection_pool=pool)),
        ) as waypoint,
    ):
        with connect(waypoint.ports[Declared.TCP]) as client, server.accept() as upstream:
            client.sendall(b"hi")
            assert upstream.recv(2) == b"hi"
            assert read_all(client) == b""
            assert read_all(upstream) == b""
        waypoint.log.until(lambda log: len(log.tcp) == 1)
        outcome = waypoint.log.tcp[0]
        assert outcome.flag == flag
        assert word in str(outcome.error)
        assert outcome.sent_bytes == 2


def test_a_service_that_passes_through_goes_to_the_address_that_was_called() -> None:
    passing = service("wide", "127.0.0.0/8", ports={80: 80}, mode=mesh_pb.LoadBalancing.PASSTHROUGH)
    with App("direct") as app:
        ports = [pb.PortRoutes(service_port=app.port, protocol=pb.HTTP)]
        table = pb.ServiceRoutes(namespace="default", hostname="wide", ports=ports)
        with Waypoint(passing, table, destination=("127.0.0.1", app.port)) as waypoint:
            assert waypoint.get()[2] == b"direct"


# --- names ---


def test_an_endpoint_with_a_name_is_resolved_when_it_is_dialled() -> None:
    asked: list[str] = []

    def look_up(name: str) -> list[str]:
        asked.append(name)
        if name == "there.example":
            return ["127.0.0.1"]
        raise OSError("no such name")

    def make(reactor: Reactor, buffer: memoryview) -> ResolvingDialler:
        return ResolvingDialler(TcpDialler(reactor, buffer), Resolver(reactor, look_up), lambda: 0.0)

    with (
        App("named") as app,
        Waypoint(
            web_service(),
            workload("a", hbone=False, hostname="there.example", services={WEB: {80: app.port}}),
            routes(),
            make_dialler=make,
        ) as waypoint,
    ):
        assert waypoint.bodies(3) == [b"named"] * 3
        assert asked == ["there.example"]
        gone = workload("a", hbone=False, hostname="gone.example", services={WEB: {80: app.port}})
        waypoint.put(gone)
        assert waypoint.get()[0] == 503
        waypoint.log.until(lambda log: len(log.exchanges) == 4)
        assert "gone.example: no such name" in waypoint.log.exchanges[-1].outcome.failure_text
        assert asked == ["there.example", "gone.example"]  # a failure is remembered for the retries


def test_the_machines_resolver_is_asked_outside_of_the_loop() -> None:
    with Reactor() as reactor:
        done = threading.Event()
        found: list[object] = []

        def answered(result: object) -> None:
            found.append(result)
            done.set()
            reactor.stop()

        Resolver(reactor).resolve("localhost", answered)
        reactor.call_later(PATIENCE_S, reactor.stop)
        reactor.run()
        assert done.is_set()
        assert "127.0.0.1" in str(found[0])


def test_endpoints_with_equal_facts_share_their_connections() -> None:
    assert Endpoint(("10.0.0.1", 80)) == Endpoint(("10.0.0.1", 80))
    assert Endpoint(("10.0.0.1", 80)) != Endpoint(("10.0.0.1", 81))
