"""An HTTP connection over a byte stream, either role: codec and bytes below, streams' users above.

Theory of operation. Bytes come in, the codec makes events of them, each goes to the user of its stream. What
users send is put into the codec and leaves in one write at the end of the pass (`flush`). A user asks
`sendable` before it sends; 0 enrols it for one `on_writable`. A user gives credit with `consumed`; without
it an HTTP/2 peer runs out of window, and an HTTP/1 connection stops reading.

Invariants: a user hears nothing after `release` or `reset`; a fault that comes with one stream's bytes ends
that stream where the protocol allows it, else this connection, never more. `on_closed` is the owner's last
call, exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from transport.errors import MeshError
from transport.http2.error_codes import ErrorCode
from transport.http2.events import DataReceived, Event, Header, HeadersReceived, HeadersRejected
from transport.reactor import Reactor
from waypoint.worker.byte_stream import HIGH_WATER_BYTES, ByteStream
from waypoint.worker.errors import HandlingFailed
from waypoint.worker.failures import Cause, Failure

LINGER_S: Final = 1.0  # waypoint-facts 4: delayed close
_LINGER_BYTES: Final = 1024 * 1024


class StreamUser(Protocol):
    """Who has a stream of a connection."""

    def on_headers(self, headers: list[Header], end_stream: bool, is_trailers: bool) -> None:
        """Client: a response, 1xx too. Both: trailers."""

    def on_body(self, data: memoryview, flow_bytes: int, end_stream: bool) -> None:
        """A piece, valid during the call only; `flow_bytes` are owed to `consumed`."""

    def on_reset(self, failure: Failure) -> None:
        """The stream is over before its end. The last call."""

    def on_writable(self) -> None:
        """`sendable`, last seen as 0, may have grown."""


class ConnectionOwner(Protocol):
    """Who made the connection."""

    def on_request(
        self, connection: HttpConnection, stream_id: int, headers: list[Header], end_stream: bool
    ) -> None:
        """Server: put a user for the stream into `connection.users`."""

    def on_rejected(self, connection: HttpConnection, status: int, reason: str) -> None:
        """Server: the codec turned a request away by itself."""

    def on_room(self, connection: HttpConnection) -> None:
        """Client: another request may be possible now."""

    def on_unusable(self, connection: HttpConnection) -> None:
        """Client: no request is possible any more; what is under way goes on."""

    def on_closed(self, connection: HttpConnection, error: MeshError | None) -> None:
        """The connection is over."""


class HttpConnection:
    """What both protocols share. `codec` is http1.codec.Http1Codec or http2.codec.Http2Codec."""

    __slots__ = (
        "__weakref__",
        "_blocked_by_backlog",
        "_blocked_by_window",
        "_is_dirty",
        "_queued_bytes",
        "codec",
        "is_closed",
        "is_draining",
        "is_going_away",
        "is_reused",
        "last_active",
        "owner",
        "reactor",
        "source",
        "stream",
        "users",
    )

    is_http2 = False

    def __init__(self, reactor: Reactor, stream: ByteStream, codec: Any, owner: ConnectionOwner) -> None:
        self.reactor = reactor
        self.stream = stream
        self.codec = codec
        self.owner = owner
        self.source: Any = None  # the owner's: where a server's connection comes from
        self.users: dict[int, StreamUser] = {}
        self.last_active = reactor.now
        self.is_reused = False
        self.is_draining = False
        self.is_going_away = False  # HTTP/2: no new streams, the end comes with the last one
        self.is_closed = False
        self._is_dirty = False
        self._queued_bytes = 0
        self._blocked_by_backlog: dict[int, None] = {}
        self._blocked_by_window: dict[int, None] = {}

    # Users' commands; all are inert once the connection is closed

    def open(self, headers: list[Header], end_stream: bool, user: StreamUser) -> int:
        """Client: send a request. Raises the codec's errors: no room, or a head that cannot be written."""
        stream_id: int = self.codec.open_stream(headers, end_stream)
        self.users[stream_id] = user
        self.touch()
        return stream_id

    def send_headers(self, stream_id: int, headers: list[Header], end_stream: bool) -> None:
        """A response's headers (1xx too), or trailers."""
        self.codec.send_headers(stream_id, headers, end_stream)
        if not self._is_dirty:
            self.touch()

    def send_data(self, stream_id: int, data: bytes | memoryview, end_stream: bool) -> None:
        """A body piece, at most `sendable` bytes; copied."""
        self.codec.send_data(stream_id, data, end_stream)
        self._queued_bytes += len(data)
        if not self._is_dirty:
            self.touch()

    def sendable(self, stream_id: int) -> int:
        """Bytes that may be sent now; 0 enrols for `on_writable`."""
        if self._queued_bytes + self.stream.backlog_bytes > HIGH_WATER_BYTES:
            self._blocked_by_backlog[stream_id] = None
            if not self.stream.is_congested:
                self.touch()  # on_drained will not come; the flush looks again
            return 0
        room: int = self.codec.sendable(stream_id)
        if room <= 0:
            self._blocked_by_window[stream_id] = None
            return 0
        return min(room, HIGH_WATER_BYTES)

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        """`flow_bytes` of what was delivered went onward."""
        raise NotImplementedError

    def release(self, stream_id: int) -> None:
        """The user is done with a stream that ended both ways in order."""
        raise NotImplementedError

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Give up a stream; its user hears nothing more."""
        raise NotImplementedError

    def abandon_request(self, stream_id: int) -> None:
        """Server: the response has ended and the request has not; nobody wants the rest."""
        raise NotImplementedError

    def announce_early_end(self) -> None:
        """Server: a response follows that does not wait for the request's end."""

    @property
    def has_room(self) -> bool:
        """Client: whether one more request can be sent now."""
        raise NotImplementedError

    def drain(self) -> None:
        """Take no new requests and close after the ones under way."""
        raise NotImplementedError

    def close(self) -> None:
        """Close in order, after what was sent; users hear nothing."""
        if not self.is_closed:
            self._over(None)
            self.stream.close()

    def abort(self, error: MeshError | None, failure: Failure) -> None:
        """Close at once; users hear `failure`."""
        if not self.is_closed:
            self.stream.abort()
            self._end_users(failure)
            self._over(error)

    # ByteStream's handler

    def start(self, first: bytes | bytearray = b"") -> None:
        """Begin, with bytes that were read already."""
        self.stream.start(self)
        if first:
            self.on_data(memoryview(first))

    def on_data(self, data: memoryview) -> None:
        self.last_active = self.reactor.now
        self._handle(self.codec.receive, data)

    def on_eof(self) -> None:
        raise NotImplementedError

    def on_drained(self) -> None:
        self._unblock(self._blocked_by_backlog)

    def on_lost(self, error: MeshError | None) -> None:
        if not self.is_closed:
            self._end_users(Failure(Cause.CLOSED, str(error or "")))
            self._over(error)

    # Below

    def touch(self) -> None:
        """Have the codec's output sent at the end of this pass."""
        if not self._is_dirty and not self.is_closed:
            self._is_dirty = True
            self.reactor.mark_dirty(self)

    def flush(self) -> None:
        self._is_dirty = False
        if self.is_closed:
            return
        output = self.codec.take_output()
        self._queued_bytes = 0
        if output:
            self.stream.write(output)
        self._after_flush()
        if self._blocked_by_backlog and not self.stream.is_congested:
            self._unblock(self._blocked_by_backlog)

    def _after_flush(self) -> None: ...

    def _handle(self, take: Any, *arguments: Any) -> None:
        """Take events from the codec and hand them out. A defect ends this connection only."""
        users = self.users
        try:
            for event in take(*arguments):
                kind = type(event)
                if kind is DataReceived:
                    user = users.get(event.stream_id)
                    if user is None:
                        self.consumed(event.stream_id, event.flow_bytes)
                    else:
                        self._owe(event.flow_bytes)
                        user.on_body(event.data, event.flow_bytes, event.end_stream)
                elif kind is HeadersReceived:
                    user = users.get(event.stream_id)
                    if user is not None:
                        user.on_headers(event.headers, event.end_stream, event.is_trailers)
                    elif not event.is_trailers:
                        self.owner.on_request(self, event.stream_id, event.headers, event.end_stream)
                elif kind is HeadersRejected:
                    self.owner.on_rejected(self, event.status, event.reason)
                else:
                    self._on_event(event)
        except Exception as error:  # noqa: BLE001 - many clients' streams may share what carries this one
            self.reactor.on_callback_error(error, None)
            failed = HandlingFailed(f"a connection was ended by a defect: {type(error).__name__}: {error}")
            self.abort(failed, Failure(Cause.RESET, str(failed)))
        if not self._is_dirty and (self.codec.needs_flush or self.is_going_away):
            self.touch()

    def _owe(self, flow_bytes: int) -> None:
        """`flow_bytes` are with a user."""

    def _on_event(self, event: Event) -> None:
        raise NotImplementedError

    def _unblock(self, blocked: dict[int, None]) -> None:
        if not blocked:
            return
        waiting: Iterable[int] = list(blocked)
        blocked.clear()
        for stream_id in waiting:
            user = self.users.get(stream_id)
            if user is not None:
                user.on_writable()

    def _end_users(self, failure: Failure) -> None:
        users = list(self.users.values())
        self.users.clear()
        for user in users:
            user.on_reset(failure)

    def _over(self, error: MeshError | None) -> None:
        if self.is_closed:
            return
        output = self.codec.take_output()
        if output:
            self.stream.write(output)
        self.is_closed = True
        self.users.clear()
        self.owner.on_closed(self, error)


class Linger:
    """Reads and throws away for a short time after the last answer, so that no reset overtakes it."""

    __slots__ = ("_left", "_stream", "_timer")

    def __init__(self, reactor: Reactor, stream: ByteStream) -> None:
        self._stream = stream
        self._left = _LINGER_BYTES
        self._timer = reactor.call_later(LINGER_S, self._finish)
        stream.end()
        stream.start(self)

    def on_data(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._finish()

    def on_eof(self) -> None:
        self._finish()

    def on_drained(self) -> None: ...

    def on_lost(self, error: MeshError | None) -> None:  # noqa: ARG002 - nobody asks any more
        self._timer.cancel()

    def _finish(self) -> None:
        self._timer.cancel()
        self._stream.close()
