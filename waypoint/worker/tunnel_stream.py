"""A byte stream over a tunnel of an HBONE connection, either role.

The peer gets credit for what was delivered. While paused, what still comes is kept without credit: it is
bounded by the tunnel's window.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from transport.errors import MeshError
from transport.hbone.tunnel import TunnelStream
from transport.http2.error_codes import ErrorCode
from waypoint.worker.byte_stream import HIGH_WATER_BYTES, LOW_WATER_BYTES, NOBODY, StreamHandler

_MAX_CLOSING_S: Final = 10.0  # how long an orderly close may take to send what is left


class TunnelByteStream:
    """Implements ByteStream and TunnelHandler; owns an open tunnel."""

    __slots__ = (
        "_handler",
        "_held",
        "_is_closing",
        "_is_end_due",
        "_is_eof_held",
        "_is_paused",
        "_pending",
        "_tunnel",
        "_was_congested",
        "backlog_bytes",
    )

    def __init__(self, tunnel: TunnelStream) -> None:
        self._tunnel = tunnel
        tunnel.handler = self
        self._handler: StreamHandler = NOBODY
        self._is_paused = True  # until start
        self._held: deque[bytes] = deque()
        self._is_eof_held = False
        self._pending: deque[memoryview] = deque()
        self.backlog_bytes = 0
        self._was_congested = False
        self._is_end_due = False
        self._is_closing = False

    @property
    def is_congested(self) -> bool:
        if self.backlog_bytes > HIGH_WATER_BYTES:
            self._was_congested = True
            return True
        return False

    def start(self, handler: StreamHandler) -> None:
        self._handler = handler
        self.resume()

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        tunnel = self._tunnel
        is_held = bool(self._held)
        while self._held and not self._is_paused:
            piece = self._held.popleft()
            tunnel.consumed(len(piece))
            self._handler.on_data(memoryview(piece))
        if is_held:
            tunnel.connection.wake()
        if self._is_eof_held and not self._held and not self._is_paused:
            self._is_eof_held = False
            self._handler.on_eof()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self._is_end_due or not data:
            return
        if not self._pending and self._tunnel.send_whole(data):
            return
        view = memoryview(data)
        if not self._pending:
            sent = self._send(view)
            if sent == len(view):
                return
            view = view[sent:]
        rest = memoryview(bytes(view)) if type(data) is memoryview else view
        self._pending.append(rest)
        self.backlog_bytes += len(rest)

    def _send(self, view: memoryview) -> int:
        sent = 0
        while sent < len(view):
            budget = self._tunnel.budget()
            if budget <= 0:
                break
            piece = view[sent : sent + budget]
            self._tunnel.send(piece)
            sent += len(piece)
        return sent

    def end(self) -> None:
        if self._is_end_due or self._is_closing:
            return
        self._is_end_due = True
        if not self._pending:
            self._tunnel.end()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._handler = NOBODY
        self._is_paused = False
        for piece in self._held:
            self._tunnel.consumed(len(piece))
        self._held.clear()
        if not self._pending:
            self._close_tunnel()
        else:
            self._tunnel.connection.reactor.call_later(_MAX_CLOSING_S, self._give_up)

    def _give_up(self) -> None:
        if self._pending:
            self.abort()

    def _close_tunnel(self) -> None:
        tunnel = self._tunnel
        tunnel.end()
        if not tunnel.is_over:
            # Nobody reads what may still come, and the peer is told so after all that was sent.
            tunnel.reset(ErrorCode.NO_ERROR)

    def abort(self) -> None:
        self._is_closing = True
        self._handler = NOBODY
        self._pending.clear()
        self.backlog_bytes = 0
        self._tunnel.reset(ErrorCode.CONNECT_ERROR)

    # TunnelHandler

    def on_tunnel_data(self, chunks: list[memoryview], flow_bytes: int) -> None:
        if len(chunks) == 1 and not self._is_paused and not self._held:
            self._tunnel.consumed(flow_bytes)
            self._handler.on_data(chunks[0])
            return
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if self._is_paused or self._held:
                self._held.append(bytes(chunk))
            else:
                self._tunnel.consumed(len(chunk))
                self._handler.on_data(chunk)
        if flow_bytes > size:
            self._tunnel.consumed(flow_bytes - size)  # padding

    def on_tunnel_end(self) -> None:
        if self._is_paused or self._held:
            self._is_eof_held = True
        else:
            self._handler.on_eof()

    def on_tunnel_writable(self) -> None:
        pending = self._pending
        while pending:
            piece = pending[0]
            sent = self._send(piece)
            self.backlog_bytes -= sent
            if sent < len(piece):
                pending[0] = piece[sent:]
                break
            pending.popleft()
        if not pending:
            if self._is_closing:
                self._close_tunnel()
                return
            if self._is_end_due:
                self._tunnel.end()
        if self._was_congested and self.backlog_bytes < LOW_WATER_BYTES:
            self._was_congested = False
            self._handler.on_drained()

    def on_tunnel_reset(self, error: MeshError | None) -> None:
        handler, self._handler = self._handler, NOBODY
        self._is_closing = True
        self._pending.clear()
        self._held.clear()
        self.backlog_bytes = 0
        handler.on_lost(error)
