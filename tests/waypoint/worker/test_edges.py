"""What goes wrong, and what is rare, seen from both ends of scripted connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.waypoint.worker.kit import (
    Routes,
    RunningProxy,
    ScriptedServer,
    connect,
    exchange,
    free_port,
    read_all,
    read_until,
)
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.plan import Declared
from waypoint.worker.upstreams import UpstreamSettings

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def proxy(server: ScriptedServer) -> Iterator[RunningProxy]:
    with RunningProxy(Routes(tcp=server.endpoint()).to(b"/", server.endpoint())) as proxy:
        yield proxy


def details(proxy: RunningProxy, count: int = 1) -> list[tuple[int, str, str]]:
    """Status, flag and details of the exchanges, once there are so many."""
    proxy.log.until(lambda log: len(log.exchanges) >= count)
    return [(e.outcome.status, e.outcome.flag, e.outcome.details) for e in proxy.log.exchanges]


# Answers made here


def test_without_a_route_404() -> None:
    with RunningProxy(Routes()) as proxy:
        assert exchange(proxy.port, GET_CLOSE).startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert details(proxy) == [(404, "NR", "route_not_found")]


def test_without_endpoints_503_uh() -> None:
    with RunningProxy(Routes().to(b"/")) as proxy:
        assert exchange(proxy.port, GET_CLOSE).endswith(b"no healthy upstream")
        assert details(proxy) == [(503, "UH", "no_healthy_upstream")]


def test_a_refused_connect_is_repeated_and_then_503_uf() -> None:
    with RunningProxy(Routes().to(b"/", Endpoint(("127.0.0.1", free_port())))) as proxy:
        assert exchange(proxy.port, GET_CLOSE).startswith(b"HTTP/1.1 503 ")
        wanted = "upstream_reset_before_response_started{connection_failure}"
        assert details(proxy) == [(503, "UF", wanted)]
        assert proxy.log.exchanges[0].outcome.attempts == 3


def test_a_refused_connect_is_repeated_elsewhere_even_for_a_post(server: ScriptedServer) -> None:
    dead = Endpoint(("127.0.0.1", free_port()))
    with (
        RunningProxy(Routes().to(b"/", dead, server.endpoint())) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        with server.accept() as upstream:
            assert read_until(upstream, b"body")
            upstream.sendall(OK)
            assert read_until(client, b"ok").startswith(b"HTTP/1.1 200")


def test_a_timeout_is_504_ut(server: ScriptedServer) -> None:
    routes = Routes().to(b"/", server.endpoint(), timeout_s=0.05)
    with RunningProxy(routes) as proxy:
        assert exchange(proxy.port, GET_CLOSE).endswith(b"upstream request timeout")
        assert details(proxy) == [(504, "UT", "response_timeout")]
        with server.accept() as upstream:
            assert read_all(upstream).startswith(b"GET /")  # and then the end


def test_a_try_timeout_is_504(server: ScriptedServer) -> None:
    with RunningProxy(Routes().to(b"/", server.endpoint(), try_timeout_s=0.05)) as proxy:
        assert exchange(proxy.port, GET_CLOSE).startswith(b"HTTP/1.1 504")
        assert details(proxy) == [(504, "UT", "upstream_per_try_timeout")]


def test_too_many_waiting_requests_are_503_uo(server: ScriptedServer) -> None:
    settings = UpstreamSettings(max_connections=1, max_waiting=1)
    with (
        RunningProxy(Routes().to(b"/", server.endpoint()), upstream_settings=settings) as proxy,
        connect(proxy.port) as first,
        connect(proxy.port) as second,
    ):
        first.sendall(GET)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            second.sendall(GET)
            while not proxy.ask(lambda: proxy.upstreams.waiting_requests):
                pass
            answer = exchange(proxy.port, GET_CLOSE)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"x-envoy-overloaded: true" in answer
            upstream.sendall(OK)
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            assert read_until(first, b"ok")
            assert read_until(second, b"ok")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"426"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: tls\r\n\r\n", b"403"),
    ],
)
def test_what_is_refused_before_it_is_forwarded(
    proxy: RunningProxy, request_bytes: bytes, status: bytes
) -> None:
    assert exchange(proxy.port, request_bytes).split(b" ", 2)[1] == status
    assert proxy.ask(lambda: proxy.upstreams.open_connections) == 0


# Connections


def test_a_stale_connection_is_replaced_for_what_is_idempotent(
    proxy: RunningProxy, server: ScriptedServer
) -> None:
    with connect(proxy.port) as client:
        client.sendall(GET)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            read_until(client, b"ok")
            client.sendall(GET)
            read_until(upstream, b"\r\n\r\n")
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            assert read_until(client, b"ok").startswith(b"HTTP/1.1 200")
    assert [each.outcome.attempts for each in proxy.log.exchanges] == [1, 2]


def test_a_post_on_a_stale_connection_is_not_repeated(proxy: RunningProxy, server: ScriptedServer) -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    with connect(proxy.port) as client:
        client.sendall(post)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            read_until(client, b"ok")
            client.sendall(post)
            read_until(upstream, b"\r\n\r\n")
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 503")
    assert details(proxy, 2)[1][:2] == (503, "UC")


def test_a_client_that_leaves_ends_the_upstream_request(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(GET)
        upstream = server.accept()
        read_until(upstream, b"\r\n\r\n")
    with upstream:
        assert read_all(upstream) == b""
    assert details(proxy) == [(0, "DC", "downstream_remote_disconnect")]


def test_an_upstream_that_breaks_off_is_seen_by_the_client(
    proxy: RunningProxy, server: ScriptedServer
) -> None:
    with connect(proxy.port) as client:
        client.sendall(GET)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
            read_until(client, b"ok\r\n")
        assert b"0\r\n\r\n" not in read_all(client)
    wanted = "upstream_reset_after_response_started{connection_termination}"
    assert details(proxy) == [(200, "UC", wanted)]


def test_a_malformed_response_is_502(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(GET)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 502")
    assert details(proxy)[0][:2] == (502, "UPE")


def test_an_early_answer_ends_the_upload(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nsome")
        with server.accept() as upstream:
            read_until(upstream, b"some")
            upstream.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            assert read_until(client, b"no").startswith(b"HTTP/1.1 413")
            assert read_all(upstream) == b""
        assert read_all(client) == b""


def test_100_continue_is_passed_through(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        with server.accept() as upstream:
            assert b"expect: 100-continue" in read_until(upstream, b"\r\n\r\n")
            upstream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
            client.sendall(b"body")
            read_until(upstream, b"body")
            upstream.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)
            answer = read_until(client, b"ok")
            assert answer.startswith(b"HTTP/1.1 103 ")
            assert b"HTTP/1.1 200 OK" in answer


def test_chunks_and_trailers_both_ways(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        with server.accept() as upstream:
            request = read_until(upstream, b"x-sum: 1\r\n\r\n")
            assert b"3\r\nabc\r\n0\r\n" in request
            upstream.sendall(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n"
            )
            assert read_until(client, b"x-sum: 2\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5)))
        with server.accept() as upstream:
            for number in range(5):
                assert read_until(upstream, b"\r\n\r\n").startswith(b"GET /%d " % number)
                upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
                assert read_until(client, b"\r\n\r\n%d" % number)


# Upgrades


def test_a_websocket_is_a_tunnel_after_101(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(UPGRADE + b"early")
        with server.accept() as upstream:
            assert b"early" not in read_until(upstream, b"\r\n\r\n")
            upstream.sendall(SWITCH + b"welcome")
            answer = read_until(client, b"welcome")
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert read_until(upstream, b"early") == b"early"
            client.sendall(b"x" * 100_000 + b"!")
            assert len(read_until(upstream, b"!")) == 100_001
            client.shutdown(socket.SHUT_WR)
            assert read_all(upstream) == b""
            upstream.sendall(b"bye")
        assert read_all(client) == b"bye"


def test_a_refused_upgrade_is_plain_http(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client:
        client.sendall(UPGRADE)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            assert read_until(client, b"ok").startswith(b"HTTP/1.1 200")
            client.sendall(GET)
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            assert read_until(client, b"ok").startswith(b"HTTP/1.1 200")


# Plain TCP


@pytest.mark.parametrize("declared", [Declared.TCP, Declared.DETECT])
def test_other_protocols_are_relayed(proxy: RunningProxy, server: ScriptedServer, declared: Declared) -> None:
    with connect(proxy.ports[declared]) as client:
        if declared is Declared.DETECT:
            client.sendall(b"\x16\x03\x01hello")
        with server.accept() as upstream:
            upstream.sendall(b"220 ready\r\n")  # a server that speaks first, where TCP is declared
            assert read_until(client, b"\n") == b"220 ready\r\n"
            client.sendall(b"quit")
            client.shutdown(socket.SHUT_WR)
            assert read_all(upstream).endswith(b"quit")
            upstream.sendall(b"bye")
        assert read_all(client) == b"bye"
    proxy.log.until(lambda log: len(log.tcp) == 1)


def test_drain_closes_after_the_request_under_way(proxy: RunningProxy, server: ScriptedServer) -> None:
    with connect(proxy.port) as client, connect(proxy.port) as idle:
        client.sendall(GET)
        with server.accept() as upstream:
            read_until(upstream, b"\r\n\r\n")
            proxy.ask(proxy.proxy.drain)
            upstream.sendall(OK)
            assert b"connection: close" in read_until(client, b"ok")
            assert read_all(client) == b""
        idle.sendall(GET)


def test_http2_without_a_server_that_speaks_it_is_502_or_503(
    server: ScriptedServer,
) -> None:
    with (
        RunningProxy(Routes().to(b"/", server.endpoint(Application.HTTP2))) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(GET)
        with server.accept() as upstream:
            upstream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert read_until(client, b"\r\n\r\n").split(b" ")[1] in (b"502", b"503")
