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

from collections.abc import Sequence
from typing import Final

from transport.http2 import frames
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault, protocol_error
from transport.http2.events import DataReceived, Event, Piece
from transport.http2.flood import Flood, flooded
from transport.http2.lean_control import ControlHalf
from transport.http2.settings import MAX_STREAM_ID, Http2Settings, Role
from transport.http2.stream import Stream

_unpack = frames.FRAME_HEADER.unpack_from
_unpack_small = frames.SHORT_FRAME_HEADER.unpack_from
_EMPTY: Final = memoryview(b"")

_SHORT_BLOCK: Final = 4096 << 8 | 0xFF  # less than any limit of ours on frames and blocks

_IS_LIKELY: Final = 0x80000001  # of a stream id: odd, and without the reserved bit

# What the next frame has to be, if not any
_ANYTHING: Final = 0
_SETTINGS_FIRST: Final = 1
_MORE_HEADERS: Final = 2


class LeanCodec(ControlHalf):
    """The default implementation of codec.Http2Codec."""

    def __init__(self, role: Role, settings: Http2Settings) -> None:
        super().__init__(role, settings)
        self._max_block = max(2 * settings.max_header_list, 16_384)
        self._partial = bytearray()
        self._wanted = len(frames.PREFACE) if self._is_server else frames.HEADER_BYTES
        self._awaits_preface = self._is_server
        self._constraint = _SETTINGS_FIRST
        self._remaining = 0  # octets of the current DATA (or skipped) frame that are still to come
        self._tail = 0  # how many of them, at the end, are padding
        self._data_ends = False
        self._block = bytearray()  # header block under construction
        self._block_stream = 0
        self._block_ends = False
        self._continuations = 0

    def receive(self, data: memoryview | bytes | bytearray) -> list[Event]:
        if self._is_failed:
            return []
        events: list[Event] = []
        self._events = events
        self._guard.begin_input()
        view = data if type(data) is memoryview else memoryview(data)
        try:
            self._walk(view, events)
        except ConnectionFault as fault:
            self._fail(fault)
        self._events = []  # keep no view of the input
        return events

    def receive_data(self, data: memoryview) -> tuple[Sequence[Piece], int]:
        if self._remaining or self._constraint or self._partial:
            return (), 0
        pieces: list[Piece] = []
        find = self._streams.get
        in_window = self._in_window
        end = min(len(data), self._settings.max_frame + 9)  # no whole frame in here is too large
        position, last_start = 0, end - 10
        while position <= last_start:
            high, size, kind, stream_id = _unpack_small(data, position)
            stream = find(stream_id)
            if kind or high or stream is None or stream.body_left >= 0:
                break
            start = position + 9
            stop = start + size
            if not 0 < size <= stream.in_window or size > in_window or stop > end:
                break
            stream.in_window -= size
            in_window -= size
            pieces.append((stream_id, data[start:stop], size))
            position = stop
        if pieces:
            self._in_window = in_window
            self._guard.empty_run = 0
        return pieces, position

    def _walk(self, view: memoryview, events: list[Event]) -> None:
        position, end = 0, len(view)
        while position < end:
            if self._remaining:
                position = self._deliver(view, position, end)
                continue
            if self._partial or self._awaits_preface:
                position = self._fill(view, position, end)
                continue
            if not self._constraint:
                position = self._take_whole(view, position, end, events)
            if end - position < 9:
                if position < end:
                    position = self._fill(view, position, end)
                continue
            word, flags, stream_id = _unpack(view, position)
            stream_id &= MAX_STREAM_ID
            needed = self._admit(word, flags, stream_id)
            start = position + 9
            stop = start + needed
            if stop > end:
                self._partial += view[position:end]
                self._wanted = 9 + needed
                return
            position = stop
            self._dispatch(word, flags, stream_id, bytes(view[start:stop]))

    def _take_whole(self, view: memoryview, position: int, end: int, events: list[Event]) -> int:
        """Whole DATA and HEADERS frames without anything unusual, between other frames; where it stopped."""
        find, guard = self._streams.get, self._guard
        max_word = self._settings.max_frame << 8 | 0xFF
        while position + 9 <= end:
            word, flags, stream_id = _unpack(view, position)
            size = word >> 8
            stop = position + 9 + size
            if stop > end:
                break
            kind = word & 0xFF
            if kind == 0 and flags < 2 and word <= max_word:
                stream = find(stream_id)
                if (
                    stream is None
                    or stream.body_left >= 0  # a content-length to watch, or closed towards us
                    or not 0 < size <= stream.in_window
                    or size > self._in_window
                ):
                    break
                stream.in_window -= size
                self._in_window -= size
                if guard.empty_run:
                    guard.empty_run = 0
                events.append(DataReceived(stream_id, view[position + 9 : stop], size, flags == 1))
                if flags:
                    self._close_remote(stream)
            elif kind == 1 and flags | 1 == 5 and word <= _SHORT_BLOCK and stream_id & _IS_LIKELY == 1:
                self._on_block(stream_id, bytes(view[position + 9 : stop]), flags == 5)
            else:
                break
            position = stop
        return position

    # Cut-off frames

    def _fill(self, view: memoryview, position: int, end: int) -> int:
        """Go on collecting the preface, a frame header or a frame that the last input cut off."""
        partial = self._partial
        stop = min(end, position + self._wanted - len(partial))
        partial += view[position:stop]
        if self._awaits_preface:
            if not frames.PREFACE.startswith(partial):
                raise protocol_error("bad_preface")
            if len(partial) == self._wanted:
                self._awaits_preface = False
                self._clear_partial()
            return stop
        if len(partial) < self._wanted:
            return stop
        word, flags, stream_id = _unpack(partial)
        stream_id &= MAX_STREAM_ID
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
                raise protocol_error("settings_not_first")
        elif kind != frames.CONTINUATION or stream_id != self._block_stream:
            raise protocol_error("header_block_interrupted")

    def _dispatch(self, word: int, flags: int, stream_id: int, payload: bytes) -> None:
        """One admitted frame; `payload` is all of it, but of DATA only the pad length."""
        match word & 0xFF:
            case frames.DATA:
                self._on_data(word >> 8, flags, stream_id, payload)
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, int.from_bytes(payload, "big") & MAX_STREAM_ID)
            case frames.HEADERS:
                self._on_headers(flags, stream_id, payload)
            case frames.CONTINUATION:
                self._on_continuation(flags, payload)
            case frames.RST_STREAM:
                self._on_rst_stream(stream_id, int.from_bytes(payload, "big"))
            case frames.SETTINGS:
                self._on_settings(flags, stream_id, payload)
                self._constraint = _ANYTHING
            case frames.PING:
                self._on_ping(flags, stream_id, payload)
            case frames.GOAWAY:
                self._on_goaway(stream_id, payload)
            case frames.PRIORITY:
                self._on_priority(stream_id, len(payload))
            case frames.PUSH_PROMISE:
                raise protocol_error("push_promise_not_allowed")
            case _:  # 4.1: unknown types are ignored
                self._guard.priority()
                self._remaining = word >> 8
                self._data_stream = None

    # DATA (6.1) off the short way: the first, padded, empty, late, faulty, or counted by content-length

    def _on_data(self, size: int, flags: int, stream_id: int, pad_length: bytes) -> None:
        if stream_id == 0:
            raise protocol_error("data_on_stream_0")
        padding = pad_length[0] if pad_length else 0
        left = size - len(pad_length)
        if padding > left:
            raise protocol_error("padding_too_long")
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
                raise protocol_error("data_on_idle_stream")
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
            raise protocol_error("headers_on_wrong_stream_id")
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
            raise protocol_error("continuation_without_headers")
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
