"""The server's end of an HBONE connection: answers requests for tunnels.

Whether a request is allowed and where it leads is its handler's business; this only keeps HTTP/2's part. A
request that is no CONNECT is answered here, as ztunnel-facts 2.5 says.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Protocol

from OpenSSL import SSL

from transport.errors import MeshError
from transport.hbone.connect import ConnectRequest, MalformedRequest, parse_request
from transport.hbone.connection import HboneConnection, HboneSettings, plain_headers
from transport.hbone.errors import TunnelReset
from transport.hbone.frame_buffer import FrameBuffer
from transport.hbone.tunnel import TunnelStream
from transport.http2.codec import make_codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import GoAwayReceived, HeadersReceived, HeadersRejected
from transport.http2.settings import MAX_STREAM_ID, Http2Settings, Role
from transport.reactor import Reactor, Timer
from transport.spiffe import SpiffeId
from transport.tls.errors import PeerRejected
from transport.tls.peer import PeerCertificate
from transport.tls.pump import TlsPump

# Between the two GOAWAYs of a graceful end: more than a round trip, so that streams on their way still get
# in.
_GOAWAY_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class ServerTrust:
    """Who the server is (`context`) and whose trust domain a client must share; None accepts any."""

    context: SSL.Context
    trust_domain: str | None

    def verify(self, peer: PeerCertificate) -> None:
        """ztunnel-facts 2.1: one SPIFFE SAN of the client is in our own trust domain."""
        if self.trust_domain is None:
            return
        if not any(identity.trust_domain == self.trust_domain for identity in peer.spiffe_ids):
            presented = ", ".join(str(identity) for identity in peer.spiffe_ids) or "none"
            raise PeerRejected(f"no identity of the peer is in trust domain {self.trust_domain}: {presented}")


class HboneServerHandler(Protocol):
    """What the owner of server connections implements."""

    def on_established(self, connection: HboneServerConnection) -> None:
        """TLS is up; `connection.peer` is verified."""

    def on_request(self, tunnel: TunnelStream, request: ConnectRequest) -> None:
        """A well-formed request: set `tunnel.handler`, then `accept` or `refuse` it, now or later."""

    def on_bad_request(self, connection: HboneServerConnection, request: MalformedRequest) -> None:
        """A request was answered with an error before anyone saw it; for the log."""

    def on_closed(self, connection: HboneServerConnection, error: MeshError | None) -> None:
        """Last call: the socket is closed, all tunnels are over."""


class HboneServerConnection(HboneConnection):
    """One accepted connection; `sock` belongs to it."""

    __slots__ = ("_drain_timer", "_handler", "is_draining", "note")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        trust: ServerTrust,
        handler: HboneServerHandler,
        *,
        buffer: FrameBuffer,
        settings: HboneSettings,
    ) -> None:
        super().__init__(
            reactor, make_codec(Role.SERVER, _server_settings(settings), settings.codec), buffer, settings
        )
        self._handler = handler
        self._drain_timer: Timer | None = None
        self.is_draining = False
        self.note = ""  # for the handler's use
        self.pump = TlsPump(
            reactor,
            sock,
            trust.context,
            self,
            is_server=True,
            verify=trust.verify,
            handshake_timeout_s=settings.handshake_timeout_s,
        )

    @property
    def peer(self) -> PeerCertificate:
        """The client's certificate; known once established."""
        peer = self.pump.peer
        assert peer is not None
        return peer

    @property
    def identity(self) -> SpiffeId | None:
        """The identity that policy and logs use: the first SPIFFE SAN."""
        return self.peer.identity

    def drain(self) -> None:
        """Take no new tunnels; close when the open ones have ended (ztunnel-facts 2.9).

        First a GOAWAY that names no last stream, so that nothing on its way is lost, then the real one.
        """
        if self.is_lost or self._is_closing or self.is_draining:
            return
        self.is_draining = True
        if not self.is_established:
            self.close()
            return
        self.codec.goaway(last_stream_id=MAX_STREAM_ID)
        self.wake()
        self._drain_timer = self.reactor.call_later(_GOAWAY_GRACE_S, self._finish_drain)

    def _finish_drain(self) -> None:
        self._drain_timer = None
        if self.is_lost or self._is_closing:
            return
        self.codec.goaway()
        self.wake()
        if not self.streams:
            self.close()

    def on_handshake(self, peer: PeerCertificate) -> None:  # noqa: ARG002 - `pump.peer` has it
        self._start()
        self._handler.on_established(self)

    def _on_headers(self, event: HeadersReceived) -> None:
        tunnel = self.streams.get(event.stream_id)
        if tunnel is not None:
            # Trailers or a second request on an open tunnel (RFC 9113 8.5: only DATA may follow).
            self.codec.reset(event.stream_id, ErrorCode.PROTOCOL_ERROR)
            self.wake()
            self._lose(tunnel, TunnelReset("the peer sent headers inside an open tunnel"))
            return
        if event.is_trailers:
            return
        request = parse_request(event.headers)
        tunnel = TunnelStream(self, event.stream_id, None)
        tunnel.is_remote_ended = event.end_stream
        self.streams[event.stream_id] = tunnel
        if isinstance(request, MalformedRequest):
            tunnel.refuse(plain_headers(request.status))
            self._handler.on_bad_request(self, request)
            return
        self._handler.on_request(tunnel, request)

    def _on_headers_rejected(self, event: HeadersRejected) -> None:
        self._handler.on_bad_request(self, MalformedRequest(event.status, event.reason))

    def _on_goaway(self, event: GoAwayReceived) -> None:
        """A client that goes away still finishes its tunnels; it closes the connection itself."""

    def _on_stream_over(self) -> None:
        if self.is_draining and not self.streams and self._drain_timer is None and not self.is_lost:
            self.close()

    def _on_connection_lost(self, error: MeshError | None) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        self._handler.on_closed(self, error)


def _server_settings(settings: HboneSettings) -> Http2Settings:
    return replace(
        Http2Settings(),
        initial_window=settings.stream_window_bytes,
        connection_window=settings.connection_window_bytes,
        max_frame=settings.max_frame_bytes,
        max_concurrent_streams=settings.max_peer_streams,
    )
