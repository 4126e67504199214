"""A peer made by hand: frames as octets in, the codec's answer as readable frames out.

`server(kind)` and `client(kind)` give a `Rig`: a codec behind which the opening exchange is done.
`rig.gets(...)` feeds frames and returns events; `rig.sent()` returns what the codec wants to send, parsed.
Header blocks are made and read by the hpack library, so that nothing of ours judges itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import hpack

from transport.http2.codec import CodecKind, Http2Codec, make_codec
from transport.http2.events import ConnectionFailed, DataReceived, Event, StreamReset
from transport.http2.settings import Http2Settings, Role

Headers = Sequence[tuple[bytes, bytes]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM = ACK = 1
END_HEADERS = 4
PADDED = 8
PRIORITY_FLAG = 0x20

_NAMES = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION"

CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
GET: Headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"web")]
POST: Headers = [(b":method", b"POST"), *GET[1:]]
OK: Headers = [(b":status", b"200")]


class Frame(NamedTuple):
    """One frame that a codec sent."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    def __str__(self) -> str:
        return f"{_NAMES.split()[self.kind]}({self.stream_id}, flags={self.flags:#x}, {self.payload!r})"

    @property
    def number(self) -> int:
        """The 32-bit payload of RST_STREAM and WINDOW_UPDATE, the error code of GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4], "big")


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Any frame, sane or not."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload


def parse(octets: bytes | bytearray) -> list[Frame]:
    """All frames in what a codec sent; it must end with a frame."""
    found, position = [], 0
    if octets.startswith(PREFACE):
        position = len(PREFACE)
    while position < len(octets):
        word, flags, stream_id = struct.unpack_from(">IBI", octets, position)
        end = position + 9 + (word >> 8)
        assert end <= len(octets), "output ends within a frame"
        found.append(Frame(word & 0xFF, flags, stream_id, bytes(octets[position + 9 : end])))
        position = end
    return found


def data(stream_id: int, payload: bytes = b"", *, end: bool = False, padding: int | None = None) -> bytes:
    flags = END_STREAM if end else 0
    if padding is not None:
        return frame(DATA, flags | PADDED, stream_id, bytes([padding]) + payload + bytes(padding))
    return frame(DATA, flags, stream_id, payload)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def rst(stream_id: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


SETTINGS_ACK = frame(SETTINGS, ACK)


class Rig:
    """One codec and the hand-made peer's compression state.

    With `takes_pieces` all input goes through receive_data first, and its pieces come out as events.
    """

    takes_pieces = False

    def __init__(self, role: Role, kind: CodecKind, settings: Http2Settings | None = None) -> None:
        self.codec: Http2Codec = make_codec(role, settings, kind)
        self.is_server = role is Role.SERVER
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.codec.start()

    def block(self, headers: Headers) -> bytes:
        """A header block as the peer encodes it. Blocks must be fed in the order in which they are made."""
        return self.encoder.encode(headers)

    def headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream_id, self.block(headers))

    def gets(self, *octets: bytes) -> list[Event]:
        """Feed this as one input."""
        whole = memoryview(b"".join(octets))
        if not self.takes_pieces:
            return self.codec.receive(whole)
        pieces, taken = self.codec.receive_data(whole)
        events: list[Event] = [DataReceived(*piece, end_stream=False) for piece in pieces]
        return events + self.codec.receive(whole[taken:])

    def sent(self) -> list[Frame]:
        """The frames the codec wants to send, and with that sends."""
        return parse(self.codec.take_output())

    def read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """A header block of the codec, as the peer decodes it."""
        return [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]

    def sent_headers(self) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
        """(stream, header list) of each HEADERS frame in the output."""
        return [(each.stream_id, self.read(each.payload)) for each in self.sent() if each.kind == HEADERS]

    def assert_alive(self) -> None:
        """The connection still works: a PING is answered."""
        self.codec.take_output()
        assert self.gets(ping(b"stillup?")) == []
        assert self.sent() == [Frame(PING, ACK, 0, b"stillup?")]

    def assert_failed(self, events: Iterable[Event], code: int, reason: str = "") -> None:
        """The last event is the failure, and a GOAWAY says the same to the peer."""
        *_, last = events
        assert isinstance(last, ConnectionFailed), last
        assert last.code == code
        if reason and last.reason != "refused_by_h2":
            assert last.reason == reason
        *_, final = self.sent()
        assert (final.kind, final.number) == (GOAWAY, code)
        assert self.gets(ping()) == []
        assert self.sent() == []


def server(kind: CodecKind, settings_: Http2Settings | None = None, *, acked: bool = True) -> Rig:
    """A server codec that has seen the client's preface and SETTINGS."""
    rig = Rig(Role.SERVER, kind, settings_)
    rig.gets(PREFACE, settings(), *([SETTINGS_ACK] if acked else []))
    rig.codec.take_output()
    return rig


def client(kind: CodecKind, settings_: Http2Settings | None = None, *peer: tuple[int, int]) -> Rig:
    """A client codec that has seen the server's SETTINGS."""
    rig = Rig(Role.CLIENT, kind, settings_)
    rig.gets(settings(*peer), SETTINGS_ACK)
    rig.codec.take_output()
    return rig


def merged(events: Iterable[Event]) -> list[Event]:
    """The same story without regard to how DATA was cut; payloads become bytes of their own."""
    story: list[Event] = []
    for event in events:
        if not isinstance(event, DataReceived):
            story.append(event)
            continue
        previous = story[-1] if story else None
        payload = bytes(event.data)
        if (
            isinstance(previous, DataReceived)
            and previous.stream_id == event.stream_id
            and not previous.end_stream
        ):
            payload = bytes(previous.data) + payload
            story.pop()
        story.append(DataReceived(event.stream_id, memoryview(payload), len(payload), event.end_stream))
    return story


def resets(events: Iterable[Event]) -> list[StreamReset]:
    return [event for event in events if isinstance(event, StreamReset)]
