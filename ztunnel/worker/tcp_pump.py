"""Copies between two plain sockets, with both half-closes, resets and backpressure, and no buffer while idle.

Small traffic is copied through the reactor's one shared buffer. Once reads keep filling it, a direction moves
to a kernel pipe and splice(2), which is nearly twice as fast; it moves back when the flow thins out, because
a pipe costs two descriptors and up to 1 MiB. Pipes are lent from a small stock, so their number is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

from transport.errors import MeshError
from transport.reactor import Reactor, Registration
from transport.socket_errors import translate

PIPE_BYTES = 1024 * 1024
_FULL_READS_FOR_SPLICE = 4
_THIN_READS_FOR_COPY = 64
_THIN_BYTES = 32 * 1024
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_LINGER_RESET = struct.pack("ii", 1, 0)


def reset_at_close(sock: socket.socket) -> None:
    """Its peer will see a reset instead of an orderly end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


class PipeStock:
    """Pipes for splicing, made on demand and kept for the next; at most `limit` are out or kept."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._made = 0
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int] | None:
        """None: at the limit, or the kernel gives none; copying works as well."""
        if self._free:
            return self._free.pop()
        if self._made >= self._limit:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except (
            OSError
        ):  # the user's quota of pipe pages is used up: a small pipe would be slower than copying
            os.close(pipe[0])
            os.close(pipe[1])
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: tuple[int, int], *, is_empty: bool) -> None:
        if is_empty and len(self._free) < 4:
            self._free.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])
            self._made -= 1

    def close(self) -> None:
        while self._free:
            pipe = self._free.pop()
            os.close(pipe[0])
            os.close(pipe[1])
            self._made -= 1


class _Direction:
    """One way of the pump: what `source` reads goes to `sink`."""

    __slots__ = (
        "full_reads",
        "is_end_read",
        "is_end_sent",
        "moved_bytes",
        "pending",
        "pipe",
        "piped",
        "sink",
        "source",
        "thin_reads",
    )

    def __init__(self, source: _End, sink: _End) -> None:
        self.source = source
        self.sink = sink
        self.pending: memoryview | None = None  # copied, but not taken by the sink
        self.pipe: tuple[int, int] | None = None
        self.piped = 0  # bytes in the pipe
        self.moved_bytes = 0
        self.full_reads = 0
        self.thin_reads = 0
        self.is_end_read = False
        self.is_end_sent = False

    @property
    def is_clear(self) -> bool:
        return self.pending is None and not self.piped


class _End:
    """One socket of the pump, and its callbacks."""

    __slots__ = ("incoming", "outgoing", "pump", "registration", "sock")

    incoming: _Direction  # from this socket
    outgoing: _Direction  # to this socket
    registration: Registration

    def __init__(self, pump: TcpPump, sock: socket.socket) -> None:
        self.pump = pump
        self.sock = sock

    def on_readable(self) -> None:
        self.pump.move(self.incoming)

    def on_writable(self) -> None:
        self.pump.push(self.outgoing)


class TcpPump:
    """Owns both sockets. `on_over` is called once, when both are closed; None is an orderly end.

    `is_reset_kept`: a reset of one socket becomes a reset of the other, else an orderly end.
    """

    __slots__ = (
        "_buffer",
        "_down",
        "_ends",
        "_is_over",
        "_is_reset_kept",
        "_on_over",
        "_pipes",
        "_up",
        "reactor",
    )

    def __init__(
        self,
        reactor: Reactor,
        downstream: socket.socket,
        upstream: socket.socket,
        on_over: Callable[[MeshError | None], None],
        *,
        buffer: memoryview,
        pipes: PipeStock,
        is_reset_kept: bool = True,
    ) -> None:
        self.reactor = reactor
        self._buffer = buffer
        self._pipes = pipes
        self._on_over = on_over
        self._is_reset_kept = is_reset_kept
        self._is_over = False
        near, far = _End(self, downstream), _End(self, upstream)
        self._ends = (near, far)
        self._up = _Direction(near, far)
        self._down = _Direction(far, near)
        near.incoming = far.outgoing = self._up
        far.incoming = near.outgoing = self._down
        for end in self._ends:
            end.registration = reactor.register(end.sock.fileno(), end.on_readable, end.on_writable)

    @property
    def up_bytes(self) -> int:
        """Bytes from downstream to upstream."""
        return self._up.moved_bytes

    @property
    def down_bytes(self) -> int:
        return self._down.moved_bytes

    def close(self, error: MeshError | None = None, *, is_reset: bool = False) -> None:
        """Close both sockets; idempotent."""
        if self._is_over:
            return
        self._is_over = True
        for direction in (self._up, self._down):
            if direction.pipe is not None:
                self._pipes.give_back(direction.pipe, is_empty=not direction.piped)
                direction.pipe = None
            direction.pending = None
        for end in self._ends:
            end.registration.close(is_fd_closing=True)
            if is_reset:
                reset_at_close(end.sock)
            end.sock.close()
        on_over = self._on_over
        del self._on_over
        on_over(error)

    def move(self, direction: _Direction) -> None:
        """The source is readable and the sink took everything so far."""
        if self._is_over or not direction.is_clear:
            return
        try:
            if direction.pipe is not None:
                self._splice(direction)
            else:
                self._copy(direction, self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken(error)

    def push(self, direction: _Direction) -> None:
        """The sink is writable again: send what waits for it."""
        if self._is_over:
            return
        try:
            if direction.pending is not None:
                self._send_pending(direction)
            elif direction.piped:
                self._drain_pipe(direction)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken(error)
            return
        if direction.is_clear:
            direction.sink.registration.want_write(False)
            if direction.is_end_read:
                self._send_end(direction)
            else:
                direction.source.registration.resume()

    def _copy(self, direction: _Direction, buffer: memoryview) -> None:
        count = direction.source.sock.recv_into(buffer)
        if not count:
            self._end_read(direction)
            return
        if count == len(buffer):
            direction.full_reads += 1
            if direction.full_reads >= _FULL_READS_FOR_SPLICE:
                direction.full_reads = direction.thin_reads = 0
                direction.pipe = self._pipes.take()
        elif count < len(buffer) // 2:
            direction.full_reads = 0
        try:
            sent = direction.sink.sock.send(buffer[:count])
        except (BlockingIOError, InterruptedError):
            sent = 0
        direction.moved_bytes += sent
        if sent < count:
            direction.pending = memoryview(bytes(buffer[sent:count]))
            self._wait_for_sink(direction)

    def _splice(self, direction: _Direction) -> None:
        pipe = direction.pipe
        assert pipe is not None
        count = os.splice(direction.source.sock.fileno(), pipe[1], PIPE_BYTES, flags=_SPLICE_FLAGS)
        if not count:
            self._end_read(direction)
            return
        direction.piped = count
        if count >= _THIN_BYTES:
            direction.thin_reads = 0
        else:
            direction.thin_reads += 1
        try:
            self._drain_pipe(direction)
        except (BlockingIOError, InterruptedError):
            self._wait_for_sink(direction)
            return
        if direction.piped:
            self._wait_for_sink(direction)
        elif direction.thin_reads >= _THIN_READS_FOR_COPY:
            self._pipes.give_back(pipe, is_empty=True)
            direction.pipe = None

    def _drain_pipe(self, direction: _Direction) -> None:
        pipe = direction.pipe
        assert pipe is not None
        sent = os.splice(pipe[0], direction.sink.sock.fileno(), direction.piped, flags=_SPLICE_FLAGS)
        direction.piped -= sent
        direction.moved_bytes += sent

    def _send_pending(self, direction: _Direction) -> None:
        pending = direction.pending
        assert pending is not None
        sent = direction.sink.sock.send(pending)
        direction.moved_bytes += sent
        direction.pending = pending[sent:] if sent < len(pending) else None

    def _wait_for_sink(self, direction: _Direction) -> None:
        direction.source.registration.pause()
        direction.sink.registration.want_write(True)

    def _end_read(self, direction: _Direction) -> None:
        direction.is_end_read = True
        direction.source.registration.pause()
        self._send_end(direction)

    def _send_end(self, direction: _Direction) -> None:
        direction.is_end_sent = True
        if self._up.is_end_sent and self._down.is_end_sent:
            self.close()
            return
        with contextlib.suppress(OSError):  # not connected any more: reading it will say so
            direction.sink.sock.shutdown(socket.SHUT_WR)

    def _broken(self, error: OSError) -> None:
        """Either socket was reset: no failure of the mesh, and nothing left to wait for."""
        expected = isinstance(error, (ConnectionError, TimeoutError)) or error.errno == errno.ENOTCONN
        self.close(None if expected else translate(error, "copying"), is_reset=self._is_reset_kept)
