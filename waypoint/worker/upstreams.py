"""Pooled HTTP connections to endpoints: HTTP/1.1 ones are lent whole, HTTP/2 ones by the stream.

Decide synchronously, act later, as the HBONE pool does: `acquire` hands a connection over at once if one has
room, else the request waits, and dials are under way: one for each waiting request over HTTP/1.1, one at a
time over HTTP/2. Who waits is served by a dial or by a connection that gets free, whichever comes first.

Bounds for each endpoint: `max_connections`, then requests wait; `max_waiting`, then Cause.OVERFLOW;
`idle_s` for unused connections. An endpoint's circuit has its cluster's own limits besides: connections of
all its endpoints (but each may have one), waiting requests, requests and streams on a connection, and the
idle time in place of ours.
"""

from __future__ import annotations

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
from waypoint.state.destinations import UNLIMITED
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.dial import Dial, Dialler
from waypoint.worker.errors import ConnectTimeout, EndpointTlsFailed, NameNotResolved
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.http1_connection import Http1Connection
from waypoint.worker.http2_connection import SETTINGS, Http2Connection
from waypoint.worker.http_connection import HttpConnection

_SWEEP_S = 5.0
_HTTP1 = Http1Settings()
_TIMEOUTS = (ConnectTimeout, ConnectTimedOut)
_ENDING = Failure(Cause.CONNECT_FAILURE, "the waypoint ends")


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The worker's own limits, for each endpoint."""

    idle_s: float = 3600.0
    max_connections: int = 4096
    max_waiting: int = 10_000
    codec: http1.CodecKind = "lean"


class Waiter(Protocol):
    """Who wants a connection. Hashed by identity."""

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
        self._hosts: dict[Application, dict[Endpoint, _Host]] = {kind: {} for kind in Application}
        self._sweep_timer: Timer | None = None
        self._is_closed = False

    def acquire(self, endpoint: Endpoint, application: Application, waiter: Waiter) -> None:
        """Get `waiter` a connection that speaks `application`; it hears now or later."""
        host = self._hosts[application].get(endpoint)
        if host is None:
            if self._is_closed:
                waiter.on_connect_failed(_ENDING)
                return
            host = self._hosts[application][endpoint] = _Host(self, endpoint, application)
            if self._sweep_timer is None:
                self._sweep_timer = self.reactor.call_later(_SWEEP_S, self._sweep)
        host.acquire(waiter)

    def cancel(self, endpoint: Endpoint, application: Application, waiter: Waiter) -> None:
        """Withdraw a waiter; it hears nothing more."""
        host = self._hosts[application].get(endpoint)
        if host is not None:
            host.cancel(waiter)

    def drain(self, endpoint: Endpoint) -> None:
        """Nothing new goes there: unused connections close, the others when their requests have ended.

        Whoever has chosen the endpoint before still gets a connection.
        """
        for hosts in self._hosts.values():
            host = hosts.get(endpoint)
            if host is not None:
                host.drain()

    @property
    def open_connections(self) -> int:
        return sum(len(host.connections) + len(host.retiring) for host in self._all())

    @property
    def waiting_requests(self) -> int:
        return sum(host.waiting_requests for host in self._all())

    def close(self) -> None:
        """Close all; who waits and who has a stream is told."""
        self._is_closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for host in self._all():
            host.close()
        for hosts in self._hosts.values():
            hosts.clear()

    def _all(self) -> list[_Host]:
        return [host for hosts in self._hosts.values() for host in hosts.values()]

    def _sweep(self) -> None:
        self._sweep_timer = None
        for hosts in self._hosts.values():
            for endpoint, host in list(hosts.items()):
                host.sweep()
                if host.is_unused:
                    del hosts[endpoint]
        if any(self._hosts.values()) and not self._is_closed:
            self._sweep_timer = self.reactor.call_later(_SWEEP_S, self._sweep)


class _Host:
    """The connections to one endpoint that speak one protocol. Owner of them."""

    def __init__(self, upstreams: Upstreams, endpoint: Endpoint, application: Application) -> None:
        self._upstreams = upstreams
        self._endpoint = endpoint
        self._circuit = endpoint.circuit
        self._application = application
        self._is_http2 = application is Application.HTTP2
        self.connections: dict[HttpConnection, int] = {}  # -> requests so far
        self.retiring: set[HttpConnection] = set()  # closing after the requests they have
        self._free: list[HttpConnection] = []  # HTTP/1.1, the latest used last
        self._waiting: dict[Waiter, None] = {}
        self._dials: set[Dial] = set()
        self._is_draining = False

    @property
    def is_unused(self) -> bool:
        return not (self.connections or self.retiring or self._waiting or self._dials)

    @property
    def waiting_requests(self) -> int:
        return len(self._waiting)

    def acquire(self, waiter: Waiter) -> None:
        self._is_draining = False
        if not self._waiting:
            connection = self._find()
            if connection is not None:
                self._hand(connection, waiter)
                return
        if len(self._waiting) >= self._upstreams.settings.max_waiting or not self._may_wait():
            waiter.on_connect_failed(Failure(Cause.OVERFLOW))
            return
        self._waiting[waiter] = None
        self._dial()

    def _may_wait(self) -> bool:
        return self._circuit is None or self._circuit.may_wait()

    def cancel(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self._remove(waiter)

    def _remove(self, waiter: Waiter) -> None:
        del self._waiting[waiter]
        if self._circuit is not None:
            self._circuit.end_wait()

    def _next(self) -> Waiter:
        waiter = next(iter(self._waiting))
        self._remove(waiter)
        return waiter

    def _find(self) -> HttpConnection | None:
        if self._is_http2:
            limit = UNLIMITED if self._circuit is None else self._circuit.pool.maximum_streams
            for connection in self.connections:
                if connection.has_room and len(connection.users) < limit:
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
        served = self.connections[connection] = self.connections[connection] + 1
        if self._circuit is not None and self._circuit.is_used_up(served):
            self._retire(connection)
        waiter.on_connection(connection)

    def _retire(self, connection: HttpConnection) -> None:
        """Give it no more requests; it closes after those that it has."""
        self._forget(connection)
        self.retiring.add(connection)

    def _serve(self) -> None:
        while self._waiting:
            connection = self._find()
            if connection is None:
                self._dial()
                return
            self._hand(connection, self._next())
        if self._is_draining:
            self.drain()

    def _dial(self) -> None:
        wanted = min(len(self._waiting), 1) if self._is_http2 else len(self._waiting)
        room = self._upstreams.settings.max_connections - len(self.connections)
        circuit = self._circuit
        while len(self._dials) < min(wanted, room):
            if circuit is not None:
                is_first = not self.connections and not self._dials
                if not circuit.may_connect(is_first=is_first):
                    return
            self._dial_once()

    def _dial_once(self) -> None:
        def done(result: ByteStream | MeshError) -> None:
            self._dials.discard(dial)
            if isinstance(result, MeshError):
                self._end_connection()
                self._on_dial_failed(result)
            else:
                self._on_dialled(result)

        dial = self._upstreams.dialler.dial(self._endpoint, done, self._application)
        self._dials.add(dial)

    def _end_connection(self) -> None:
        if self._circuit is not None:
            self._circuit.end_connection()

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
        if isinstance(error, NameNotResolved):
            cause = Cause.NAME
        transport = error.text if isinstance(error, EndpointTlsFailed) else ""
        failure = Failure(cause, str(error), transport=transport)
        # Each waiting request had a dial of its own over HTTP/1.1, all had this one over HTTP/2.
        count = len(self._waiting) if self._is_http2 else max(len(self._waiting) - len(self._dials), 0)
        for _ in range(count):
            if self._waiting:
                self._next().on_connect_failed(failure)

    def sweep(self) -> None:
        upstreams = self._upstreams
        idle_s = upstreams.settings.idle_s if self._circuit is None else self._circuit.pool.http_idle_s
        limit = upstreams.reactor.now - idle_s
        for connection in [*self.connections, *self.retiring]:
            if connection.users:
                if isinstance(connection, Http2Connection):
                    connection.keep_alive()
            elif connection.last_active <= limit:
                self._forget(connection)
                connection.close()

    def drain(self) -> None:
        """Close what is unused now, and the rest when its requests have ended."""
        self._is_draining = True
        if self._waiting:
            return
        for connection in list(self.connections):
            self._retire(connection)
            if not connection.users:
                connection.close()

    def close(self) -> None:
        for dial in self._dials:
            dial.cancel()
            self._end_connection()
        self._dials.clear()
        while self._waiting:
            self._next().on_connect_failed(_ENDING)
        for connection in [*self.connections, *self.retiring]:
            connection.abort(None, Failure(Cause.CLOSED, _ENDING.text))

    def _forget(self, connection: HttpConnection) -> None:
        if self.connections.pop(connection, None) is not None:
            self._end_connection()
        if connection in self._free:
            self._free.remove(connection)

    # ConnectionOwner

    def on_request(
        self, connection: HttpConnection, stream_id: int, headers: list[Header], end_stream: bool
    ) -> None: ...  # a late response to what nobody waits for

    def on_rejected(self, connection: HttpConnection, status: int, reason: str) -> None: ...

    def on_room(self, connection: HttpConnection) -> None:
        if connection in self.retiring:
            if not connection.users:
                connection.close()
            return
        if not self._is_http2 and connection in self.connections:
            self._free.append(connection)
        if self._waiting or self._is_draining:
            self._serve()

    def on_unusable(self, connection: HttpConnection) -> None:
        if connection in self.connections:
            self._retire(connection)
        if self._waiting:
            self._serve()

    def on_closed(self, connection: HttpConnection, error: MeshError | None) -> None:  # noqa: ARG002
        self._forget(connection)
        self.retiring.discard(connection)
        if self._waiting:
            self._dial()
