"""Byte streams to endpoints: a plain connect, or a tunnel to the endpoint's node proxy.

`done` is called exactly once, later and never from inside `dial`, unless the dial was cancelled.
"""

from __future__ import annotations

import abc
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transport.errors import MeshError
from transport.hbone.connect import Headers, RequestTemplate, new_traceparent, socket_text
from transport.hbone.pool import HbonePool, PoolKey
from transport.hbone.tunnel import TunnelStream
from transport.reactor import Reactor, Registration, Timer
from transport.sockets import finish_connect, set_keepalive, start_connect
from transport.spiffe import SpiffeId
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.errors import ConnectTimeout, PlaintextRefused, StreamBroken
from waypoint.worker.tcp_stream import TcpStream
from waypoint.worker.tunnel_stream import TunnelByteStream

HBONE_PORT = 15008
DialDone = Callable[[ByteStream | MeshError], None]


class Dial(Protocol):
    """A connect under way."""

    def cancel(self) -> None:
        """Give it up; `done` is not called any more."""


class Dialler(Protocol):
    """Makes byte streams to endpoints."""

    def dial(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        """`application`: what will be spoken over the stream; None: it is no HTTP, or nobody knows."""


class Carrier(abc.ABC):
    """A dialler that speaks no TLS to endpoints. `dial` refuses those that want it, however diallers are put
    together; `carry` is for who speaks TLS over the stream.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor

    def dial(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        """Implements Dialler."""
        if endpoint.tls is not None:
            return _Refusal(self.reactor, endpoint, done)
        return self.carry(endpoint, done, application)

    @abc.abstractmethod
    def carry(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        """As `dial`; for an endpoint that wants TLS, the caller promises to write nothing but TLS."""


class _Refusal:
    """Implements Dial."""

    __slots__ = ("_done",)

    def __init__(self, reactor: Reactor, endpoint: Endpoint, done: DialDone) -> None:
        self._done: DialDone | None = done
        error = PlaintextRefused(f"{socket_text(*endpoint.address)} is to be spoken to in TLS")
        reactor.call_soon(lambda: self._tell(error))

    def _tell(self, error: MeshError) -> None:
        if self._done is not None:
            self._done(error)

    def cancel(self) -> None:
        self._done = None


class TcpDialler(Carrier):
    """Plain TCP, for endpoints outside of the mesh."""

    def __init__(self, reactor: Reactor, buffer: memoryview, *, connect_timeout_s: float = 10.0) -> None:
        super().__init__(reactor)
        self._buffer = buffer
        self._connect_timeout_s = connect_timeout_s

    def carry(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:  # noqa: ARG002 - the seam's
        circuit = endpoint.circuit
        timeout_s = self._connect_timeout_s if circuit is None else circuit.pool.connect_timeout_s
        return _TcpDial(self.reactor, self._buffer, endpoint, timeout_s, done)


class _TcpDial:
    __slots__ = ("_buffer", "_done", "_endpoint", "_reactor", "_registration", "_sock", "_timer")

    def __init__(
        self, reactor: Reactor, buffer: memoryview, endpoint: Endpoint, timeout_s: float, done: DialDone
    ) -> None:
        self._reactor = reactor
        self._buffer = buffer
        self._endpoint = endpoint
        self._done: DialDone | None = done
        self._sock: socket.socket | None = None
        self._registration: Registration | None = None
        self._timer: Timer | None = None
        try:
            self._sock, _ = start_connect(endpoint.address)
        except MeshError as failure:
            error = failure
            reactor.call_soon(lambda: self._tell(error))
            return
        self._registration = reactor.register(
            self._sock.fileno(), self._on_ready, self._on_ready, reading=False
        )
        self._registration.want_write(True)
        self._timer = reactor.call_later(timeout_s, self._on_timeout)

    def _on_ready(self) -> None:
        self._stop()
        sock, self._sock = self._sock, None
        assert sock is not None
        try:
            finish_connect(sock, self._endpoint.address)
        except MeshError as error:
            sock.close()
            self._tell(error)
            return
        circuit = self._endpoint.circuit
        keepalive = None if circuit is None else circuit.pool.keepalive
        if keepalive is not None:
            set_keepalive(sock, keepalive.idle_s, keepalive.interval_s, keepalive.probes)
        self._tell(TcpStream(self._reactor, sock, self._buffer))

    def _on_timeout(self) -> None:
        self.cancel_quietly()
        host, port = self._endpoint.address
        self._tell(ConnectTimeout(f"no connection to {socket_text(host, port)} in time"))

    def _tell(self, result: ByteStream | MeshError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _stop(self) -> None:
        if self._registration is not None:
            self._registration.close()
        if self._timer is not None:
            self._timer.cancel()

    def cancel_quietly(self) -> None:
        self._stop()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def cancel(self) -> None:
        self._done = None
        self.cancel_quietly()


@dataclass(slots=True)
class TunnelOrigin:
    """As whom tunnels are asked for. `baggage` becomes known with the address book."""

    identity: SpiffeId
    address: str
    baggage: bytes = b""


class MeshDialler(Carrier):
    """Tunnels where an endpoint has identities, plain TCP where it has none."""

    def __init__(
        self, pool: HbonePool, origin: TunnelOrigin, plain: TcpDialler, *, peer_port: int = HBONE_PORT
    ) -> None:
        super().__init__(pool.reactor)
        self._pool = pool
        self._origin = origin
        self._plain = plain
        self._peer_port = peer_port

    def carry(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        if not endpoint.identities:
            return self._plain.carry(endpoint, done, application)
        peer = endpoint.hbone_address or (endpoint.address[0], self._peer_port)
        return _TunnelDial(self._pool, self._origin, endpoint, peer, done)


class _TunnelDial:
    """Implements PooledRequest."""

    def __init__(
        self,
        pool: HbonePool,
        origin: TunnelOrigin,
        endpoint: Endpoint,
        peer: tuple[str, int],
        done: DialDone,
    ) -> None:
        self._pool = pool
        self._done: DialDone | None = done
        host, port = endpoint.address
        self._target = socket_text(host, port)
        template = RequestTemplate(self._target, baggage=origin.baggage)
        self.headers: Headers = template.headers(origin.address, 0, new_traceparent())
        self.tunnel: TunnelStream | None = None
        self.repeats = 0
        self._key = PoolKey(origin.identity, endpoint.identities, peer, origin.address)
        self._timer: Timer | None = None
        if endpoint.circuit is not None:
            self._timer = pool.reactor.call_later(endpoint.circuit.pool.connect_timeout_s, self._on_timeout)
        pool.reactor.call_soon(self._begin)

    def _begin(self) -> None:
        if self._done is not None:
            self._pool.open(self._key, self)

    def cancel(self) -> None:
        self._stop_timer()
        if self._done is not None:
            self._done = None
            self._pool.cancel(self._key, self)

    def _on_timeout(self) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(ConnectTimeout(f"no tunnel for {self._target} in time"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, result: ByteStream | MeshError) -> None:
        self._stop_timer()
        done, self._done = self._done, None
        if done is not None:
            done(result)

    # PooledRequest

    def on_tunnel_open(self, tunnel: TunnelStream, headers: Headers) -> None:  # noqa: ARG002 - the seam's
        self._tell(TunnelByteStream(tunnel))

    def on_tunnel_failed(self, error: MeshError) -> None:
        if self._done is not None and not self._pool.repeat(self._key, self, error):
            self._tell(error)

    def on_tunnel_data(self, chunks: Sequence[memoryview], flow_bytes: int) -> None:  # noqa: ARG002
        if self.tunnel is not None:
            self.tunnel.consumed(flow_bytes)

    def on_tunnel_end(self) -> None: ...

    def on_tunnel_writable(self) -> None: ...

    def on_tunnel_reset(self, error: MeshError | None) -> None:
        self._tell(error or StreamBroken("the tunnel was given up before it was used"))
