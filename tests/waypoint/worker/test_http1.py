"""HTTP/1.1 on both sides, over real sockets."""

from __future__ import annotations

from pathlib import Path

from tests.waypoint.worker.kit import Routes, RunningProxy, connect, exchange, nginx, read_until
from waypoint.state.hosts import Endpoint


def test_a_request_reaches_nginx_and_its_answer_comes_back(tmp_path: Path) -> None:
    with nginx(tmp_path, 'location / { return 200 "hello"; }') as port:
        routes = Routes().to(b"/", Endpoint(("127.0.0.1", port)))
        with RunningProxy(routes) as proxy:
            answer = exchange(proxy.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"server: mycelia" in head
            assert body == b"hello"
            proxy.log.until(lambda log: len(log.exchanges) == 1)
            assert proxy.log.exchanges[0].outcome.status == 200


def test_a_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    with nginx(tmp_path, 'location / { return 200 "hello"; }') as port:
        routes = Routes().to(b"/", Endpoint(("127.0.0.1", port)))
        with RunningProxy(routes) as proxy, connect(proxy.port) as client:
            for _ in range(3):
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert read_until(client, b"hello").startswith(b"HTTP/1.1 200")
            assert proxy.ask(lambda: proxy.upstreams.open_connections) == 1
