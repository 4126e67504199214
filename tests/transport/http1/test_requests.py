"""Requests as a server takes them: every way to be wrong, with its verdict, and what the rest means."""

from __future__ import annotations

import pytest

from tests.transport.http1.wire import GET, POST, assert_rejected, request, server, story
from transport.http1.codec import CodecKind
from transport.http1.events import Header, HeadersReceived
from transport.http1.settings import Http1Settings

CHUNKED = b"Transfer-Encoding: chunked"

# octets, status, reason: the table of framing and smuggling cases, and more of each kind
REFUSED: list[tuple[str, bytes, int, str]] = [
    ("cl+te", request(b"Content-Length: 3", CHUNKED), 400, "content_length_and_transfer_encoding"),
    ("te+cl", request(CHUNKED, b"Content-Length: 3"), 400, "content_length_and_transfer_encoding"),
    (
        "cl+te.gzip",
        request(b"Content-Length: 3", b"Transfer-Encoding: gzip"),
        400,
        "content_length_and_transfer_encoding",
    ),
    ("cl twice", request(b"Content-Length: 3", b"Content-Length: 3"), 400, "content_length_repeated"),
    (
        "cl twice, different",
        request(b"Content-Length: 3", b"content-length: 4"),
        400,
        "content_length_repeated",
    ),
    ("cl list", request(b"Content-Length: 3, 3"), 400, "content_length_malformed"),
    ("cl plus", request(b"Content-Length: +3"), 400, "content_length_malformed"),
    ("cl minus", request(b"Content-Length: -3"), 400, "content_length_malformed"),
    ("cl hex", request(b"Content-Length: 0x3"), 400, "content_length_malformed"),
    ("cl underscore", request(b"Content-Length: 1_0"), 400, "content_length_malformed"),
    ("cl empty", request(b"Content-Length:"), 400, "content_length_malformed"),
    ("cl point", request(b"Content-Length: 3.0"), 400, "content_length_malformed"),
    ("cl arabic digits", request("Content-Length: \u0663".encode()), 400, "content_length_malformed"),
    ("cl huge", request(b"Content-Length: " + b"9" * 19), 400, "content_length_malformed"),
    ("te gzip, chunked", request(b"Transfer-Encoding: gzip, chunked"), 501, "transfer_coding_unsupported"),
    (
        "te chunked, chunked",
        request(b"Transfer-Encoding: chunked, chunked"),
        501,
        "transfer_coding_unsupported",
    ),
    ("te xchunked", request(b"Transfer-Encoding: xchunked"), 501, "transfer_coding_unsupported"),
    ("te quoted", request(b'Transfer-Encoding: "chunked"'), 501, "transfer_coding_unsupported"),
    ("te parameter", request(b"Transfer-Encoding: chunked;a=b"), 501, "transfer_coding_unsupported"),
    ("te identity", request(b"Transfer-Encoding: identity"), 501, "transfer_coding_unsupported"),
    ("te empty", request(b"Transfer-Encoding:"), 501, "transfer_coding_unsupported"),
    ("te nbsp", request(b"Transfer-Encoding: chunked\xa0"), 501, "transfer_coding_unsupported"),
    ("te twice", request(CHUNKED, CHUNKED), 400, "transfer_encoding_repeated"),
    ("te twice, other", request(CHUNKED, b"Transfer-encoding: x"), 400, "transfer_encoding_repeated"),
    ("te vertical tab", request(b"Transfer-Encoding: \x0bchunked"), 400, "header_value_malformed"),
    ("te space before colon", request(b"Transfer-Encoding : chunked"), 400, "whitespace_before_colon"),
    ("te tab before colon", request(b"Transfer-Encoding\t: chunked"), 400, "whitespace_before_colon"),
    ("te on folded line", request(b"X: a", b" Transfer-Encoding: chunked"), 400, "obsolete_line_folding"),
    ("te bare cr", request(b"X: a\rTransfer-Encoding: chunked"), 400, "bare_carriage_return"),
    (
        "te underscore is no te, cl is",
        request(b"Transfer_Encoding: chunked", b"Content-Length: x"),
        400,
        "content_length_malformed",
    ),
    ("1.0", request(start=b"GET / HTTP/1.0"), 426, "http_1_0"),
    ("1.0 with te", request(CHUNKED, start=b"POST / HTTP/1.0"), 426, "http_1_0"),
    ("1.2", request(start=b"GET / HTTP/1.2"), 505, "version_unsupported"),
    ("0.9", request(start=b"GET / HTTP/0.9"), 505, "version_unsupported"),
    ("2.0", request(start=b"GET / HTTP/2.0"), 505, "version_unsupported"),
    ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_unsupported"),
    ("1.10", request(start=b"GET / HTTP/1.10"), 400, "request_line_malformed"),
    ("version lower", request(start=b"GET / http/1.1"), 400, "request_line_malformed"),
    ("version missing", b"GET /\r\n", 400, "request_line_malformed"),
    ("cr after version", request(start=b"GET / HTTP/1.1\rX: y"), 400, "bare_carriage_return"),
    ("cr cr after version", request(start=b"GET / HTTP/1.1\r"), 400, "bare_carriage_return"),
    ("version empty", b"GET / \r\n", 400, "request_line_malformed"),
    ("version then space", request(start=b"GET / HTTP/1.1 "), 400, "request_line_malformed"),
    ("garbage", b"\x16\x03\x01\x02\x00", 400, "method_malformed"),
    ("garbage line", b"HELLO\r\n", 400, "request_line_malformed"),
    ("leading crlf", b"\r\n" + request(), 400, "leading_line_break"),
    ("leading lf", b"\n" + request(), 400, "leading_line_break"),
    ("leading space", b" " + request(), 400, "method_malformed"),
    ("lower-case method", request(start=b"get / HTTP/1.1"), 400, "method_malformed"),
    ("mixed method", request(start=b"GeT / HTTP/1.1"), 400, "method_malformed"),
    ("method no token", request(start=b"G(T / HTTP/1.1"), 400, "method_malformed"),
    ("method too long", request(start=b"G" * 33 + b" / HTTP/1.1"), 400, "method_malformed"),
    ("two spaces", request(start=b"GET  / HTTP/1.1"), 400, "request_line_malformed"),
    ("tab between", request(start=b"GET\t/ HTTP/1.1"), 400, "request_line_malformed"),
    ("space in target", request(start=b"GET /a b HTTP/1.1"), 400, "request_line_malformed"),
    ("tab in target", request(start=b"GET /a\tb HTTP/1.1"), 400, "target_malformed"),
    ("non-ascii in target", request(start="GET /\u00e9 HTTP/1.1".encode()), 400, "target_malformed"),
    ("del in target", request(start=b"GET /\x7f HTTP/1.1"), 400, "target_malformed"),
    ("nul in target", request(start=b"GET /\x00 HTTP/1.1"), 400, "target_malformed"),
    ("cr in target", request(start=b"GET /\r HTTP/1.1"), 400, "bare_carriage_return"),
    ("authority-form", request(start=b"GET web:80 HTTP/1.1"), 400, "target_form_unsupported"),
    ("target without slash", request(start=b"GET admin HTTP/1.1"), 400, "target_form_unsupported"),
    ("target only fragment", request(start=b"GET #/admin HTTP/1.1"), 400, "target_form_unsupported"),
    ("asterisk with get", request(start=b"GET * HTTP/1.1"), 400, "asterisk_without_options"),
    ("absolute, other host", request(start=b"GET http://other/ HTTP/1.1"), 400, "host_differs_from_target"),
    ("absolute, other port", request(start=b"GET http://web:81/ HTTP/1.1"), 400, "host_differs_from_target"),
    ("absolute, userinfo", request(start=b"GET http://u@web/ HTTP/1.1"), 400, "authority_has_userinfo"),
    ("absolute, no host", request(start=b"GET http:///x HTTP/1.1"), 400, "authority_malformed"),
    ("absolute, ftp", request(start=b"GET ftp://web/ HTTP/1.1"), 400, "scheme_unknown"),
    ("absolute, backslash host", request(start=b"GET http://web\\x/ HTTP/1.1"), 400, "authority_malformed"),
    ("connect", request(start=b"CONNECT web:80 HTTP/1.1"), 400, "connect_not_supported"),
    (
        "connect with cl",
        request(b"Content-Length: 3", start=b"CONNECT web:80 HTTP/1.1"),
        400,
        "connect_not_supported",
    ),
    ("connect path", request(start=b"CONNECT / HTTP/1.1"), 400, "connect_not_supported"),
    ("no host", request(host=None), 400, "host_missing"),
    ("no host, absolute", request(start=b"GET http://web/ HTTP/1.1", host=None), 400, "host_missing"),
    ("empty host", request(host=b"Host:"), 400, "host_empty"),
    ("two hosts", request(b"Host: web"), 400, "host_repeated"),
    ("two hosts, one empty", request(b"Host:"), 400, "host_repeated"),
    ("host userinfo", request(host=b"Host: user@web"), 400, "host_malformed"),
    ("host slash", request(host=b"Host: web/"), 400, "host_malformed"),
    ("host fragment", request(host=b"Host: web#x"), 400, "host_malformed"),
    ("host query", request(host=b"Host: web?x"), 400, "host_malformed"),
    ("host space", request(host=b"Host: web other"), 400, "host_malformed"),
    ("host list", request(host=b"Host: web, other"), 400, "host_malformed"),
    ("host empty label", request(host=b"Host: a..b"), 400, "host_malformed"),
    ("host dot", request(host=b"Host: ."), 400, "host_malformed"),
    ("host bad port", request(host=b"Host: web:x"), 400, "host_malformed"),
    ("host empty port", request(host=b"Host: web:"), 400, "host_malformed"),
    ("host port too high", request(host=b"Host: web:65536"), 400, "host_malformed"),
    ("host too long", request(host=b"Host: " + b"a" * 256), 400, "host_malformed"),
    ("host non-ascii", request(host="Host: w\u00e9b".encode()), 400, "host_malformed"),
    ("host escapes", request(host=b"Host: w%65b"), 400, "host_malformed"),
    ("obs-fold", request(b"X: a", b" b"), 400, "obsolete_line_folding"),
    ("obs-fold tab", request(b"X: a", b"\tb"), 400, "obsolete_line_folding"),
    ("obs-fold of host", request(b" x"), 400, "obsolete_line_folding"),
    ("space before first", request(host=b" Host: web"), 400, "whitespace_before_header"),
    ("bare lf everywhere", b"GET / HTTP/1.1\nHost: web\n\n", 400, "bare_line_feed"),
    ("bare lf in field", b"GET / HTTP/1.1\r\nHost: web\nX: y\r\n\r\n", 400, "bare_line_feed"),
    ("bare lf as blank line", b"GET / HTTP/1.1\r\nHost: web\r\n\n", 400, "bare_line_feed"),
    ("lf cr", b"GET / HTTP/1.1\n\rHost: web\r\n\r\n", 400, "bare_line_feed"),
    ("bare cr in value", request(b"X: a\rb"), 400, "bare_carriage_return"),
    ("cr cr lf", request(b"X: a\r"), 400, "bare_carriage_return"),
    ("nul in value", request(b"X: a\x00b"), 400, "header_value_malformed"),
    ("0x01 in value", request(b"X: a\x01b"), 400, "header_value_malformed"),
    ("escape in value", request(b"X: \x1b[31m"), 400, "header_value_malformed"),
    ("del in value", request(b"X: a\x7f"), 400, "header_value_malformed"),
    ("form feed in value", request(b"X: a\x0c"), 400, "header_value_malformed"),
    ("empty name", request(b": x"), 400, "header_name_empty"),
    ("no colon", request(b"X"), 400, "header_without_colon"),
    ("space in name", request(b"X Y: z"), 400, "header_name_malformed"),
    ("nul in name", request(b"X\x00: z"), 400, "header_name_malformed"),
    ("non-ascii name", request(b"X\xe9: z"), 400, "header_name_malformed"),
    ("cr in name", request(b"X\r: z"), 400, "header_name_malformed"),
    ("pseudo-header", request(b":path: /admin"), 400, "header_name_empty"),
    ("expectation", request(b"Expect: 200-ok"), 417, "expectation_unknown"),
    (
        "upgrade with content",
        request(b"Content-Length: 1", b"Connection: upgrade", b"Upgrade: x"),
        400,
        "upgrade_with_content",
    ),
    ("too many", request(*[b"X: y"] * 100), 431, "too_many_headers"),
    ("too large", request(b"X: " + b"y" * 61_440), 431, "head_too_large"),
    ("too large, unended", b"GET / HTTP/1.1\r\nX: " + b"y" * 61_440, 431, "head_too_large"),
    ("target too large", b"GET /" + b"y" * 61_440, 431, "head_too_large"),
]


@pytest.mark.parametrize(
    ("octets", "status", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
@pytest.mark.parametrize("cut", ["whole", "octet by octet"])
def test_refused_request(kind: CodecKind, octets: bytes, status: int, reason: str, cut: str) -> None:
    codec = server(kind)
    if cut == "whole":
        events = codec.receive(octets)
    else:
        size = 1 if len(octets) < 2000 else 1000
        events = []
        for start in range(0, len(octets), size):
            events += codec.receive(octets[start : start + size])
    assert len(events) == 2
    assert_rejected(codec, events, status, reason)


def test_only_one_error_is_answered_however_many_follow(kind: CodecKind) -> None:
    codec = server(kind)
    events = codec.receive(request(start=b"get / HTTP/1.1") * 3)
    assert_rejected(codec, events, 400, "method_malformed")


def test_426_names_the_version(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(request(start=b"GET / HTTP/1.0"))
    answer = bytes(codec.take_output())
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nupgrade: HTTP/1.1\r\n" in answer


def test_limits_are_inclusive(kind: CodecKind) -> None:
    codec = server(kind, Http1Settings(max_header_count=3, max_head=64))
    octets = request(b"A: 1", b"B: 2")
    padded = request(b"A: 1", b"B: " + b"2" * (64 - len(octets) + 1))
    assert len(padded) == 64
    (event,) = codec.receive(padded)
    assert isinstance(event, HeadersReceived)


ACCEPTED: list[tuple[str, bytes, list[Header]]] = [
    ("plain", request(start=b"GET / HTTP/1.1"), GET),
    ("names are lower-cased", request(b"X-A: B", b"x-a: b"), [*POST, (b"x-a", b"B"), (b"x-a", b"b")]),
    (
        "white space around values",
        request(b"A:x", b"B:  x", b"C: x \t", b"D:\tx", b"E:", b"F:  "),
        [*POST, (b"a", b"x"), (b"b", b"x"), (b"c", b"x"), (b"d", b"x"), (b"e", b""), (b"f", b"")],
    ),
    ("white space inside values", request(b"A: x  y\tz"), [*POST, (b"a", b"x  y\tz")]),
    ("obs-text", request(b"A: \xe9\xff"), [*POST, (b"a", b"\xe9\xff")]),
    ("colons in values", request(b"A: b: c"), [*POST, (b"a", b"b: c")]),
    ("underscores", request(b"x_admin: 1", b"x-admin: 2"), [*POST, (b"x_admin", b"1"), (b"x-admin", b"2")]),
    (
        "odd methods",
        request(start=b"VERSION-CONTROL / HTTP/1.1"),
        [(b":method", b"VERSION-CONTROL"), *GET[1:]],
    ),
    ("query", request(start=b"POST /?a=/../b HTTP/1.1"), [*POST[:3], (b":path", b"/?a=/../b")]),
    (
        "path as it came",
        request(start=b"POST //a/../%2e\\ HTTP/1.1"),
        [*POST[:3], (b":path", b"//a/../%2e\\")],
    ),
    ("fragment goes", request(start=b"POST /a#b?c HTTP/1.1"), [*POST[:3], (b":path", b"/a")]),
    ("absolute", request(start=b"POST http://web/a?b HTTP/1.1"), [*POST[:3], (b":path", b"/a?b")]),
    ("absolute, case", request(start=b"POST HTTP://WEB/ HTTP/1.1"), POST),
    ("absolute, no path", request(start=b"POST http://web HTTP/1.1"), POST),
    (
        "absolute, only query",
        request(start=b"POST http://web?a=b HTTP/1.1"),
        [*POST[:3], (b":path", b"/?a=b")],
    ),
    ("absolute, fragment", request(start=b"POST http://web#/x HTTP/1.1"), POST),
    (
        "absolute, https",
        request(start=b"POST https://web/ HTTP/1.1"),
        [POST[0], (b":scheme", b"https"), *POST[2:]],
    ),
    (
        "asterisk",
        request(start=b"OPTIONS * HTTP/1.1"),
        [(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")],
    ),
    (
        "asterisk, absolute",
        request(start=b"OPTIONS http://web HTTP/1.1"),
        [(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")],
    ),
    ("host with port", request(host=b"Host: web:8080"), [*POST[:2], (b":authority", b"web:8080"), POST[3]]),
    ("host keeps its case", request(host=b"Host: Web"), [*POST[:2], (b":authority", b"Web"), POST[3]]),
    ("host trailing dot", request(host=b"Host: a.b.:80"), [*POST[:2], (b":authority", b"a.b:80"), POST[3]]),
    ("host v6", request(host=b"Host: [fd00::1]:80"), [*POST[:2], (b":authority", b"[fd00::1]:80"), POST[3]]),
    ("host underscore", request(host=b"Host: my_svc"), [*POST[:2], (b":authority", b"my_svc"), POST[3]]),
    (
        "connection's own headers go",
        request(b"Connection: keep-alive, X-A", b"Keep-Alive: 5", b"Proxy-Connection: x", b"X-A: 1"),
        [*POST, (b"x-a", b"1")],
    ),
    (
        "nominations remove nothing",
        request(
            b"Connection: authorization, x-forwarded-client-cert",
            b"Authorization: b",
            b"X-Forwarded-Client-Cert: c",
        ),
        [*POST, (b"authorization", b"b"), (b"x-forwarded-client-cert", b"c")],
    ),
    ("te: trailers stays", request(b"TE: gzip, trailers", b"Connection: te"), [*POST, (b"te", b"trailers")]),
    ("other te goes", request(b"TE: gzip"), POST),
    (
        "h2c is no upgrade",
        request(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        POST,
    ),
    ("upgrade without connection", request(b"Upgrade: websocket"), POST),
    ("content-length 0", request(b"Content-Length: 0"), [*POST, (b"content-length", b"0")]),
    ("expect without content", request(b"Expect: 100-Continue"), [*POST, (b"expect", b"100-Continue")]),
]


@pytest.mark.parametrize(
    ("octets", "headers"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED]
)
def test_accepted_request(kind: CodecKind, octets: bytes, headers: list[Header]) -> None:
    codec = server(kind)
    assert story(codec.receive(octets)) == [("headers", 1, headers, True)]
    assert codec.take_output() == b""
    assert not codec.is_held
    assert not codec.awaits_continue
