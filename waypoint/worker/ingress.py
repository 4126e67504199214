"""Port 15008: clients' tunnels, each a byte stream for the proxy. Identities are the certificates'."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Final

from transport.errors import MeshError
from transport.hbone.connect import ConnectRequest, MalformedRequest
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


class HboneIngress:
    """Implements HboneServerHandler for all of one listener's connections."""

    def __init__(
        self,
        reactor: Reactor,
        proxy: Proxy,
        resolve: Resolve,
        *,
        buffer: FrameBuffer,
        settings: HboneSettings | None = None,
    ) -> None:
        self._reactor = reactor
        self._proxy = proxy
        self._resolve = resolve
        self._buffer = buffer
        self._settings = settings or HboneSettings(max_peer_streams=100)  # waypoint-facts 1.1
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
        destination = parse_destination(request.authority)
        if destination is None:
            tunnel.refuse(plain_headers(400))
            return
        declared = self._resolve(destination)
        if declared is None:
            tunnel.refuse(plain_headers(404))
            return
        assert isinstance(connection, HboneServerConnection)
        is_ended = tunnel.is_remote_ended
        tunnel.accept(plain_headers(200))
        source = Source(connection.pump.peer_address, destination, connection.identity)
        stream = TunnelByteStream(tunnel)
        self._proxy.accept(stream, source, declared)
        if is_ended:
            stream.on_tunnel_end()

    def on_bad_request(self, connection: HboneServerConnection, request: MalformedRequest) -> None: ...

    def on_closed(self, connection: HboneServerConnection, error: MeshError | None) -> None:  # noqa: ARG002
        self._connections.discard(connection)
