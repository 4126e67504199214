"""Copies between an application's socket and a tunnel, with both half-closes, resets and backpressure.

Theory of operation. Application to tunnel: one read for each readable event, never more than the tunnel's
budget (stream window, connection window, TLS backlog), straight into the reactor's shared buffer and from
there into one TLS write; with no budget, reading pauses until the tunnel says that it is writable. Tunnel to
application: bytes go to the socket at once; what the kernel does not take is kept and the peer gets credit
only for what was taken, so the rest is bounded by the stream's window. The pending bytes are the only buffer,
and exist only while needed.

Ends (ztunnel-facts 2.6): the application's FIN becomes END_STREAM and the other way round, each direction on
its own. A reset of the application becomes RST_STREAM(CONNECT_ERROR) and the other way round, as RFC 9113 8.5
demands; with `is_reset_kept` off it is an orderly end, as Istio's proxy does. NO_ERROR and CANCEL from the
peer are an orderly end. Everything ends in exactly one call of `_on_over`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import deque

from transport.errors import MeshError
from transport.hbone.errors import TunnelReset
from transport.hbone.frame_buffer import Layout
from transport.hbone.tunnel import COPY_LIMIT, TunnelStream
from transport.http2.error_codes import ErrorCode
from transport.reactor import Reactor, Registration
from transport.socket_errors import translate
from transport.tls.pump import HIGH_WATER_BYTES

_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Relay:
    """One application socket and one tunnel. Owns both from `_start` on; a derived class implements
    `_on_over`.

    `from_app_bytes` and `to_app_bytes` count payload as it is read from and written to the application.
    """

    __slots__ = (
        "_app",
        "_is_app_ended",
        "_is_bulk",
        "_is_end_due",
        "_is_over",
        "_is_peer_ended",
        "_owed",
        "_pending",
        "_registration",
        "from_app_bytes",
        "is_reset_kept",
        "reactor",
        "to_app_bytes",
        "tunnel",
    )

    def __init__(self, reactor: Reactor, *, is_reset_kept: bool = True) -> None:
        self.reactor = reactor
        self.is_reset_kept = is_reset_kept
        self.tunnel: TunnelStream | None = None
        self.from_app_bytes = 0
        self.to_app_bytes = 0
        self._app: socket.socket | None = None
        self._registration: Registration | None = None
        self._pending: deque[bytes | memoryview] | None = None  # for the application, in order
        self._owed = 0  # credit not given for pending bytes
        self._is_app_ended = False  # FIN read
        self._is_peer_ended = False  # END_STREAM seen
        self._is_end_due = False  # close when pending bytes are written
        self._is_bulk = False  # the last read filled a frame
        self._is_over = False

    # For derived classes

    def _on_over(self, error: MeshError | None) -> None:
        """The last call: socket closed, tunnel over. None: an orderly end."""
        raise NotImplementedError

    def _start(self, *, greeting: bytes = b"", read_now: bool = False) -> None:
        """Begin to copy: `_app` and `tunnel` are set and open. `greeting` goes to the application first."""
        app = self._app
        assert app is not None
        early = self._pending  # data that a peer sent before it might
        self._registration = self.reactor.register(app.fileno(), self._on_readable, self._on_writable)
        if greeting:
            self._pending = deque((memoryview(greeting),))
            if early:
                self._pending.extend(early)
        if self._pending:
            self._on_writable()
        elif self._is_peer_ended:
            self._end_app()
        if read_now and not self._is_over:
            self._on_readable()

    def _finish(self, error: MeshError | None, *, is_reset: bool = False) -> None:
        """End both sides, once. `is_reset`: the application sees a reset instead of an orderly end."""
        if self._is_over:
            return
        self._is_over = True
        if self._registration is not None:
            self._registration.close(is_fd_closing=True)
        app, self._app = self._app, None
        if app is not None:
            if is_reset:
                with contextlib.suppress(OSError):
                    app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            app.close()
        tunnel = self.tunnel
        if tunnel is not None:
            if not tunnel.is_over:
                tunnel.reset(ErrorCode.CANCEL)
            if self._owed:
                self._credit(tunnel, self._owed)  # of a tunnel that ended in order, nobody else gives it back
        self._pending = None
        self._on_over(error)
        self._registration = None

    # The application's side

    def _on_readable(self) -> None:
        tunnel = self.tunnel
        app = self._app
        if tunnel is None or app is None:
            return
        connection = tunnel.connection
        pump, layout = connection.pump, connection.layout
        try:
            count = -1
            if not self._is_bulk and pump.backlog_bytes <= HIGH_WATER_BYTES:
                count = connection.codec.send_message(
                    tunnel.stream_id, app.recv_into, layout.first, COPY_LIMIT
                )
            if 0 < count <= COPY_LIMIT:  # a small message: it is framed already
                self.from_app_bytes += count
                if not pump.is_flush_due:
                    pump.request_flush()
                return
            if count < 0:
                budget = tunnel.budget()
                if budget <= 0:
                    assert self._registration is not None
                    self._registration.pause()
                    return
                count = self._read_at_most(budget, app, layout)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_app_broken(error)
            return
        if count == 0:
            self._on_app_end()
            return
        self.from_app_bytes += count
        self._is_bulk = count >= layout.first_bytes
        tunnel.send_in_place(layout, count)

    def _read_at_most(self, budget: int, app: socket.socket, layout: Layout) -> int:
        """Fill the layout's payloads, or the first of them; how many bytes came."""
        if self._is_bulk and len(layout.payloads) > 1:
            views = layout.payloads if budget >= layout.capacity else layout.limited(budget)
            return app.recvmsg_into(views)[0]
        return app.recv_into(layout.first if budget >= layout.first_bytes else layout.first[:budget])

    def _on_app_end(self) -> None:
        self._is_app_ended = True
        assert self._registration is not None
        assert self.tunnel is not None
        self._registration.pause()
        self.tunnel.end()
        if self._is_peer_ended and not self._pending:
            self._finish(None)

    def _on_app_broken(self, error: OSError) -> None:
        """The application reset its connection, or the kernel gave it up: no failure of the mesh."""
        tunnel = self.tunnel
        if tunnel is not None and not tunnel.is_over:
            if self.is_reset_kept:
                tunnel.reset(ErrorCode.CONNECT_ERROR)
            else:
                tunnel.end()
                tunnel.reset(ErrorCode.NO_ERROR)
        expected = isinstance(error, (ConnectionError, TimeoutError)) or error.errno == errno.ENOTCONN
        self._finish(None if expected else translate(error, "reading from the application"))

    def _on_writable(self) -> None:
        pending, app, tunnel = self._pending, self._app, self.tunnel
        registration = self._registration
        if app is None or registration is None or tunnel is None:
            return
        while pending:
            chunk = pending[0]
            try:
                sent = app.send(chunk)
            except (BlockingIOError, InterruptedError):
                registration.want_write(True)
                return
            except OSError as error:
                self._on_app_broken(error)
                return
            self.to_app_bytes += sent
            self._credit(tunnel, sent)
            if sent < len(chunk):
                pending[0] = memoryview(chunk)[sent:]
                registration.want_write(True)
                return
            pending.popleft()
        self._pending = None
        registration.want_write(False)
        if self._owed:
            self._credit(tunnel, self._owed)
        if self._is_end_due:
            self._finish(None)
        elif self._is_peer_ended:
            self._end_app()

    def _credit(self, tunnel: TunnelStream, count: int) -> None:
        count = min(count, self._owed)  # a greeting owes nothing
        if count:
            self._owed -= count
            tunnel.consumed(count)
            tunnel.connection.wake()

    def _end_app(self) -> None:
        """The peer's direction is over: half-close the application, or be done."""
        if self._is_app_ended:
            self._finish(None)
            return
        assert self._app is not None
        try:
            self._app.shutdown(socket.SHUT_WR)
        except OSError:
            return  # not connected any more: the read side will say so

    # TunnelHandler

    def on_tunnel_data(self, chunks: list[memoryview], flow_bytes: int) -> None:
        app, tunnel = self._app, self.tunnel
        if self._pending is not None or self._registration is None or app is None or tunnel is None:
            self._keep(chunks, flow_bytes)
            return
        try:
            sent = app.send(chunks[0]) if len(chunks) == 1 else app.sendmsg(chunks)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            tunnel.consumed(flow_bytes)
            self._on_app_broken(error)
            return
        self.to_app_bytes += sent
        if sent == flow_bytes:
            tunnel.connection.codec.consumed(tunnel.stream_id, flow_bytes)
            return
        rest = _after(chunks, sent)
        if not rest:  # flow_bytes count padding too
            tunnel.consumed(flow_bytes)
            return
        if sent:
            tunnel.consumed(sent)
        self._keep(rest, flow_bytes - sent)
        self._registration.want_write(True)

    def _keep(self, chunks: list[memoryview], flow_bytes: int) -> None:
        if self._pending is None:
            self._pending = deque()
        self._pending.extend(bytes(chunk) for chunk in chunks if len(chunk))
        self._owed += flow_bytes

    def on_tunnel_end(self) -> None:
        self._is_peer_ended = True
        if self._registration is not None and not self._pending:
            self._end_app()

    def on_tunnel_writable(self) -> None:
        if self._registration is not None and not self._is_app_ended:
            self._registration.resume()

    def on_tunnel_reset(self, error: MeshError | None) -> None:
        if error is None:
            if self._pending and self._registration is not None:
                self._is_end_due = True  # an orderly end: what was received still goes out
                self._registration.pause()
            else:
                self._finish(None)
            return
        is_app_reset = isinstance(error, TunnelReset) and error.error_code == ErrorCode.CONNECT_ERROR
        self._finish(None if is_app_reset and self.is_reset_kept else error, is_reset=True)


def _after(chunks: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of `chunks` after `sent` bytes."""
    for index, chunk in enumerate(chunks):
        size = len(chunk)
        if sent < size:
            return [chunk[sent:], *chunks[index + 1 :]]
        sent -= size
    return []
