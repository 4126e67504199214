"""Configuration and endpoints change under load, and no request is lost; over HBONE too."""

from __future__ import annotations

import contextlib
import http.client
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from dataplane.state.model import ADDRESS_TYPE
from proto.mycelia import waypoint_pb2 as pb
from tests.dataplane.state.builders import workload
from tests.waypoint.resources import (
    PLACE,
    VIP,
    WEB,
    backend,
    destination,
    endpoint,
    forward,
    put,
    routes,
    rule,
    seconds,
    web_service,
)
from tests.waypoint.worker.kit import PATIENCE_S, Routes, ScriptedServer, connect, exchange, read_until
from tests.waypoint.worker.routing_kit import App, Waypoint, apps
from tests.waypoint.worker.test_combinations import Echo, nghttpd
from tests.waypoint.worker.test_hbone import CLIENT, SERVER, WAYPOINT, Mesh
from tests.waypoint.worker.test_streaming import H2Client
from waypoint.state.hosts import Endpoint
from waypoint.state.routes import ROUTES_TYPE
from waypoint.state.store import WaypointState
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.plan import Declared


@contextlib.contextmanager
def load(waypoint: Waypoint, path: str = "/", method: str = "GET", clients: int = 4) -> Iterator[list[int]]:
    """Kept-alive connections that ask without a pause until the block ends; gives the statuses."""
    statuses: list[int] = []
    is_over = threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", waypoint.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            while not is_over.is_set():
                connection.request(method, path, b"body" if method == "POST" else None)
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    try:
        yield statuses
    finally:
        is_over.set()
        for each in threads:
            each.join(PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        waited.wait(0.005)
    raise AssertionError("it never came to that")


def test_changes_under_load_lose_no_request() -> None:
    with apps("a", "b", "c") as servers:
        members = [endpoint(each.name, each.port) for each in servers]
        with Waypoint(web_service(), *members, routes()) as waypoint, load(waypoint) as statuses:
            for number in range(40):
                seen = len(statuses)
                gone = members[number % 3]
                waypoint.remove(ADDRESS_TYPE, gone.uid)
                waypoint.put(
                    routes(rule(f"r{number}", timeout=seconds(5 + number))),
                    destination(
                        pb.TrafficPolicy(
                            balancer=number % 5,  # type: ignore[arg-type]
                            connection_pool=pb.ConnectionPool(maximum_requests=100 + number),
                        ),
                        subsets=[pb.Subset(name="v1", workloads=["a"])],
                    ),
                )
                until(lambda seen=seen: len(statuses) > seen + 4)  # type: ignore[misc]
                waypoint.put(gone)
        assert set(statuses) == {200}
        assert len(statuses) > 200


def test_a_backend_that_moves_to_another_service_under_load() -> None:
    with apps("a", "b") as (one, two):
        other = "default/other"
        resources = (
            web_service(),
            web_service("10.96.0.2", key=other),
            endpoint("a", one.port),
            endpoint("b", two.port, key=other),
            routes(),
        )
        with Waypoint(*resources) as waypoint, load(waypoint) as statuses:
            for number in range(20):
                seen = len(statuses)
                waypoint.put(routes(rule("r", forward=forward(backend(other if number % 2 else WEB)))))
                until(lambda seen=seen: len(statuses) > seen + 4)  # type: ignore[misc]
        assert set(statuses) == {200}
        assert one.seen
        assert two.seen


def test_a_subset_may_go_before_the_routes_to_it_do() -> None:
    subsets = destination(subsets=[pb.Subset(name="v1", workloads=["a"])])
    to_subset = routes(rule("r", forward=forward(backend(WEB, subset="v1"))))
    with (
        App("a") as app,
        Waypoint(web_service(), endpoint("a", app.port), subsets, to_subset) as waypoint,
        load(waypoint) as statuses,
    ):
        for _ in range(20):
            seen = len(statuses)
            until(lambda seen=seen: len(statuses) > seen + 4)  # type: ignore[misc]
            waypoint.put(destination())
            seen = len(statuses)
            until(lambda seen=seen: len(statuses) > seen + 4)  # type: ignore[misc]
            waypoint.put(routes(), subsets, to_subset)
    assert set(statuses) == {200}


def test_connections_to_an_endpoint_that_is_gone_close_when_their_requests_have_ended() -> None:
    with (
        ScriptedServer() as server,
        Waypoint(web_service(), endpoint("a", server.port), routes()) as waypoint,
    ):
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(waypoint.get()[2]))
        asking.start()
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            waypoint.remove(ADDRESS_TYPE, "a")
            assert waypoint.get()[0] == 503
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert upstream.recv(1) == b""  # drained, not cut
        asking.join(PATIENCE_S)
        assert answers == [b"ok"]
        assert waypoint.ask(lambda: waypoint.upstreams.open_connections) == 0


def test_an_unused_connection_closes_at_once(tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload")
    with (
        App("a") as app,
        nghttpd(web) as h2,
        Waypoint(web_service(), endpoint("a", app.port), routes()) as waypoint,
    ):
        assert waypoint.get()[0] == 200
        assert waypoint.ask(lambda: waypoint.upstreams.open_connections) == 1
        waypoint.remove(ADDRESS_TYPE, "a")
        assert waypoint.ask(lambda: waypoint.upstreams.open_connections) == 0
        # the same over HTTP/2; then the endpoint comes back
        waypoint.put(endpoint("a", h2.address[1]), routes(protocol=pb.HTTP2))
        assert waypoint.get("/file")[2] == b"payload"
        waypoint.remove(ADDRESS_TYPE, "a")
        assert waypoint.ask(lambda: waypoint.upstreams.open_connections) == 0
        waypoint.put(endpoint("a", h2.address[1]))
        assert waypoint.get("/file")[2] == b"payload"


def test_streams_of_one_client_connection_survive_a_change_of_routes() -> None:
    with (
        ScriptedServer() as server,
        Waypoint(web_service(), endpoint("a", server.port), routes()) as waypoint,
        connect(waypoint.port) as sock,
    ):
        client = H2Client(sock)
        stream = client.get(b"/")
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            waypoint.remove(ROUTES_TYPE, WEB)
            late = client.get(b"/late")
            while late not in client.ended:
                client.step()
            assert client.statuses[late] == b"404"
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            while stream not in client.ended:
                client.step()
            assert client.statuses[stream] == b"200"


def test_a_request_that_was_decided_is_served_though_its_service_goes() -> None:
    whole = pb.Fraction(numerator=1, denominator=1)
    slow = rule("slow", fault=pb.Fault(delay_share=whole, delay=seconds(0.3)))
    with App("a") as app, Waypoint(web_service(), endpoint("a", app.port), routes(slow)) as waypoint:
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(waypoint.get()[0]))
        asking.start()
        until(lambda: waypoint.ask(lambda: len(waypoint.proxy.connections)) == 1)
        waypoint.remove(ADDRESS_TYPE, WEB)
        asking.join(PATIENCE_S)
        assert answers == [200]


# --- tunnels ---

POD = "127.83.7.1"  # a loopback address of its own, so that port 15008 there is free


@pytest.mark.parametrize("account", ["server", "impostor"])
def test_a_request_goes_through_a_tunnel_to_whom_the_address_book_names(account: str) -> None:
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(App("behind the tunnel"))
        node = Mesh(SERVER, Routes(tcp=Endpoint(("127.0.0.1", app.port))), Declared.TCP, (POD, 15008))
        stack.enter_context(node.running())
        waypoint = Mesh(WAYPOINT, Routes(), Declared.HTTP)
        stack.enter_context(waypoint.running())

        def configure() -> RoutingDecider:
            reactor = waypoint.proxy.reactor
            state = WaypointState(PLACE, clock=lambda: reactor.now, random=lambda: 0.5)
            pod = workload("a", POD, account=account, services={WEB: {80: 8080}})
            assert put(state, web_service(), pod, routes()) == {}
            decider = RoutingDecider(
                state, reactor, waypoint.proxy.upstreams, random=lambda: 0.5, wall_clock=lambda: 0.0
            )
            waypoint.proxy.proxy.decider = decider
            waypoint.ingress._resolve = decider.resolve
            return decider

        decider = waypoint.proxy.ask(configure)
        vip = Endpoint((VIP, 80), identities=(WAYPOINT,), hbone_address=("127.0.0.1", waypoint.port))
        client = Mesh(CLIENT, Routes(tcp=vip), Declared.TCP)
        stack.enter_context(client.running())
        answer = exchange(
            client.proxy.ports[Declared.TCP], b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n"
        )
        if account == "server":
            assert answer.endswith(b"behind the tunnel")
        else:
            assert answer.startswith(b"HTTP/1.1 503")
            assert app.seen == []
        waypoint.proxy.ask(decider.close)


# --- programs that stop and start ---


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_a_program_that_restarts_without_a_word_loses_no_get(tmp_path: Path, version: str) -> None:
    """Nobody told the waypoint: connections break, connects fail, and the other host answers."""
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload")
    is_http2 = version == "HTTP/2"
    with contextlib.ExitStack() as stack:
        if is_http2:
            steady = stack.enter_context(nghttpd(web)).address[1]
        else:
            steady = stack.enter_context(App("steady")).port
        waypoint = stack.enter_context(
            Waypoint(
                web_service(),
                endpoint("steady", steady),
                routes(protocol=pb.HTTP2 if is_http2 else pb.HTTP),
                destination(pb.TrafficPolicy(balancer=pb.TrafficPolicy.ROUND_ROBIN)),
            )
        )
        statuses = stack.enter_context(load(waypoint, "/file"))
        for _ in range(4):
            with nghttpd(web) if is_http2 else App("restarting") as server:
                port = server.port if isinstance(server, App) else server.address[1]
                waypoint.put(endpoint("restarting", port))
                seen = len(statuses)
                until(lambda seen=seen: len(statuses) > seen + 20)  # type: ignore[misc]
            seen = len(statuses)
            until(lambda seen=seen: len(statuses) > seen + 20)  # type: ignore[misc]
    assert set(statuses) == {200}


def test_a_restart_that_was_announced_loses_no_post() -> None:
    """First the address book says that the endpoint is not ready, then the program stops."""
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(App("steady"))
        waypoint = stack.enter_context(Waypoint(web_service(), endpoint("steady", steady.port), routes()))
        statuses = stack.enter_context(load(waypoint, method="POST"))
        for _ in range(5):
            with App("restarting") as server:
                waypoint.put(endpoint("restarting", server.port))
                server.until(10)
                (cluster,) = waypoint.ask(lambda: list(waypoint.state.clusters.values()))
                host = next(each for each in cluster.hosts if each.member.uid == "restarting")
                waypoint.put(endpoint("restarting", server.port, healthy=False))
                until(lambda host=host: not host.active)  # type: ignore[misc]
    assert set(statuses) == {200}
    assert len(statuses) > 50


def test_a_stream_goes_on_at_an_endpoint_that_is_gone() -> None:
    with (
        echo_server() as port,
        Waypoint(web_service(), endpoint("a", port), routes(protocol=pb.GRPC)) as waypoint,
        grpc.insecure_channel(f"127.0.0.1:{waypoint.port}") as channel,
    ):
        requests: queue.Queue[bytes | None] = queue.Queue()
        answers = channel.stream_stream("/t/stream")(iter(requests.get, None), timeout=PATIENCE_S)
        requests.put(b"before")
        assert next(answers) == b"before"
        waypoint.remove(ADDRESS_TYPE, "a")
        requests.put(b"after")
        assert next(answers) == b"after"
        requests.put(None)
        assert list(answers) == []
        until(lambda: waypoint.ask(lambda: waypoint.upstreams.open_connections) == 0)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()
