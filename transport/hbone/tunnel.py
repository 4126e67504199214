"""One tunnel: a CONNECT stream of an HBONE connection, as its user sees it.

Invariants: data is delivered only after the tunnel is open and before its end; credit is given to the peer
only by `consumed`, so its user decides how much may be on the way; a budget of 0 enrols the tunnel for one
`on_tunnel_writable`; `on_tunnel_reset` and `on_tunnel_failed` are the last call that a handler gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from transport.errors import MeshError
from transport.hbone.connect import Headers
from transport.hbone.frame_buffer import Layout
from transport.http2.error_codes import ErrorCode
from transport.tls.pump import HIGH_WATER_BYTES

if TYPE_CHECKING:
    from transport.hbone.connection import HboneConnection

# Up to here copying a payload into the codec's output, which leaves as one TLS record at the end of the pass,
# is cheaper than a TLS record of its own.
COPY_LIMIT = 8192


class TunnelHandler(Protocol):
    """What the user of an open tunnel implements."""

    def on_tunnel_data(self, chunks: list[memoryview], flow_bytes: int) -> None:
        """Bytes from the peer, valid during the call only; `flow_bytes` are owed to `consumed`."""

    def on_tunnel_end(self) -> None:
        """The peer sends no more; the other direction goes on."""

    def on_tunnel_writable(self) -> None:
        """The budget, last seen as 0, may have grown."""

    def on_tunnel_reset(self, error: MeshError | None) -> None:
        """Both directions are over, at once. None: the peer just gave up (NO_ERROR, CANCEL)."""


class ClientTunnelHandler(TunnelHandler, Protocol):
    """What the user of a tunnel implements that this side asks for."""

    def on_tunnel_open(self, tunnel: TunnelStream, headers: Headers) -> None:
        """The peer answered 200."""

    def on_tunnel_failed(self, error: MeshError) -> None:
        """There will be no tunnel."""


class TunnelStream:
    """One CONNECT stream, either role. Made by its connection."""

    __slots__ = (
        "connection",
        "handler",
        "is_local_ended",
        "is_over",
        "is_remote_ended",
        "stream_id",
    )

    def __init__(self, connection: HboneConnection, stream_id: int, handler: TunnelHandler | None) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.handler = handler
        self.is_local_ended = False
        self.is_remote_ended = False
        self.is_over = False  # forgotten by the connection: reset, or ended both ways

    def layout(self) -> Layout:
        """How to lay out a buffer for `send_in_place`."""
        return self.connection.layout

    def budget(self) -> int:
        """Bytes that may be sent now; 0 enrols for `on_tunnel_writable`."""
        if self.is_over:
            return 0
        connection = self.connection
        if connection.pump.backlog_bytes <= HIGH_WATER_BYTES:
            sendable = connection.codec.sendable(self.stream_id)
            if sendable > 0:
                return sendable
        connection.blocked[self.stream_id] = self
        return 0

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send within the budget; copies. Leaves at the end of the pass."""
        if not self.is_over:
            connection = self.connection
            connection.codec.send_data(self.stream_id, data)
            connection.pump.request_flush()

    def send_whole(self, data: bytes | bytearray | memoryview) -> bool:
        """`send`, if all of it is within the budget; False: nothing was sent, and nothing is enrolled."""
        connection = self.connection
        if self.is_over or connection.pump.backlog_bytes > HIGH_WATER_BYTES:
            return False
        codec, stream_id = connection.codec, self.stream_id
        if codec.sendable(stream_id) < len(data):
            return False
        codec.send_data(stream_id, data)
        if not connection.pump.is_flush_due:
            connection.pump.request_flush()
        return True

    def send_in_place(self, layout: Layout, count: int) -> None:
        """Send `count` bytes, within the budget, that lie in the layout's payloads. The buffer is free
        afterwards.
        """
        if self.is_over:
            return
        connection = self.connection
        if count <= COPY_LIMIT and count <= layout.first_bytes:
            connection.codec.send_data(self.stream_id, layout.first[:count])
            connection.pump.request_flush()
            return
        waiting = connection.codec.take_output()
        if waiting:
            connection.pump.write(waiting)
        total = connection.codec.frame_in_place(self.stream_id, layout.region, count)
        connection.pump.write(layout.region[:total])

    def end(self) -> None:
        """Send no more (half-close); idempotent."""
        if self.is_over or self.is_local_ended:
            return
        self.is_local_ended = True
        self.connection.codec.end_stream(self.stream_id)
        self.connection.wake()
        if self.is_remote_ended:
            self.connection.forget(self)

    def consumed(self, flow_bytes: int) -> None:
        """`flow_bytes` of what was delivered have gone onward: the peer may send as much again.

        Inside `on_tunnel_data` the connection sends the credit; elsewhere `connection.wake()` is due.
        """
        self.connection.codec.consumed(self.stream_id, flow_bytes)

    def reset(self, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End both directions at once; idempotent. The handler hears nothing more."""
        if self.is_over:
            return
        self.connection.codec.reset(self.stream_id, code)
        self.connection.wake()
        self.connection.forget(self)

    # Server only.

    def accept(self, headers: Headers) -> None:
        """Answer 200: the tunnel is open."""
        if not self.is_over:
            self.connection.codec.send_headers(self.stream_id, headers)
            self.connection.wake()

    def refuse(self, headers: Headers) -> None:
        """Answer with an error status and be done with the stream."""
        if self.is_over:
            return
        self.connection.codec.send_headers(self.stream_id, headers, end_stream=True)
        if not self.is_remote_ended:
            # RFC 9113 8.1: a complete response, and no interest in the rest of the request.
            self.connection.codec.reset(self.stream_id, ErrorCode.NO_ERROR)
        self.connection.wake()
        self.connection.forget(self)
