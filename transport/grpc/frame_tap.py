"""Looks at HTTP/2 frame headers before the h2 library does, sans-IO: floods, sizes, GOAWAY.

Three things h2 4.4 leaves open and a control channel must not: a frame's length is checked only after its
body was buffered; header blocks are bounded by count, not by bytes, before decoding; control frames,
resets and empty DATA are not counted at all (authz-cases 11). And one it does differently: h2 closes the
connection at the first GOAWAY, while RFC 9113 6.8 lets open streams finish, so GOAWAY never reaches h2.

Invariant: the bytes handed on are exactly the peer's minus its GOAWAY frames, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct(">HBBBI")
PREFACE_BYTES = 24

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
FLAG_ACK = FLAG_END_STREAM = 0x1
FLAG_END_HEADERS = 0x4

FRAME_SIZE_ERROR = 0x6
ENHANCE_YOUR_CALM = 0xB
PROTOCOL_ERROR = 0x1


class FrameRefused(Exception):
    """The connection must end with GOAWAY `error_code`; internal to this package."""

    def __init__(self, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GoAway:
    last_stream_id: int
    error_code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class TapLimits:
    """`control_burst` frames that ask for work without carrying any, refilled at `control_per_s`; each DATA
    frame that we send earns `earned_per_data` more, because it may cause that many WINDOW_UPDATEs."""

    max_frame_bytes: int = 256 * 1024
    max_header_block_bytes: int = 64 * 1024
    control_burst: float = 2000.0
    control_per_s: float = 100.0
    earned_per_data: float = 8.0
    max_empty_data_in_row: int = 16
    reset_grace: int = 500  # Envoy's rapid-reset rule: over 500 streams and half of them reset early


class FrameTap:
    def __init__(self, limits: TapLimits, *, is_server: bool) -> None:
        self._limits = limits
        self._header = bytearray()
        self._preface_left = PREFACE_BYTES if is_server else 0
        self._body_left = 0
        self._goaway: bytearray | None = None
        self._block_bytes = 0
        self._empty_in_row = 0
        self._tokens = limits.control_burst
        self._refilled_at: float | None = None
        self._opened = 0
        self._reset = 0

    def earn(self) -> None:
        """Called for each DATA frame that we send."""
        self._tokens = min(self._tokens + self._limits.earned_per_data, 10 * self._limits.control_burst)

    def feed(self, data: bytes, now: float) -> Iterator[memoryview | GoAway]:
        """Yields what h2 may see, and each GOAWAY at its place; raises FrameRefused.

        Header bytes that are split over two reads are handed on when they are complete.
        """
        self._refill(now)
        view = memoryview(data)
        position = start = 0
        end = len(view)
        while position < end:
            if self._preface_left:
                taken = min(self._preface_left, end - position)
                self._preface_left -= taken
                position += taken
                continue
            if self._body_left:
                taken = min(self._body_left, end - position)
                self._body_left -= taken
                if self._goaway is not None:
                    self._goaway += view[position : position + taken]
                    position = start = position + taken
                    if not self._body_left:
                        yield self._parse_goaway()
                    continue
                position += taken
                continue
            if not self._header and end - position >= 9:
                header: bytes | bytearray = bytes(view[position : position + 9])
                header_start = position
                position += 9
            else:
                # A header cut by the read: held back until whole, so that a GOAWAY can still be taken out.
                if position > start:
                    yield view[start:position]
                taken = min(9 - len(self._header), end - position)
                self._header += view[position : position + taken]
                position = start = position + taken
                if len(self._header) < 9:
                    return
                header, self._header = self._header, bytearray()
                header_start = -1
            if self._open_frame(header):
                if header_start > start:
                    yield view[start:header_start]
                start = position
            elif header_start < 0:
                yield memoryview(header)
        if position > start:
            yield view[start:position]

    def _refill(self, now: float) -> None:
        if self._refilled_at is not None and self._tokens < self._limits.control_burst:
            earned = (now - self._refilled_at) * self._limits.control_per_s
            self._tokens = min(self._limits.control_burst, self._tokens + earned)
        self._refilled_at = now

    def _open_frame(self, header: bytes | bytearray) -> bool:
        """True for a GOAWAY, which is swallowed."""
        high, low, kind, flags, stream_id = _HEADER.unpack(header)
        length = high << 8 | low
        if length > self._limits.max_frame_bytes:
            raise FrameRefused(FRAME_SIZE_ERROR, f"frame of {length} bytes")
        self._body_left = length
        self._count(kind, flags, length)
        if kind != GOAWAY:
            return False
        if stream_id & 0x7FFFFFFF:
            raise FrameRefused(PROTOCOL_ERROR, "GOAWAY on a stream")
        if length < 8:
            raise FrameRefused(FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes")
        self._goaway = bytearray()
        return True

    def _count(self, kind: int, flags: int, length: int) -> None:
        match kind:
            case 0x0:
                self._count_data(length, is_end=bool(flags & FLAG_END_STREAM))
            case 0x1 | 0x9 | 0x5:
                self._count_header_block(kind, flags, length)
            case 0x3:
                self._reset += 1
                self._spend("RST_STREAM")
                if self._reset > self._limits.reset_grace and self._reset * 2 >= self._opened:
                    raise FrameRefused(ENHANCE_YOUR_CALM, "streams are opened only to be reset")
            case 0x4 | 0x6:
                if not flags & FLAG_ACK:
                    self._spend("SETTINGS" if kind == SETTINGS else "PING")
            case _:
                self._spend(f"type {kind}")

    def _count_data(self, length: int, *, is_end: bool) -> None:
        if length or is_end:
            self._empty_in_row = 0
            return
        self._empty_in_row += 1
        if self._empty_in_row > self._limits.max_empty_data_in_row:
            raise FrameRefused(ENHANCE_YOUR_CALM, "empty DATA frames")

    def _count_header_block(self, kind: int, flags: int, length: int) -> None:
        if kind != CONTINUATION:
            self._block_bytes = 0
            self._opened += 1
        self._block_bytes += length
        if self._block_bytes > self._limits.max_header_block_bytes:
            raise FrameRefused(ENHANCE_YOUR_CALM, "header block too large")
        if flags & FLAG_END_HEADERS:
            self._block_bytes = 0

    def _spend(self, what: str) -> None:
        self._tokens -= 1
        if self._tokens < 0:
            raise FrameRefused(ENHANCE_YOUR_CALM, f"too many frames of {what}")

    def _parse_goaway(self) -> GoAway:
        body = bytes(self._goaway or b"")
        self._goaway = None
        last, code = struct.unpack_from(">II", body)
        return GoAway(last & 0x7FFFFFFF, code, body[8:256])
