"""A byte stream over a plain TCP socket: for endpoints without HBONE and for tests.

Reads land in one buffer that all streams of a reactor share, so an idle connection owns none. Writes go to
the kernel at once: their callers gather what one pass produces.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque

from transport.errors import MeshError
from transport.reactor import Reactor, Registration, Timer
from transport.socket_errors import translate
from waypoint.worker.byte_stream import HIGH_WATER_BYTES, LOW_WATER_BYTES, NOBODY, StreamHandler

_LINGER_RESET = struct.pack("ii", 1, 0)
_MAX_CLOSING_S = 10.0  # how long an orderly close may take to send what is left


class TcpStream:
    """Implements ByteStream; owns `sock`, which is connected and non-blocking."""

    __slots__ = (
        "_buffer",
        "_closing_timer",
        "_handler",
        "_is_closed",
        "_is_closing",
        "_is_end_due",
        "_is_write_broken",
        "_pending",
        "_reactor",
        "_registration",
        "_sock",
        "_was_congested",
        "backlog_bytes",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, buffer: memoryview) -> None:
        self._reactor = reactor
        self._sock = sock
        self._buffer = buffer
        self._handler: StreamHandler = NOBODY
        self._registration: Registration = reactor.register(
            sock.fileno(), self._on_readable, self._on_writable, reading=False
        )
        self._pending: deque[memoryview] = deque()
        self.backlog_bytes = 0
        self._was_congested = False
        self._is_end_due = False
        self._is_closing = False
        self._is_closed = False
        self._is_write_broken = False
        self._closing_timer: Timer | None = None

    @property
    def is_congested(self) -> bool:
        if self.backlog_bytes > HIGH_WATER_BYTES:
            self._was_congested = True
            return True
        return False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def start(self, handler: StreamHandler) -> None:
        self._handler = handler
        self._registration.resume()

    def pause(self) -> None:
        self._registration.pause()

    def resume(self) -> None:
        if not self._is_closing:
            self._registration.resume()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self._is_end_due or self._is_write_broken or not data:
            return
        if self._pending:
            self._keep(data, 0)
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The reset will be read after whatever came before it, e.g. an answer that explains it.
            self._is_write_broken = True
            return
        if sent < len(data):
            self._keep(data, sent)
            self._registration.want_write(True)

    def _keep(self, data: bytes | bytearray | memoryview, start: int) -> None:
        rest = memoryview(bytes(data[start:]) if type(data) is memoryview else data)
        if type(data) is not memoryview and start:
            rest = rest[start:]
        self._pending.append(rest)
        self.backlog_bytes += len(rest)

    def end(self) -> None:
        if self._is_end_due or self._is_closing:
            return
        self._is_end_due = True
        if not self._pending:
            self._shut()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._handler = NOBODY
        self._registration.pause()
        if self._pending:
            self._closing_timer = self._reactor.call_later(_MAX_CLOSING_S, self.abort)
        else:
            self._finish()

    def abort(self) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._handler = NOBODY
        self._finish()

    def _finish(self) -> None:
        if self._is_closed:
            return
        self._is_closed = self._is_closing = True
        timer = self._closing_timer
        if timer is not None:
            timer.cancel()
            self._closing_timer = None
        self._registration.close(is_fd_closing=True)
        self._sock.close()
        self._pending.clear()
        self.backlog_bytes = 0

    def _lose(self, error: MeshError | None) -> None:
        handler, self._handler = self._handler, NOBODY
        self._finish()
        handler.on_lost(error)

    # Reactor

    def _on_readable(self) -> None:
        buffer = self._buffer
        try:
            size = self._sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(translate(error, "reading"))
            return
        if size:
            self._handler.on_data(buffer[:size])
            return
        self._registration.pause()
        if self._is_write_broken:
            self._lose(None)
        else:
            handler = self._handler
            handler.on_eof()

    def _on_writable(self) -> None:
        pending = self._pending
        try:
            while pending:
                piece = pending[0]
                sent = self._sock.send(piece)
                self.backlog_bytes -= sent
                if sent < len(piece):
                    pending[0] = piece[sent:]
                    break
                pending.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._is_write_broken = True
            pending.clear()
            self.backlog_bytes = 0
            self._registration.resume()  # reading tells how it ended
        if not pending:
            self._registration.want_write(False)
            if self._is_closing:
                self._finish()
                return
            if self._is_end_due:
                self._shut()
        if self._was_congested and self.backlog_bytes < LOW_WATER_BYTES:
            self._was_congested = False
            self._handler.on_drained()
