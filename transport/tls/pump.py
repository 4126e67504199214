"""The pump between a non-blocking socket and the handler of a TLS connection.

Theory of operation. Reading: each readable callback makes one recv of up to 256 KiB into a shared buffer,
decrypts it into another shared buffer and hands the handler all of it in one `on_data`. One recv per
callback is the bound that keeps connections fair; epoll is level-triggered and calls again. Writing: `write`
encrypts at once into OpenSSL's memory, and the reactor's end-of-pass `flush` sends what all writers of the
pass produced. When the kernel takes no more, the rest waits for EPOLLOUT, and `backlog_bytes` says how much
waits.

Invariants:
- States only go forward: CONNECTING, HANDSHAKING, OPEN, CLOSING, CLOSED.
- Handler callbacks come from the reactor only, never from inside a method that the handler called, so a
  handler may call any method from any callback.
- `on_lost` comes exactly once, last, with the socket closed.
- No identity, no traffic: not one byte of plaintext is delivered, nor a `write` accepted, before OpenSSL
  accepted the chain and `verify` the name.

One file of six hundred lines, because it is one state machine and every method may change its state.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from OpenSSL import SSL

from transport.errors import MeshError
from transport.reactor import Reactor, WorkRejected
from transport.socket_errors import ConnectTimedOut, translate
from transport.sockets import Address, canonical, finish_connect
from transport.tls.buffers import CIPHER_BYTES, buffers_of
from transport.tls.context import ALPN
from transport.tls.engine import Decrypted, TlsEngine
from transport.tls.errors import (
    HandlerFailed,
    HandshakeFailed,
    HandshakeTimedOut,
    PeerRejected,
    PeerStalled,
    ProtocolNotAgreed,
    TlsTruncated,
)
from transport.tls.peer import PeerCertificate, read_peer_certificate

HIGH_WATER_BYTES = 1024 * 1024
LOW_WATER_BYTES = HIGH_WATER_BYTES // 4
_CLOSE_TIMEOUT_S = 5.0  # for some of the backlog to go, and then for the peer's own end to come
_RECORD_BYTES = 16384
_PIECE_BYTES = (
    128 * 1024
)  # of plaintext: encrypted and sent at a time, and the most that OpenSSL is left holding
_RECORD_OVERHEAD = 22  # header, content type, tag
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TlsHandler(Protocol):
    """What the pump calls. An exception from any of these ends the connection with HandlerFailed."""

    def on_handshake(self, peer: PeerCertificate) -> None:
        """The peer is who it should be; writing is allowed from here on."""

    def on_data(self, data: memoryview) -> None:
        """Plaintext, valid during the call only."""

    def on_eof(self) -> None:
        """The peer has closed its direction in order; ours stays open until `close`."""

    def on_lost(self, error: MeshError | None) -> None:
        """The connection is over: exactly once, last. None after our own `close`."""

    def on_drained(self) -> None:
        """The backlog has fallen below the low-water mark, having been above the high one."""

    def before_flush(self) -> None:
        """The end of the pass: last chance to `write` what should leave with it."""


class _State(enum.Enum):
    CONNECTING = enum.auto()
    HANDSHAKING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


_HANDSHAKING = _State.HANDSHAKING
_OPEN = _State.OPEN
_CLOSING = _State.CLOSING
_CLOSED = _State.CLOSED


class TlsPump:
    """One TLS connection; owns `sock`. Made connected, or with `is_connecting` after `start_connect`.

    `verify` gets the peer's certificate when OpenSSL has accepted its chain, and raises PeerRejected to
    refuse.
    """

    __slots__ = (
        "__weakref__",
        "_backlog_at_check",
        "_buffers",
        "_engine",
        "_handler",
        "_has_peer_finished",
        "_has_undelivered",
        "_held_bytes",
        "_is_blocked",
        "_is_in_thread",
        "_is_reading_wanted",
        "_is_server",
        "_lost_error",
        "_reactor",
        "_registration",
        "_sock",
        "_state",
        "_timer",
        "_unsent",
        "_verify",
        "_was_congested",
        "backlog_bytes",
        "is_flush_due",
        "local_address",
        "peer",
        "peer_address",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        context: SSL.Context,
        handler: TlsHandler,
        *,
        is_server: bool,
        verify: Callable[[PeerCertificate], None],
        handshake_timeout_s: float = 10.0,
        is_connecting: bool = False,
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._handler = handler
        self._is_server = is_server
        self._verify = verify
        self._buffers = buffers_of(reactor)
        self._engine = TlsEngine(context, self._buffers, is_server=is_server)
        self._state = _State.CONNECTING
        self._is_in_thread = False
        self.is_flush_due = False  # this pass ends with a flush: `request_flush` would change nothing
        self._is_blocked = False  # the kernel took less than we had: waiting for EPOLLOUT
        self._is_reading_wanted = True
        self._has_undelivered = False  # OpenSSL may hold data that came while reading was paused
        self._has_peer_finished = False
        self._was_congested = False
        self._unsent: deque[memoryview] = deque()  # ciphertext taken out of OpenSSL, while blocked
        self._held_bytes = 0  # about what OpenSSL holds
        self._backlog_at_check = 0  # while closing
        self._lost_error: MeshError | None = None
        self.backlog_bytes = 0
        self.peer: PeerCertificate | None = None
        self.local_address: Address = ("", 0)
        self.peer_address: Address = ("", 0)
        self._timer = reactor.call_later(handshake_timeout_s, self._on_handshake_timeout)
        self._registration = reactor.register(
            sock.fileno(), self._on_readable, self._on_writable, reading=not is_connecting
        )
        if is_connecting:
            self._registration.want_write(True)
        else:
            reactor.call_soon(self._begin_handshake)

    # What the handler calls

    @property
    def is_congested(self) -> bool:
        return self.backlog_bytes > HIGH_WATER_BYTES

    @property
    def is_open(self) -> bool:
        return self._state is _OPEN

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt a copy of `data` (bytes, or a memoryview of them), to leave at the end of this pass.

        Never blocks and never refuses: a handler with bulk data stops while `is_congested`, until
        `on_drained`. After the connection's end it does nothing.
        """
        if self._state is not _OPEN:
            if self._state in {_State.CONNECTING, _HANDSHAKING}:
                raise RuntimeError("write before on_handshake")
            return
        size = len(data)
        if not size:
            return
        if size > _PIECE_BYTES:
            self._write_in_pieces(memoryview(data))
            return
        try:
            self._engine.encrypt(data)
        except MeshError as error:
            self.abort(error)
            return
        self.backlog_bytes += size + _RECORD_OVERHEAD * (1 + size // _RECORD_BYTES)
        if not self.is_flush_due:  # request_flush, without the call
            self.is_flush_due = True
            self._reactor.mark_dirty(self)
        self._held_bytes += size
        if self.backlog_bytes > HIGH_WATER_BYTES:
            self._was_congested = True
        if self._held_bytes >= _PIECE_BYTES:
            self._send_early()

    def _write_in_pieces(self, data: memoryview) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            self.write(data[start : start + _PIECE_BYTES])

    def _send_early(self) -> None:
        """Enough for a send: it is in the cache, and the peer can work on it while we encrypt the next."""
        if self._is_blocked:
            self._take_over()
        else:
            self._send()

    def _take_over(self) -> None:
        """Blocked: move ciphertext out of OpenSSL, whose buffer keeps for life the size it once grew to."""
        while size := self._engine.take_output():
            self._unsent.append(memoryview(bytes(self._buffers.output[:size])))
        self._held_bytes = 0

    def pause_reading(self) -> None:
        """No `on_data` until `resume_reading`, except for the rest of what is being delivered now."""
        self._is_reading_wanted = False
        if self._state is _OPEN:
            self._registration.pause()

    def resume_reading(self) -> None:
        self._is_reading_wanted = True
        if self._state is _OPEN:
            if self._has_undelivered:
                self._reactor.call_soon(self._deliver_held)
            else:
                self._listen_if_wanted()

    def close(self) -> None:
        """Send what was written and the closing message, then close.

        `on_lost(None)` follows, at the latest 5 s after the kernel took the last byte; or PeerStalled, if it
        could take none for 5 s.
        """
        if self._state is _OPEN:
            self._close_in_order(None)
        elif self._state is not _CLOSING:
            self._finish(None)

    def abort(self, error: MeshError | None = None) -> None:
        """Reset the connection now; `on_lost(error)` follows in this pass."""
        if self._state is _CLOSED:
            return
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._finish(error)

    # Flusher

    def request_flush(self) -> None:
        """Have `before_flush` called at the end of this pass though nothing was written yet."""
        if not self.is_flush_due:
            self.is_flush_due = True
            self._reactor.mark_dirty(self)

    def flush(self) -> None:
        self.is_flush_due = True  # what before_flush writes leaves below: no second round for it
        if self._state is _OPEN:
            try:
                self._handler.before_flush()
            except Exception as error:
                self._fail_by_handler(error)
                raise
        self.is_flush_due = False
        if not self._is_blocked and self._state is not _CLOSED:
            self._send()
            if self._was_congested:
                self._watch_backlog()

    def _send(self) -> bool:
        """Hand the kernel all it takes; whether that was everything. Called when nothing older is unsent."""
        output = self._buffers.output
        self._held_bytes = 0
        while size := self._engine.take_output():
            sent = self._try_send(output[:size])
            if sent < 0:
                return False
            if sent < size:
                self._unsent.append(memoryview(bytes(output[sent:size])))
                self._take_over()
                self._is_blocked = True
                self._registration.want_write(True)
                return False
            if size < CIPHER_BYTES:
                break
        self.backlog_bytes = 0
        if self._state is _CLOSING:
            self._shut_down()
        return True

    def _try_send(self, data: memoryview) -> int:
        """What the kernel took; -1 = the connection is lost, and so reported."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lose(translate(error, "sending to the peer"))
            return -1
        self.backlog_bytes = max(self.backlog_bytes - sent, 0)
        return sent

    def _on_writable(self) -> None:
        if self._state is _State.CONNECTING:
            self._on_connected()
            return
        unsent = self._unsent
        while unsent:
            sent = self._try_send(unsent[0])
            if sent < 0:
                return
            if sent < len(unsent[0]):
                unsent[0] = unsent[0][sent:]
                break
            unsent.popleft()
        else:
            self._is_blocked = False
            if self._send():
                self._registration.want_write(False)
        if self._was_congested:
            self._watch_backlog()

    def _watch_backlog(self) -> None:
        if self.backlog_bytes < LOW_WATER_BYTES and self._state is _OPEN:
            self._was_congested = False
            try:
                self._handler.on_drained()
            except Exception as error:
                self._fail_by_handler(error)
                raise

    # Reading

    def _on_readable(self) -> None:
        try:
            size = self._sock.recv_into(self._buffers.cipher)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(translate(error, "reading from the peer"))
            return
        if not size:
            self._on_tcp_eof()
        elif self._state is _OPEN:
            self._deliver(size)
        elif self._state is not _CLOSING:
            self._engine.feed(size)
            self._begin_handshake()
            self._advance_handshake()

    def _deliver(self, size: int = 0) -> None:
        """Decrypt `size` bytes just read, and what OpenSSL still holds, and give it to the handler."""
        engine = self._engine
        while True:
            try:
                outcome = engine.decrypt(size)
            except MeshError as error:
                self._close_in_order(error)
                return
            if engine.plain_bytes:
                try:
                    self._handler.on_data(self._buffers.plain[: engine.plain_bytes])
                except Exception as error:
                    self._fail_by_handler(error)
                    raise
                if self._state is not _OPEN:
                    return
            if outcome is Decrypted.DRAINED:
                return
            if outcome is Decrypted.CLOSED:
                self._on_close_notify()
                return
            if not self._is_reading_wanted:
                self._has_undelivered = True
                return
            size = 0

    def _deliver_held(self) -> None:
        """Resumed: first what came while reading was paused, then the socket again."""
        if self._state is _OPEN and self._is_reading_wanted and self._has_undelivered:
            self._has_undelivered = False
            self._deliver()
            self._listen_if_wanted()

    def _listen_if_wanted(self) -> None:
        if self._state is _OPEN and self._is_reading_wanted and not self._has_peer_finished:
            self._registration.resume()

    def _on_close_notify(self) -> None:
        self._has_peer_finished = True
        self._registration.pause()
        try:
            self._handler.on_eof()
        except Exception as error:
            self._fail_by_handler(error)
            raise

    def _on_tcp_eof(self) -> None:
        if self._state is _CLOSING:
            self._finish(self._lost_error)
        elif self._state is _OPEN:
            self._finish(TlsTruncated("the peer closed the connection without the TLS closing message"))
        else:
            self._finish(HandshakeFailed("the peer closed the connection during the TLS handshake"))

    # Connecting and handshake

    def _on_connected(self) -> None:
        try:
            finish_connect(self._sock)
        except MeshError as error:
            self._finish(error)
            return
        self._registration.want_write(False)
        self._registration.resume()
        self._begin_handshake()

    def _begin_handshake(self) -> None:
        if self._state is not _State.CONNECTING:
            return
        self._state = _HANDSHAKING
        try:
            self.local_address = canonical(self._sock.getsockname())
            self.peer_address = canonical(self._sock.getpeername())
        except OSError as error:
            self._finish(translate(error, "reading the addresses of a connection"))
            return
        if not self._is_server:
            self._advance_handshake()

    def _advance_handshake(self) -> None:
        """One step of the handshake: half a millisecond of arithmetic, with the GIL released.

        A lone one is done here and now. When several are ready they go to the threads, which leaves the loop
        to the established connections and uses a second processor.
        """
        if self._state is not _HANDSHAKING or self._is_in_thread:
            return
        buffers = self._buffers
        if buffers.last_inline_handshake != self._reactor.now and not self._reactor.threaded_work:
            buffers.last_inline_handshake = self._reactor.now
            self._handshake_here()
        else:
            self._is_in_thread = True
            self._registration.pause()
            self._reactor.run_in_thread(self._engine.handshake, self._on_thread_done)

    def _handshake_here(self) -> None:
        try:
            is_done = self._engine.handshake()
        except MeshError as error:
            self._close_in_order(error)
        else:
            self._after_step(is_done=is_done)

    def _on_thread_done(self, result: bool | BaseException) -> None:
        self._is_in_thread = False
        if self._state is not _HANDSHAKING:
            return
        self._registration.resume()
        if isinstance(result, bool):
            self._after_step(is_done=result)
        elif isinstance(result, WorkRejected):
            self._handshake_here()
        elif isinstance(result, MeshError):
            self._close_in_order(result)
        else:
            self._fail_by_handler(result)
            raise result

    def _after_step(self, *, is_done: bool) -> None:
        if not is_done:
            self._send()
            return
        try:
            peer = self._checked_peer()
        except MeshError as error:
            # Our half of the handshake's end stays unsent, so the refused peer cannot believe it was
            # accepted.
            self._finish(error)
            return
        except Exception as error:
            self._fail_by_handler(error)
            raise
        self.peer = peer
        self._state = _OPEN
        self._timer.cancel()
        self.request_flush()
        if not self._is_reading_wanted:
            self._registration.pause()
        try:
            self._handler.on_handshake(peer)
        except Exception as error:
            self._fail_by_handler(error)
            raise
        if self._state is _OPEN:  # data may have come with the end of the handshake
            self._has_undelivered = True
            self._deliver_held()

    def _checked_peer(self) -> PeerCertificate:
        if self._engine.alpn != ALPN:
            raise ProtocolNotAgreed("the peer does not speak HTTP/2 on this connection (no ALPN h2)")
        der = self._engine.peer_der()
        if der is None:
            raise PeerRejected("the peer sent no certificate")
        peer = read_peer_certificate(der)
        self._verify(peer)
        return peer

    def _on_handshake_timeout(self) -> None:
        if self._state is _State.CONNECTING:
            self._finish(ConnectTimedOut("the peer did not accept the connection in time"))
        else:
            self._finish(HandshakeTimedOut("the peer did not finish the TLS handshake in time"))

    # The end

    def _close_in_order(self, error: MeshError | None) -> None:
        """Send what is owed (for a failed handshake: OpenSSL's alert), then await the peer's end.

        Closing at once would make the kernel send a reset if unread data is there, and a reset discards at
        the peer what we sent last.
        """
        was_open = self._state is _OPEN
        self._state = _CLOSING
        self._lost_error = error
        self._timer.cancel()
        if was_open and error is None:
            self._engine.close_notify()
        if not self._has_peer_finished:
            self._registration.resume()
        self._await_end()
        if not self._is_blocked:
            self._send()

    def _shut_down(self) -> None:
        """All is sent."""
        if self._has_peer_finished:
            self._finish(self._lost_error)
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _on_close_timeout(self) -> None:
        if not self.backlog_bytes:
            # All is handed over, only the peer's own end is missing: the kernel delivers what it still holds.
            self._finish(self._lost_error)
        elif self.backlog_bytes < self._backlog_at_check:
            self._await_end()
        else:
            self.abort(
                self._lost_error or PeerStalled(f"the peer did not take the last {self.backlog_bytes} bytes")
            )

    def _await_end(self) -> None:
        self._backlog_at_check = self.backlog_bytes
        self._timer = self._reactor.call_later(_CLOSE_TIMEOUT_S, self._on_close_timeout)

    def _lose(self, error: MeshError) -> None:
        self._finish(self._lost_error if self._state is _CLOSING else error)

    def _fail_by_handler(self, error: BaseException) -> None:
        failure = HandlerFailed(f"{type(error).__name__} above the TLS connection: {error}")
        failure.__cause__ = error
        self.abort(failure)

    def _finish(self, error: MeshError | None) -> None:
        if self._state is _CLOSED:
            return
        self._state = _CLOSED
        self._lost_error = error
        self._timer.cancel()
        self._registration.close()
        self._sock.close()
        self._unsent.clear()
        self.backlog_bytes = 0
        self._reactor.call_soon(self._report_lost)

    def _report_lost(self) -> None:
        handler = self._handler
        # Handler and pump know each other: else OpenSSL's memory would wait for the garbage collector.
        del self._handler, self._engine, self._verify
        handler.on_lost(self._lost_error)
