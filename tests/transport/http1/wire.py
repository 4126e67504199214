"""Peers made by hand: octets in, events out, in a form that does not depend on how the input was cut.

`server(kind)` waits for a request; `client(kind)` has sent one. `story(events)` makes plain tuples of events,
with neighbouring pieces of content put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transport.http1.codec import CodecKind, Http1Codec, make_codec
from transport.http1.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    Header,
    HeadersReceived,
    HeadersRejected,
)
from transport.http1.settings import Http1Settings, Role

Story = list[tuple[object, ...]]

GET: list[Header] = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web"), (b":path", b"/")]
POST: list[Header] = [(b":method", b"POST"), *GET[1:]]
HEAD: list[Header] = [(b":method", b"HEAD"), *GET[1:]]
WEBSOCKET: list[Header] = [*GET, (b"upgrade", b"websocket")]
OK: list[Header] = [(b":status", b"200")]

GET_OCTETS = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
UPGRADE_OCTETS = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def request(*lines: bytes, start: bytes = b"POST / HTTP/1.1", host: bytes | None = b"Host: web") -> bytes:
    """A request's head with these field lines."""
    return b"\r\n".join([start, *([host] if host is not None else []), *lines, b"", b""])


def response(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A response's head with these field lines."""
    return b"\r\n".join([start, *lines, b"", b""])


def server(kind: CodecKind, settings: Http1Settings | None = None) -> Http1Codec:
    return make_codec(Role.SERVER, settings, kind)


def client(
    kind: CodecKind,
    headers: Sequence[Header] = GET,
    *,
    end_stream: bool = True,
    settings: Http1Settings | None = None,
) -> Http1Codec:
    """A client that has sent this request; its output is taken."""
    codec = make_codec(Role.CLIENT, settings, kind)
    codec.open_stream(headers, end_stream)
    codec.take_output()
    return codec


def story(events: Iterable[Event]) -> Story:
    """What happened, whatever the pieces."""
    told: Story = []
    for event in events:
        match event:
            case HeadersReceived(stream, headers, ends, is_trailers):
                told.append(("trailers" if is_trailers else "headers", stream, headers, ends))
            case DataReceived(stream, data, flow, ends):
                assert flow == len(data)
                octets = bytes(data)
                if told and told[-1][:2] == ("data", stream) and not told[-1][3]:
                    octets = bytes(str(told[-1][2]), "latin-1") + octets
                    told.pop()
                told.append(("data", stream, octets.decode("latin-1"), ends))
            case HeadersRejected(stream, status, reason):
                told.append(("rejected", stream, status, reason))
            case ConnectionFailed(code, reason):
                told.append(("failed", int(code), reason))
    return told


def content(events: Iterable[Event]) -> bytes:
    """All content, of whatever stream."""
    return b"".join(bytes(event.data) for event in events if isinstance(event, DataReceived))


def head_of(octets: bytes | bytearray) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Start line and fields of what a codec sent, read in the plainest way."""
    start, *lines = bytes(octets).partition(b"\r\n\r\n")[0].split(b"\r\n")
    fields = [line.split(b": ", 1) for line in lines]
    return start, [(name.lower(), value) for name, value in fields]


def assert_rejected(codec: Http1Codec, events: Sequence[Event], status: int, reason: str) -> None:
    """A server turned the request away with one answer, and the connection is over."""
    assert story(events)[-2:] == [
        ("rejected", codec.current_stream, status, reason),
        ("failed", 1, reason),
    ]
    answer = bytes(codec.take_output())
    start, fields = head_of(answer)
    assert start.startswith(b"HTTP/1.1 %d " % status)
    assert any(name == b"connection" and b"close" in value for name, value in fields)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert_over(codec)


def assert_failed(codec: Http1Codec, events: Sequence[Event], reason: str) -> None:
    """The connection failed for this reason, as the last event says."""
    *_, last = events
    assert isinstance(last, ConnectionFailed)
    assert last.reason == reason
    assert_over(codec)


def assert_over(codec: Http1Codec) -> None:
    assert codec.is_finished
    assert codec.is_output_ended
    assert not codec.is_idle
    codec.take_output()
    assert codec.receive(GET_OCTETS) == []
    assert codec.resume() == []
    assert codec.take_output() == b""
