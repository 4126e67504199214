"""The other codec, limits of pooled connections, and the end of HTTP/2 connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.waypoint.worker.kit import Routes, RunningProxy, connect, nginx
from tests.waypoint.worker.test_combinations import CURL_VERSIONS, curl, nghttpd
from tests.waypoint.worker.test_streaming import H2Client
from waypoint.state.circuit import Circuit
from waypoint.state.destinations import ConnectionPool
from waypoint.state.hosts import Endpoint
from waypoint.worker.proxy import ProxySettings
from waypoint.worker.upstreams import UpstreamSettings


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_the_reference_codecs_serve_too(tmp_path: Path, version: str) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload" * 100_000)
    with nginx(tmp_path, f"location /h1/ {{ alias {web}/; }}") as port, nghttpd(web) as h2:
        routes = Routes().to(b"/h1", Endpoint(("127.0.0.1", port))).to(b"/", h2)
        settings = ProxySettings(codec="reference")
        upstream_settings = UpstreamSettings(codec="reference")
        with RunningProxy(routes, settings=settings, upstream_settings=upstream_settings) as proxy:
            for path in ("/h1/file", "/file"):
                assert curl(proxy.port, path, version) == b"payload" * 100_000


def test_a_connection_takes_no_more_requests_than_it_may(tmp_path: Path) -> None:
    with nginx(tmp_path, 'location / { return 200 "$connection"; }') as port:
        circuit = Circuit(ConnectionPool(requests_per_connection=2))
        routes = Routes().to(b"/", Endpoint(("127.0.0.1", port), circuit=circuit))
        with RunningProxy(routes) as proxy:
            seen = [curl(proxy.port, "/", "--http1.1") for _ in range(4)]
            assert seen[0] == seen[1] != seen[2] == seen[3]


def test_drain_says_goaway_and_finishes_what_is_under_way(tmp_path: Path) -> None:
    with nginx(tmp_path, 'location / { return 200 "hello"; }') as port:
        routes = Routes().to(b"/", Endpoint(("127.0.0.1", port)))
        with RunningProxy(routes) as proxy, connect(proxy.port) as sock:
            client = H2Client(sock)
            first = client.get(b"/")
            while first not in client.ended:
                client.step()
            second = client.get(b"/")
            proxy.ask(proxy.proxy.drain)
            while second not in client.ended or not client.codec.is_going_away:
                client.step()
            assert client.statuses[second] == b"200"
            while sock.recv(65536):
                pass
