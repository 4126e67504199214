"""Attackers of a waypoint, as bytes: each yields what it sends next, for ever, without reading.

Frames are written by hand: a codec would not say these things. Sources: authz-cases 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Final

from transport.http2 import frames

DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
Attack = Callable[[bytes], Iterator[bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


OPENING: Final = frames.PREFACE + frame(SETTINGS, 0, 0)


def head(stream: int, block: bytes, *, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def request_block(method: bytes = b"GET") -> bytes:
    """A header block that does not touch the dynamic table, so that it can be sent again and again."""
    pseudo = ((b":method", method), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/"))
    return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in pseudo)


def connect_block(authority: bytes) -> bytes:
    pseudo = ((b":method", b"CONNECT"), (b":authority", authority))
    return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in pseudo)


def _literal(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text


def _odd() -> Iterator[int]:
    return iter(range(1, 2**31, 2))


def rapid_reset(block: bytes) -> Iterator[bytes]:
    for stream in _odd():
        yield head(stream, block) + frame(RST, 0, stream, (8).to_bytes(4, "big"))


def made_reset(block: bytes) -> Iterator[bytes]:
    """Faults on streams, so that the waypoint resets them itself."""
    for stream in _odd():
        yield head(stream, block, end=False) + frame(UPDATE, 0, stream, bytes(4))


def continuation(block: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block)
    yield from repeat(frame(CONTINUATION, 0, 1))


def endless_head(block: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block)
    yield from repeat(frame(CONTINUATION, 0, 1, (b"\x00\x01x" + b"\x7d" + bytes(125)) * 100))


def settings(_: bytes) -> Iterator[bytes]:
    return repeat(frame(SETTINGS, 0, 0, b"\x00\x04" + (65_535).to_bytes(4, "big")))


def ping(_: bytes) -> Iterator[bytes]:
    return repeat(frame(PING, 0, 0, bytes(8)))


def priority(_: bytes) -> Iterator[bytes]:
    return repeat(frame(PRIORITY, 0, 1, bytes(5)))


def unknown_frames(_: bytes) -> Iterator[bytes]:
    return repeat(frame(0xEE, 0, 1, bytes(5)))


def empty_data(block: bytes) -> Iterator[bytes]:
    yield head(1, block, end=False)
    yield from repeat(frame(DATA, 0, 1))


def window_update(_: bytes) -> Iterator[bytes]:
    return repeat(frame(UPDATE, 0, 0, (1).to_bytes(4, "big")))


# What ends with ENHANCE_YOUR_CALM, on both kinds of HTTP/2 connections that a waypoint reads.
FLOODS: Final[dict[str, Attack]] = {
    "rapid reset": rapid_reset,
    "made reset": made_reset,
    "continuation": continuation,
    "endless head": endless_head,
    "settings": settings,
    "ping": ping,
    "priority": priority,
    "unknown frames": unknown_frames,
    "empty data": empty_data,
    "window update": window_update,
}


def bad_requests(_: bytes) -> Iterator[bytes]:
    return repeat(b"nonsense\r\n\r\n" * 100)


def endless_http1_head(_: bytes) -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nHost: a\r\n"
    yield from repeat(b"X: " + b"a" * 1000 + b"\r\n")


def endless_line(_: bytes) -> Iterator[bytes]:
    yield b"GET /"
    yield from repeat(b"a" * 1000)


def endless_extension(_: bytes) -> Iterator[bytes]:
    yield b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from repeat(b"1;" + b"a" * 200 + b"\r\nx\r\n")


def pipelined(_: bytes) -> Iterator[bytes]:
    return repeat(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)


HTTP1_ATTACKS: Final[dict[str, Attack]] = {
    "bad requests": bad_requests,
    "endless head": endless_http1_head,
    "endless line": endless_line,
    "endless extension": endless_extension,
}
