"""The whole way: tunnel, waypoint, tunnel. A client's node proxy and a destination's are played by relays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.hbone.kit import context_for
from tests.waypoint.worker.kit import Routes, RunningProxy, connect, exchange, nginx
from tests.waypoint.worker.test_combinations import CURL_VERSIONS, curl
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.pool import HbonePool, PoolSettings
from transport.hbone.server import ServerTrust
from transport.reactor import Reactor
from transport.sockets import accept, open_listener, start_connect
from transport.spiffe import SpiffeId
from waypoint.state.hosts import Endpoint
from waypoint.worker.dial import Carrier, MeshDialler, TcpDialler, TunnelOrigin
from waypoint.worker.ingress import HboneIngress, parse_destination
from waypoint.worker.plan import Declared

CLIENT = SpiffeId("cluster.local", "default", "client")
WAYPOINT = SpiffeId("cluster.local", "default", "waypoint")
SERVER = SpiffeId("cluster.local", "default", "server")
VIP = ("10.0.0.1", 80)


class Mesh:
    """A proxy that dials as `me`, and a listener for tunnels in front of it."""

    def __init__(
        self, me: SpiffeId, routes: Routes, declared: Declared, listen: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self.me = me
        self.buffer = FrameBuffer()
        self.is_short = False
        self.proxy = RunningProxy(routes, make_dialler=self._dialler)
        reactor = self.proxy.reactor
        self.ingress = HboneIngress(
            reactor,
            self.proxy.proxy,
            lambda to: declared if to[0] != "10.9.9.9" else None,
            buffer=self.buffer,
            may_take_on=lambda: not self.is_short,
        )
        trust = ServerTrust(context_for(me, is_server=True), "cluster.local")
        self.listener = open_listener(*listen, is_transparent=False).sock
        self.port: int = self.listener.getsockname()[1]

        def on_readable() -> None:
            while (accepted := accept(self.listener)) is not None:
                self.ingress.accept(accepted[0], trust)

        reactor.register(self.listener.fileno(), on_readable)

    def _dialler(self, reactor: Reactor, buffer: memoryview) -> Carrier:
        context = context_for(self.me, is_server=False)
        self.pool = HbonePool(
            reactor,
            PoolSettings(),
            connect=lambda address: start_connect(address)[0],
            context_for=lambda _: context,
            buffer=self.buffer,
        )
        return MeshDialler(self.pool, TunnelOrigin(self.me, "127.0.0.1"), TcpDialler(reactor, buffer))

    @contextlib.contextmanager
    def running(self) -> Iterator[Mesh]:
        with self.proxy:
            yield self
            self.proxy.ask(self._close)
        self.listener.close()

    def _close(self) -> None:
        self.ingress.close()
        self.pool.close()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[tuple[Mesh, Mesh, Mesh]]:
    """Client's side, waypoint, destination's side; nginx behind it."""
    (tmp_path / "file").write_bytes(b"0123456789" * 300_000)
    locations = f'location / {{ root {tmp_path}; }} location /hello {{ return 200 "$http_x_request_id"; }}'
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(nginx(tmp_path, locations))
        destination = Mesh(SERVER, Routes(tcp=Endpoint(("127.0.0.1", port))), Declared.TCP)
        stack.enter_context(destination.running())
        endpoint = Endpoint(
            ("127.0.0.1", port), identities=(SERVER,), hbone_address=("127.0.0.1", destination.port)
        )
        waypoint = Mesh(WAYPOINT, Routes(tcp=endpoint).to(b"/", endpoint), Declared.DETECT)
        stack.enter_context(waypoint.running())
        vip = Endpoint(VIP, identities=(WAYPOINT,), hbone_address=("127.0.0.1", waypoint.port))
        client = Mesh(CLIENT, Routes(tcp=vip), Declared.TCP)
        stack.enter_context(client.running())
        yield client, waypoint, destination


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_requests_pass_through_both_tunnels(way: tuple[Mesh, Mesh, Mesh], version: str) -> None:
    client, waypoint, _ = way
    port = client.proxy.ports[Declared.TCP]
    assert len(curl(port, "/hello", version)) == 36
    assert curl(port, "/file", version) == b"0123456789" * 300_000
    waypoint.proxy.log.until(lambda log: len(log.exchanges) == 2)
    source = waypoint.proxy.log.exchanges[0].source
    assert (source.identity, source.destination) == (CLIENT, VIP)


def test_what_is_no_http_passes_through_too(way: tuple[Mesh, Mesh, Mesh]) -> None:
    client, waypoint, _ = way
    answer = exchange(client.proxy.ports[Declared.TCP], b"GET /hello HTTP/1.0\r\nHost: a\r\n\r\n")
    assert b"server: mycelia" not in answer
    assert answer.startswith(b"HTTP/1.1 200")
    waypoint.proxy.log.until(lambda log: len(log.tcp) == 1)


def test_a_destination_that_is_not_ours_is_refused(way: tuple[Mesh, Mesh, Mesh]) -> None:
    client, waypoint, _ = way
    other = Endpoint(("10.9.9.9", 80), identities=(WAYPOINT,), hbone_address=("127.0.0.1", waypoint.port))
    client.proxy.proxy.decider = Routes(tcp=other)
    with connect(client.proxy.ports[Declared.TCP]) as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    client.proxy.log.until(lambda log: len(log.tcp) == 1)
    assert "404" in str(client.proxy.log.tcp[0].error)


def test_a_worker_without_memory_says_503_and_goes_on(way: tuple[Mesh, Mesh, Mesh]) -> None:
    client, waypoint, _ = way
    waypoint.is_short = True
    with connect(client.proxy.ports[Declared.TCP]) as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    client.proxy.log.until(lambda log: len(log.tcp) == 1)
    assert "503" in str(client.proxy.log.tcp[0].error)
    waypoint.is_short = False
    assert len(curl(client.proxy.ports[Declared.TCP], "/hello", CURL_VERSIONS[0])) == 36


def test_an_upstream_of_another_identity_is_not_spoken_to(way: tuple[Mesh, Mesh, Mesh]) -> None:
    client, waypoint, destination = way
    wrong = Endpoint(("127.0.0.1", 1), identities=(CLIENT,), hbone_address=("127.0.0.1", destination.port))
    waypoint.proxy.proxy.decider = Routes().to(b"/", wrong)
    answer = exchange(
        client.proxy.ports[Declared.TCP], b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("authority", "destination"),
    [
        (b"10.0.0.1:80", ("10.0.0.1", 80)),
        (b"[fd00::1]:80", ("fd00::1", 80)),
        (b"[::ffff:10.0.0.1]:80", ("10.0.0.1", 80)),
        (b"host:80", None),
        (b"10.0.0.1", None),
        (b"10.0.0.1:0", None),
        (b"10.0.0.1:65536", None),
        (b"10.0.0.256:80", None),
    ],
)
def test_destinations(authority: bytes, destination: tuple[str, int] | None) -> None:
    assert parse_destination(authority) == destination
