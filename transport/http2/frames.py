"""Frame layout (RFC 9113 4.1 and 6): types, flags and how each frame we send is packed.

A frame header is read and written as three numbers: `length << 8 | type`, flags, stream id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from transport.http2.error_codes import ErrorCode
from transport.http2.errors import ConnectionFault
from transport.http2.settings import (
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    MAX_MAX_FRAME,
    MAX_WINDOW,
    Http2Settings,
    Role,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER: Final = struct.Struct(">IBI")
# Of a frame below 64 KiB the first field is 0; of plain DATA the third too, which is type and flags in one.
SHORT_FRAME_HEADER: Final = struct.Struct(">BHHI")
HEADER_BYTES: Final = 9

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

SETTING_HEADER_TABLE_SIZE: Final = 0x1
SETTING_ENABLE_PUSH: Final = 0x2
SETTING_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTING_INITIAL_WINDOW_SIZE: Final = 0x4
SETTING_MAX_FRAME_SIZE: Final = 0x5
SETTING_MAX_HEADER_LIST_SIZE: Final = 0x6
SETTING_ENABLE_CONNECT_PROTOCOL: Final = 0x8
SETTING_NO_RFC7540_PRIORITIES: Final = 0x9

_SETTING = struct.Struct(">HI")
_HEADER_AND_WORD = struct.Struct(">IBII")
_GOAWAY = struct.Struct(">IBIII")

FIXED_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
SETTINGS_ACK: Final = FRAME_HEADER.pack(SETTINGS, ACK, 0)


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE (6.9)."""
    return _HEADER_AND_WORD.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """RST_STREAM (6.4)."""
    return _HEADER_AND_WORD.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def ping(payload: bytes, *, is_ack: bool = False) -> bytes:
    """PING (6.7) with its 8 bytes."""
    return FRAME_HEADER.pack(8 << 8 | PING, ACK if is_ack else 0, 0) + payload


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """GOAWAY (6.8)."""
    return _GOAWAY.pack((8 + len(debug)) << 8 | GOAWAY, 0, 0, last_stream_id, code) + debug


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS (6.5) with these pairs."""
    payload = b"".join(_SETTING.pack(setting, value) for setting, value in values)
    return FRAME_HEADER.pack(len(payload) << 8 | SETTINGS, 0, 0) + payload


def opening(role: Role, own: Http2Settings) -> bytes:
    """What our side sends first: preface, SETTINGS, the connection's WINDOW_UPDATE (ztunnel-facts 2.7)."""
    values = [
        (SETTING_INITIAL_WINDOW_SIZE, own.initial_window),
        (SETTING_MAX_FRAME_SIZE, own.max_frame),
        (SETTING_MAX_HEADER_LIST_SIZE, own.max_header_list),
    ]
    if role is Role.CLIENT:
        values.append((SETTING_ENABLE_PUSH, 0))
    else:
        values.append((SETTING_MAX_CONCURRENT_STREAMS, own.max_concurrent_streams))
        if own.enable_connect_protocol:
            values.append((SETTING_ENABLE_CONNECT_PROTOCOL, 1))
    increment = own.connection_window - DEFAULT_WINDOW
    preface = PREFACE if role is Role.CLIENT else b""
    return preface + settings(values) + (window_update(0, increment) if increment else b"")


def header_block(stream_id: int, block: bytes, *, end_stream: bool, max_frame: int) -> bytes:
    """HEADERS and as many CONTINUATIONs as the peer's frame size asks for (6.2, 6.10)."""
    flags = END_STREAM if end_stream else 0
    size = len(block)
    if size <= max_frame:
        return FRAME_HEADER.pack(size << 8 | HEADERS, flags | END_HEADERS, stream_id) + block
    pieces = [FRAME_HEADER.pack(max_frame << 8 | HEADERS, flags, stream_id), block[:max_frame]]
    for start in range(max_frame, size, max_frame):
        piece = block[start : start + max_frame]
        is_last = start + max_frame >= size
        header = FRAME_HEADER.pack(len(piece) << 8 | CONTINUATION, END_HEADERS if is_last else 0, stream_id)
        pieces += (header, piece)
    return b"".join(pieces)


def strip_headers(flags: int, payload: bytes) -> bytes:
    """The block fragment of a HEADERS payload, without padding and priority (6.2)."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        start = 1
        stop -= payload[0] if payload else 0
    if flags & WITH_PRIORITY:
        start += 5
    if start > len(payload):
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong")
    if start > stop:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding_too_long")
    return payload[start:stop]


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS payload, each checked against 6.5.2. The caller knows that 6 divides it."""
    pairs = list(_SETTING.iter_unpack(payload))
    for setting, value in pairs:
        match setting:
            case 0x2 | 0x8 | 0x9 if value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "setting_is_not_0_or_1")
            case 0x4 if value > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial_window_too_large")
            case 0x5 if not DEFAULT_MAX_FRAME <= value <= MAX_MAX_FRAME:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "max_frame_out_of_range")
    return pairs
