"""Content and trailers, as a server receives them: lengths, chunks, and every trick with chunks."""

from __future__ import annotations

import pytest

from tests.transport.http1.wire import (
    GET_OCTETS,
    OK,
    assert_failed,
    client,
    content,
    head_of,
    request,
    response,
    server,
    story,
)
from transport.http1.codec import CodecKind
from transport.http1.events import DataReceived, Header
from transport.http1.settings import Http1Settings

CHUNKED = request(b"Transfer-Encoding: chunked")

REFUSED: list[tuple[str, bytes, str]] = [
    ("no size", b"\r\n", "chunk_line_malformed"),
    ("no hex", b"x\r\n", "chunk_line_malformed"),
    ("0x", b"0x3\r\nabc\r\n", "chunk_line_malformed"),
    ("plus", b"+3\r\nabc\r\n", "chunk_line_malformed"),
    ("minus", b"-3\r\nabc\r\n", "chunk_line_malformed"),
    ("underscore", b"1_0\r\n", "chunk_line_malformed"),
    ("leading space", b" 3\r\nabc\r\n", "chunk_line_malformed"),
    ("trailing space", b"3 \r\nabc\r\n", "chunk_line_malformed"),
    ("tab", b"3\t\r\nabc\r\n", "chunk_line_malformed"),
    ("sixteen digits", b"0" * 16 + b"\r\n\r\n", "chunk_line_malformed"),
    ("31 digits", b"1" + b"0" * 30 + b"\r\n", "chunk_line_malformed"),
    ("lf only", b"3\nabc\r\n", "bare_line_feed"),
    ("cr only", b"3\rabc\r\n", "chunk_line_malformed"),
    ("cr before crlf", b"3\r\r\nabc\r\n", "chunk_line_malformed"),
    ("lf after data", b"3\r\nabc\n0\r\n\r\n", "chunk_data_longer_than_its_size"),
    ("no crlf after data", b"3\r\nabc0\r\n\r\n", "chunk_data_longer_than_its_size"),
    ("data longer", b"3\r\nabcd\r\n0\r\n\r\n", "chunk_data_longer_than_its_size"),
    ("data shorter", b"5\r\nabc\r\n0\r\n\r\n", "chunk_data_longer_than_its_size"),
    ("half crlf after data", b"3\r\nabc\rX", "chunk_data_longer_than_its_size"),
    ("extension without name", b"3;\r\nabc\r\n", "chunk_line_malformed"),
    ("extension with space", b"3 ;a=b\r\nabc\r\n", "chunk_line_malformed"),
    ("extension with inner space", b"3; a=b\r\nabc\r\n", "chunk_line_malformed"),
    ("extension without value", b"3;a=\r\nabc\r\n", "chunk_line_malformed"),
    ("extension with lf", b"3;a=\nabc\r\n", "bare_line_feed"),
    ("extension with quoted lf", b'3;a="\n"\r\nabc\r\n', "bare_line_feed"),
    ("extension with quoted crlf", b'3;a="\r\n"\r\nabc\r\n', "chunk_line_malformed"),
    ("extension with cr", b"3;a=b\rc\r\nabc\r\n", "chunk_line_malformed"),
    ("extension with nul", b"3;a=\x00\r\nabc\r\n", "chunk_line_malformed"),
    ("extension unquoted", b'3;a="b\r\nabc\r\n', "chunk_line_malformed"),
    ("extension too long", b"3;a=" + b"b" * 300 + b"\r\nabc\r\n", "chunk_line_too_long"),
    ("extension too long, unended", b"3;a=" + b"b" * 300, "chunk_line_too_long"),
    ("extensions too long", (b"3;a=" + b"b" * 200 + b"\r\nabc\r\n") * 30, "chunk_extensions_too_long"),
    ("trailer fold", b"0\r\nX: a\r\n b\r\n\r\n", "obsolete_line_folding"),
    ("trailer leading space", b"0\r\n X: a\r\n\r\n", "whitespace_before_header"),
    ("trailer bare lf", b"0\r\nX: a\nY: b\r\n\r\n", "bare_line_feed"),
    ("trailer no colon", b"0\r\nX\r\n\r\n", "header_without_colon"),
    ("trailer space before colon", b"0\r\nX : a\r\n\r\n", "whitespace_before_colon"),
    ("trailer control", b"0\r\nX: \x01\r\n\r\n", "header_value_malformed"),
    ("trailer cr", b"0\r\nX: a\rb\r\n\r\n", "bare_carriage_return"),
    ("trailers end with lf", b"0\r\nX: a\r\n\n", "bare_line_feed"),
    ("no trailers, lf", b"0\r\n\n", "bare_line_feed"),
    ("too many trailers", b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n", "too_many_headers"),
    ("trailers too large", b"0\r\nX: " + b"y" * 17_000 + b"\r\n\r\n", "trailers_too_large"),
    ("trailers too large, unended", b"0\r\nX: " + b"y" * 17_000, "trailers_too_large"),
]


@pytest.mark.parametrize(("octets", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("cut", ["whole", "octet by octet"])
def test_refused_chunks(kind: CodecKind, octets: bytes, reason: str, cut: str) -> None:
    codec = server(kind)
    if cut == "whole":
        events = codec.receive(CHUNKED + octets)
    else:
        events = codec.receive(CHUNKED)
        size = 1 if len(octets) < 2000 else 500
        for start in range(0, len(octets), size):
            events += codec.receive(octets[start : start + size])
    assert events
    assert reason in str(story(events)[-1])
    answer = bytes(codec.take_output())
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert answer.count(b"HTTP/1.1") == 1
    assert_failed(codec, events, reason)


def test_no_second_answer_when_the_response_has_begun(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(CHUNKED)
    codec.send_headers(1, OK)
    codec.take_output()
    assert_failed(codec, codec.receive(b"x\r\n"), "chunk_line_malformed")
    assert codec.take_output() == b""


ACCEPTED: list[tuple[str, bytes, str]] = [
    ("one", b"3\r\nabc\r\n0\r\n\r\n", "abc"),
    ("several", b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", "abcd"),
    ("none", b"0\r\n\r\n", ""),
    ("leading zeros", b"0003\r\nabc\r\n000\r\n\r\n", "abc"),
    ("hex digits", b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
    ("extension", b"3;a\r\nabc\r\n0;b=c;d\r\n\r\n", "abc"),
    ("quoted extension", b'3;a="b;\\" c"\r\nabc\r\n0\r\n\r\n', "abc"),
    ("line ends in data", b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", "\r\n0\r\n\r"),
]


@pytest.mark.parametrize(("octets", "body"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted_chunks(kind: CodecKind, octets: bytes, body: str) -> None:
    codec = server(kind)
    events = codec.receive(CHUNKED + octets + GET_OCTETS)
    assert story(events)[1:] == [("data", 1, body, True)]
    assert codec.is_held
    codec.send_headers(1, OK, end_stream=True)
    assert story(codec.resume())[0][:2] == ("headers", 2)


TRAILERS: list[tuple[str, bytes, list[Header]]] = [
    ("kept", b"X-Sum: 1\r\nGrpc-Status: 0\r\n", [(b"x-sum", b"1"), (b"grpc-status", b"0")]),
    ("framing goes", b"Content-Length: 5\r\nX: y\r\nTransfer-Encoding: chunked\r\n", [(b"x", b"y")]),
    ("routing goes", b"Host: a\r\nTE: trailers\r\nX: y\r\nConnection: close\r\n", [(b"x", b"y")]),
    (
        "identity goes",
        b"X-Forwarded-Client-Cert: a\r\nX-Forwarded-For: b\r\nX: y\r\nForwarded: c\r\n",
        [(b"x", b"y")],
    ),
    ("credentials go", b"Authorization: a\r\nCookie: b\r\nSet-Cookie: c\r\nX: y\r\n", [(b"x", b"y")]),
    (
        "meaning goes",
        b"Content-Type: a\r\nContent-Encoding: b\r\nX: y\r\nCache-Control: c\r\n",
        [(b"x", b"y")],
    ),
    ("proxy's own go", b"X-Envoy-Internal: a\r\nX: y\r\n", [(b"x", b"y")]),
]


@pytest.mark.parametrize(
    ("octets", "trailers"), [row[1:] for row in TRAILERS], ids=[row[0] for row in TRAILERS]
)
def test_trailers(kind: CodecKind, octets: bytes, trailers: list[Header]) -> None:
    codec = server(kind)
    events = codec.receive(CHUNKED + b"1\r\na\r\n0\r\n" + octets + b"\r\n")
    assert story(events)[1:] == [("data", 1, "a", False), ("trailers", 1, trailers, True)]


def test_when_all_trailers_go_the_content_ends_without(kind: CodecKind) -> None:
    codec = server(kind)
    events = codec.receive(CHUNKED + b"1\r\na\r\n0\r\nHost: x\r\n\r\n")
    assert story(events)[1:] == [("data", 1, "a", True)]


def test_content_by_length(kind: CodecKind) -> None:
    codec = server(kind)
    events = codec.receive(request(b"Content-Length: 6") + b"abc")
    assert story(events)[1:] == [("data", 1, "abc", False)]
    events = codec.receive(b"def" + GET_OCTETS)
    assert story(events) == [("data", 1, "def", True)]
    assert codec.is_held


def test_content_is_not_copied() -> None:
    codec = client("lean")
    codec.receive(response(b"Content-Length: 100000"))
    octets = bytes(50_000)
    (event,) = codec.receive(octets)
    assert isinstance(event, DataReceived)
    assert event.data.obj is octets


def test_tiny_chunks_become_one_piece(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(CHUNKED)
    events = codec.receive(b"1\r\nx\r\n" * 1000)
    assert content(events) == b"x" * 1000
    if kind == "lean":
        assert len(events) == 1


def test_nothing_is_buffered_of_content(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(CHUNKED + b"fffffffffffff\r\n")
    for _ in range(10):
        assert len(content(codec.receive(bytes(100_000)))) == 100_000


def test_answer_to_bad_content_has_the_fault_s_status(kind: CodecKind) -> None:
    codec = server(kind, Http1Settings(max_trailers=20))
    codec.receive(CHUNKED + b"0\r\nX: " + b"y" * 20)
    start, fields = head_of(codec.take_output())
    assert start.startswith(b"HTTP/1.1 431 ")
    assert (b"connection", b"close") in fields
