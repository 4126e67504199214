"""A byte stream in TLS over another byte stream, as a client: a tunnel's, or a socket's.

Theory of operation. Ciphertext that the lower stream delivers goes into OpenSSL at once; what can be
decrypted of it is handed up from a buffer that all such streams of a worker share. A handler may wake
another stream while it reads that buffer: the other one's turn comes in the next round then (`is_busy`).
Writing encrypts at once and writes to the lower stream, whose backlog is ours.

Invariants:
- Nothing is delivered and nothing of a writer's accepted before OpenSSL accepted the chain and `verify` the
  certificate; our last message of the handshake is not sent to whom `verify` refuses.
- `done` is called exactly once, unless `abort` came first; never from inside the constructor.
- An end of the lower stream without TLS's closing message is an error (TlsTruncated), whatever carries it.
- Bounds: `_MAX_HANDSHAKE_BYTES` from the peer until the handshake is done; the time is the dialler's. While
  paused, what the lower stream still brings is kept, and bounded by its window.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from transport.errors import MeshError
from transport.reactor import Reactor, WorkRejected
from transport.tls.buffers import inner_buffers_of
from transport.tls.engine import Decrypted, TlsEngine
from transport.tls.errors import HandshakeFailed, TlsTruncated
from waypoint.worker.byte_stream import NOBODY, ByteStream, StreamHandler

_MAX_HANDSHAKE_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 128 * 1024  # of plaintext encrypted at a time
_FED_BYTES: Final = 32 * 1024  # of ciphertext: OpenSSL's input buffer keeps the size it once grew to

Verify = Callable[[TlsEngine], None]
Done = Callable[["TlsStream | MeshError"], None]


class _State(enum.Enum):
    HANDSHAKING = enum.auto()
    OPEN = enum.auto()
    OVER = enum.auto()


class TlsStream:
    """Implements ByteStream, and StreamHandler for `lower`, which it owns. Begins at once."""

    __slots__ = (
        "_buffers",
        "_done",
        "_engine",
        "_handler",
        "_handshake_bytes",
        "_has_lower_ended",
        "_has_peer_finished",
        "_has_undelivered",
        "_held",
        "_is_end_due",
        "_is_in_thread",
        "_is_paused",
        "_lower",
        "_reactor",
        "_state",
        "_verify",
    )

    def __init__(
        self,
        reactor: Reactor,
        lower: ByteStream,
        engine: TlsEngine,
        *,
        verify: Verify,
        done: Done,
    ) -> None:
        self._reactor = reactor
        self._lower = lower
        self._engine = engine
        self._buffers = inner_buffers_of(reactor)
        self._verify = verify
        self._done: Done | None = done
        self._handler: StreamHandler = NOBODY
        self._state = _State.HANDSHAKING
        self._is_in_thread = False
        self._held = bytearray()  # what came while the handshake was in a thread
        self._handshake_bytes = 0
        self._is_paused = True  # until start
        self._has_undelivered = False
        self._has_lower_ended = False
        self._has_peer_finished = False
        self._is_end_due = False
        reactor.call_soon(self._begin)

    # ByteStream

    @property
    def backlog_bytes(self) -> int:
        return self._lower.backlog_bytes

    @property
    def is_congested(self) -> bool:
        return self._lower.is_congested

    def start(self, handler: StreamHandler) -> None:
        self._handler = handler
        self.resume()

    def pause(self) -> None:
        self._is_paused = True
        if self._state is _State.OPEN:
            self._lower.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._state is not _State.OPEN:
            return
        if self._has_undelivered:
            self._reactor.call_soon(self._deliver_held)
        self._lower.resume()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is not _State.OPEN or self._is_end_due:
            return
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            try:
                self._engine.encrypt(view[start : start + _PIECE_BYTES])
            except MeshError as error:
                # Writers never fail: they hear of it as of any loss.
                self._reactor.call_soon(lambda failure=error: self._lose(failure))  # type: ignore[misc]
                return
            self._send()

    def end(self) -> None:
        if self._state is not _State.OPEN or self._is_end_due:
            return
        self._is_end_due = True
        self._engine.close_notify()
        self._send()
        self._lower.end()

    def close(self) -> None:
        if self._state is not _State.OPEN:
            self.abort()
            return
        if not self._is_end_due:
            self._engine.close_notify()
            self._send()
        self._finish()
        self._lower.close()

    def abort(self) -> None:
        if self._state is not _State.OVER:
            self._finish()
            self._lower.abort()

    # The lower stream's handler

    def on_data(self, data: memoryview) -> None:
        if self._state is _State.HANDSHAKING:
            self._take_handshake(data)
            return
        for start in range(0, len(data), _FED_BYTES):
            if self._state is not _State.OPEN:
                return
            self._engine.feed_view(data[start : start + _FED_BYTES])
            if not self._has_undelivered:
                self._deliver()

    def on_eof(self) -> None:
        self._has_lower_ended = True
        if self._state is _State.HANDSHAKING:
            self._fail(HandshakeFailed("the peer closed the connection during the TLS handshake"))
        elif self._state is _State.OPEN and not self._has_undelivered:
            self._check_truncation()

    def on_drained(self) -> None:
        self._handler.on_drained()

    def on_lost(self, error: MeshError | None) -> None:
        if self._state is _State.HANDSHAKING:
            reason = error.text if error is not None else "it closed the connection"
            self._fail(HandshakeFailed(f"the peer was lost during the TLS handshake: {reason}"), is_lost=True)
        elif self._state is _State.OPEN:
            handler = self._handler
            if error is None and not self._has_peer_finished:
                error = _truncated()
            self._finish()
            handler.on_lost(error)

    # Handshake

    def _begin(self) -> None:
        if self._state is _State.HANDSHAKING:
            self._lower.start(self)
            self._advance()

    def _take_handshake(self, data: memoryview) -> None:
        self._handshake_bytes += len(data)
        if self._handshake_bytes > _MAX_HANDSHAKE_BYTES:
            self._fail(HandshakeFailed(f"a TLS handshake of more than {_MAX_HANDSHAKE_BYTES} bytes"))
        elif self._is_in_thread:
            self._held += data
        else:
            self._engine.feed_view(data)
            self._advance()

    def _advance(self) -> None:
        """One step. A lone one is done here, several that are ready together go to the threads (pump.py)."""
        buffers, reactor = self._buffers, self._reactor
        if buffers.last_inline_handshake != reactor.now and not reactor.threaded_work:
            buffers.last_inline_handshake = reactor.now
            self._advance_here()
        else:
            self._is_in_thread = True
            reactor.run_in_thread(self._engine.handshake, self._on_thread_done)

    def _advance_here(self) -> None:
        try:
            is_done = self._engine.handshake()
        except MeshError as error:
            self._fail(error)
        else:
            self._after_step(is_done=is_done)

    def _on_thread_done(self, result: bool | BaseException) -> None:
        self._is_in_thread = False
        if self._state is not _State.HANDSHAKING:
            return
        if isinstance(result, WorkRejected):
            self._advance_here()
        elif isinstance(result, MeshError):
            self._fail(result)
        elif isinstance(result, BaseException):
            self._fail(HandshakeFailed(f"a defect ended the TLS handshake: {type(result).__name__}"))
            raise result
        else:
            self._after_step(is_done=result)

    def _after_step(self, *, is_done: bool) -> None:
        if is_done:
            try:
                self._verify(self._engine)
            except MeshError as error:
                self._fail(error)
                return
        self._send()
        held, self._held = self._held, bytearray()
        if held and self._state is _State.HANDSHAKING:
            self._engine.feed_view(memoryview(held))
            if not is_done:
                self._advance()
                return
        if is_done and self._state is _State.HANDSHAKING:
            self._open()

    def _open(self) -> None:
        self._state = _State.OPEN
        self._has_undelivered = True  # data may have come with the end of the handshake
        if self._is_paused:
            self._lower.pause()
        done, self._done = self._done, None
        assert done is not None
        done(self)

    def _fail(self, error: MeshError, *, is_lost: bool = False) -> None:
        """An alert of OpenSSL's goes out; what follows a certificate that was refused does not."""
        done = self._done
        is_alert_due = isinstance(error, HandshakeFailed) and not self._is_in_thread and not is_lost
        if is_alert_due:
            self._send()
        self._finish()
        if is_alert_due:
            self._lower.close()
        elif not is_lost:
            self._lower.abort()
        if done is not None:
            done(error)

    # Below

    def _send(self) -> None:
        engine, output = self._engine, self._buffers.output
        while size := engine.take_output():
            self._lower.write(output[:size])

    def _deliver_held(self) -> None:
        if self._state is _State.OPEN and self._has_undelivered and not self._is_paused:
            self._has_undelivered = False
            self._deliver()

    def _deliver(self) -> None:
        """Hand up what OpenSSL can decrypt of what it has."""
        buffers, engine = self._buffers, self._engine
        outcome = Decrypted.FULL
        while outcome is Decrypted.FULL:
            if self._is_paused or buffers.is_busy:
                self._has_undelivered = True
                if not self._is_paused:
                    self._reactor.call_soon(self._deliver_held)
                return
            try:
                outcome = engine.decrypt()
            except MeshError as error:
                self._send()  # OpenSSL's alert
                self._lose(error)
                return
            self._send()  # an answer to a message of TLS itself
            if engine.plain_bytes:
                buffers.is_busy = True
                try:
                    self._handler.on_data(buffers.plain[: engine.plain_bytes])
                finally:
                    buffers.is_busy = False
                if self._state is not _State.OPEN:
                    return
        if outcome is Decrypted.CLOSED:
            self._on_close_notify()
        elif self._has_lower_ended:
            self._check_truncation()

    def _on_close_notify(self) -> None:
        if not self._has_peer_finished:
            self._has_peer_finished = True
            self._handler.on_eof()

    def _check_truncation(self) -> None:
        if not self._has_peer_finished:
            self._lose(_truncated())

    def _lose(self, error: MeshError) -> None:
        if self._state is not _State.OPEN:
            return
        handler = self._handler
        self._finish()
        self._lower.close()
        handler.on_lost(error)

    def _finish(self) -> None:
        self._state = _State.OVER
        self._handler = NOBODY
        self._done = None
        self._held.clear()


def _truncated() -> TlsTruncated:
    return TlsTruncated("the peer closed the connection without the TLS closing message")
