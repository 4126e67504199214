"""What is sent: framing is ours alone, and nothing in a header list can change what a message means."""

from __future__ import annotations

import pytest

from tests.transport.http1.wire import (
    GET,
    GET_OCTETS,
    HEAD,
    OK,
    POST,
    WEBSOCKET,
    head_of,
    request,
    response,
    server,
)
from transport.http1.codec import CodecKind, Http1Codec, make_codec
from transport.http1.errors import CodecMisuse, UnwritableHead
from transport.http1.events import Header
from transport.http1.settings import Role


def fresh(kind: CodecKind) -> Http1Codec:
    return make_codec(Role.CLIENT, None, kind)


def asked(kind: CodecKind, octets: bytes = GET_OCTETS) -> Http1Codec:
    """A server that has a request to answer."""
    codec = server(kind)
    codec.receive(octets)
    return codec


REQUESTS: list[tuple[str, list[Header], bool, bytes, list[Header]]] = [
    ("get", GET, True, b"GET / HTTP/1.1", [(b"host", b"web")]),
    ("post without content", POST, True, b"POST / HTTP/1.1", [(b"host", b"web"), (b"content-length", b"0")]),
    (
        "post by chunks",
        POST,
        False,
        b"POST / HTTP/1.1",
        [(b"host", b"web"), (b"transfer-encoding", b"chunked")],
    ),
    (
        "post by length",
        [*POST, (b"content-length", b"3")],
        False,
        b"POST / HTTP/1.1",
        [(b"host", b"web"), (b"content-length", b"3")],
    ),
    (
        "host instead of authority",
        [*GET[:2], GET[3], (b"host", b"a")],
        True,
        b"GET / HTTP/1.1",
        [(b"host", b"a")],
    ),
    ("authority before host", [*GET, (b"host", b"other")], True, b"GET / HTTP/1.1", [(b"host", b"web")]),
    (
        "cookies are joined",
        [*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")],
        True,
        b"GET / HTTP/1.1",
        [(b"host", b"web"), (b"x", b"y"), (b"cookie", b"a=1; b=2")],
    ),
    (
        "the connection's own headers go",
        [
            *GET,
            (b"connection", b"close"),
            (b"keep-alive", b"1"),
            (b"transfer-encoding", b"chunked"),
            (b"proxy-connection", b"x"),
            (b"http2-settings", b"x"),
        ],
        True,
        b"GET / HTTP/1.1",
        [(b"host", b"web")],
    ),
    (
        "te",
        [*GET, (b"te", b"trailers")],
        True,
        b"GET / HTTP/1.1",
        [(b"host", b"web"), (b"te", b"trailers"), (b"connection", b"te")],
    ),
    (
        "upgrade",
        WEBSOCKET,
        False,
        b"GET / HTTP/1.1",
        [(b"host", b"web"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")],
    ),
    (
        "options",
        [(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")],
        True,
        b"OPTIONS * HTTP/1.1",
        [(b"host", b"web")],
    ),
]


@pytest.mark.parametrize(
    ("headers", "ends", "start", "fields"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)
def test_request_head(
    kind: CodecKind, headers: list[Header], ends: bool, start: bytes, fields: list[Header]
) -> None:
    codec = fresh(kind)
    codec.open_stream(headers, ends)
    assert head_of(codec.take_output()) == (start, fields)


UNWRITABLE: list[tuple[str, list[Header]]] = [
    ("crlf in value", [*GET, (b"x", b"a\r\nHost: b")]),
    ("lf in value", [*GET, (b"x", b"a\nb")]),
    ("cr in value", [*GET, (b"x", b"a\rb")]),
    ("nul in value", [*GET, (b"x", b"a\x00")]),
    ("control in value", [*GET, (b"x", b"\x01")]),
    ("crlf in known value", [*GET, (b"cookie", b"a\r\nb: c")]),
    ("crlf in authority", [*GET[:2], (b":authority", b"a\r\nb: c"), GET[3]]),
    ("colon in name", [*GET, (b"x:y", b"a")]),
    ("space in name", [*GET, (b"x y", b"a")]),
    ("crlf in name", [*GET, (b"x\r\ny", b"a")]),
    ("upper-case name", [*GET, (b"X", b"a")]),
    ("empty name", [*GET, (b"", b"a")]),
    ("late pseudo-header", [*GET, (b"x", b"a"), (b":path", b"/b")]),
    ("space in path", [*GET[:3], (b":path", b"/a HTTP/1.1")]),
    ("crlf in path", [*GET[:3], (b":path", b"/a\r\nb")]),
    ("non-ascii path", [*GET[:3], (b":path", b"/\xe9")]),
    ("path without slash", [*GET[:3], (b":path", b"a")]),
    ("no path", GET[:3]),
    ("no authority", [*GET[:2], GET[3]]),
    ("empty authority", [*GET[:2], (b":authority", b""), GET[3]]),
    ("space in method", [(b":method", b"GET /"), *GET[1:]]),
    ("lower-case method", [(b":method", b"get"), *GET[1:]]),
    ("connect", [(b":method", b"CONNECT"), *GET[1:]]),
    ("cl no number", [*GET, (b"content-length", b"+3")]),
    ("cl twice", [*GET, (b"content-length", b"0"), (b"content-length", b"0")]),
]


@pytest.mark.parametrize("headers", [row[1] for row in UNWRITABLE], ids=[row[0] for row in UNWRITABLE])
def test_unwritable_request(kind: CodecKind, headers: list[Header]) -> None:
    codec = fresh(kind)
    with pytest.raises(UnwritableHead):
        codec.open_stream(headers, end_stream=True)
    assert codec.take_output() == b""
    assert codec.is_idle
    assert codec.open_stream(GET, end_stream=True) == 1


def test_unwritable_response_can_still_be_answered(kind: CodecKind) -> None:
    codec = asked(kind)
    for wrong in [(b"x", b"a\r\nb"), (b"x y", b"a"), (b"content-length", b"x")]:
        with pytest.raises(UnwritableHead):
            codec.send_headers(1, [*OK, wrong])
    for status in [b"99", b"600", b"2000", b"200 ", b""]:
        with pytest.raises(UnwritableHead):
            codec.send_headers(1, [(b":status", status)])
    with pytest.raises(UnwritableHead):
        codec.send_headers(1, [])
    assert codec.take_output() == b""
    codec.send_headers(1, [(b":status", b"502")], end_stream=True)
    assert bytes(codec.take_output()) == b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"


def test_response_by_chunks_with_trailers(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, OK)
    codec.send_data(1, b"abc")
    codec.send_data(1, memoryview(bytearray(b"x" * 16)))
    codec.send_data(1, b"")
    codec.send_headers(
        1, [(b"grpc-status", b"0"), (b"content-length", b"5"), (b"host", b"x")], end_stream=True
    )
    head, _, body = bytes(codec.take_output()).partition(b"\r\n\r\n")
    assert head_of(head) == (b"HTTP/1.1 200 OK", [(b"transfer-encoding", b"chunked")])
    assert body == (b"3\r\nabc\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\ngrpc-status: 0\r\n\r\n")
    assert codec.is_idle


def test_response_by_length(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, [*OK, (b"content-length", b"6")])
    assert codec.sendable(1) == 6
    codec.send_data(1, b"abc")
    assert codec.sendable(1) == 3
    codec.send_data(1, b"def")
    codec.send_headers(1, [(b"dropped", b"trailer")], end_stream=True)
    assert bytes(codec.take_output()) == b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef"
    assert codec.is_idle


def test_content_may_be_framed_where_it_lies(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, OK)
    assert codec.frame_around(1, 255) == (b"ff\r\n", b"\r\n")
    codec.end_stream(1)
    assert bytes(codec.take_output()).endswith(b"\r\n\r\n0\r\n\r\n")
    codec.receive(GET_OCTETS)
    codec.send_headers(2, [*OK, (b"content-length", b"255")])
    assert codec.frame_around(2, 255) == (b"", b"")
    codec.end_stream(2)
    assert codec.is_idle


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_responses_without_content(kind: CodecKind, status: bytes) -> None:
    codec = asked(kind)
    codec.send_headers(1, [(b":status", status)])
    codec.send_data(1, b"dropped")
    codec.end_stream(1)
    start, fields = head_of(octets := bytes(codec.take_output()))
    assert start.split(b" ")[1] == status
    assert fields == []
    assert octets.endswith(b"\r\n\r\n")
    assert codec.is_idle


def test_response_to_head_keeps_its_length_and_drops_its_content(kind: CodecKind) -> None:
    codec = asked(kind, request(start=b"HEAD / HTTP/1.1"))
    codec.send_headers(1, [*OK, (b"content-length", b"3")])
    codec.send_data(1, b"abc", end_stream=True)
    assert bytes(codec.take_output()) == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    codec.receive(request(start=b"HEAD / HTTP/1.1"))
    codec.send_headers(2, [*OK, (b"content-length", b"3")], end_stream=True)
    assert bytes(codec.take_output()) == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    assert codec.is_idle


def test_status_without_a_phrase_of_its_own(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, [(b":status", b"299")], end_stream=True)
    assert bytes(codec.take_output()).startswith(b"HTTP/1.1 299 \r\n")


def test_more_content_than_announced_is_a_misuse(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, [*OK, (b"content-length", b"3")])
    with pytest.raises(CodecMisuse):
        codec.send_data(1, b"abcd")
    assert codec.is_finished


def test_less_content_than_announced_is_a_misuse(kind: CodecKind) -> None:
    codec = asked(kind)
    codec.send_headers(1, [*OK, (b"content-length", b"3")])
    codec.send_data(1, b"ab")
    with pytest.raises(CodecMisuse):
        codec.end_stream(1)
    assert codec.is_finished


def test_length_without_content_is_a_misuse(kind: CodecKind) -> None:
    codec = asked(kind)
    with pytest.raises(CodecMisuse):
        codec.send_headers(1, [*OK, (b"content-length", b"3")], end_stream=True)
    with pytest.raises(CodecMisuse):
        fresh(kind).open_stream([*POST, (b"content-length", b"3")], end_stream=True)


def test_content_before_the_head_is_a_misuse(kind: CodecKind) -> None:
    codec = asked(kind)
    with pytest.raises(CodecMisuse):
        codec.send_data(1, b"abc")
    with pytest.raises(CodecMisuse):
        codec.end_stream(1)
    with pytest.raises(CodecMisuse):
        codec.send_headers(1, [(b":status", b"103")], end_stream=True)


def test_an_upgrade_that_ends_its_stream_is_a_misuse(kind: CodecKind) -> None:
    with pytest.raises(CodecMisuse):
        fresh(kind).open_stream(WEBSOCKET, end_stream=True)


def test_head_request_by_a_client(kind: CodecKind) -> None:
    codec = fresh(kind)
    codec.open_stream(HEAD, end_stream=True)
    codec.receive(response(b"Content-Length: 7"))
    assert codec.is_idle


def test_request_trailers(kind: CodecKind) -> None:
    codec = fresh(kind)
    codec.open_stream(POST)
    codec.send_data(1, b"abc")
    codec.send_headers(1, [(b"x-sum", b"1")])
    assert bytes(codec.take_output()).endswith(b"\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")


def test_unwritable_trailers(kind: CodecKind) -> None:
    codec = fresh(kind)
    codec.open_stream(POST)
    for wrong in [(b"x", b"a\r\nb"), (b"x y", b"a")]:
        with pytest.raises(UnwritableHead):
            codec.send_headers(1, [wrong])
