"""A reactor inside trio with HBONE on both ends, recorders for what they say, and applications around them.

Nothing here sleeps: every pass of the reactor tells the world, and `World.until` waits for that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from OpenSSL import SSL

from tests.kit.certificates import TestAuthority, issue, shared_root
from transport.errors import MeshError
from transport.hbone.connect import (
    ConnectRequest,
    Headers,
    MalformedRequest,
    RequestTemplate,
    new_traceparent,
)
from transport.hbone.connection import HboneSettings, plain_headers
from transport.hbone.errors import TunnelClosed
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.pool import HbonePool, PoolKey, PoolSettings
from transport.hbone.relay import Relay
from transport.hbone.server import HboneServerConnection, ServerTrust
from transport.hbone.tunnel import TunnelStream
from transport.reactor import Reactor, Registration
from transport.sockets import accept, open_listener, start_connect
from transport.spiffe import SpiffeId
from transport.tls.context import make_context

CLIENT = SpiffeId("cluster.local", "default", "client")
SERVER = SpiffeId("cluster.local", "default", "server")
SMALL = HboneSettings(
    stream_window_bytes=64 * 1024, connection_window_bytes=256 * 1024, max_frame_bytes=16384
)


def context_for(
    identity: SpiffeId | str, *, is_server: bool, authority: TestAuthority | None = None
) -> SSL.Context:
    """A context with a fresh leaf of `authority`, which it also trusts."""
    authority = authority or shared_root()
    chain, key = issue(authority, str(identity))
    return make_context([chain], key, authority.pem, is_server=is_server)


class WatchedReactor(Reactor):
    """Tells `on_pass` after every pass, so that a test can wait for anything that a pass brings about."""

    on_pass: Callable[[], None] = staticmethod(lambda: None)

    def _finish_pass(self) -> None:
        super()._finish_pass()
        self.on_pass()


@dataclass
class TunnelRecorder:
    """A tunnel's user that writes down what it is told: a pool's request, or a server's handler."""

    world: World
    headers: Headers = field(default_factory=list)
    tunnel: TunnelStream | None = None
    repeats: int = 0
    is_consuming: bool = True
    answer: Headers | None = None
    received: bytearray = field(default_factory=bytearray)
    owed: int = 0
    is_ended: bool = False
    is_writable: bool = False
    is_over: bool = False
    error: MeshError | None = None

    def on_tunnel_open(self, tunnel: TunnelStream, headers: Headers) -> None:
        self.tunnel = tunnel
        self.answer = headers
        self.world.notify()

    def on_tunnel_failed(self, error: MeshError) -> None:
        if self.world.pool.repeat(self.world.key, self, error):
            return
        self.is_over = True
        self.error = error
        self.world.notify()

    def on_tunnel_data(self, chunks: list[memoryview], flow_bytes: int) -> None:
        for chunk in chunks:
            self.received += chunk
        if self.is_consuming:
            assert self.tunnel is not None
            self.tunnel.consumed(flow_bytes)
        else:
            self.owed += flow_bytes
        self.world.notify()

    def on_tunnel_end(self) -> None:
        self.is_ended = True
        self.world.notify()

    def on_tunnel_writable(self) -> None:
        self.is_writable = True
        self.world.notify()

    def on_tunnel_reset(self, error: MeshError | None) -> None:
        self.is_over = True
        self.error = error
        self.world.notify()

    @property
    def is_answered(self) -> bool:
        return self.answer is not None or self.is_over

    def send(self, data: bytes) -> None:
        assert self.tunnel is not None
        self.tunnel.send(data)

    def open(self) -> TunnelStream:
        assert self.tunnel is not None
        return self.tunnel


class AppRelay(Relay):
    """A relay to a TCP application that remembers how it ended."""

    __slots__ = ("error", "headers", "is_over", "repeats", "world")

    def __init__(self, world: World, *, is_reset_kept: bool) -> None:
        super().__init__(world.reactor, is_reset_kept=is_reset_kept)
        self.world = world
        self.is_over = False
        self.error: MeshError | None = None
        self.headers: Headers = []
        self.repeats = 0

    def carry(self, sock: socket.socket) -> None:
        """Client side: ask for a tunnel for this connection."""
        self._app = sock
        self.headers = self.world.request_headers()
        self.world.pool.open(self.world.key, self)

    def on_tunnel_open(self, tunnel: TunnelStream, headers: Headers) -> None:
        self.tunnel = tunnel
        self._start(read_now=True)

    def on_tunnel_failed(self, error: MeshError) -> None:
        self.tunnel = None
        self._finish(error)

    def deliver(self, tunnel: TunnelStream, sock: socket.socket) -> None:
        """Server side: answer 200 and copy."""
        self.tunnel = tunnel
        tunnel.handler = self
        self._app = sock
        tunnel.accept(plain_headers(200))
        self._is_peer_ended = tunnel.is_remote_ended
        self._start()

    @property
    def kept_bytes(self) -> int:
        return sum(len(chunk) for chunk in self._pending or ())

    def _on_over(self, error: MeshError | None) -> None:
        self.is_over = True
        self.error = error
        self.world.notify()


class World:
    """One reactor, an HBONE server on loopback, and a pool of clients to it."""

    def __init__(
        self,
        reactor: WatchedReactor,
        *,
        client: HboneSettings,
        server: HboneSettings,
        pool: PoolSettings,
    ) -> None:
        self.reactor = reactor
        self.buffer = FrameBuffer()
        self.client_identity = CLIENT
        self.client_context = context_for(CLIENT, is_server=False)
        self.server_context = context_for(SERVER, is_server=True)
        self.server_settings = server
        self.server_trust_domain: str | None = "cluster.local"
        self.connections: list[HboneServerConnection] = []
        self.closed: list[MeshError | None] = []
        self.requests: list[tuple[TunnelStream, ConnectRequest]] = []
        self.bad_requests: list[MalformedRequest] = []
        self.served: list[TunnelRecorder] = []
        self.on_request_do: Callable[[TunnelStream, ConnectRequest], None] = self.accept_tunnel
        self.dials = 0
        self._listener = open_listener("127.0.0.1", 0).sock
        self.address: tuple[str, int] = self._listener.getsockname()
        self._registration: Registration = reactor.register(self._listener.fileno(), self._on_connection)
        self.key = PoolKey(CLIENT, (SERVER,), self.address, "")
        self.pool = HbonePool(
            reactor,
            PoolSettings(
                connect_timeout_s=pool.connect_timeout_s,
                answer_timeout_s=pool.answer_timeout_s,
                idle_s=pool.idle_s,
                max_waiters=pool.max_waiters,
                hbone=client,
            ),
            connect=self._connect,
            context_for=lambda _: self.client_context,
            buffer=self.buffer,
        )
        self._changed = trio.Event()
        self.errors: list[BaseException] = []
        reactor.on_callback_error = lambda error, _: self.errors.append(error)
        reactor.on_pass = self.notify

    def notify(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds; looked at whenever something happened."""
        while not condition():
            if self.errors:
                raise self.errors[0]
            self._changed = trio.Event()
            await self._changed.wait()

    async def settle(self, passes: int = 3) -> None:
        """Let the reactor run that many passes, e.g. after the clock has jumped."""
        for _ in range(passes):
            done = trio.Event()
            self.reactor.call_soon_threadsafe(done.set)
            await done.wait()

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        self.dials += 1
        return start_connect(address)[0]

    def _on_connection(self) -> None:
        accepted = accept(self._listener)
        if accepted is None:
            return
        trust = ServerTrust(self.server_context, self.server_trust_domain)
        connection = HboneServerConnection(
            self.reactor, accepted[0], trust, self, buffer=self.buffer, settings=self.server_settings
        )
        self.connections.append(connection)
        self.notify()

    def stop_listening(self) -> None:
        self._registration.close()
        self._listener.close()

    def close(self) -> None:
        """Drop everything without saying goodbye."""
        self.stop_listening()
        clients = [connection for entry in self.pool._entries.values() for connection in entry.connections]
        for connection in [*clients, *self.connections]:
            connection.abort(TunnelClosed("the test is over"))
        self.pool.close()

    # HboneServerHandler

    def on_established(self, connection: HboneServerConnection) -> None:
        self.notify()

    def on_request(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        self.requests.append((tunnel, request))
        self.on_request_do(tunnel, request)
        self.notify()

    def on_bad_request(self, connection: HboneServerConnection, request: MalformedRequest) -> None:
        self.bad_requests.append(request)
        self.notify()

    def on_closed(self, connection: HboneServerConnection, error: MeshError | None) -> None:
        self.connections.remove(connection)
        self.closed.append(error)
        self.notify()

    def accept_tunnel(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        recorder = TunnelRecorder(self, tunnel=tunnel)
        tunnel.handler = recorder
        self.served.append(recorder)
        tunnel.accept(plain_headers(200))

    def hold_tunnel(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        """Leave a request unanswered."""
        recorder = TunnelRecorder(self, tunnel=tunnel)
        tunnel.handler = recorder
        self.served.append(recorder)

    def refuse_with(self, status: int) -> Callable[[TunnelStream, ConnectRequest], None]:
        return lambda tunnel, _: tunnel.refuse(plain_headers(status))

    # Clients

    def request_headers(self, authority: str = "10.0.0.1:80") -> Headers:
        template = RequestTemplate(authority, baggage=b"k8s.cluster.name=c")
        return template.headers("10.0.0.9", 40000, new_traceparent())

    def ask(self, key: PoolKey | None = None, *, is_consuming: bool = True) -> TunnelRecorder:
        request = TunnelRecorder(self, headers=self.request_headers(), is_consuming=is_consuming)
        self.pool.open(key or self.key, request)
        return request

    async def open(self) -> TunnelRecorder:
        """A tunnel that was answered with 200."""
        request = self.ask()
        await self.until(lambda: request.is_answered)
        assert request.answer is not None, request.error
        return request


@asynccontextmanager
async def running_world(
    *,
    client: HboneSettings | None = None,
    server: HboneSettings | None = None,
    pool: PoolSettings | None = None,
) -> AsyncIterator[World]:
    """A world whose reactor runs until the block ends; a callback's exception fails the test."""
    with WatchedReactor() as reactor:
        world = World(
            reactor,
            client=client or HboneSettings(),
            server=server or HboneSettings(),
            pool=pool or PoolSettings(),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: reactor.run_in_trio(task_status=task_status))
            try:
                yield world
            finally:
                world.close()
                with trio.CancelScope(shield=True):
                    await world.settle()  # everybody hears that it is over
                nursery.cancel_scope.cancel()
        if world.errors:
            raise world.errors[0]


@dataclass
class Carried:
    """Both ends of one application's connection through a tunnel, and the relays in between."""

    near: trio.SocketStream
    far: trio.SocketStream
    near_relay: AppRelay
    far_relay: AppRelay


@asynccontextmanager
async def carried(world: World, *, is_reset_kept: bool = True) -> AsyncIterator[Carried]:
    """near app <-> relay <-> tunnel <-> relay <-> far app, all real sockets."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    far_relay = AppRelay(world, is_reset_kept=is_reset_kept)

    def connect_far(tunnel: TunnelStream, request: ConnectRequest) -> None:
        sock = socket.create_connection(address)
        sock.setblocking(False)
        far_relay.deliver(tunnel, sock)

    world.on_request_do = connect_far
    near, theirs = _tcp_pair()
    near_relay = AppRelay(world, is_reset_kept=is_reset_kept)
    near_relay.carry(theirs)
    far, _ = await listener.accept()
    listener.close()
    near_stream, far_stream = trio.SocketStream(trio.socket.from_stdlib_socket(near)), trio.SocketStream(far)
    try:
        yield Carried(near_stream, far_stream, near_relay, far_relay)
    finally:
        near_stream.socket.close()
        far_stream.socket.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    near.setblocking(False)
    theirs.setblocking(False)
    return near, theirs


__all__ = ["CLIENT", "SERVER", "SMALL", "World", "carried", "context_for", "running_world"]
