"""Who speaks no TLS refuses an endpoint that wants it, however diallers are put together."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.kit.certificates import shared_root
from tests.waypoint.worker.kit import PATIENCE_S
from transport.errors import MeshError
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.pool import HbonePool, PoolSettings
from transport.reactor import Reactor
from transport.spiffe import SpiffeId
from waypoint.state.circuit import Circuit
from waypoint.state.client_tls import ClientTls
from waypoint.state.destinations import ConnectionPool, Keepalive
from waypoint.state.hosts import Endpoint
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.dial import Carrier, MeshDialler, TcpDialler, TunnelOrigin
from waypoint.worker.errors import PlaintextRefused
from waypoint.worker.resolver import Resolver, ResolvingDialler
from waypoint.worker.tcp_stream import TcpStream

ME = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/waypoint")
THERE = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/server")
TLS = ClientTls("app.example", ("app.example",), roots_pem=shared_root().pem)
Made = Callable[[Reactor], Carrier]


def tcp(reactor: Reactor) -> TcpDialler:
    return TcpDialler(reactor, memoryview(bytearray(1024)))


def mesh(reactor: Reactor) -> MeshDialler:
    def no_context(_: object) -> object:
        raise AssertionError("no tunnel is to be made")

    pool = HbonePool(
        reactor,
        PoolSettings(),
        connect=lambda _: no_context(None),  # type: ignore[arg-type,return-value]
        context_for=no_context,  # type: ignore[arg-type]
        buffer=FrameBuffer(),
    )
    return MeshDialler(pool, TunnelOrigin(ME, "127.0.0.1"), tcp(reactor))


def resolving(reactor: Reactor) -> ResolvingDialler:
    def look_up(name: str) -> list[str]:
        raise AssertionError(f"{name} is not to be looked up")

    return ResolvingDialler(mesh(reactor), Resolver(reactor, look_up), lambda: 0.0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def told(dialler: Made, endpoint: Endpoint, *, is_cancelled: bool = False) -> list[ByteStream | MeshError]:
    """What `done` was told, once the reactor has nothing to do any more."""
    found: list[ByteStream | MeshError] = []
    with Reactor() as reactor:
        timer = reactor.call_later(PATIENCE_S, reactor.stop)

        def done(result: ByteStream | MeshError) -> None:
            found.append(result)
            if not isinstance(result, MeshError):
                result.abort()
            reactor.stop()

        dial = dialler(reactor).dial(endpoint, done)
        assert not found, "never from inside dial"
        if is_cancelled:
            dial.cancel()
            reactor.call_soon(lambda: reactor.call_soon(reactor.stop))
        reactor.run()
        timer.cancel()
    return found


@pytest.mark.parametrize("dialler", [tcp, mesh, resolving])
@pytest.mark.parametrize("identities", [(), (THERE,)])
@pytest.mark.parametrize("host", ["", "app.example"])
def test_an_endpoint_that_wants_tls_is_refused_and_nobody_is_connected_to(
    dialler: Made, listener: socket.socket, identities: tuple[SpiffeId, ...], host: str
) -> None:
    there, port = listener.getsockname()
    endpoint = Endpoint((host or there, port), identities=identities, tls=TLS)
    (error,) = told(dialler, endpoint)
    assert isinstance(error, PlaintextRefused)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_refusal_can_be_cancelled(listener: socket.socket) -> None:
    endpoint = Endpoint(listener.getsockname(), tls=TLS)
    assert told(tcp, endpoint, is_cancelled=True) == []


@pytest.mark.parametrize("dialler", [tcp, mesh, resolving])
def test_an_endpoint_without_tls_is_connected_to(dialler: Made, listener: socket.socket) -> None:
    (stream,) = told(dialler, Endpoint(listener.getsockname()))
    assert not isinstance(stream, MeshError)


def test_the_destination_s_keepalive_is_the_socket_s(listener: socket.socket) -> None:
    pool = ConnectionPool(keepalive=Keepalive(probes=200, idle_s=31, interval_s=7))
    seen: list[tuple[int, int, int]] = []
    with Reactor() as reactor:
        timer = reactor.call_later(PATIENCE_S, reactor.stop)

        def done(result: ByteStream | MeshError) -> None:
            assert isinstance(result, TcpStream)
            sock = result._sock
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, interval, probes = (sock.getsockopt(socket.IPPROTO_TCP, each) for each in options)
            seen.append((idle, interval, probes))
            result.abort()
            reactor.stop()

        tcp(reactor).dial(Endpoint(listener.getsockname(), circuit=Circuit(pool)), done)
        reactor.run()
        timer.cancel()
    assert seen == [(31, 7, 127)]
