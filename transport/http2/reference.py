"""The reference codec: the h2 library behind the same seam, as the operator's fallback and as an oracle in
tests.

Theory of operation. h2 ends the connection over most faults, has no flood guards, takes GOAWAY for the end,
and is milder than we are about headers. So a border stands before it, which cuts the input into frames and
judges each: what is a stream's fault is answered with h2's own reset_stream; header blocks are decoded
(hpack library) and judged by the tables that the lean codec uses, and h2 is given a stand-in block of the
same kind, so that it follows the stream's state without having an opinion of its own; GOAWAY stays at the
border. All else (windows, SETTINGS, stream states, outgoing frames and compression) is h2's.

Body octets are delivered by whole frames and copied on the way: this codec is right, not fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import hpack.exceptions

from transport.http2 import frames
from transport.http2.closed import ClosedStreams
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import CodecMisuse, ConnectionFault, GoingAway, StreamLimitReached
from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    Header,
    HeadersReceived,
    HeadersRejected,
    PeerSettings,
    PingAcked,
    StreamReset,
    WindowOpened,
)
from transport.http2.flood import Flood, FloodGuard, flooded
from transport.http2.headers import HeadFault, RequestHead, check_request, check_response
from transport.http2.hpack.table import entry_bytes
from transport.http2.sending import our_settings
from transport.http2.settings import (
    DEFAULT_WINDOW,
    MAX_STREAM_ID,
    UNLIMITED_STREAMS,
    Http2Settings,
    Role,
)
from transport.http2.stream import Stream, describe_request, trailers_fault

_Codes = h2.settings.SettingCodes
_ID_MASK: Final = 0x7FFF_FFFF
_NO_LIMIT: Final = 2**31 - 1
_MAX_OPEN_PINGS: Final = 16

# What h2 is told instead of the peer's header blocks: static table entries and plain literals only.
_REQUEST_STAND_IN: Final = b"\x82\x86\x84\x01\x01a"  # GET http / a
_RESPONSE_STAND_IN: Final = b"\x88"  # 200
_INFORMATIONAL_STAND_IN: Final = b"\x08\x03100"
_TRAILERS_STAND_IN: Final = b"\x00\x01x\x01y"


def _protocol_error(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)


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


class ReferenceCodec:
    """See codec.Http2Codec for what each public method promises."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        self._role = role
        self._is_server = role is Role.SERVER
        self._settings = settings
        self._library = _library(role, settings)
        self._decoder = hpack.Decoder(max_header_list_size=_NO_LIMIT)
        self._guard = FloodGuard(settings.limits)
        self._out = bytearray()
        self._events: list[Event] = []
        self._input = bytearray()
        self._awaits_preface = self._is_server
        self._is_first_frame = True
        self._block: bytearray | None = None  # header block under construction
        self._block_stream = 0
        self._block_ends = False
        self._continuations = 0
        self._max_block = max(2 * settings.max_header_list, 16_384)
        # Of each Stream only what h2 does not know is used; in_pending counts what the caller holds.
        self._streams: dict[int, Stream] = {}
        self._lingering: dict[int, int] = {}
        self._closed = ClosedStreams()
        self._next_id = 1
        self._bytes_sent = 0
        self._bytes_received = 0
        self._is_settings_acked = False
        self._has_peer_settings = False
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
        if not self._is_server:
            self._out += frames.PREFACE
        self._out += our_settings(self._role, self._settings)
        increment = self._settings.connection_window - DEFAULT_WINDOW
        if increment:
            self._out += frames.window_update(0, increment)

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

    # Receiving frames

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        if self._is_failed:
            return []
        self._events = []
        self._input += data
        try:
            self._walk()
        except ConnectionFault as fault:
            self._fail(fault)
        except h2.exceptions.ProtocolError as error:
            self._library.clear_outbound_data_buffer()
            self._fail(ConnectionFault(ErrorCode(error.error_code), "refused_by_h2"))
        events, self._events = self._events, []
        return events

    def _fail(self, fault: ConnectionFault) -> None:
        self._out += frames.goaway(self.highest_peer_stream, fault.code, fault.reason.encode())
        self._is_failed = True
        self._streams.clear()
        self._lingering.clear()
        self._input.clear()
        self._events.append(ConnectionFailed(fault.code, fault.reason))

    def _walk(self) -> None:
        if self._awaits_preface:
            start = bytes(self._input[: len(frames.PREFACE)])
            if not frames.PREFACE.startswith(start):
                raise _protocol_error("bad_preface")
            if len(start) < len(frames.PREFACE):
                return
            del self._input[: len(start)]
            self._library.receive_data(start)
            self._awaits_preface = False
        while len(self._input) >= frames.HEADER_BYTES:
            word, flags, stream_id = frames.FRAME_HEADER.unpack_from(self._input)
            stream_id &= _ID_MASK
            size, kind = word >> 8, word & 0xFF
            self._admit(kind, size, flags, stream_id)
            if len(self._input) < 9 + size:
                return
            frame = bytes(self._input[: 9 + size])
            del self._input[: 9 + size]
            self._dispatch(kind, flags, stream_id, frame)

    def _admit(self, kind: int, size: int, flags: int, stream_id: int) -> None:
        """What a frame header alone gives away."""
        if size > self._settings.max_frame:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_too_large")
        if self._is_first_frame and (kind != frames.SETTINGS or flags & frames.ACK):
            raise _protocol_error("settings_not_first")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise _protocol_error("header_block_interrupted")
        if kind == frames.SETTINGS:
            if size % 6 or (flags & frames.ACK and size):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._guard.settings_entries(size // 6)
        if kind in (frames.HEADERS, frames.CONTINUATION, frames.GOAWAY) and size > self._max_block:
            raise flooded(Flood.HEADER_BLOCK)
        fixed = frames.FIXED_SIZES.get(kind)
        if fixed is not None and size != fixed and kind != frames.PRIORITY:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")

    def _dispatch(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        self._is_first_frame = False
        payload = frame[9:]
        match kind:
            case frames.DATA:
                self._on_data(flags, stream_id, frame)
            case frames.HEADERS:
                self._on_headers(flags, stream_id, payload)
            case frames.CONTINUATION:
                self._on_continuation(flags, payload)
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, frame)
            case frames.RST_STREAM:
                self._on_rst_stream(stream_id, frame)
            case frames.SETTINGS:
                self._on_settings(flags, frame)
            case frames.PING:
                self._on_ping(flags, frame)
            case frames.GOAWAY:
                self._on_goaway(stream_id, payload)
            case frames.PRIORITY:
                self._on_priority(stream_id, len(payload))
            case frames.PUSH_PROMISE:
                raise _protocol_error("push_promise_not_allowed")
            case _:
                self._guard.priority()

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

    # Receiving DATA

    def _on_data(self, flags: int, stream_id: int, frame: bytes) -> None:
        size = len(frame) - 9
        padding = 0
        if flags & frames.PADDED:
            if not size:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            padding = 1 + frame[9]
            if padding > size:
                raise _protocol_error("padding_too_long")
        body = size - padding
        ends = bool(flags & frames.END_STREAM)
        self._bytes_received += size
        stream = self._streams.get(stream_id)
        if stream_id == 0:
            raise _protocol_error("data_on_stream_0")
        if size > self._library.inbound_flow_control_window:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overrun")
        if body or ends:
            self._guard.empty_run = 0
        else:
            self._guard.empty_data()
        if stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("data_on_idle_stream")
            self._skip_data(frame)
            self._answer_late(stream_id)
            return
        fault = self._data_fault(stream, size, body, ends)
        if fault is not None:
            self._stream_error(stream, *fault)
            self._skip_data(frame)
            return
        for event in self._feed(frame):
            if isinstance(event, h2.events.DataReceived) and (event.data or ends):
                self._take_data(stream, event, ends)
        if padding:
            self._credit(stream_id, padding)

    def _take_data(self, stream: Stream, event: h2.events.DataReceived, ends: bool) -> None:
        data = event.data or b""
        stream.in_pending += len(data)
        self._events.append(DataReceived(stream.id, memoryview(data), len(data), ends))
        if ends:
            self._close_remote(stream)

    def _skip_data(self, frame: bytes) -> None:
        """DATA for a stream that is gone: h2 counts and credits it, but the border says whether to answer."""
        self._library.receive_data(frame)
        self._drain_credit(is_stream_open=False)

    def _data_fault(self, stream: Stream, size: int, body: int, ends: bool) -> tuple[ErrorCode, str] | None:
        if stream.is_remote_closed:
            return ErrorCode.STREAM_CLOSED, "data_after_end_of_stream"
        if size > self._library.streams[stream.id].inbound_flow_control_window:
            return ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overrun"
        if not stream.has_head:
            return ErrorCode.PROTOCOL_ERROR, "data_before_headers"
        if stream.body_left >= 0:
            if body > stream.body_left or (ends and body != stream.body_left):
                return ErrorCode.PROTOCOL_ERROR, "body_differs_from_content_length"
            stream.body_left -= body
        return None

    def _answer_late(self, stream_id: int) -> None:
        if not self._closed.is_reset_by_us(stream_id):
            self._out += frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED)
            self._closed.remember(stream_id, is_reset_by_us=True)
            self._guard.reply()

    # Receiving header blocks

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id % 2 == 0:
            raise _protocol_error("headers_on_wrong_stream_id")
        block = frames.strip_headers(flags, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block, ends)
            return
        self._block, self._block_stream, self._block_ends = bytearray(block), stream_id, ends
        self._continuations = 0

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise _protocol_error("continuation_without_headers")
        self._continuations += 1
        self._guard.continuation(self._continuations)
        self._block += payload
        if len(self._block) > self._max_block:
            raise flooded(Flood.HEADER_BLOCK)
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(self._block_stream, block, self._block_ends)

    def _decode(self, block: bytes) -> tuple[list[Header], str]:
        """The header list, and the limit that it passes."""
        try:
            decoded = self._decoder.decode(block, raw=True)
        except hpack.exceptions.HPACKError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header_block_undecodable") from None
        headers: list[Header] = [(bytes(name), bytes(value)) for name, value in decoded]
        if sum(map(entry_bytes, headers)) > self._settings.max_header_list:
            return [], "header_list_too_large"
        if len(headers) > self._settings.max_header_count:
            return [], "too_many_headers"
        return headers, ""

    def _tell(self, stream_id: int, stand_in: bytes, ends: bool) -> None:
        """Let h2 see a header block that means the same for the stream's state."""
        self._feed(frames.header_block(stream_id, stand_in, end_stream=ends, max_frame=16_384))

    def _on_block(self, stream_id: int, encoded: bytes, ends: bool) -> None:
        headers, excess = self._decode(encoded)
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_server and stream_id > self.highest_peer_stream:
                self._on_request(stream_id, headers, excess, ends)
            else:
                self._on_late_headers(stream_id)
        elif stream.is_remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "headers_after_end_of_stream")
        elif stream.has_head:
            self._on_trailers(stream, headers, excess, ends)
        else:
            self._on_response(stream, headers, excess, ends)

    def _on_late_headers(self, stream_id: int) -> None:
        if not self._was_opened(stream_id):
            raise _protocol_error("headers_on_idle_stream")
        if self._closed.was_skipped(stream_id):
            raise _protocol_error("stream_id_not_increasing")
        self._answer_late(stream_id)
        self._guard.late_frame()

    def _on_request(self, stream_id: int, headers: list[Header], excess: str, ends: bool) -> None:
        self._closed.note_opened(stream_id, after=self.highest_peer_stream)
        self.highest_peer_stream = stream_id
        self._guard.streams += 1
        self._tell(stream_id, _REQUEST_STAND_IN, ends)
        has_said_goodbye = self._goaway_sent is not None and stream_id > self._goaway_sent
        if has_said_goodbye or len(self._streams) >= self._settings.max_concurrent_streams:
            self._library.reset_stream(stream_id, ErrorCode.REFUSED_STREAM)
            self._drain()
            self._closed.remember(stream_id, is_reset_by_us=True)
            self._guard.reply()
            if self._is_settings_acked:
                self._guard.early_end()
            return
        try:
            request = self._judge_request(headers, excess, ends)
        except HeadFault as fault:
            self._reject(stream_id, fault, ends)
            return
        stream = Stream(stream_id, request, 0, 0)
        stream.has_head = True
        stream.is_tunnel = request.is_connect
        stream.body_left = request.content_length
        self._streams[stream_id] = stream
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream_id, headers, ends, is_trailers=False))

    def _judge_request(self, headers: list[Header], excess: str, ends: bool) -> RequestHead:
        if excess:
            raise HeadFault(431, excess)
        is_extended_allowed = self._settings.enable_connect_protocol
        return check_request(headers, end_stream=ends, is_connect_protocol_enabled=is_extended_allowed)

    def _reject(self, stream_id: int, fault: HeadFault, ends: bool) -> None:
        if fault.status:
            self._library.send_headers(stream_id, [(b":status", b"%d" % fault.status)], end_stream=True)
            if not ends:
                self._library.reset_stream(stream_id, ErrorCode.NO_ERROR)
        else:
            self._library.reset_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        self._drain()
        self._closed.remember(stream_id, is_reset_by_us=True)
        self._events.append(HeadersRejected(stream_id, fault.status, fault.reason))
        self._guard.reply()
        self._guard.early_end()

    def _on_response(self, stream: Stream, headers: list[Header], excess: str, ends: bool) -> None:
        if excess:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, excess)
            return
        try:
            head = check_response(headers, end_stream=ends, request=stream.request)
        except HeadFault as fault:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, fault.reason)
            return
        if head.is_informational:
            self._guard.control_frame(self._bytes_received)
            self._tell(stream.id, _INFORMATIONAL_STAND_IN, ends)
        else:
            stream.has_head = True
            stream.body_left = head.content_length
            stream.is_tunnel = stream.request.is_connect and head.status < 300
            self._tell(stream.id, _RESPONSE_STAND_IN, ends)
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream.id, headers, ends, is_trailers=False))

    def _on_trailers(self, stream: Stream, headers: list[Header], excess: str, ends: bool) -> None:
        reason = trailers_fault(stream, headers, excess, ends)
        if reason:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, reason)
            return
        self._tell(stream.id, _TRAILERS_STAND_IN, ends)
        self._close_remote(stream)
        self._events.append(HeadersReceived(stream.id, headers, end_stream=True, is_trailers=True))

    # Receiving: the other frames

    def _on_rst_stream(self, stream_id: int, frame: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("rst_stream_on_idle_stream")
            self._guard.late_frame()
            return
        window = self._library.streams[stream_id].inbound_flow_control_window
        has_received = window != self._library.local_settings.initial_window_size
        is_early = not (stream.has_responded and (stream.has_sent_data or has_received))
        self._feed(frame)
        self._forget(stream, was_reset=True, is_by_peer=True)
        self._events.append(StreamReset(stream_id, int.from_bytes(frame[9:], "big")))
        if is_early and self._is_server:
            self._guard.early_end()

    def _on_window_update(self, stream_id: int, frame: bytes) -> None:
        self._guard.window_update(self._bytes_sent)
        increment = int.from_bytes(frame[9:], "big") & _ID_MASK  # h2 minds the reserved bit
        stream = self._streams.get(stream_id)
        if not stream_id and not increment:
            raise _protocol_error("window_increment_0")
        if stream_id and stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("window_update_on_idle_stream")
            return
        if stream is not None and not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "window_increment_0")
            return
        window = self._out_window(stream)
        events = self._feed(frames.window_update(stream_id, increment))
        if stream is None:
            if window < self.peer_max_frame and self._out_window(None) > 0 and self._streams:
                self._events.append(WindowOpened(0))
        elif any(isinstance(event, h2.events.StreamReset) for event in events):
            self._forget(stream, was_reset=True)
            code, reason = ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow"
            self._events.append(StreamReset(stream_id, code, is_local=True, reason=reason))
            self._guard.reply()
            self._guard.early_end()
        else:
            self._tell_opened(stream, window)

    def _out_window(self, stream: Stream | None) -> int:
        """h2's window of this stream, or of the connection."""
        owner = self._library if stream is None else self._library.streams[stream.id]
        return owner.outbound_flow_control_window

    def _tell_opened(self, stream: Stream, before: int) -> None:
        now = self._out_window(stream)
        if before < self.peer_max_frame and now > max(0, before) and not stream.is_local_closed:
            self._events.append(WindowOpened(stream.id))

    def _on_settings(self, flags: int, frame: bytes) -> None:
        if flags & frames.ACK:
            if self._is_settings_acked:
                self._guard.control_frame(self._bytes_received)
            self._is_settings_acked = True
            self._feed(frame)
            return
        if self._has_peer_settings:
            self._guard.control_frame(self._bytes_received)
        elif not self._is_server:
            self.peer_max_streams = UNLIMITED_STREAMS
        self._has_peer_settings = True
        remote = self._library.remote_settings
        windows = {stream.id: self._out_window(stream) for stream in self._streams.values()}
        self._check_settings(dict(frames.parse_settings(frame[9:])))
        self._feed(frame)
        self._guard.reply()
        for stream in self._streams.values():
            self._tell_opened(stream, windows[stream.id])
        self._events.append(
            PeerSettings(
                remote.initial_window_size,
                remote.max_frame_size,
                self.peer_max_streams,
                remote.max_header_list_size,
                remote.enable_connect_protocol == 1,
            )
        )

    def _check_settings(self, values: dict[int, int]) -> None:
        """What h2 does not look at, and what the border keeps itself."""
        if not self._is_server:
            if values.get(frames.SETTING_ENABLE_PUSH):
                raise _protocol_error("server_enabled_push")
            self.peer_max_streams = values.get(frames.SETTING_MAX_CONCURRENT_STREAMS, self.peer_max_streams)
        is_enabled = self._library.remote_settings.enable_connect_protocol == 1
        if is_enabled and values.get(frames.SETTING_ENABLE_CONNECT_PROTOCOL) == 0:
            raise _protocol_error("connect_protocol_withdrawn")

    def _on_ping(self, flags: int, frame: bytes) -> None:
        payload = frame[9:]
        if flags & frames.ACK and payload in self._open_pings:
            self._open_pings.remove(payload)
            self._feed(frame)
            self._events.append(PingAcked(payload))
            return
        self._guard.control_frame(self._bytes_received)
        self._feed(frame)
        if not flags & frames.ACK:
            self._guard.reply()

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        """h2 would close the connection here; the streams that the peer knows go on (6.8)."""
        if stream_id:
            raise _protocol_error("goaway_on_a_stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
        last = int.from_bytes(payload[:4], "big") & _ID_MASK
        if self._peer_goaway_last is not None:
            self._guard.control_frame(self._bytes_received)
            last = min(last, self._peer_goaway_last)
        self._peer_goaway_last = last
        self._events.append(GoAwayReceived(last, int.from_bytes(payload[4:8], "big"), payload[8:]))
        if self._is_server:
            return
        for stream in [each for each in self._streams.values() if each.id > last]:
            self._library.reset_stream(stream.id, ErrorCode.CANCEL)
            self._drain()
            self._forget(stream, was_reset=True)
            self._events.append(StreamReset(stream.id, ErrorCode.REFUSED_STREAM, reason="goaway"))

    def _on_priority(self, stream_id: int, size: int) -> None:
        if not stream_id:
            raise _protocol_error("priority_on_stream_0")
        self._guard.priority()
        if size != 5:
            stream = self._streams.get(stream_id)
            if stream is None:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._stream_error(stream, ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
