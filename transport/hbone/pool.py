"""Pooled HBONE client connections: many tunnels share one connection to the same peer.

Decide synchronously, act later: `open` either opens the tunnel on a connection that has room, or queues the
request and makes sure that exactly one dial for its key is under way. A queued request is served when the
dial succeeds or when a tunnel on a full connection ends, whichever comes first; a failed dial fails the
requests that waited for it, because there is no reason to think that the next would do better.

Source: ztunnel-facts 2.10, better in two places: a full connection takes tunnels again when some end, and a
request that the peer certainly did not process (REFUSED_STREAM, GOAWAY) may be repeated, up to MAX_REPEATS
times.

Bounds: tunnels for each connection by the peer's and our own limit; waiting requests for each key by
`max_waiters`, then PoolSaturated; dials for each key by one, in time by `connect_timeout_s` and the
handshake's timeout; unanswered requests in time by `answer_timeout_s`; unused connections in time by
`idle_s`.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from OpenSSL import SSL

from transport.errors import MeshError
from transport.hbone.client import ClientTrust, ConnectionObserver, HboneClientConnection
from transport.hbone.connect import Headers
from transport.hbone.connection import HboneSettings
from transport.hbone.errors import (
    HboneConnectionLost,
    HboneConnectTimeout,
    PoolSaturated,
    TunnelClosed,
    TunnelUnprocessed,
)
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.tunnel import ClientTunnelHandler, TunnelStream
from transport.http2.errors import Http2Error
from transport.reactor import Reactor, Timer
from transport.sockets import finish_connect
from transport.spiffe import SpiffeId

MAX_REPEATS = 2
_MAX_SWEEP_INTERVAL_S = 5.0


class PoolKey:
    """Connections are shared only between tunnels that agree in all of it. Immutable; hashed once."""

    __slots__ = ("_hash", "address", "expected", "source", "source_ip")

    def __init__(
        self, source: SpiffeId, expected: tuple[SpiffeId, ...], address: tuple[str, int], source_ip: str
    ) -> None:
        self.source = source
        self.expected = expected
        self.address = address
        self.source_ip = source_ip
        self._hash = hash((source, expected, address, source_ip))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolKey) and (
            (self.source, self.expected, self.address, self.source_ip)
            == (other.source, other.expected, other.address, other.source_ip)
        )


@dataclass(frozen=True, slots=True)
class PoolSettings:
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 30.0  # the peer itself gives the application 10 s
    idle_s: float = 300.0
    max_waiters: int = 10_000
    hbone: HboneSettings = field(default_factory=HboneSettings)


class PooledRequest(ClientTunnelHandler, Protocol):
    """A request for a tunnel and the handler of its answer. The pool sets `tunnel`."""

    headers: Headers
    tunnel: TunnelStream | None
    repeats: int


# Starts a connect (transport.sockets.start_connect with the workload's namespace and mark); raises MeshError.
Connect = Callable[[tuple[str, int]], socket.socket]
# The context that presents an identity; raises MeshError where there is none.
ContextFor = Callable[[SpiffeId], SSL.Context]


class HbonePool:
    """The client connections of one workload. Runs on the reactor's thread."""

    def __init__(
        self,
        reactor: Reactor,
        settings: PoolSettings,
        *,
        connect: Connect,
        context_for: ContextFor,
        buffer: FrameBuffer,
    ) -> None:
        self.reactor = reactor
        self.settings = settings
        self.connect = connect
        self.context_for = context_for
        self.buffer = buffer
        self._entries: dict[PoolKey, _Entry] = {}
        self._is_closed = False
        self._sweep_timer: Timer | None = None
        shortest = min(settings.idle_s, settings.answer_timeout_s)
        self._sweep_interval_s = min(max(shortest / 4, 0.05), _MAX_SWEEP_INTERVAL_S)

    def open_now(self, key: PoolKey, request: PooledRequest) -> bool:
        """Ask for a tunnel if a connection has room for it, without waiting or dialling."""
        entry = self._entries.get(key)
        return entry is not None and not entry.waiting and entry.open_now(request)

    def open(self, key: PoolKey, request: PooledRequest) -> None:
        """Ask for a tunnel; the answer goes to `request`, perhaps before this returns."""
        if self._is_closed:
            request.on_tunnel_failed(TunnelClosed("the workload's connections are closed"))
            return
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(self, key)
            if self._sweep_timer is None:
                self._sweep_timer = self.reactor.call_later(self._sweep_interval_s, self._sweep)
        entry.request(request)

    def repeat(self, key: PoolKey, request: PooledRequest, error: MeshError) -> bool:
        """If the peer certainly did not process the request, ask again; False if that is not so, or too
        often.
        """
        if not isinstance(error, TunnelUnprocessed) or request.repeats >= MAX_REPEATS or self._is_closed:
            return False
        request.repeats += 1
        request.tunnel = None
        self.open(key, request)
        return True

    def cancel(self, key: PoolKey, request: PooledRequest) -> None:
        """Withdraw a request that was not answered; its handler hears nothing more."""
        if request.tunnel is not None:
            request.tunnel.reset()
            return
        entry = self._entries.get(key)
        if entry is not None and request in entry.waiting:
            entry.waiting.remove(request)

    def close(self, error: MeshError | None = None) -> None:
        """Close all; open tunnels and waiting requests end with `error` (default TunnelClosed)."""
        self._is_closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for entry in list(self._entries.values()):
            entry.close(error or TunnelClosed("the workload's connections are closed"))
        self._entries.clear()

    def describe(self) -> list[dict[str, object]]:
        """For dumps: what is connected, how full, how many wait."""
        return [entry.describe() for entry in self._entries.values()]

    @property
    def open_connections(self) -> int:
        return sum(len(entry.connections) for entry in self._entries.values())

    def _sweep(self) -> None:
        self._sweep_timer = None
        for key, entry in list(self._entries.items()):
            entry.sweep()
            if entry.is_unused:
                del self._entries[key]
        if self._entries and not self._is_closed:
            self._sweep_timer = self.reactor.call_later(self._sweep_interval_s, self._sweep)


class _Entry(ConnectionObserver):
    """The connections to one key and the requests that wait for one."""

    __slots__ = (
        "_dial",
        "_handshake",
        "_idle_since",
        "_peer_limit",
        "_pool",
        "connections",
        "key",
        "waiting",
    )

    def __init__(self, pool: HbonePool, key: PoolKey) -> None:
        self._pool = pool
        self.key = key
        self.connections: list[HboneClientConnection] = []
        self.waiting: deque[PooledRequest] = deque()
        self._dial: _Dial | None = None
        self._handshake: HboneClientConnection | None = None
        self._idle_since: dict[HboneClientConnection, float] = {}
        # What earlier connections learnt about the peer. A new one assumes it until it knows better: a burst
        # beyond a small limit would be refused on every connection again, and its repeats are counted.
        self._peer_limit = pool.settings.hbone.assumed_peer_streams

    @property
    def is_unused(self) -> bool:
        return not (self.connections or self.waiting or self._dial or self._handshake)

    def request(self, request: PooledRequest) -> None:
        if not self.waiting and self.open_now(request):
            return
        if len(self.waiting) >= self._pool.settings.max_waiters:
            error = PoolSaturated(
                f"{len(self.waiting)} connections wait for a tunnel to {self.key.address[0]}",
                next_step="see whether the destination answers; the limit protects this proxy's memory",
            )
            request.on_tunnel_failed(error)
            return
        self.waiting.append(request)
        self._dial_if_needed()

    def open_now(self, request: PooledRequest) -> bool:
        for connection in self.connections:
            if connection.has_room:
                try:
                    request.tunnel = connection.open_tunnel(request.headers, request)
                except Http2Error:
                    continue  # the codec knows better: its peer lowered the limit or goes away
                if self._idle_since:
                    self._idle_since.pop(connection, None)
                return True
        return False

    def _serve(self) -> None:
        while self.waiting:
            request = self.waiting[0]
            if not self.open_now(request):
                break
            self.waiting.popleft()
        if self.waiting:
            self._dial_if_needed()

    def _dial_if_needed(self) -> None:
        if self._dial is not None or self._handshake is not None:
            return
        pool = self._pool
        try:
            pool.context_for(self.key.source)  # fail before a connection is made
            sock = pool.connect(self.key.address)
        except MeshError as failure:
            error = failure
            # Not from inside `open`, so that no handler is called before its caller has returned.
            pool.reactor.call_soon(lambda: self._fail_waiting(error))
            return
        self._dial = _Dial(pool.reactor, sock, pool.settings.connect_timeout_s, self._on_dialled)

    def _on_dialled(self, sock: socket.socket, error: MeshError | None) -> None:
        self._dial = None
        pool = self._pool
        if error is None:
            try:
                trust = ClientTrust(pool.context_for(self.key.source), self.key.expected)
            except MeshError as missing:
                sock.close()
                error = missing
            else:
                self._handshake = HboneClientConnection(
                    pool.reactor, sock, trust, self, buffer=pool.buffer, settings=pool.settings.hbone
                )
                return
        self._fail_waiting(error)

    def _fail_waiting(self, error: MeshError) -> None:
        waiting, self.waiting = self.waiting, deque()
        for request in waiting:
            request.on_tunnel_failed(error)

    def sweep(self) -> None:
        settings = self._pool.settings
        now = self._pool.reactor.now
        for connection in list(self.connections):
            connection.expire_requests(settings.answer_timeout_s)
            if connection.streams or connection.is_lost:
                self._idle_since.pop(connection, None)
            elif now - self._idle_since.setdefault(connection, now) >= settings.idle_s:
                self._remove(connection)
                connection.retire()

    def close(self, error: MeshError) -> None:
        if self._dial is not None:
            self._dial.stop()
            self._dial.sock.close()
            self._dial = None
        connections = self.connections
        if self._handshake is not None:
            connections = [*connections, self._handshake]
        self.connections, self._handshake = [], None
        for connection in connections:
            connection.close(error=error)
        self._fail_waiting(error)

    def describe(self) -> dict[str, object]:
        return {
            "address": f"{self.key.address[0]}:{self.key.address[1]}",
            "expected": [str(identity) for identity in self.key.expected],
            "connections": [
                {"tunnels": connection.open_streams, "limit": connection.max_streams}
                for connection in self.connections
            ],
            "waiting": len(self.waiting),
        }

    def _remove(self, connection: HboneClientConnection) -> None:
        self._idle_since.pop(connection, None)
        if connection in self.connections:
            self.connections.remove(connection)

    # ConnectionObserver

    def on_established(self, connection: HboneClientConnection) -> None:
        if connection is not self._handshake:
            return
        self._handshake = None
        connection.max_streams = min(connection.max_streams, self._peer_limit)
        self.connections.append(connection)
        self._serve()

    def on_stream_over(self, connection: HboneClientConnection) -> None:
        self._peer_limit = max(connection.max_streams, 1)  # of none at all, each request finds out itself
        if self.waiting:
            self._serve()

    def on_unusable(self, connection: HboneClientConnection) -> None:
        self._remove(connection)
        if self.waiting:
            self._serve()

    def on_closed(self, connection: HboneClientConnection, error: MeshError | None) -> None:
        if connection is self._handshake:
            self._handshake = None
            self._fail_waiting(
                error or HboneConnectionLost("the peer closed the connection during the handshake")
            )
            return
        self._remove(connection)
        if self.waiting:
            self._serve()


class _Dial:
    """One TCP connect, in the kernel's hands."""

    __slots__ = ("_done", "_registration", "_timer", "sock")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        timeout_s: float,
        done: Callable[[socket.socket, MeshError | None], None],
    ) -> None:
        self.sock = sock
        self._done = done
        self._registration = reactor.register(sock.fileno(), self._on_ready, self._on_ready, reading=False)
        self._registration.want_write(True)
        self._timer = reactor.call_later(timeout_s, self._on_timeout)

    def _on_ready(self) -> None:
        self.stop()
        try:
            finish_connect(self.sock)
        except MeshError as error:
            self.sock.close()
            self._done(self.sock, error)
            return
        self._done(self.sock, None)

    def _on_timeout(self) -> None:
        self.stop()
        self.sock.close()
        error = HboneConnectTimeout(
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
            next_step="check that this port of the destination is reachable from the workload",
        )
        self._done(self.sock, error)

    def stop(self) -> None:
        self._registration.close()
        self._timer.cancel()
