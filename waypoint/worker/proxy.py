"""The proxy core: takes byte streams from clients and sees each through to its end.

A stream begins with its protocol: declared, or told by its first bytes (sniff.py). HTTP becomes a server
connection whose requests become exchanges; the rest is relayed. Owner of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from transport.errors import MeshError
from transport.http1 import codec as http1
from transport.http1.settings import Http1Settings
from transport.http2 import codec as http2
from transport.http2.events import Header
from transport.http2.settings import Role
from transport.http_path import PathNormalization
from transport.reactor import Reactor, Timer
from waypoint.limits import RequestLimits
from waypoint.worker.body_pipe import ReplayBudget
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.codec_details import codec_details
from waypoint.worker.dial import Dialler
from waypoint.worker.exchange import Exchange
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.grpc_messages import CallMessages
from waypoint.worker.headers import Request
from waypoint.worker.http1_connection import Http1Connection
from waypoint.worker.http2_connection import SETTINGS, Http2Connection
from waypoint.worker.http_connection import HttpConnection
from waypoint.worker.plan import Decider, Declared, Source
from waypoint.worker.shadow import Shadow
from waypoint.worker.sniff import Verdict, sniff
from waypoint.worker.tcp_exchange import TcpExchange
from waypoint.worker.tracing import Trace
from waypoint.worker.upstreams import Upstreams

_SWEEP_S = 5.0
_ENDING = Failure(Cause.CLOSED, "the waypoint ends")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What the core is told at birth."""

    idle_s: float = 3600.0  # a client's connection without a request (waypoint-facts 4)
    codec: http1.CodecKind = "lean"
    replay_bytes: int = 64 << 20  # of bodies kept for another try, all requests together
    normalization: PathNormalization = PathNormalization.BASE
    limits: RequestLimits = field(default_factory=RequestLimits)


class Observer(Protocol):
    """Who counts and logs."""

    def on_call(self, exchange: Exchange) -> CallMessages | None:
        """A gRPC call has begun: what counts its messages, if anybody wants to know."""

    def on_exchange(self, exchange: Exchange, source: Source) -> None:
        """An exchange is over: see its `request` and `outcome`."""

    def on_rejected(self, source: Source, status: int, reason: str, details: str) -> None:
        """A codec turned a request away before it was one, for its `reason`; `details` is Envoy's word."""

    def on_tcp_open(self, exchange: TcpExchange, source: Source) -> None:
        """A relay begins: `exchange.outcome` says where to."""

    def on_tcp(self, exchange: TcpExchange, source: Source) -> None:
        """It is over, or could not be made: see its `outcome`."""


class Tracer(Protocol):
    """Who gives requests their place in a trace."""

    def begin(self, request: Request, source: Source) -> Trace | None:
        """Before anything is decided: the request's headers get their context. None: it is not traced."""


class Nobody:
    """An observer that looks away."""

    def on_call(self, exchange: Exchange) -> CallMessages | None: ...

    def on_exchange(self, exchange: Exchange, source: Source) -> None: ...

    def on_rejected(self, source: Source, status: int, reason: str, details: str) -> None: ...

    def on_tcp_open(self, exchange: TcpExchange, source: Source) -> None: ...

    def on_tcp(self, exchange: TcpExchange, source: Source) -> None: ...


class Proxy:
    """One worker's L7 proxy. Runs on the reactor's thread."""

    def __init__(
        self,
        reactor: Reactor,
        decider: Decider,
        dialler: Dialler,
        upstreams: Upstreams,
        *,
        settings: ProxySettings | None = None,
        observer: Observer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.reactor = reactor
        self.decider = decider
        self.dialler = dialler
        self.upstreams = upstreams
        self.settings = settings or ProxySettings()
        self.normalization = self.settings.normalization
        self.limits = limits = self.settings.limits
        self._http1 = Http1Settings(max_head=limits.max_head_bytes, max_header_count=limits.max_header_count)
        self._http2 = replace(
            SETTINGS, max_header_list=limits.max_head_bytes, max_header_count=limits.max_header_count
        )
        self.observer: Observer = observer or Nobody()
        self.tracer = tracer
        self.connections: dict[HttpConnection, None] = {}
        self.relays: dict[object, Callable[[], None]] = {}  # sniffers and relays -> how to end them
        self.shadows: dict[Shadow, None] = {}
        self.replay_budget = ReplayBudget(self.settings.replay_bytes)
        self._sweep_s = min(_SWEEP_S, limits.head_time_s / 2)
        self._is_draining = False
        self._sweep_timer: Timer | None = None

    def accept(
        self, stream: ByteStream, source: Source, declared: Declared = Declared.DETECT, first: bytes = b""
    ) -> None:
        """Serve a client's stream; the proxy owns it from now on."""
        if declared is Declared.TCP:
            self.relay(stream, source, first)
        else:
            _Sniffer(self, stream, source, declared).start(first)

    def serve_http(
        self, stream: ByteStream, source: Source, *, is_http2: bool, first: bytes | bytearray = b""
    ) -> HttpConnection:
        """Serve HTTP of a known version."""
        connection: HttpConnection
        kind = self.settings.codec
        if is_http2:
            h2 = http2.make_codec(Role.SERVER, self._http2, kind)
            connection = Http2Connection(self.reactor, stream, h2, self, is_server=True)
        else:
            h1 = http1.make_codec(Role.SERVER, self._http1, kind)
            connection = Http1Connection(self.reactor, stream, h1, self, is_server=True)
        connection.source = source
        self.connections[connection] = None
        if self._sweep_timer is None:
            self._sweep_timer = self.reactor.call_later(self._sweep_s, self._sweep)
        connection.start(first)
        if self._is_draining:
            connection.drain()
        return connection

    def relay(self, stream: ByteStream, source: Source, first: bytes | bytearray = b"") -> None:
        """Pass a stream through as it is."""
        exchange = TcpExchange(self, stream, source)
        self.relays[exchange] = exchange.abort
        exchange.start(first)

    def drain(self) -> None:
        """Take no more requests on open connections; they close after those under way."""
        self._is_draining = True
        for connection in list(self.connections):
            connection.drain()

    def close(self) -> None:
        """End everything at once."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for end in list(self.relays.values()):
            end()
        self.relays.clear()
        for connection in list(self.connections):
            for user in list(connection.users.values()):
                user.on_reset(_ENDING)
            connection.close()
        for shadow in list(self.shadows):
            shadow.cancel()
        self.upstreams.close()

    def on_exchange_over(self, exchange: Exchange) -> None:
        self.observer.on_exchange(exchange, exchange.source)

    def on_tcp_over(self, exchange: TcpExchange, source: Source) -> None:
        self.relays.pop(exchange, None)
        self.observer.on_tcp(exchange, source)

    def _sweep(self) -> None:
        self._sweep_timer = None
        limit = self.reactor.now - self.settings.idle_s
        for connection in list(self.connections):
            if isinstance(connection, Http2Connection) and connection.users:
                connection.keep_alive()
            elif isinstance(connection, Http1Connection) and connection.head_began_at is not None:
                connection.time_out_head(self.limits.head_time_s)
            elif not connection.users and connection.last_active <= limit:
                connection.drain()
        if self.connections:
            self._sweep_timer = self.reactor.call_later(self._sweep_s, self._sweep)

    # ConnectionOwner

    def on_request(
        self, connection: HttpConnection, stream_id: int, headers: list[Header], end_stream: bool
    ) -> None:
        exchange = Exchange(self, connection, stream_id)
        connection.users[stream_id] = exchange
        exchange.begin(headers, end_stream)

    def on_rejected(self, connection: HttpConnection, status: int, reason: str) -> None:
        is_http2 = isinstance(connection, Http2Connection)
        self.observer.on_rejected(connection.source, status, reason, codec_details(reason, is_http2=is_http2))

    def on_room(self, connection: HttpConnection) -> None: ...

    def on_unusable(self, connection: HttpConnection) -> None: ...

    def on_closed(self, connection: HttpConnection, error: MeshError | None) -> None:  # noqa: ARG002
        self.connections.pop(connection, None)


class _Sniffer:
    """Reads the first bytes of a stream, until they say what follows."""

    def __init__(self, proxy: Proxy, stream: ByteStream, source: Source, declared: Declared) -> None:
        self._proxy = proxy
        self._stream = stream
        self._source = source
        self._is_http_declared = declared is Declared.HTTP
        self._first = bytearray()
        self._timer: Timer | None = None
        proxy.relays[self] = self._give_up

    def start(self, first: bytes) -> None:
        self._stream.start(self)
        if first:
            self.on_data(memoryview(first))

    def _give_up(self) -> None:
        self._is_over()
        self._stream.abort()

    def on_data(self, data: memoryview) -> None:
        self._first += data
        if self._timer is None:
            limit_s = self._proxy.limits.head_time_s
            self._timer = self._proxy.reactor.call_later(limit_s, self._judge_by_declaration)
        self._judge(sniff(self._first, is_http_declared=self._is_http_declared))

    def _judge(self, verdict: Verdict) -> None:
        if verdict is Verdict.MORE:
            return
        proxy = self._proxy
        self._is_over()
        if verdict is Verdict.TCP:
            self._stream.pause()
            proxy.relay(self._stream, self._source, self._first)
        else:
            is_http2 = verdict is Verdict.HTTP2
            proxy.serve_http(self._stream, self._source, is_http2=is_http2, first=self._first)

    def on_eof(self) -> None:
        if self._first:
            self._judge_by_declaration()
            return
        self._is_over()
        self._stream.close()

    def _judge_by_declaration(self) -> None:
        """There will be no more bytes to judge by, or too late."""
        self._judge(Verdict.HTTP1 if self._is_http_declared else Verdict.TCP)

    def _is_over(self) -> None:
        self._proxy.relays.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def on_drained(self) -> None: ...

    def on_lost(self, error: MeshError | None) -> None:  # noqa: ARG002 - nothing was begun
        self._is_over()
