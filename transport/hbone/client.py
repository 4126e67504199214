"""The client's end of an HBONE connection: asks for tunnels."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from OpenSSL import SSL

from transport.errors import MeshError
from transport.hbone.connect import Headers, response_status
from transport.hbone.connection import HboneConnection, HboneSettings
from transport.hbone.errors import (
    MalformedTunnelResponse,
    TunnelRefused,
    TunnelReset,
    TunnelTimeout,
    TunnelUnprocessed,
)
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.tunnel import ClientTunnelHandler, TunnelStream
from transport.http2.codec import make_codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import GoAwayReceived, HeadersReceived
from transport.http2.settings import Http2Settings, Role
from transport.reactor import Reactor
from transport.spiffe import SpiffeId
from transport.tls.errors import PeerRejected
from transport.tls.peer import PeerCertificate
from transport.tls.pump import TlsPump


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """Whom the client presents itself as (`context`) and whom it accepts: any one of `expected`, exactly."""

    context: SSL.Context
    expected: tuple[SpiffeId, ...]

    def verify(self, peer: PeerCertificate) -> None:
        """ztunnel-facts 2.1: one SPIFFE SAN of the peer must be expected; expecting nobody accepts nobody."""
        if not set(peer.spiffe_ids).intersection(self.expected):
            raise PeerRejected(
                f"identity verification error: the peer presented {_names(peer.spiffe_ids)}, "
                f"expected {_names(self.expected)}"
            )


def _names(identities: Sequence[SpiffeId]) -> str:
    return "[" + ", ".join(str(identity) for identity in identities) + "]"


class ConnectionObserver:
    """What the owner of client connections (the pool) is told; a derived class overrides what it wants."""

    __slots__ = ()

    def on_established(self, connection: HboneClientConnection) -> None:
        """TLS is up and the peer is who it should be: tunnels may be opened."""

    def on_stream_over(self, connection: HboneClientConnection) -> None:
        """A tunnel ended, or the peer's limits changed: there may be room for another."""

    def on_unusable(self, connection: HboneClientConnection) -> None:
        """The peer takes no new tunnels (GOAWAY). Open ones go on."""

    def on_closed(self, connection: HboneClientConnection, error: MeshError | None) -> None:
        """Last call: the socket is closed."""


class HboneClientConnection(HboneConnection):
    """One connection to one peer; `sock` is connected or connecting and belongs to it."""

    __slots__ = ("_observer", "_opening", "_trust", "is_usable", "max_streams")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        trust: ClientTrust,
        observer: ConnectionObserver,
        *,
        buffer: FrameBuffer,
        settings: HboneSettings,
    ) -> None:
        super().__init__(
            reactor, make_codec(Role.CLIENT, _client_settings(settings), settings.codec), buffer, settings
        )
        self._observer = observer
        self._trust = trust
        # By stream: when its request was made and who waits for the answer; oldest first.
        self._opening: dict[int, tuple[float, ClientTunnelHandler]] = {}
        self.is_usable = False
        self.max_streams = settings.assumed_peer_streams
        self.pump = TlsPump(
            reactor,
            sock,
            trust.context,
            self,
            is_server=False,
            verify=trust.verify,
            handshake_timeout_s=settings.handshake_timeout_s,
        )

    @property
    def open_streams(self) -> int:
        return len(self.streams)

    @property
    def has_room(self) -> bool:
        """Whether one more tunnel may be opened now."""
        return (
            self.is_usable
            and len(self.streams) < self.max_streams
            and self.codec.open_streams < self.max_streams
        )

    def open_tunnel(self, headers: Headers, handler: ClientTunnelHandler) -> TunnelStream:
        """Ask for a tunnel; the answer comes to `handler`. Raises StreamLimitReached or GoingAway."""
        stream_id = self.codec.open_stream(headers)
        tunnel = TunnelStream(self, stream_id, handler)
        self.streams[stream_id] = tunnel
        self._opening[stream_id] = (self.reactor.now, handler)
        self.pump.request_flush()
        return tunnel

    def expire_requests(self, timeout_s: float) -> None:
        """Fail the tunnels whose requests have waited longer than `timeout_s`."""
        limit = self.reactor.now - timeout_s
        for stream_id in [stream for stream, (since, _) in self._opening.items() if since <= limit]:
            error = TunnelTimeout(f"the peer did not answer CONNECT in {timeout_s:g} s")
            self._give_up(self.streams[stream_id], error, ErrorCode.CANCEL)

    # TlsHandler and HboneConnection

    def on_handshake(self, peer: PeerCertificate) -> None:  # noqa: ARG002 - `pump.peer` has it
        self._start()
        self.is_usable = True
        self._observer.on_established(self)

    def forget(self, tunnel: TunnelStream) -> None:
        self._opening.pop(tunnel.stream_id, None)
        super().forget(tunnel)

    def _lose(self, tunnel: TunnelStream, error: MeshError | None) -> None:
        opening = self._opening.pop(tunnel.stream_id, None)
        if opening is None:
            super()._lose(tunnel, error)
            return
        self.forget(tunnel)
        opening[1].on_tunnel_failed(error or TunnelReset("the peer gave up the tunnel before answering"))

    def _give_up(self, tunnel: TunnelStream, error: MeshError, code: ErrorCode) -> None:
        self.codec.reset(tunnel.stream_id, code)
        self.wake()
        self._lose(tunnel, error)

    def _on_headers(self, event: HeadersReceived) -> None:
        tunnel = self.streams.get(event.stream_id)
        if tunnel is None:
            return
        opening = self._opening.get(event.stream_id)
        if event.is_trailers or opening is None:
            error = TunnelReset("the peer sent headers inside an open tunnel")
            self._give_up(tunnel, error, ErrorCode.PROTOCOL_ERROR)
            return
        try:
            status = response_status(event.headers)
        except MalformedTunnelResponse as malformed:
            self._give_up(tunnel, malformed, ErrorCode.PROTOCOL_ERROR)
            return
        if status < 200:
            return  # interim responses carry nothing for a tunnel
        if status != 200:
            self._give_up(tunnel, TunnelRefused(status), ErrorCode.CANCEL)
            return
        del self._opening[event.stream_id]
        opening[1].on_tunnel_open(tunnel, event.headers)
        if event.end_stream and not tunnel.is_over:
            self._remote_end(tunnel)

    def _on_stream_over(self) -> None:
        if self.is_lost or self._is_closing:
            return
        if not self.is_usable and not self.streams:
            self.close()
            return
        self._observer.on_stream_over(self)

    def _on_peer_settings(self) -> None:
        self.max_streams = min(self._settings.assumed_peer_streams, self.codec.peer_max_streams)
        self._observer.on_stream_over(self)

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.is_usable = False
        for tunnel in [tunnel for number, tunnel in self.streams.items() if number > event.last_stream_id]:
            self._lose(tunnel, TunnelUnprocessed("the peer is going away (GOAWAY)"))
        self._observer.on_unusable(self)
        if not self.streams:
            self.close()

    def retire(self) -> None:
        """Open no more tunnels; close once the last open one ends."""
        self.is_usable = False
        if not self.streams:
            self.close()

    def _on_connection_lost(self, error: MeshError | None) -> None:
        self.is_usable = False
        self._observer.on_closed(self, error)


def _client_settings(settings: HboneSettings) -> Http2Settings:
    return replace(
        Http2Settings.for_client(),
        initial_window=settings.stream_window_bytes,
        connection_window=settings.connection_window_bytes,
        max_frame=settings.max_frame_bytes,
        assumed_peer_streams=settings.assumed_peer_streams,
    )
