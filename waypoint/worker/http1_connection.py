"""HTTP/1.1 over a byte stream, either role. One exchange at a time; the end of the stream has a meaning."""

from __future__ import annotations

from typing import Any

from transport.errors import MeshError
from transport.http1.codec import Http1Codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import ConnectionFailed, Event, Header
from transport.reactor import Reactor, Timer
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.http_connection import LINGER_S, ConnectionOwner, HttpConnection, Linger


class Http1Connection(HttpConnection):
    """See HttpConnection. Without credit (`consumed`) for all that was delivered, nothing is read."""

    __slots__ = (
        "_has_peer_ended",
        "_is_paused",
        "_is_server",
        "_linger_timer",
        "_owed",
        "codec",
        "head_began_at",
        "is_upgraded",
    )

    codec: Http1Codec

    def __init__(
        self,
        reactor: Reactor,
        stream: ByteStream,
        codec: Http1Codec,
        owner: ConnectionOwner,
        *,
        is_server: bool,
    ) -> None:
        super().__init__(reactor, stream, codec, owner)
        self._is_server = is_server
        self._owed = 0
        self._is_paused = False
        self._has_peer_ended = False
        self._linger_timer: Timer | None = None
        self.is_upgraded = False
        self.head_began_at: float | None = None  # server: of a head that is not complete

    def send_headers(self, stream_id: int, headers: list[Header], end_stream: bool) -> None:
        super().send_headers(stream_id, headers, end_stream)
        if headers[0][1] == b"101" and headers[0][0] == b":status":
            self.is_upgraded = True

    def consumed(self, stream_id: int, flow_bytes: int) -> None:  # noqa: ARG002 - there is one stream
        if self._owed:
            self._owed = max(self._owed - flow_bytes, 0)
            if not self._owed and self._is_paused:
                self._set_reading()

    def _owe(self, flow_bytes: int) -> None:
        self._owed += flow_bytes

    def _set_reading(self) -> None:
        wanted = not self._owed and not self.codec.is_held
        if wanted is self._is_paused:
            self._is_paused = not wanted
            if wanted:
                self.stream.resume()
            else:
                self.stream.pause()

    def _handle(self, take: Any, *arguments: Any) -> None:
        super()._handle(take, *arguments)
        if self._is_server and not self.users and not self.is_closed:
            self._watch_head()
        if (self._owed or self.codec.is_held or self._is_paused) and not self.is_closed:
            self._set_reading()

    def _watch_head(self) -> None:
        if not self.codec.is_in_head:
            self.head_began_at = None
        elif self.head_began_at is None:
            self.head_began_at = self.reactor.now

    def time_out_head(self, limit_s: float) -> None:
        """Server: end the connection with 408 if its head has been on its way for longer."""
        began = self.head_began_at
        if began is not None and self.reactor.now - began >= limit_s and not self.is_closed:
            self._handle(self.codec.time_out_head)

    def release(self, stream_id: int) -> None:
        self.users.pop(stream_id, None)
        self._forgive()
        if not self._is_server and not self.is_closed and self.codec.is_idle:
            self.is_reused = True
            self.owner.on_room(self)

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:  # noqa: ARG002 - no codes here
        if self.users.pop(stream_id, None) is not None and not self.is_closed:
            self._forgive()
            self.codec.reset(stream_id)
            self.touch()

    def _forgive(self) -> None:
        """What a stream's user still owes is dropped with it."""
        if self._owed:
            self._owed = 0
            if not self.is_closed:
                self._set_reading()

    def announce_early_end(self) -> None:
        self.codec.goaway()

    def abandon_request(self, stream_id: int) -> None:
        self.users.pop(stream_id, None)
        self._forgive()
        if not self.is_closed:
            self.codec.goaway()
            self.touch()
            if self._linger_timer is None:
                self._linger_timer = self.reactor.call_later(LINGER_S, self.close)

    @property
    def has_room(self) -> bool:
        return not self.is_closed and not self._has_peer_ended and not self.users and self.codec.is_idle

    def drain(self) -> None:
        self.is_draining = True
        self.codec.goaway()
        self.touch()

    def on_eof(self) -> None:
        self._has_peer_ended = True
        self._handle(self.codec.receive_eof)
        if self._is_server and self.users and not self.is_upgraded and not self.is_closed:
            # A client that can no longer speak has gone, as a socket's close looks the same.
            self.abort(None, Failure(Cause.CLOSED, "the client closed the connection"))

    def _on_event(self, event: Event) -> None:
        if type(event) is not ConnectionFailed:
            return
        cause = Cause.CLOSED if event.code == ErrorCode.CANCEL else Cause.PROTOCOL
        self._end_users(Failure(cause, event.reason))

    def on_lost(self, error: MeshError | None) -> None:
        self._has_peer_ended = True
        super().on_lost(error)

    def _after_flush(self) -> None:
        codec = self.codec
        while codec.is_held and not self.is_closed and not codec.is_finished:
            events = codec.resume()
            if not events:
                break
            self._handle(lambda events=events: events)
        if self._is_paused:
            self._set_reading()
        if codec.is_finished:
            self._finish()
        elif codec.is_output_ended:
            self.stream.end()

    def _finish(self) -> None:
        if self.is_closed:
            return
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        stream = self.stream
        self._end_users(Failure(Cause.CLOSED, "the connection ended"))
        self._over(None)
        if self._is_server and not self._has_peer_ended:
            Linger(self.reactor, stream)
        else:
            stream.close()
