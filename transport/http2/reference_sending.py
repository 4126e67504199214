"""The sending half of the reference codec: an h2 connection, and the little that h2 does not keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from transport.http2 import frames
from transport.http2.closed import ClosedStreams
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import CodecMisuse, GoingAway, StreamLimitReached
from transport.http2.events import Event, Header, StreamReset
from transport.http2.flood import FloodGuard
from transport.http2.settings import DEFAULT_WINDOW, MAX_STREAM_ID, Http2Settings, Role
from transport.http2.stream import Stream, describe_request

_Codes = h2.settings.SettingCodes
_NO_LIMIT: Final = 2**31 - 1
_MAX_OPEN_PINGS: Final = 16


def _library(role: Role, settings: Http2Settings) -> h2.connection.H2Connection:
    """An h2 connection that has, in its own mind, just sent our SETTINGS and WINDOW_UPDATE."""
    config = h2.config.H2Configuration(
        client_side=role is Role.CLIENT,
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
        normalize_inbound_headers=False,
    )
    connection = h2.connection.H2Connection(config)
    window = settings.initial_window
    if role is Role.SERVER:  # 6.9.2: until a client has our SETTINGS it may count on the default
        window = max(window, DEFAULT_WINDOW)
    connection.local_settings = h2.settings.Settings(
        client=role is Role.CLIENT,
        initial_values={
            _Codes.INITIAL_WINDOW_SIZE: window,
            _Codes.MAX_FRAME_SIZE: settings.max_frame,
            _Codes.MAX_CONCURRENT_STREAMS: _NO_LIMIT,  # the border counts: h2 would end the connection
            _Codes.MAX_HEADER_LIST_SIZE: _NO_LIMIT,
        },
    )
    connection.max_inbound_frame_size = settings.max_frame
    connection.initiate_connection()
    if window != settings.initial_window:
        connection.local_settings[_Codes.INITIAL_WINDOW_SIZE] = settings.initial_window  # from the ACK on
    if settings.connection_window > DEFAULT_WINDOW:
        connection.increment_flow_control_window(settings.connection_window - DEFAULT_WINDOW)
    connection.clear_outbound_data_buffer()
    return connection


class ReferenceSending:
    """See codec.Http2Codec for what each public method promises."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        self._role = role
        self._is_server = role is Role.SERVER
        self._settings = settings
        self._library = _library(role, settings)
        self._guard = FloodGuard(settings.limits)
        self._out = bytearray()
        self._events: list[Event] = []
        # Of each Stream only what h2 does not know is used; in_pending counts what the caller holds.
        self._streams: dict[int, Stream] = {}
        self._lingering: dict[int, int] = {}
        self._closed = ClosedStreams()
        self._next_id = 1
        self._bytes_sent = 0
        self._bytes_received = 0
        self._peer_goaway_last: int | None = None
        self._goaway_sent: int | None = None
        self._is_failed = False
        self._open_pings: list[bytes] = []
        self.peer_max_streams = 0 if self._is_server else settings.assumed_peer_streams
        self.highest_peer_stream = 0

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def peer_max_frame(self) -> int:
        return self._library.max_outbound_frame_size

    @property
    def is_going_away(self) -> bool:
        return self._peer_goaway_last is not None or self._goaway_sent is not None or self._is_failed

    def start(self) -> None:
        self._out += frames.opening(self._role, self._settings)

    @property
    def needs_flush(self) -> bool:
        return bool(self._out)

    def take_output(self) -> bytes | bytearray:
        out, self._out = self._out, bytearray()
        self._guard.queued_replies = 0
        return out

    # Sending

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
        self._streams[stream_id] = stream = Stream(stream_id, describe_request(headers), 0, 0)
        stream.is_local_closed = end_stream
        self._library.send_headers(stream_id, headers, end_stream=end_stream)
        self._drain()
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
        self._library.send_headers(stream_id, headers, end_stream=end_stream)
        self._drain()
        if end_stream:
            self._close_local(stream)

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        stream = self._sending_stream(stream_id)
        if stream is None:
            return
        size = len(data)
        self._count_sent(stream, size)
        most = self.peer_max_frame
        with memoryview(data) as view:
            for start in range(0, size, most) or range(1 if end_stream else 0):
                piece = bytes(view[start : start + most])
                self._library.send_data(stream_id, piece, end_stream=end_stream and start + most >= size)
        self._drain()
        if end_stream:
            self._close_local(stream)

    def send_message(
        self, stream_id: int, read: Callable[[memoryview], int], buffer: memoryview, limit: int
    ) -> int:
        if self.sendable(stream_id) < len(buffer):
            return -1
        size = read(buffer)
        if 0 < size <= limit:
            self.send_data(stream_id, buffer[:size])
        return size

    def frame_in_place(
        self, stream_id: int, buffer: memoryview, payload_bytes: int, end_stream: bool = False
    ) -> int:
        stream = self._sending_stream(stream_id)
        if stream is None or not (payload_bytes or end_stream):
            return 0
        self._count_sent(stream, payload_bytes)
        most = self.peer_max_frame
        total, left = 0, payload_bytes
        while True:
            size = min(left, most)
            left -= size
            payload = bytes(buffer[total + 9 : total + 9 + size])
            self._library.send_data(stream_id, payload, end_stream=end_stream and not left)
            framed = self._library.data_to_send()
            buffer[total : total + len(framed)] = framed
            total += len(framed)
            if not left:
                break
        if end_stream:
            self._close_local(stream)
        return total

    def _count_sent(self, stream: Stream, size: int) -> None:
        if not size:
            return
        if size > self._library.local_flow_control_window(stream.id):
            raise CodecMisuse(f"{size} bytes for stream {stream.id} are more than sendable() allows")
        stream.has_sent_data = True
        self._bytes_sent += size
        self._guard.data_frames_sent += 1

    def end_stream(self, stream_id: int) -> None:
        self.send_data(stream_id, b"", end_stream=True)

    def sendable(self, stream_id: int) -> int:
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_local_closed:
            return 0
        return max(0, self._library.local_flow_control_window(stream_id))

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.in_pending -= flow_bytes
        else:
            held = self._lingering.pop(stream_id, 0)
            flow_bytes = min(flow_bytes, held)
            if flow_bytes < held:
                self._lingering[stream_id] = held - flow_bytes
        self._credit(stream_id, flow_bytes)

    def _credit(self, stream_id: int, size: int) -> None:
        if size and not self._is_failed:
            self._library.acknowledge_received_data(size, stream_id)
            stream = self._streams.get(stream_id)
            self._drain_credit(is_stream_open=stream is not None and not stream.is_remote_closed)

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._library.reset_stream(stream_id, code)
            self._drain()
            self._forget(stream, was_reset=True)
            return
        self._require_opened(stream_id)
        self._credit(stream_id, self._lingering.pop(stream_id, 0))

    def ping(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise CodecMisuse("a PING carries 8 bytes")
        if self._is_failed:
            return
        if len(self._open_pings) >= _MAX_OPEN_PINGS:
            raise CodecMisuse("too many PINGs are unanswered")
        self._open_pings.append(payload)
        self._guard.renew_control(self._bytes_received)
        self._library.ping(payload)
        self._drain()

    def goaway(
        self, code: ErrorCode = ErrorCode.NO_ERROR, *, last_stream_id: int | None = None, debug: bytes = b""
    ) -> None:
        if self._is_failed:
            return
        last = self.highest_peer_stream if last_stream_id is None else last_stream_id
        if self._goaway_sent is not None:
            last = min(last, self._goaway_sent)
        self._goaway_sent = last
        self._out += frames.goaway(last, code, debug)

    # Streams

    def _sending_stream(self, stream_id: int) -> Stream | None:
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
        del self._streams[stream.id]
        self._closed.remember(stream.id, is_reset_by_us=was_reset and not is_by_peer)
        if was_reset:
            self._credit(stream.id, stream.in_pending)
        elif stream.in_pending:
            self._lingering[stream.id] = stream.in_pending

    def _stream_error(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        self._library.reset_stream(stream.id, code)
        self._drain()
        self._forget(stream, was_reset=True)
        self._events.append(StreamReset(stream.id, code, is_local=True, reason=reason))
        self._guard.reply()
        self._guard.early_end()

    def _feed(self, frame: bytes) -> list[h2.events.Event]:
        """Let h2 see one whole frame; what it answers goes out."""
        events = self._library.receive_data(frame)
        self._drain()
        return events

    def _drain(self) -> None:
        self._out += self._library.data_to_send()

    def _drain_credit(self, *, is_stream_open: bool) -> None:
        """Let out WINDOW_UPDATEs: for a stream that has ended the connection's only, and no RST_STREAM."""
        answer = self._library.data_to_send()
        for start in range(0, len(answer), 13):  # both frames have 13 octets
            if is_stream_open or answer[start + 5 : start + 9] == bytes(4):
                self._out += answer[start : start + 13]
