"""Responses as a client takes them: the mirror of test_requests.py."""

from __future__ import annotations

import pytest

from tests.transport.http1.wire import (
    GET,
    HEAD,
    OK,
    POST,
    SWITCHED,
    WEBSOCKET,
    assert_failed,
    client,
    response,
    story,
)
from transport.http1.codec import CodecKind
from transport.http1.errors import ConnectionSpent
from transport.http1.events import Header
from transport.http1.settings import Http1Settings

CHUNKED = b"Transfer-Encoding: chunked"
NO_CONTENT = b"HTTP/1.1 204 No Content"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints"

REFUSED: list[tuple[str, bytes, str]] = [
    ("cl+te", response(b"Content-Length: 3", CHUNKED), "content_length_and_transfer_encoding"),
    ("cl twice", response(b"Content-Length: 3", b"Content-Length: 3"), "content_length_repeated"),
    ("cl list", response(b"Content-Length: 3, 3"), "content_length_malformed"),
    ("cl plus", response(b"Content-Length: +3"), "content_length_malformed"),
    ("te gzip, chunked", response(b"Transfer-Encoding: gzip, chunked"), "transfer_coding_unsupported"),
    ("te xchunked", response(b"Transfer-Encoding: xchunked"), "transfer_coding_unsupported"),
    ("te twice", response(CHUNKED, CHUNKED), "transfer_encoding_repeated"),
    ("te space before colon", response(b"Transfer-Encoding : chunked"), "whitespace_before_colon"),
    ("te in 1.0", response(CHUNKED, start=b"HTTP/1.0 200 OK"), "transfer_encoding_in_http_1_0"),
    ("te in 204", response(CHUNKED, start=NO_CONTENT), "content_not_allowed"),
    ("cl in 204", response(b"Content-Length: 3", start=NO_CONTENT), "content_not_allowed"),
    ("te in 103", response(CHUNKED, start=EARLY_HINTS), "content_not_allowed"),
    ("cl in 103", response(b"Content-Length: 3", start=EARLY_HINTS), "content_not_allowed"),
    (
        "cl+te in 304",
        response(CHUNKED, b"Content-Length: 3", start=b"HTTP/1.1 304 Not Modified"),
        "content_length_and_transfer_encoding",
    ),
    ("101 not asked for", SWITCHED, "upgrade_not_requested"),
    ("0.9", b"<html>", "status_line_malformed"),
    ("1.2", response(start=b"HTTP/1.2 200 OK"), "version_unsupported"),
    ("2.0", response(start=b"HTTP/2.0 200 OK"), "version_unsupported"),
    ("lower-case version", response(start=b"http/1.1 200 OK"), "status_line_malformed"),
    ("two digits", response(start=b"HTTP/1.1 20 OK"), "status_line_malformed"),
    ("four digits", response(start=b"HTTP/1.1 2000 OK"), "status_line_malformed"),
    ("status 600", response(start=b"HTTP/1.1 600 X"), "status_line_malformed"),
    ("status 000", response(start=b"HTTP/1.1 000 X"), "status_line_malformed"),
    ("two spaces", response(start=b"HTTP/1.1  200 OK"), "status_line_malformed"),
    ("nul in phrase", response(start=b"HTTP/1.1 200 O\x00K"), "status_line_malformed"),
    ("cr in phrase", response(start=b"HTTP/1.1 200 O\rK"), "bare_carriage_return"),
    ("leading crlf", b"\r\n" + response(), "status_line_malformed"),
    ("bare lf", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bare_line_feed"),
    ("obs-fold", response(b"X: a", b" b"), "obsolete_line_folding"),
    ("0x01 in value", response(b"X: \x01"), "header_value_malformed"),
    ("no colon", response(b"X"), "header_without_colon"),
    ("too many", response(*[b"X: y"] * 101), "too_many_headers"),
    ("too large", response(b"X: " + b"y" * 61_440), "head_too_large"),
]


@pytest.mark.parametrize(("octets", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("cut", ["whole", "octet by octet"])
def test_refused_response(kind: CodecKind, octets: bytes, reason: str, cut: str) -> None:
    codec = client(kind)
    if cut == "whole":
        events = codec.receive(octets)
    else:
        size = 1 if len(octets) < 2000 else 1000
        events = []
        for start in range(0, len(octets), size):
            events += codec.receive(octets[start : start + size])
    assert len(events) == 1
    assert_failed(codec, events, reason)
    with pytest.raises(ConnectionSpent):
        codec.open_stream(GET, end_stream=True)


ACCEPTED: list[tuple[str, bytes, list[Header]]] = [
    ("empty", response(b"Content-Length: 0"), [*OK, (b"content-length", b"0")]),
    ("no phrase", response(b"Content-Length: 0", start=b"HTTP/1.1 200 "), [*OK, (b"content-length", b"0")]),
    (
        "no phrase, no space",
        response(b"Content-Length: 0", start=b"HTTP/1.1 200"),
        [*OK, (b"content-length", b"0")],
    ),
    (
        "obs-text in phrase",
        response(b"Content-Length: 0", start=b"HTTP/1.1 200 \xe9"),
        [*OK, (b"content-length", b"0")],
    ),
    ("204", response(start=NO_CONTENT), [(b":status", b"204")]),
    ("204 with 0", response(b"Content-Length: 0", start=NO_CONTENT), [(b":status", b"204")]),
    (
        "304",
        response(b"Content-Length: 3", start=b"HTTP/1.1 304 X"),
        [(b":status", b"304"), (b"content-length", b"3")],
    ),
    (
        "connection's own headers go",
        response(b"Content-Length: 0", b"Connection: x-a", b"Keep-Alive: 5", b"Upgrade: h2c", b"X-A: 1"),
        [*OK, (b"x-a", b"1"), (b"content-length", b"0")],
    ),
    (
        "several set-cookie",
        response(b"Set-Cookie: a", b"Set-Cookie: b", b"Content-Length: 0"),
        [*OK, (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"0")],
    ),
]


@pytest.mark.parametrize(
    ("octets", "headers"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED]
)
def test_accepted_response(kind: CodecKind, octets: bytes, headers: list[Header]) -> None:
    codec = client(kind)
    assert story(codec.receive(octets)) == [("headers", 1, headers, True)]
    assert codec.is_idle
    assert codec.open_stream(GET, end_stream=True) == 2


@pytest.mark.parametrize("line", [b"Content-Length: 3", CHUNKED, b"X: y"])
def test_response_to_head_has_no_content(kind: CodecKind, line: bytes) -> None:
    codec = client(kind, HEAD)
    ((what, _, headers, ends),) = story(codec.receive(response(line)))
    assert (what, ends) == ("headers", True)
    assert isinstance(headers, list)
    assert ((b"content-length", b"3") in headers) == (line == b"Content-Length: 3")
    assert codec.is_idle


def test_octets_after_a_response_fail_the_connection(kind: CodecKind) -> None:
    codec = client(kind)
    events = codec.receive(response(start=b"HTTP/1.1 304 X") + b"body")
    assert story(events)[0] == ("headers", 1, [(b":status", b"304")], True)
    assert_failed(codec, events, "octets_without_request")


def test_a_second_response_fails_the_connection(kind: CodecKind) -> None:
    codec = client(kind)
    codec.receive(response(b"Content-Length: 0"))
    assert_failed(codec, codec.receive(response(b"Content-Length: 0")), "octets_without_request")


def test_informational_responses_come_before_the_final_one(kind: CodecKind) -> None:
    codec = client(kind, [*POST, (b"expect", b"100-continue")], end_stream=False)
    assert codec.awaits_continue is True
    events = codec.receive(response(start=b"HTTP/1.1 100 Continue") + response(b"Link: x", start=EARLY_HINTS))
    assert story(events) == [
        ("headers", 1, [(b":status", b"100")], False),
        ("headers", 1, [(b":status", b"103"), (b"link", b"x")], False),
    ]
    assert not bool(codec.awaits_continue)
    codec.send_data(1, b"abc", end_stream=True)
    assert story(codec.receive(response(b"Content-Length: 0")))[0][3] is True
    assert codec.is_idle


def test_informational_responses_are_bounded(kind: CodecKind) -> None:
    codec = client(kind, settings=Http1Settings(max_informational=3))
    assert len(codec.receive(response(start=EARLY_HINTS) * 3)) == 3
    assert_failed(codec, codec.receive(response(start=EARLY_HINTS)), "too_many_informational_responses")


def test_content_until_close(kind: CodecKind) -> None:
    codec = client(kind)
    events = codec.receive(response() + b"abc")
    events += codec.receive(b"def")
    assert story(events) == [("headers", 1, OK, False), ("data", 1, "abcdef", False)]
    assert story(codec.receive_eof()) == [("data", 1, "", True)]
    assert codec.is_finished


@pytest.mark.parametrize("lines", [[b"Content-Length: 3"], [b"Content-Length: 3", b"Connection: keep-alive"]])
def test_http_1_0_ends_the_connection_after_its_response(kind: CodecKind, lines: list[bytes]) -> None:
    codec = client(kind)
    events = codec.receive(response(*lines, start=b"HTTP/1.0 200 OK") + b"abc")
    assert story(events)[1:] == [("data", 1, "abc", True)]
    assert codec.is_finished


def test_connection_close_ends_it_and_what_follows_is_ignored(kind: CodecKind) -> None:
    codec = client(kind)
    events = codec.receive(response(b"Content-Length: 3", b"Connection: x, Close") + b"abcdef")
    assert story(events)[1:] == [("data", 1, "abc", True)]
    assert codec.is_finished
    with pytest.raises(ConnectionSpent):
        codec.open_stream(GET, end_stream=True)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "eof_before_response"),
        (b"HTTP/1.1 2", "eof_in_head"),
        (response(start=EARLY_HINTS), "eof_before_response"),
        (response(b"Content-Length: 3") + b"ab", "eof_in_content"),
        (response(CHUNKED) + b"3\r\nab", "eof_in_content"),
        (response(CHUNKED) + b"3\r\nabc\r\n", "eof_in_content"),
        (response(CHUNKED) + b"3\r\nabc\r\n0\r\n", "eof_in_content"),
    ],
)
def test_a_response_that_lacks_its_end(kind: CodecKind, octets: bytes, reason: str) -> None:
    codec = client(kind)
    codec.receive(octets)
    events = codec.receive_eof()
    assert story(events) == [("failed", 8, reason)]
    assert_failed(codec, events, reason)


def test_an_idle_connection_that_the_peer_closes_is_finished(kind: CodecKind) -> None:
    codec = client(kind)
    codec.receive(response(b"Content-Length: 0"))
    assert codec.receive_eof() == []
    assert codec.is_finished


def test_early_response_leaves_the_request_to_be_sent(kind: CodecKind) -> None:
    codec = client(kind, POST, end_stream=False)
    assert story(codec.receive(response(b"Content-Length: 0", start=b"HTTP/1.1 413 X")))[0][3] is True
    assert not codec.is_idle
    codec.send_data(1, b"abc", end_stream=True)
    assert bytes(codec.take_output()) == b"3\r\nabc\r\n0\r\n\r\n"
    assert codec.is_idle


def test_early_response_that_closes_ends_the_request_too(kind: CodecKind) -> None:
    codec = client(kind, POST, end_stream=False)
    codec.receive(response(b"Content-Length: 0", b"Connection: close", start=b"HTTP/1.1 413 X"))
    assert codec.is_finished
    codec.send_data(1, b"abc", end_stream=True)
    assert codec.take_output() == b""


def test_upgrade_granted(kind: CodecKind) -> None:
    codec = client(kind, WEBSOCKET, end_stream=False)
    assert codec.sendable(1) == 0
    events = codec.receive(SWITCHED + b"early")
    switched = [(b":status", b"101"), (b"upgrade", b"websocket")]
    assert story(events) == [("headers", 1, switched, False), ("data", 1, "early", False)]
    codec.send_data(1, b"raw")
    assert bytes(codec.take_output()) == b"raw"
    codec.end_stream(1)
    assert codec.is_output_ended
    assert not codec.is_finished
    assert story(codec.receive(b"more")) == [("data", 1, "more", False)]
    assert story(codec.receive_eof()) == [("data", 1, "", True)]
    assert codec.is_finished


def test_upgrade_refused_is_http_as_ever(kind: CodecKind) -> None:
    codec = client(kind, WEBSOCKET, end_stream=False)
    events = codec.receive(
        response(b"Content-Length: 2", b"Upgrade: websocket", b"Connection: upgrade") + b"no"
    )
    assert story(events) == [
        ("headers", 1, [*OK, (b"content-length", b"2")], False),
        ("data", 1, "no", True),
    ]
    assert codec.is_idle
    assert codec.open_stream(GET, end_stream=True) == 2


@pytest.mark.parametrize(
    "octets",
    [
        response(b"Connection: upgrade", b"Upgrade: other", start=b"HTTP/1.1 101 X"),
        response(b"Connection: upgrade", b"Upgrade: websocket, other", start=b"HTTP/1.1 101 X"),
        response(b"Connection: upgrade", start=b"HTTP/1.1 101 X"),
        response(b"Upgrade: websocket", start=b"HTTP/1.1 101 X"),
    ],
)
def test_a_101_that_was_not_asked_for(kind: CodecKind, octets: bytes) -> None:
    codec = client(kind, WEBSOCKET, end_stream=False)
    assert_failed(codec, codec.receive(octets), "upgrade_not_requested")
