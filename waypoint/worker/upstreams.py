"""Pooled HTTP connections to endpoints: HTTP/1.1 ones are lent whole, HTTP/2 ones by the stream.

Decide synchronously, act later, as the HBONE pool does: `acquire` hands a connection over at once if one has
room, else the request waits, and dials are under way: one for each waiting request over HTTP/1.1, one at a
time over HTTP/2. Who waits is served by a dial or by a connection that gets free, whichever comes first.

Bounds for each endpoint: `max_connections`, then requests wait; `max_waiting`, then Cause.OVERFLOW;
`idle_s` for unused connections; `max_requests` on one connection.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from transport.errors import MeshError
from transport.http1 import codec as http1
from transport.http1.settings import Http1Settings
from transport.http2 import codec as http2
from transport.http2.events import Header
from transport.http2.settings import Role
from transport.reactor import Reactor, Timer
from transport.socket_errors import ConnectTimedOut
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.dial import Dial, Dialler
from waypoint.worker.errors import ConnectTimeout
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.http1_connection import Http1Connection
from waypoint.worker.http2_connection import SETTINGS, Http2Connection
from waypoint.worker.http_connection import HttpConnection
from waypoint.worker.plan import Application, Endpoint

_SWEEP_S = 5.0
_HTTP1 = Http1Settings()
_TIMEOUTS = (ConnectTimeout, ConnectTimedOut)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Limits for each endpoint."""

    idle_s: float = 3600.0
    max_connections: int = 4096
    max_waiting: int = 10_000
    max_requests: int = 0  # on one connection; 0: any number
    codec: http1.CodecKind = "lean"


class Waiter(Protocol):
    """Who wants a connection."""

    def on_connection(self, connection: HttpConnection) -> None:
        """It has room: open a stream now."""

    def on_connect_failed(self, failure: Failure) -> None:
        """There is none."""


class Upstreams:
    """All connections to endpoints of one worker."""

    def __init__(self, reactor: Reactor, dialler: Dialler, settings: UpstreamSettings | None = None) -> None:
        self.reactor = reactor
        self.dialler = dialler
        self.settings = settings or UpstreamSettings()
        self._hosts: dict[tuple[Endpoint, Application], _Host] = {}
        self._sweep_timer: Timer | None = None
        self._is_closed = False

    def acquire(self, endpoint: Endpoint, application: Application, waiter: Waiter) -> None:
        """Get `waiter` a connection that speaks `application`; it hears now or later."""
        key = (endpoint, application)
        host = self._hosts.get(key)
        if host is None:
            if self._is_closed:
                waiter.on_connect_failed(Failure(Cause.CONNECT_FAILURE, "the waypoint ends"))
                return
            host = self._hosts[key] = _Host(self, endpoint, application)
            if self._sweep_timer is None:
                self._sweep_timer = self.reactor.call_later(_SWEEP_S, self._sweep)
        host.acquire(waiter)

    def cancel(self, endpoint: Endpoint, application: Application, waiter: Waiter) -> None:
        """Withdraw a waiter; it hears nothing more."""
        host = self._hosts.get((endpoint, application))
        if host is not None and waiter in host.waiting:
            host.waiting.remove(waiter)

    @property
    def open_connections(self) -> int:
        return sum(len(host.connections) for host in self._hosts.values())

    def close(self) -> None:
        """Close all; who waits and who has a stream is told."""
        self._is_closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for host in list(self._hosts.values()):
            host.close()
        self._hosts.clear()

    def _sweep(self) -> None:
        self._sweep_timer = None
        limit = self.reactor.now - self.settings.idle_s
        for key, host in list(self._hosts.items()):
            host.sweep(limit)
            if not (host.connections or host.waiting or host.dials):
                del self._hosts[key]
        if self._hosts and not self._is_closed:
            self._sweep_timer = self.reactor.call_later(_SWEEP_S, self._sweep)


class _Host:
    """The connections to one endpoint that speak one protocol. Owner of them."""

    def __init__(self, upstreams: Upstreams, endpoint: Endpoint, application: Application) -> None:
        self._upstreams = upstreams
        self._endpoint = endpoint
        self._is_http2 = application is Application.HTTP2
        self.connections: dict[HttpConnection, int] = {}  # -> requests so far
        self._free: list[HttpConnection] = []  # HTTP/1.1, the latest used last
        self.waiting: deque[Waiter] = deque()
        self.dials: set[Dial] = set()

    def acquire(self, waiter: Waiter) -> None:
        if not self.waiting:
            connection = self._find()
            if connection is not None:
                self._hand(connection, waiter)
                return
        if len(self.waiting) >= self._upstreams.settings.max_waiting:
            waiter.on_connect_failed(Failure(Cause.OVERFLOW))
            return
        self.waiting.append(waiter)
        self._dial()

    def _find(self) -> HttpConnection | None:
        if self._is_http2:
            for connection in self.connections:
                if connection.has_room:
                    return connection
            return None
        free = self._free
        while free:
            connection = free.pop()
            if connection.has_room:
                return connection
            if not connection.is_closed:
                connection.close()
        return None

    def _hand(self, connection: HttpConnection, waiter: Waiter) -> None:
        self.connections[connection] += 1
        waiter.on_connection(connection)

    def _serve(self) -> None:
        while self.waiting:
            connection = self._find()
            if connection is None:
                self._dial()
                return
            self._hand(connection, self.waiting.popleft())

    def _dial(self) -> None:
        wanted = min(len(self.waiting), 1) if self._is_http2 else len(self.waiting)
        room = self._upstreams.settings.max_connections - len(self.connections)
        while len(self.dials) < min(wanted, room):
            self._dial_once()

    def _dial_once(self) -> None:
        def done(result: ByteStream | MeshError) -> None:
            self.dials.discard(dial)
            if isinstance(result, MeshError):
                self._on_dial_failed(result)
            else:
                self._on_dialled(result)

        dial = self._upstreams.dialler.dial(self._endpoint, done)
        self.dials.add(dial)

    def _on_dialled(self, stream: ByteStream) -> None:
        upstreams = self._upstreams
        kind = upstreams.settings.codec
        connection: HttpConnection
        if self._is_http2:
            h2 = http2.make_codec(Role.CLIENT, SETTINGS, kind)
            connection = Http2Connection(upstreams.reactor, stream, h2, self, is_server=False)
        else:
            h1 = http1.make_codec(Role.CLIENT, _HTTP1, kind)
            connection = Http1Connection(upstreams.reactor, stream, h1, self, is_server=False)
            self._free.append(connection)
        self.connections[connection] = 0
        connection.start()
        self._serve()

    def _on_dial_failed(self, error: MeshError) -> None:
        cause = Cause.CONNECT_TIMEOUT if isinstance(error, _TIMEOUTS) else Cause.CONNECT_FAILURE
        failure = Failure(cause, str(error))
        # Each waiting request had a dial of its own over HTTP/1.1, all had this one over HTTP/2.
        count = len(self.waiting) if self._is_http2 else max(len(self.waiting) - len(self.dials), 0)
        for _ in range(count):
            if self.waiting:
                self.waiting.popleft().on_connect_failed(failure)

    def sweep(self, limit: float) -> None:
        for connection in list(self.connections):
            if connection.users:
                if isinstance(connection, Http2Connection):
                    connection.keep_alive()
            elif connection.last_active <= limit:
                self._forget(connection)
                connection.close()

    def close(self) -> None:
        for dial in self.dials:
            dial.cancel()
        self.dials.clear()
        failure = Failure(Cause.CONNECT_FAILURE, "the waypoint ends")
        while self.waiting:
            self.waiting.popleft().on_connect_failed(failure)
        for connection in list(self.connections):
            connection.abort(None, Failure(Cause.CLOSED, "the waypoint ends"))

    def _forget(self, connection: HttpConnection) -> None:
        self.connections.pop(connection, None)
        if connection in self._free:
            self._free.remove(connection)

    # ConnectionOwner

    def on_request(
        self, connection: HttpConnection, stream_id: int, headers: list[Header], end_stream: bool
    ) -> None: ...  # a late response to what nobody waits for

    def on_rejected(self, connection: HttpConnection, status: int, reason: str) -> None: ...

    def on_room(self, connection: HttpConnection) -> None:
        limit = self._upstreams.settings.max_requests
        if limit and self.connections.get(connection, 0) >= limit:
            self._forget(connection)
            connection.drain()
            self._serve()
            return
        if not self._is_http2 and connection in self.connections:
            self._free.append(connection)
        if self.waiting:
            self._serve()

    def on_unusable(self, connection: HttpConnection) -> None:
        self._forget(connection)
        if self.waiting:
            self._serve()

    def on_closed(self, connection: HttpConnection, error: MeshError | None) -> None:  # noqa: ARG002
        self._forget(connection)
        if self.waiting:
            self._dial()
