"""HTTP/2 with prior knowledge over a byte stream, either role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from transport.http2.codec import Http2Codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PeerSettings,
    StreamReset,
    WindowOpened,
)
from transport.http2.settings import KIB, MAX_STREAM_ID, MIB, FloodLimits, Http2Settings
from transport.reactor import Reactor
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.http_connection import LINGER_S, ConnectionOwner, HttpConnection, Linger

_MAX_STREAMS: Final = 100
# All streams together can hold back no more than the connection's window: a client that does not read one
# response never stops another's.
SETTINGS: Final = Http2Settings(
    initial_window=256 * KIB,
    connection_window=26 * MIB,
    max_frame=64 * KIB,
    max_header_list=60 * KIB,
    max_concurrent_streams=_MAX_STREAMS,
    assumed_peer_streams=_MAX_STREAMS,
    limits=FloodLimits(resets_at_once=_MAX_STREAMS),
)


class Http2Connection(HttpConnection):
    """See HttpConnection."""

    __slots__ = ("_is_server", "codec")

    codec: Http2Codec
    is_http2 = True

    def __init__(
        self,
        reactor: Reactor,
        stream: ByteStream,
        codec: Http2Codec,
        owner: ConnectionOwner,
        *,
        is_server: bool,
    ) -> None:
        super().__init__(reactor, stream, codec, owner)
        self._is_server = is_server

    def start(self, first: bytes | bytearray = b"") -> None:
        self.codec.start()
        self.touch()
        super().start(first)

    def _handle(self, take: Any, *arguments: Any) -> None:
        if self._is_server:
            super()._handle(self._worthwhile, take, *arguments)
        else:
            super()._handle(take, *arguments)

    def _worthwhile(self, take: Any, *arguments: Any) -> Iterable[Event]:
        """Without requests that the same input gives up: who floods us with them costs a decode each."""
        events: list[Event] = take(*arguments)
        if len(events) < 2:
            return events
        if type(events[-1]) is ConnectionFailed:
            return events[-1:]
        over = {event.stream_id for event in events if isinstance(event, StreamReset)} - self.users.keys()
        if not over:
            return events
        kept: list[Event] = []
        for event in events:
            if isinstance(event, HeadersReceived | StreamReset):
                if event.stream_id in over:
                    continue
            elif isinstance(event, DataReceived) and event.stream_id in over:
                self.consumed(event.stream_id, event.flow_bytes)
                continue
            kept.append(event)
        return kept

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        if not self.is_closed and flow_bytes:
            self.codec.consumed(stream_id, flow_bytes)
            if not self._is_dirty:
                self.touch()

    def release(self, stream_id: int) -> None:
        self.users.pop(stream_id, None)
        self._on_stream_over()

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        if self.users.pop(stream_id, None) is not None and not self.is_closed:
            self.codec.reset(stream_id, code)
            self.touch()
            self._on_stream_over()

    def abandon_request(self, stream_id: int) -> None:
        self.reset(stream_id, ErrorCode.NO_ERROR)  # RFC 9113 8.1

    def _on_stream_over(self) -> None:
        if self.is_closed:
            return
        if self.is_going_away and not self.users:
            self.touch()
        elif not self._is_server:
            self.is_reused = True
            self.owner.on_room(self)

    @property
    def has_room(self) -> bool:
        codec = self.codec
        return (
            not self.is_closed
            and not self.is_going_away
            and not codec.is_going_away
            and codec.open_streams < min(codec.peer_max_streams, _MAX_STREAMS)
        )

    def drain(self) -> None:
        """First a GOAWAY that names no last stream, so that nothing on its way is lost, then the real one."""
        if self.is_draining or self.is_closed:
            return
        self.is_draining = True
        if self._is_server:
            self.codec.goaway(last_stream_id=MAX_STREAM_ID)
            self.reactor.call_later(LINGER_S, self._finish_drain)
        else:
            self._finish_drain()
        self.touch()

    def _finish_drain(self) -> None:
        if not self.is_closed:
            self.codec.goaway()
            self.is_going_away = True
            self.touch()

    def keep_alive(self) -> None:
        """A PING, which also starts the codec's flood counts anew; none while many are unanswered."""
        if not self.is_closed and self.last_active > self.reactor.now - 60.0:
            self.codec.ping(b"mycelia.")
            self.touch()

    def on_eof(self) -> None:
        self.on_lost(None)
        self.stream.close()

    def _on_event(self, event: Event) -> None:
        match event:
            case WindowOpened():
                if event.stream_id == 0:
                    self._unblock(self._blocked_by_window)
                elif event.stream_id in self._blocked_by_window:
                    self._unblock_one(event.stream_id)
            case StreamReset():
                user = self.users.pop(event.stream_id, None)
                if user is not None:
                    user.on_reset(_failure(event))
                self._on_stream_over()
            case GoAwayReceived():
                self.is_going_away = True
                if not self._is_server:
                    self.owner.on_unusable(self)
            case PeerSettings():
                if not self._is_server:
                    self.owner.on_room(self)
            case ConnectionFailed():
                self._fail(event)
            case _:
                pass

    def _unblock_one(self, stream_id: int) -> None:
        self._blocked_by_window.pop(stream_id, None)
        user = self.users.get(stream_id)
        if user is not None:
            user.on_writable()

    def _fail(self, event: ConnectionFailed) -> None:
        """The peer broke the protocol: a GOAWAY leaves, then the end."""
        self._end_users(Failure(Cause.PROTOCOL, event.reason, event.code))
        self._over(None)  # writes the codec's output
        Linger(self.reactor, self.stream)

    def _after_flush(self) -> None:
        if self.is_going_away and not self.users and not self.is_closed:
            stream = self.stream
            self._over(None)
            if self._is_server:
                Linger(self.reactor, stream)
            else:
                stream.close()


def _failure(event: StreamReset) -> Failure:
    if event.is_local:
        return Failure(Cause.PROTOCOL, event.reason, event.code)
    if event.code == ErrorCode.REFUSED_STREAM:
        return Failure(Cause.REFUSED, "REFUSED_STREAM", event.code)
    return Failure(Cause.RESET, f"RST_STREAM {event.code}", event.code)
