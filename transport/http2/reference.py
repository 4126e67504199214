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
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault, protocol_error
from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    Header,
    HeadersReceived,
    HeadersRejected,
    PeerSettings,
    Piece,
    PingAcked,
    StreamReset,
    WindowOpened,
)
from transport.http2.flood import Flood, flooded
from transport.http2.headers import HeadFault, RequestHead, check_request, check_response
from transport.http2.hpack.table import entry_bytes
from transport.http2.reference_sending import ReferenceSending
from transport.http2.settings import UNLIMITED_STREAMS, Http2Settings, Role
from transport.http2.stream import Stream, trailers_fault

_ID_MASK: Final = 0x7FFF_FFFF
_NO_LIMIT: Final = 2**31 - 1

# What h2 is told instead of the peer's header blocks: static table entries and plain literals only.
_REQUEST_STAND_IN: Final = b"\x82\x86\x84\x01\x01a"  # GET http / a
_RESPONSE_STAND_IN: Final = b"\x88"  # 200
_INFORMATIONAL_STAND_IN: Final = b"\x08\x03100"
_TRAILERS_STAND_IN: Final = b"\x00\x01x\x01y"


class ReferenceCodec(ReferenceSending):
    """The second implementation of codec.Http2Codec."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        super().__init__(role, settings)
        self._decoder = hpack.Decoder(max_header_list_size=_NO_LIMIT)
        self._input = bytearray()
        self._awaits_preface = self._is_server
        self._is_first_frame = True
        self._block: bytearray | None = None  # header block under construction
        self._block_stream = 0
        self._block_ends = False
        self._continuations = 0
        self._max_block = max(2 * settings.max_header_list, 16_384)
        self._is_settings_acked = False
        self._has_peer_settings = False

    # Receiving frames

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        if self._is_failed:
            return []
        self._events = []
        self._input += data
        self._guard.begin_input()
        try:
            self._walk()
        except ConnectionFault as fault:
            self._fail(fault)
        except h2.exceptions.ProtocolError as error:
            self._library.clear_outbound_data_buffer()
            self._fail(ConnectionFault(ErrorCode(error.error_code), "refused_by_h2"))
        events, self._events = self._events, []
        return events

    def receive_data(self, data: memoryview) -> tuple[Sequence[Piece], int]:  # noqa: ARG002 - h2 sees all
        return (), 0

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
                raise protocol_error("bad_preface")
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
            raise protocol_error("settings_not_first")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise protocol_error("header_block_interrupted")
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
                raise protocol_error("push_promise_not_allowed")
            case _:
                self._guard.priority()

    # Receiving DATA

    def _on_data(self, flags: int, stream_id: int, frame: bytes) -> None:
        size = len(frame) - 9
        padding = 0
        if flags & frames.PADDED:
            if not size:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            padding = 1 + frame[9]
            if padding > size:
                raise protocol_error("padding_too_long")
        body = size - padding
        ends = bool(flags & frames.END_STREAM)
        self._bytes_received += size
        stream = self._streams.get(stream_id)
        if stream_id == 0:
            raise protocol_error("data_on_stream_0")
        if size > self._library.inbound_flow_control_window:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overrun")
        if body or ends:
            self._guard.empty_run = 0
        else:
            self._guard.empty_data()
        if stream is None:
            if not self._was_opened(stream_id):
                raise protocol_error("data_on_idle_stream")
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
            raise protocol_error("headers_on_wrong_stream_id")
        block = frames.strip_headers(flags, payload)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block, ends)
            return
        self._block, self._block_stream, self._block_ends = bytearray(block), stream_id, ends
        self._continuations = 0

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise protocol_error("continuation_without_headers")
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
            raise protocol_error("headers_on_idle_stream")
        if self._closed.was_skipped(stream_id):
            raise protocol_error("stream_id_not_increasing")
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
                raise protocol_error("rst_stream_on_idle_stream")
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
            raise protocol_error("window_increment_0")
        if stream_id and stream is None:
            if not self._was_opened(stream_id):
                raise protocol_error("window_update_on_idle_stream")
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
                raise protocol_error("server_enabled_push")
            self.peer_max_streams = values.get(frames.SETTING_MAX_CONCURRENT_STREAMS, self.peer_max_streams)
        is_enabled = self._library.remote_settings.enable_connect_protocol == 1
        if is_enabled and values.get(frames.SETTING_ENABLE_CONNECT_PROTOCOL) == 0:
            raise protocol_error("connect_protocol_withdrawn")

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
            raise protocol_error("goaway_on_a_stream")
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
            raise protocol_error("priority_on_stream_0")
        self._guard.priority()
        if size != 5:
            stream = self._streams.get(stream_id)
            if stream is None:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._stream_error(stream, ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
