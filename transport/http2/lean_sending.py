"""The sending half of the lean codec: streams, windows and output; what both halves share lives here.

Invariants: `_streams` holds exactly the streams that are open in some direction. `_in_window` is what the
peer may send on the connection; bytes that nobody will ever consume (padding, late or dropped DATA) are
credited by the codec at once. After a connection has failed every method is inert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from transport.http2 import frames
from transport.http2.closed import ClosedStreams
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import CodecMisuse, ConnectionFault, GoingAway, StreamLimitReached
from transport.http2.events import ConnectionFailed, Event, Header
from transport.http2.flood import FloodGuard
from transport.http2.hpack.encoder import Encoder
from transport.http2.settings import (
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    MAX_STREAM_ID,
    UNLIMITED_STREAMS,
    Http2Settings,
    Role,
)
from transport.http2.stream import Stream, describe_request

_MAX_OPEN_PINGS: Final = 16
_pack = frames.FRAME_HEADER.pack
_pack_into = frames.FRAME_HEADER.pack_into


class SendingHalf:
    """See codec.Http2Codec for what each public method promises."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        self._role = role
        self._is_server = role is Role.SERVER
        self._settings = settings
        self._out = bytearray()
        self._events: list[Event] = []
        self._encoder = Encoder()
        self._guard = FloodGuard(settings.limits)
        self._streams: dict[int, Stream] = {}
        self._closed = ClosedStreams()
        self._lingering: dict[int, int] = {}  # forgotten ids -> bytes that the caller still holds
        self._next_id = 1
        self._out_window = DEFAULT_WINDOW
        self._out_credit = DEFAULT_WINDOW  # all that the peer ever granted: minus _out_window = bytes sent
        self._peer_initial_window = DEFAULT_WINDOW
        self._stream_window = settings.initial_window
        if self._is_server:  # 6.9.2: until a client has our SETTINGS it may count on the default
            self._stream_window = max(DEFAULT_WINDOW, settings.initial_window)
        self._stream_threshold = max(1, settings.initial_window // 2)
        self._in_window = settings.connection_window
        self._in_credit = settings.connection_window  # minus _in_window = bytes received
        self._in_pending = 0
        self._connection_threshold = settings.connection_window // 2
        self._goaway_sent: int | None = None  # last stream id of our GOAWAY
        self._has_peer_goaway = False
        self._is_failed = False
        self._open_pings: list[bytes] = []
        self.peer_max_frame = DEFAULT_MAX_FRAME
        self.peer_max_streams = 0 if self._is_server else settings.assumed_peer_streams
        self.highest_peer_stream = 0

    @property
    def open_streams(self) -> int:
        """Streams that are open in at least one direction."""
        return len(self._streams)

    @property
    def is_going_away(self) -> bool:
        """No new streams: GOAWAY was sent or seen, or the connection failed."""
        return self._has_peer_goaway or self._goaway_sent is not None or self._is_failed

    def start(self) -> None:
        self._out += frames.opening(self._role, self._settings)

    @property
    def needs_flush(self) -> bool:
        return bool(self._out)

    def take_output(self) -> bytes | bytearray:
        out = self._out
        if not out:
            return b""
        self._out = bytearray()
        self._guard.queued_replies = 0
        return out

    # Streams

    def open_stream(self, headers: Sequence[Header], end_stream: bool = False) -> int:
        stream_id = self._next_id
        if self._is_server:
            raise CodecMisuse("a server opens no streams")
        if self.is_going_away or stream_id > MAX_STREAM_ID:
            raise GoingAway("the connection takes no new streams", next_step="open another connection")
        if len(self._streams) >= self.peer_max_streams:
            raise StreamLimitReached(f"the peer allows {self.peer_max_streams} streams at a time")
        self._next_id = stream_id + 2
        self._guard.streams += 1
        stream = Stream(stream_id, describe_request(headers), self._peer_initial_window, self._stream_window)
        stream.is_local_closed = end_stream
        stream.body_left = 0  # no DATA before the response's head
        self._streams[stream_id] = stream
        self._write_headers(stream_id, headers, end_stream)
        return stream_id

    def send_headers(self, stream_id: int, headers: Sequence[Header], end_stream: bool = False) -> None:
        stream = self._sending_stream(stream_id)
        if stream is None:
            return
        if self._is_server and not stream.has_responded:
            if headers[0][1][:1] != b"1":
                stream.has_responded = True
            elif end_stream:
                raise CodecMisuse("an informational response does not end a stream")
        elif not end_stream:
            raise CodecMisuse("trailers must end the stream")
        self._write_headers(stream_id, headers, end_stream)
        if end_stream:
            self._close_local(stream)

    def _write_headers(self, stream_id: int, headers: Sequence[Header], end_stream: bool) -> None:
        block = self._encoder.encode(headers)
        size = len(block)
        if size <= DEFAULT_MAX_FRAME:
            self._out += _pack(size << 8 | 1, 5 if end_stream else 4, stream_id)
            self._out += block
        else:
            self._out += frames.header_block(
                stream_id, block, end_stream=end_stream, max_frame=self.peer_max_frame
            )

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        size = len(data)
        stream = self._streams.get(stream_id)
        # A message within the windows on an open stream, by far the most: what the methods below do, inline.
        if (
            stream is not None
            and 0 < size <= self.peer_max_frame
            and size <= stream.out_window
            and size <= self._out_window
            and not stream.is_local_closed
            and not self._is_failed
        ):
            stream.out_window -= size
            self._out_window -= size
            stream.has_sent_data = True
            self._guard.data_frames_sent += 1
            self._out += _pack(size << 8, 1 if end_stream else 0, stream_id)
            self._out += data
            if end_stream:
                self._close_local(stream)
            return
        stream = self._sending_stream(stream_id)
        if stream is None:
            return
        self._take_window(stream, size)
        out, most = self._out, self.peer_max_frame
        if size <= most:
            if size or end_stream:
                out += _pack(size << 8, 1 if end_stream else 0, stream_id)
                out += data
        else:
            view = memoryview(data)
            for start in range(0, size, most):
                piece = view[start : start + most]
                is_last = end_stream and start + most >= size
                out += _pack(len(piece) << 8, 1 if is_last else 0, stream_id)
                out += piece
        if end_stream:
            self._close_local(stream)

    def send_message(
        self, stream_id: int, read: Callable[[memoryview], int], buffer: memoryview, limit: int
    ) -> int:
        stream = self._streams.get(stream_id)
        size = len(buffer)
        if stream is None or size > stream.out_window or size > self._out_window or stream.is_local_closed:
            return -1
        size = read(buffer)
        if 0 < size <= limit:
            stream.out_window -= size
            self._out_window -= size
            stream.has_sent_data = True
            self._guard.data_frames_sent += 1
            out = self._out
            out += _pack(size << 8, 0, stream_id)
            out += buffer[:size]
        return size

    def frame_in_place(
        self, stream_id: int, buffer: memoryview, payload_bytes: int, end_stream: bool = False
    ) -> int:
        stream = self._sending_stream(stream_id)
        if stream is None:
            return 0
        self._take_window(stream, payload_bytes)
        most = self.peer_max_frame
        if payload_bytes <= most:
            if not payload_bytes and not end_stream:
                return 0
            _pack_into(buffer, 0, payload_bytes << 8, 1 if end_stream else 0, stream_id)
            total = payload_bytes + 9
        else:
            total, left = 0, payload_bytes
            while left:
                size = min(left, most)
                left -= size
                _pack_into(buffer, total, size << 8, 1 if end_stream and not left else 0, stream_id)
                total += size + 9
        if end_stream:
            self._close_local(stream)
        return total

    def _take_window(self, stream: Stream, size: int) -> None:
        if not size:
            return
        if size > stream.out_window or size > self._out_window:
            raise CodecMisuse(f"{size} bytes for stream {stream.id} are more than sendable() allows")
        stream.out_window -= size
        self._out_window -= size
        stream.has_sent_data = True
        self._guard.data_frames_sent += 1

    def end_stream(self, stream_id: int) -> None:
        self.send_data(stream_id, b"", end_stream=True)

    def sendable(self, stream_id: int) -> int:
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_local_closed:
            return 0
        window = stream.out_window
        window = min(window, self._out_window)
        return max(0, window)

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            pending = stream.in_pending + flow_bytes
            if pending >= self._stream_threshold and not stream.is_remote_closed:
                self._out += frames.window_update(stream_id, pending)
                stream.in_window += pending
                pending = 0
            stream.in_pending = pending
            pending = self._in_pending + flow_bytes
            if pending < self._connection_threshold:
                self._in_pending = pending
                return
        else:
            held = self._lingering.get(stream_id, 0)
            flow_bytes = min(flow_bytes, held)
            if flow_bytes < held:
                self._lingering[stream_id] = held - flow_bytes
            else:
                self._lingering.pop(stream_id, None)
        self._credit(flow_bytes)

    def _credit(self, size: int) -> None:
        """Give connection window back, lazily."""
        pending = self._in_pending + size
        if pending >= self._connection_threshold and not self._is_failed:
            self._out += frames.window_update(0, pending)
            self._in_window += pending
            self._in_credit += pending
            pending = 0
        self._in_pending = pending

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._out += frames.rst_stream(stream_id, code)
            self._forget(stream, was_reset=True)
            return
        self._require_opened(stream_id)
        self._credit(self._lingering.pop(stream_id, 0))

    # Connection

    def ping(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise CodecMisuse("a PING carries 8 bytes")
        if self._is_failed:
            return
        if len(self._open_pings) >= _MAX_OPEN_PINGS:
            raise CodecMisuse("too many PINGs are unanswered")
        self._open_pings.append(payload)
        self._guard.renew_control(self._in_credit - self._in_window)
        self._out += frames.ping(payload)

    def goaway(
        self, code: ErrorCode = ErrorCode.NO_ERROR, *, last_stream_id: int | None = None, debug: bytes = b""
    ) -> None:
        if self._is_failed:
            return
        last = self.highest_peer_stream if last_stream_id is None else last_stream_id
        if self._goaway_sent is not None:
            last = min(last, self._goaway_sent)  # 6.8: it must not grow
        self._goaway_sent = last
        self._out += frames.goaway(last, code, debug)

    # Shared with the receiving half

    def _sending_stream(self, stream_id: int) -> Stream | None:
        """The stream if it can be sent on, None if it has ended meanwhile."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self._require_opened(stream_id)
        elif stream.is_local_closed:
            raise CodecMisuse(f"our side of stream {stream_id} has ended")
        return stream

    def _require_opened(self, stream_id: int) -> None:
        if not self._was_opened(stream_id):
            raise CodecMisuse(f"stream {stream_id} was never opened")

    def _was_opened(self, stream_id: int) -> bool:
        highest = self.highest_peer_stream if self._is_server else self._next_id - 2
        return stream_id % 2 == 1 and stream_id <= highest

    def _close_local(self, stream: Stream) -> None:
        stream.is_local_closed = True
        if stream.is_remote_closed:
            self._forget(stream, was_reset=False)

    def _close_remote(self, stream: Stream) -> None:
        stream.is_remote_closed = True
        if stream.is_local_closed:
            self._forget(stream, was_reset=False)

    def _forget(self, stream: Stream, *, was_reset: bool, is_by_peer: bool = False) -> None:
        """Drop a stream that has ended; a reset one gives back at once what its caller may still hold."""
        stream_id = stream.id
        del self._streams[stream_id]
        self._closed.remember(stream_id, is_reset_by_us=was_reset and not is_by_peer)
        held = self._stream_window - stream.in_window - stream.in_pending
        if not held:
            return
        if was_reset:
            self._credit(held)
        else:
            self._lingering[stream_id] = held

    def _fail(self, fault: ConnectionFault) -> None:
        """The connection is over: GOAWAY into the output, all streams dropped."""
        self._out += frames.goaway(self.highest_peer_stream, fault.code, fault.reason.encode())
        self._is_failed = True
        self._streams.clear()
        self._lingering.clear()
        self._events.append(ConnectionFailed(fault.code, fault.reason))

    def _set_peer_streams(self, limit: int | None) -> None:
        if not self._is_server:
            self.peer_max_streams = UNLIMITED_STREAMS if limit is None else limit
