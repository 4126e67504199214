"""The lean codec: RFC 9113 over plain integers and memoryviews, made for many streams and large bodies.

Theory of operation. receive() walks over the input. A DATA frame on a healthy stream takes the short way: one
unpack, a few comparisons, one event whose payload is a view of the input. DATA that the input cuts off is
delivered in pieces as it comes (`_remaining`, `_data_stream`); any other frame that is cut off is collected
in `_partial`, which is bounded by the largest header block we accept. Everything unusual is decided in
small methods, one per frame type, which raise ConnectionFault for connection errors and call _stream_error
for stream errors.

Where RFC 9113 leaves a choice, a fault is the stream's: one bad stream never ends another client's.
"""

from __future__ import annotations

from typing import Final

from transport.http2 import frames
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault
from transport.http2.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    HeadersRejected,
    PeerSettings,
    PingAcked,
    StreamReset,
    WindowOpened,
)
from transport.http2.flood import Flood, flooded
from transport.http2.headers import HeadFault, RequestHead, ResponseHead, check_request, check_response
from transport.http2.hpack.decoder import Decoder, HeaderBlock
from transport.http2.hpack.table import HpackError
from transport.http2.sending import SendingHalf
from transport.http2.settings import MAX_WINDOW, Http2Settings, Role
from transport.http2.stream import Stream, trailers_fault

_unpack = frames.FRAME_HEADER.unpack_from
_EMPTY: Final = memoryview(b"")
_ID_MASK: Final = 0x7FFF_FFFF

# What the next frame has to be, if not any
_ANYTHING: Final = 0
_SETTINGS_FIRST: Final = 1
_MORE_HEADERS: Final = 2


def _protocol_error(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)


class LeanCodec(SendingHalf):
    """The default implementation of codec.Http2Codec."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        super().__init__(role, settings)
        self._decoder = Decoder(settings.max_header_list, settings.max_header_count)
        self._max_block = max(2 * settings.max_header_list, 16_384)
        self._partial = bytearray()
        self._wanted = len(frames.PREFACE) if self._is_server else frames.HEADER_BYTES
        self._awaits_preface = self._is_server
        self._constraint = _SETTINGS_FIRST
        self._remaining = 0  # octets of the current DATA (or skipped) frame that are still to come
        self._tail = 0  # how many of them, at the end, are padding
        self._data_stream: Stream | None = None  # None: skip them
        self._data_ends = False
        self._block = bytearray()  # header block under construction
        self._block_stream = 0
        self._block_ends = False
        self._continuations = 0
        self._is_settings_acked = False
        self._peer_goaway_last = _ID_MASK
        self._peer_max_header_list: int | None = None
        self._peer_max_streams: int | None = None
        self._is_peer_connect_protocol = False

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        if self._is_failed:
            return []
        events: list[Event] = []
        self._events = events
        view = data if type(data) is memoryview else memoryview(data)
        try:
            self._walk(view, events)
        except ConnectionFault as fault:
            self._fail(fault)
        self._events = []  # keep no view of the input
        return events

    def _walk(self, view: memoryview, events: list[Event]) -> None:
        streams, guard = self._streams, self._guard
        position, end = 0, len(view)
        max_word = self._settings.max_frame << 8 | 0xFF
        while position < end:
            if self._remaining:
                position = self._deliver(view, position, end)
                continue
            if self._partial or end - position < 9 or self._awaits_preface:
                position = self._fill(view, position, end)
                continue
            word, flags, stream_id = _unpack(view, position)
            if not word & 0xFF and flags < 2 and word <= max_word and not self._constraint:
                size = word >> 8
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and stream.body_left < 0  # no content-length to watch, and open towards us
                    and 0 < size <= stream.in_window
                    and size <= self._in_window
                ):
                    stream.in_window -= size
                    self._in_window -= size
                    if guard.empty_run:
                        guard.empty_run = 0
                    position += 9
                    stop = position + size
                    if stop <= end:
                        events.append(DataReceived(stream_id, view[position:stop], size, flags == 1))
                        if flags:
                            self._close_remote(stream)
                        position = stop
                    else:
                        self._remaining = size
                        self._tail = 0
                        self._data_stream = stream
                        self._data_ends = flags == 1
                    continue
            stream_id &= _ID_MASK
            needed = self._admit(word, flags, stream_id)
            start = position + 9
            stop = start + needed
            if stop > end:
                self._partial += view[position:end]
                self._wanted = 9 + needed
                return
            position = stop
            self._dispatch(word, flags, stream_id, bytes(view[start:stop]))

    # Cut-off frames

    def _fill(self, view: memoryview, position: int, end: int) -> int:
        """Go on collecting the preface, a frame header or a frame that the last input cut off."""
        partial = self._partial
        stop = min(end, position + self._wanted - len(partial))
        partial += view[position:stop]
        if self._awaits_preface:
            if not frames.PREFACE.startswith(partial):
                raise _protocol_error("bad_preface")
            if len(partial) == self._wanted:
                self._awaits_preface = False
                self._clear_partial()
            return stop
        if len(partial) < self._wanted:
            return stop
        word, flags, stream_id = _unpack(partial)
        stream_id &= _ID_MASK
        if self._wanted == frames.HEADER_BYTES:
            needed = self._admit(word, flags, stream_id)
            if needed:
                self._wanted += needed
                return stop
        payload = bytes(partial[9:])
        self._clear_partial()
        self._dispatch(word, flags, stream_id, payload)
        return stop

    def _clear_partial(self) -> None:
        self._partial = bytearray()
        self._wanted = frames.HEADER_BYTES

    def _deliver(self, view: memoryview, position: int, end: int) -> int:
        """Hand on, or skip, what there is of the current DATA frame."""
        left = self._remaining
        taken = min(left, end - position)
        self._remaining = left - taken
        stream = self._data_stream
        if stream is not None:
            body_left = left - self._tail
            size = min(taken, body_left)
            ends = self._data_ends and size == body_left
            self._events.append(DataReceived(stream.id, view[position : position + size], size, ends))
            if size == body_left:
                self._data_stream = None
            if ends:
                self._close_remote(stream)
        return position + taken

    # All frames

    def _admit(self, word: int, flags: int, stream_id: int) -> int:
        """Check a frame header by itself; returns how much payload must be there before it is dispatched."""
        size, kind = word >> 8, word & 0xFF
        if size > self._settings.max_frame:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_too_large")
        if self._constraint:
            self._check_constraint(kind, flags, stream_id)
        if kind == frames.DATA:
            if flags & frames.PADDED and not size:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            return 1 if flags & frames.PADDED else 0
        if kind > frames.CONTINUATION:
            return 0
        fixed = frames.FIXED_SIZES.get(kind)
        if fixed is not None:
            if size != fixed and (kind != frames.PRIORITY or size > 64):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
        elif kind == frames.SETTINGS:
            if size % 6 or (flags & frames.ACK and size):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._guard.settings_entries(size // 6)
        elif size > self._max_block:
            raise flooded(Flood.HEADER_BLOCK)
        return size

    def _check_constraint(self, kind: int, flags: int, stream_id: int) -> None:
        if self._constraint == _SETTINGS_FIRST:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise _protocol_error("settings_not_first")
        elif kind != frames.CONTINUATION or stream_id != self._block_stream:
            raise _protocol_error("header_block_interrupted")

    def _dispatch(self, word: int, flags: int, stream_id: int, payload: bytes) -> None:
        """One admitted frame; `payload` is all of it, but of DATA only the pad length."""
        match word & 0xFF:
            case frames.DATA:
                self._on_data(word >> 8, flags, stream_id, payload)
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, int.from_bytes(payload, "big") & _ID_MASK)
            case frames.HEADERS:
                self._on_headers(flags, stream_id, payload)
            case frames.CONTINUATION:
                self._on_continuation(flags, payload)
            case frames.RST_STREAM:
                self._on_rst_stream(stream_id, int.from_bytes(payload, "big"))
            case frames.SETTINGS:
                self._on_settings(flags, stream_id, payload)
            case frames.PING:
                self._on_ping(flags, stream_id, payload)
            case frames.GOAWAY:
                self._on_goaway(stream_id, payload)
            case frames.PRIORITY:
                self._on_priority(stream_id, len(payload))
            case frames.PUSH_PROMISE:
                raise _protocol_error("push_promise_not_allowed")
            case _:  # 4.1: unknown types are ignored
                self._guard.priority()
                self._remaining = word >> 8
                self._data_stream = None

    # Streams

    def _stream_error(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """5.4.2: the peer's fault ends this stream only."""
        self._out += frames.rst_stream(stream.id, code)
        if self._data_stream is stream:
            self._data_stream = None
        self._forget(stream, was_reset=True)
        self._events.append(StreamReset(stream.id, code, is_local=True, reason=reason))
        self._guard.reply()
        self._guard.early_end()

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        if self._data_stream is not None and self._data_stream.id == stream_id:
            self._data_stream = None
        super().reset(stream_id, code)

    def _answer_late(self, stream_id: int) -> None:
        """DATA or HEADERS on a stream that is gone (5.1): RST_STREAM once, unless we reset it ourselves."""
        if not self._closed.is_reset_by_us(stream_id):
            self._out += frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED)
            self._closed.remember(stream_id, is_reset_by_us=True)
            self._guard.reply()

    def _close_remote(self, stream: Stream) -> None:
        stream.body_left = 0
        super()._close_remote(stream)

    # DATA (6.1) off the short way: the first, padded, empty, late, faulty, or counted by content-length

    def _on_data(self, size: int, flags: int, stream_id: int, pad_length: bytes) -> None:
        if stream_id == 0:
            raise _protocol_error("data_on_stream_0")
        padding = pad_length[0] if pad_length else 0
        left = size - len(pad_length)
        if padding > left:
            raise _protocol_error("padding_too_long")
        if size > self._in_window:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overrun")
        self._in_window -= size
        self._remaining, self._tail, self._data_stream = left, padding, None
        body = left - padding
        ends = bool(flags & frames.END_STREAM)
        if body or ends:
            self._guard.empty_run = 0
        else:
            self._guard.empty_data()
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("data_on_idle_stream")
            self._credit(size)
            self._answer_late(stream_id)
            return
        fault = self._data_fault(stream, size, body, ends)
        if fault is not None:
            self._credit(size)
            self._stream_error(stream, *fault)
            return
        stream.in_window -= size
        if size > body:
            self.consumed(stream_id, size - body)
        if body:
            self._data_stream = stream
            self._data_ends = ends
        elif ends:
            self._events.append(DataReceived(stream_id, _EMPTY, 0, end_stream=True))
            self._close_remote(stream)

    def _data_fault(self, stream: Stream, size: int, body: int, ends: bool) -> tuple[ErrorCode, str] | None:
        """What is wrong with this DATA frame here; if nothing, its body is taken off the content-length."""
        if stream.is_remote_closed:
            return ErrorCode.STREAM_CLOSED, "data_after_end_of_stream"
        if size > stream.in_window:
            return ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overrun"
        if not stream.has_head:
            return ErrorCode.PROTOCOL_ERROR, "data_before_headers"
        if stream.body_left >= 0:
            if body > stream.body_left or (ends and body != stream.body_left):
                return ErrorCode.PROTOCOL_ERROR, "body_differs_from_content_length"
            stream.body_left -= body
        return None

    # HEADERS and CONTINUATION: RFC 9113 sections 6.2, 6.10 and 8

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id % 2 == 0:
            raise _protocol_error("headers_on_wrong_stream_id")
        block = frames.strip_headers(flags, payload)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block, bool(flags & frames.END_STREAM))
            return
        self._block = bytearray(block)
        self._block_stream = stream_id
        self._block_ends = bool(flags & frames.END_STREAM)
        self._continuations = 0
        self._constraint = _MORE_HEADERS

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._constraint != _MORE_HEADERS:
            raise _protocol_error("continuation_without_headers")
        self._continuations += 1
        self._guard.continuation(self._continuations)
        self._block += payload
        if len(self._block) > self._max_block:
            raise flooded(Flood.HEADER_BLOCK)
        if flags & frames.END_HEADERS:
            block = bytes(self._block)
            self._block = bytearray()
            self._constraint = _ANYTHING
            self._on_block(self._block_stream, block, self._block_ends)

    def _on_block(self, stream_id: int, encoded: bytes, ends: bool) -> None:
        """A complete header block. It is decoded whatever becomes of it: the tables must stay in step."""
        try:
            block = self._decoder.decode(encoded)
        except HpackError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header_block_undecodable") from None
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_server and stream_id > self.highest_peer_stream:
                self._on_request(stream_id, block, ends)
            else:
                self._on_late_headers(stream_id)
        elif stream.is_remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "headers_after_end_of_stream")
        elif stream.has_head:
            self._on_trailers(stream, block, ends)
        else:
            self._on_response(stream, block, ends)

    def _on_late_headers(self, stream_id: int) -> None:
        if not self._was_opened(stream_id):
            raise _protocol_error("headers_on_idle_stream")
        if self._closed.was_skipped(stream_id):
            raise _protocol_error("stream_id_not_increasing")
        self._answer_late(stream_id)
        self._guard.late_frame()

    def _on_request(self, stream_id: int, block: HeaderBlock, ends: bool) -> None:
        self._closed.note_opened(stream_id, after=self.highest_peer_stream)
        self.highest_peer_stream = stream_id
        self._guard.streams += 1
        has_said_goodbye = self._goaway_sent is not None and stream_id > self._goaway_sent
        if has_said_goodbye or len(self._streams) >= self._settings.max_concurrent_streams:
            self._refuse(stream_id)
            return
        try:
            request = self._judge_request(block, ends)
        except HeadFault as fault:
            self._reject(stream_id, fault, ends)
            return
        stream = Stream(stream_id, request, self._peer_initial_window, self._stream_window)
        stream.has_head = True
        stream.is_tunnel = request.is_connect
        stream.body_left = request.content_length
        self._streams[stream_id] = stream
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream_id, block.headers.copy(), ends, is_trailers=False))

    def _judge_request(self, block: HeaderBlock, ends: bool) -> RequestHead:
        """check_request, remembered with a cached block."""
        verdict = block.request
        if verdict is not None and verdict[0] is ends:
            return verdict[1]
        if block.excess:
            raise HeadFault(431, block.excess)
        request = check_request(
            block.headers,
            end_stream=ends,
            is_connect_protocol_enabled=self._settings.enable_connect_protocol,
        )
        block.request = (ends, request)
        return request

    def _refuse(self, stream_id: int) -> None:
        """5.1.2: more streams than we advertise, or after our GOAWAY. The client may safely try elsewhere."""
        self._out += frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM)
        self._closed.remember(stream_id, is_reset_by_us=True)
        self._guard.reply()
        if self._is_settings_acked:  # before, it could not know
            self._guard.early_end()

    def _reject(self, stream_id: int, fault: HeadFault, ends: bool) -> None:
        """Answer a request that nobody is to see: with its status, or RST_STREAM."""
        if fault.status:
            self._write_headers(stream_id, [(b":status", b"%d" % fault.status)], end_stream=True)
            if not ends:
                self._out += frames.rst_stream(stream_id, ErrorCode.NO_ERROR)
        else:
            self._out += frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        self._closed.remember(stream_id, is_reset_by_us=True)
        self._events.append(HeadersRejected(stream_id, fault.status, fault.reason))
        self._guard.reply()
        self._guard.early_end()

    def _on_response(self, stream: Stream, block: HeaderBlock, ends: bool) -> None:
        if block.excess:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, block.excess)
            return
        try:
            head = self._judge_response(block, ends, stream.request)
        except HeadFault as fault:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, fault.reason)
            return
        if head.is_informational:
            self._guard.control_frame(self._in_credit - self._in_window)
        else:
            stream.has_head = True
            stream.body_left = head.content_length
            stream.is_tunnel = stream.request.is_connect and head.status < 300
        if ends:
            self._close_remote(stream)
        self._events.append(HeadersReceived(stream.id, block.headers.copy(), ends, is_trailers=False))

    def _judge_response(self, block: HeaderBlock, ends: bool, request: RequestHead) -> ResponseHead:
        """check_response, remembered with a cached block."""
        verdict = block.response
        if verdict is not None and verdict[0] is ends and verdict[1] is request:
            return verdict[2]
        head = check_response(block.headers, end_stream=ends, request=request)
        block.response = (ends, request, head)
        return head

    def _on_trailers(self, stream: Stream, block: HeaderBlock, ends: bool) -> None:
        reason = trailers_fault(stream, block.headers, block.excess, ends)
        if reason:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, reason)
            return
        self._close_remote(stream)
        self._events.append(
            HeadersReceived(stream.id, block.headers.copy(), end_stream=True, is_trailers=True)
        )

    # The other frames

    def _on_rst_stream(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("rst_stream_on_idle_stream")
            self._guard.late_frame()
            return
        has_received = stream.in_window != self._stream_window or stream.in_pending
        is_early = not (stream.has_responded and (stream.has_sent_data or has_received))
        self._forget(stream, was_reset=True, is_by_peer=True)
        self._events.append(StreamReset(stream_id, code))
        if is_early and self._is_server:
            self._guard.early_end()

    def _on_window_update(self, stream_id: int, increment: int) -> None:
        self._guard.window_update(self._out_credit - self._out_window)
        if stream_id == 0:
            if not increment:
                raise _protocol_error("window_increment_0")
            was_low = self._out_window < self.peer_max_frame
            self._out_window += increment
            self._out_credit += increment
            if self._out_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overflow")
            if was_low and self._out_window > 0 and self._streams:
                self._events.append(WindowOpened(0))
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_opened(stream_id):
                raise _protocol_error("window_update_on_idle_stream")
            return
        if not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "window_increment_0")
            return
        if stream.out_window + increment > MAX_WINDOW:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow")
        else:
            self._open_window(stream, increment)

    def _open_window(self, stream: Stream, increment: int) -> None:
        was_low = stream.out_window < self.peer_max_frame
        stream.out_window += increment
        if was_low and stream.out_window > 0 and not stream.is_local_closed:
            self._events.append(WindowOpened(stream.id))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _protocol_error("settings_on_a_stream")
        if flags & frames.ACK:
            self._on_settings_ack()
            return
        if self._constraint == _SETTINGS_FIRST:
            self._constraint = _ANYTHING
            self._set_peer_streams(None)
        else:
            self._guard.control_frame(self._in_credit - self._in_window)
        for setting, value in frames.parse_settings(payload):
            self._apply_setting(setting, value)
        self._out += frames.SETTINGS_ACK
        self._guard.reply()
        self._events.append(
            PeerSettings(
                self._peer_initial_window,
                self.peer_max_frame,
                self.peer_max_streams,
                self._peer_max_header_list,
                self._is_peer_connect_protocol,
            )
        )

    def _apply_setting(self, setting: int, value: int) -> None:
        match setting:
            case frames.SETTING_HEADER_TABLE_SIZE:
                self._encoder.limit_table(value)
            case frames.SETTING_ENABLE_PUSH if value and not self._is_server:
                raise _protocol_error("server_enabled_push")
            case frames.SETTING_MAX_CONCURRENT_STREAMS:
                self._set_peer_streams(value)
            case frames.SETTING_INITIAL_WINDOW_SIZE:
                self._change_out_windows(value - self._peer_initial_window)
                self._peer_initial_window = value
            case frames.SETTING_MAX_FRAME_SIZE:
                self.peer_max_frame = value
            case frames.SETTING_MAX_HEADER_LIST_SIZE:
                self._peer_max_header_list = value
            case frames.SETTING_ENABLE_CONNECT_PROTOCOL:
                if self._is_peer_connect_protocol and not value:  # RFC 8441 3
                    raise _protocol_error("connect_protocol_withdrawn")
                self._is_peer_connect_protocol = value == 1

    def _change_out_windows(self, delta: int) -> None:
        """6.9.2: a new initial window moves the window of every open stream; it may become negative."""
        for stream in self._streams.values():
            if stream.out_window + delta > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow")
            if delta > 0:
                self._open_window(stream, delta)
            else:
                stream.out_window += delta

    def _on_settings_ack(self) -> None:
        if self._is_settings_acked:
            self._guard.control_frame(self._in_credit - self._in_window)
            return
        self._is_settings_acked = True
        delta = self._settings.initial_window - self._stream_window
        if self._is_server and delta:
            self._stream_window += delta
            for stream in self._streams.values():
                stream.in_window += delta

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _protocol_error("ping_on_a_stream")
        if flags & frames.ACK and payload in self._open_pings:
            self._open_pings.remove(payload)
            self._events.append(PingAcked(payload))
            return
        self._guard.control_frame(self._in_credit - self._in_window)
        if not flags & frames.ACK:
            self._out += frames.ping(payload, is_ack=True)
            self._guard.reply()

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _protocol_error("goaway_on_a_stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
        if self._has_peer_goaway:
            self._guard.control_frame(self._in_credit - self._in_window)
        last = int.from_bytes(payload[:4], "big") & _ID_MASK
        self._has_peer_goaway = True
        self._peer_goaway_last = last = min(last, self._peer_goaway_last)
        self._events.append(GoAwayReceived(last, int.from_bytes(payload[4:8], "big"), payload[8:]))
        if self._is_server:
            return
        for stream in [each for each in self._streams.values() if each.id > last]:
            self._forget(stream, was_reset=True)
            self._events.append(StreamReset(stream.id, ErrorCode.REFUSED_STREAM, reason="goaway"))

    def _on_priority(self, stream_id: int, size: int) -> None:
        """Deprecated and without effect (5.3.2); 6.3 still asks for its size and stream."""
        if not stream_id:
            raise _protocol_error("priority_on_stream_0")
        self._guard.priority()
        if size != 5:
            stream = self._streams.get(stream_id)
            if stream is None:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
            self._stream_error(stream, ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
