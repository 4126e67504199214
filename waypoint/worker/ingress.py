"""Port 15008: clients' tunnels, each a byte stream for the proxy. Identities are the certificates'."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from transport.errors import MeshError
from transport.hbone.connect import ConnectRequest, MalformedRequest, socket_text
from transport.hbone.connection import HboneSettings, plain_headers
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.server import HboneServerConnection, ServerTrust
from transport.hbone.tunnel import TunnelStream
from transport.reactor import Reactor
from waypoint.worker.plan import Declared, Source
from waypoint.worker.proxy import Proxy
from waypoint.worker.tunnel_stream import TunnelByteStream

_AUTHORITY: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})").fullmatch

# What a destination speaks, or None: it is not one of ours, and the tunnel is refused.
Resolve = Callable[[tuple[str, int]], Declared | None]


def parse_destination(authority: bytes) -> tuple[str, int] | None:
    """`IP:port` in canonical text; None for anything else."""
    found = _AUTHORITY(authority)
    if found is None:
        return None
    try:
        address = ipaddress.ip_address((found[1] or found[2]).decode())
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    port = int(found[3])
    return (str(mapped or address), port) if 0 < port < 65_536 else None


class IngressObserver(Protocol):
    """Who hears of clients that get nowhere."""

    def on_refused(self, peer: tuple[str, int], status: int, reason: str) -> None:
        """A request for a tunnel was answered with an error."""

    def on_failed_handshake(self, peer: tuple[str, int], error: MeshError) -> None:
        """A client did not become one."""


class HboneIngress:
    """Implements HboneServerHandler for all of one listener's connections.

    `may_take_on` is asked for each tunnel; where it says no, the answer is 503.
    """

    def __init__(
        self,
        reactor: Reactor,
        proxy: Proxy,
        resolve: Resolve,
        *,
        buffer: FrameBuffer,
        settings: HboneSettings | None = None,
        observer: IngressObserver | None = None,
        may_take_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._reactor = reactor
        self._proxy = proxy
        self._resolve = resolve
        self._buffer = buffer
        self._settings = settings or HboneSettings(max_peer_streams=100)  # waypoint-facts 1.1
        self._observer = observer
        self._may_take_on = may_take_on
        self._connections: set[HboneServerConnection] = set()
        self._is_draining = False

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def accept(self, sock: socket.socket, trust: ServerTrust) -> None:
        """Serve an accepted connection; owns `sock`."""
        connection = HboneServerConnection(
            self._reactor, sock, trust, self, buffer=self._buffer, settings=self._settings
        )
        self._connections.add(connection)
        if self._is_draining:
            connection.drain()

    def drain(self) -> None:
        """GOAWAY to all; they close when their tunnels have ended."""
        self._is_draining = True
        for connection in list(self._connections):
            connection.drain()

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close()

    # HboneServerHandler

    def on_established(self, connection: HboneServerConnection) -> None: ...

    def on_request(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        connection = tunnel.connection
        assert isinstance(connection, HboneServerConnection)
        destination = parse_destination(request.authority)
        declared = None if destination is None else self._resolve(destination)
        if destination is None:
            self._refuse(tunnel, 400, f"{request.authority!r} is no address and port")
            return
        if declared is None:
            self._refuse(tunnel, 404, f"{request.authority.decode()} is not served here")
            return
        if not self._may_take_on():
            self._refuse(tunnel, 503, "the worker holds as much memory as it may")
            return
        is_ended = tunnel.is_remote_ended
        tunnel.accept(plain_headers(200))
        source = Source(connection.pump.peer_address, destination, connection.identity)
        stream = TunnelByteStream(tunnel)
        self._proxy.accept(stream, source, declared)
        if is_ended:
            stream.on_tunnel_end()

    def _refuse(self, tunnel: TunnelStream, status: int, reason: str) -> None:
        tunnel.refuse(plain_headers(status))
        if self._observer is not None:
            self._observer.on_refused(tunnel.connection.pump.peer_address, status, reason)

    def on_bad_request(self, connection: HboneServerConnection, request: MalformedRequest) -> None:
        if self._observer is not None:
            self._observer.on_refused(connection.pump.peer_address, request.status, request.reason)

    def on_closed(self, connection: HboneServerConnection, error: MeshError | None) -> None:
        self._connections.discard(connection)
        if error is not None and not connection.is_established and self._observer is not None:
            self._observer.on_failed_handshake(connection.pump.peer_address, error)

    def describe(self, limit: int) -> list[dict[str, object]]:
        """The first `limit` connections, for a person."""
        return [
            {
                "peer": socket_text(*connection.pump.peer_address),
                "identity": str(connection.identity) if connection.is_established else None,
                "tunnels": len(connection.streams),
                "isDraining": connection.is_draining,
            }
            for connection in islice(self._connections, limit)
        ]
