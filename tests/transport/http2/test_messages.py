"""Requests, responses, trailers: what they mean, which are turned away how (RFC 9113 8, authz-cases 10)."""

from __future__ import annotations

import pytest

from tests.transport.http2.wire import (
    CONNECT,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    OK,
    PADDED,
    POST,
    PRIORITY_FLAG,
    RST_STREAM,
    Headers,
    client,
    data,
    frame,
    merged,
    server,
)
from transport.http2.codec import CodecKind
from transport.http2.error_codes import ErrorCode
from transport.http2.events import DataReceived, HeadersReceived, HeadersRejected, StreamReset
from transport.http2.settings import Http2Settings


def test_connect_request_opens_a_tunnel_and_both_sides_carry_data(kind: CodecKind) -> None:
    rig = server(kind)
    assert rig.gets(rig.headers(1, CONNECT)) == [HeadersReceived(1, list(CONNECT), False, False)]
    rig.codec.send_headers(1, [(b":status", b"200"), (b"baggage", b"k8s.pod.name=web")])
    assert rig.sent_headers() == [(1, [(b":status", b"200"), (b"baggage", b"k8s.pod.name=web")])]
    assert merged(rig.gets(data(1, b"ping"))) == [DataReceived(1, memoryview(b"ping"), 4, False)]
    rig.codec.send_data(1, b"pong")
    rig.codec.end_stream(1)
    assert [(each.flags, each.payload) for each in rig.sent()] == [(0, b"pong"), (END_STREAM, b"")]
    assert rig.codec.open_streams == 1
    assert merged(rig.gets(data(1, end=True))) == [DataReceived(1, memoryview(b""), 0, True)]
    assert rig.codec.open_streams == 0


def test_request_with_body_and_trailers(kind: CodecKind) -> None:
    rig = server(kind)
    trailers = [(b"grpc-status", b"0")]
    events = merged(
        rig.gets(
            rig.headers(1, [*POST, (b"content-length", b"5")]),
            data(1, b"he"),
            data(1, b"llo"),
            rig.headers(1, trailers, end=True),
        )
    )
    assert events == [
        HeadersReceived(1, [*POST, (b"content-length", b"5")], False, False),
        DataReceived(1, memoryview(b"hello"), 5, False),
        HeadersReceived(1, trailers, True, True),
    ]


def test_response_with_informational_head_body_and_trailers(kind: CodecKind) -> None:
    rig = client(kind)
    stream = rig.codec.open_stream(POST)
    events = merged(
        rig.gets(
            rig.headers(stream, [(b":status", b"100")]),
            rig.headers(stream, [(b":status", b"103"), (b"link", b"</a>")]),
            rig.headers(stream, [(b":status", b"200"), (b"content-length", b"2")]),
            data(stream, b"ok"),
            rig.headers(stream, [(b"x-checksum", b"1")], end=True),
        )
    )
    assert events == [
        HeadersReceived(1, [(b":status", b"100")], False, False),
        HeadersReceived(1, [(b":status", b"103"), (b"link", b"</a>")], False, False),
        HeadersReceived(1, [(b":status", b"200"), (b"content-length", b"2")], False, False),
        DataReceived(1, memoryview(b"ok"), 2, False),
        HeadersReceived(1, [(b"x-checksum", b"1")], True, True),
    ]
    rig.codec.end_stream(stream)
    assert rig.codec.open_streams == 0


def test_server_sends_informational_final_and_trailers(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, GET, end=True))
    rig.codec.send_headers(1, [(b":status", b"103")])
    rig.codec.send_headers(1, OK)
    rig.codec.send_data(1, b"x")
    rig.codec.send_headers(1, [(b"a", b"b")], end_stream=True)
    assert [each.kind for each in rig.sent()] == [HEADERS, HEADERS, 0, HEADERS]
    assert rig.codec.open_streams == 0


def test_padding_and_priority_in_headers_are_dropped(kind: CodecKind) -> None:
    rig = server(kind)
    payload = b"\x03" + bytes(5) + rig.block(GET) + bytes(3)
    flags = END_HEADERS | END_STREAM | PADDED | PRIORITY_FLAG
    assert rig.gets(frame(HEADERS, flags, 1, payload)) == [HeadersReceived(1, list(GET), True, False)]


def test_header_block_over_many_continuations(kind: CodecKind) -> None:
    rig = server(kind)
    block = rig.block([*GET, (b"x-long", b"v" * 500)])
    pieces = [block[start : start + 40] for start in range(0, len(block), 40)]
    octets = frame(HEADERS, END_STREAM, 1, pieces[0])
    for piece in pieces[1:-1]:
        octets += frame(CONTINUATION, 0, 1, piece)
    octets += frame(CONTINUATION, END_HEADERS, 1, pieces[-1])
    (event,) = rig.gets(octets)
    assert event == HeadersReceived(1, [*GET, (b"x-long", b"v" * 500)], True, False)


def test_long_header_list_is_sent_in_continuations(kind: CodecKind) -> None:
    rig = client(kind)
    value = bytes(range(33, 127)) * 400  # 37 KB, above the default frame size
    rig.codec.open_stream([*GET, (b"x-long", value)])
    sent = rig.sent()
    assert [each.kind for each in sent] == [HEADERS] + [CONTINUATION] * (len(sent) - 1)
    assert len(sent) > 2
    assert [each.flags & END_HEADERS for each in sent] == [0] * (len(sent) - 1) + [END_HEADERS]
    block = b"".join(each.payload for each in sent)
    rig.decoder.max_header_list_size = 1 << 20
    assert rig.read(block)[-1] == (b"x-long", value)


def test_head_response_has_a_length_but_no_body(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.open_stream([(b":method", b"HEAD"), *GET[1:]], end_stream=True)
    (event,) = rig.gets(rig.headers(1, [(b":status", b"200"), (b"content-length", b"99")], end=True))
    assert isinstance(event, HeadersReceived)
    assert rig.codec.open_streams == 0


def test_content_length_on_an_answered_connect_means_nothing(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.open_stream(CONNECT)
    rig.gets(rig.headers(1, [(b":status", b"200"), (b"content-length", b"0")]))
    assert merged(rig.gets(data(1, b"abc"))) == [DataReceived(1, memoryview(b"abc"), 3, False)]


def test_extended_connect_is_accepted_when_enabled(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(enable_connect_protocol=True))
    headers = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]
    assert rig.gets(rig.headers(1, headers)) == [HeadersReceived(1, headers, False, False)]


def with_(headers: Headers, name: bytes, value: bytes) -> Headers:
    """The list with one field replaced, or added at its end."""
    replaced = [(n, value if n == name else v) for n, v in headers]
    return replaced if any(n == name for n, _ in headers) else [*replaced, (name, value)]


def without(headers: Headers, name: bytes) -> Headers:
    return [(n, v) for n, v in headers if n != name]


RESET = 0
REJECTED_REQUESTS: list[tuple[str, Headers, int]] = [
    # malformed in form: RST_STREAM(PROTOCOL_ERROR)
    ("header_name_malformed", [*GET, (b"Upper", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"sp ace", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"co:lon", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"crlf\r\n", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"n\x00ul", b"x")], RESET),
    ("header_name_malformed", [*GET, (b"umlaut\xfc", b"x")], RESET),
    ("header_value_malformed", [*GET, (b"a", b"x\r\nevil: y")], RESET),
    ("header_value_malformed", [*GET, (b"a", b"x\ny")], RESET),
    ("header_value_malformed", [*GET, (b"a", b"x\x00")], RESET),
    ("header_value_malformed", [*GET, (b"a", b" leading")], RESET),
    ("header_value_malformed", [*GET, (b"a", b"trailing\t")], RESET),
    ("header_value_malformed", [*GET, (b"a", b"del\x7f")], RESET),
    ("connection_specific_header", [*GET, (b"connection", b"close")], RESET),
    ("connection_specific_header", [*GET, (b"keep-alive", b"1")], RESET),
    ("connection_specific_header", [*GET, (b"proxy-connection", b"x")], RESET),
    ("connection_specific_header", [*GET, (b"transfer-encoding", b"chunked")], RESET),
    ("connection_specific_header", [*GET, (b"upgrade", b"h2c")], RESET),
    ("te_other_than_trailers", [*GET, (b"te", b"gzip")], RESET),
    ("pseudo_header_unknown", [*GET, (b":zone", b"x")], RESET),
    ("pseudo_header_unknown", [*GET, (b":status", b"200")], RESET),
    ("pseudo_header_repeated", [*GET, (b":path", b"/b")], RESET),
    ("pseudo_header_misplaced", [(b"a", b"b"), *GET], RESET),
    ("pseudo_header_misplaced", [*GET[:3], (b"a", b"b"), GET[3]], RESET),
    ("method_missing", without(GET, b":method"), RESET),
    ("scheme_or_path_missing", without(GET, b":scheme"), RESET),
    ("scheme_or_path_missing", without(GET, b":path"), RESET),
    ("scheme_or_path_missing", with_(GET, b":path", b""), RESET),
    ("connect_with_scheme_or_path", [*CONNECT, (b":path", b"/")], RESET),
    ("connect_with_scheme_or_path", [*CONNECT, (b":scheme", b"http")], RESET),
    ("protocol_not_enabled", [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]], RESET),
    ("protocol_not_enabled", [*GET, (b":protocol", b"websocket")], RESET),
    # well formed, but not to be let through: 400
    ("authority_missing", [(b":method", b"CONNECT")], 400),
    ("authority_missing", [(b":method", b"CONNECT"), (b":authority", b"")], 400),
    ("authority_missing", without(GET, b":authority"), 400),
    ("authority_missing", with_(GET, b":authority", b""), 400),
    ("authority_missing", [*without(GET, b":authority"), (b"host", b"")], 400),
    ("authority_too_long", with_(CONNECT, b":authority", b"a" * 256), 400),
    ("authority_too_long", [*without(GET, b":authority"), (b"host", b"a" * 256)], 400),
    ("authority_has_userinfo", with_(GET, b":authority", b"user@web"), 400),
    ("authority_malformed", with_(GET, b":authority", b"web evil"), 400),
    ("authority_malformed", with_(CONNECT, b":authority", b"10.0.0.1:80 x"), 400),
    ("host_differs_from_authority", [*GET, (b"host", b"other")], 400),
    ("host_repeated", [*GET, (b"host", b"web"), (b"host", b"web")], 400),
    ("path_without_slash", with_(GET, b":path", b"a/b"), 400),
    ("path_without_slash", with_(GET, b":path", b"*"), 400),
    ("path_without_slash", with_(GET, b":path", b"http://web/"), 400),
    ("path_malformed", with_(GET, b":path", b"/a b HTTP/1.1"), 400),
    ("path_malformed", with_(GET, b":path", b"/a#fragment"), 400),
    ("method_malformed", with_(GET, b":method", b"GE T"), 400),
    ("method_malformed", with_(GET, b":method", b""), 400),
    ("scheme_unknown", with_(GET, b":scheme", b"ftp"), 400),
    ("content_length_malformed", [*POST, (b"content-length", b"+5")], 400),
    ("content_length_malformed", [*POST, (b"content-length", b"5, 5")], 400),
    ("content_length_malformed", [*POST, (b"content-length", b"")], 400),
    ("content_length_malformed", [*POST, (b"content-length", b"9" * 19)], 400),
    ("content_length_repeated", [*POST, (b"content-length", b"5"), (b"content-length", b"5")], 400),
    # over the limits: 431
    ("header_list_too_large", [*GET, (b"x-big", b"v" * 70_000)], 431),
    ("header_list_too_large", [*GET, *[(b"cookie", b"c" * 3000)] * 30], 431),
    ("too_many_headers", [*GET, *[(b"a", b"")] * 97], 431),
]


@pytest.mark.parametrize(("reason", "headers", "status"), REJECTED_REQUESTS)
def test_request_is_turned_away_and_the_connection_lives(
    kind: CodecKind, reason: str, headers: Headers, status: int
) -> None:
    rig = server(kind)
    assert rig.gets(rig.headers(1, headers)) == [HeadersRejected(1, status, reason)]
    assert rig.codec.open_streams == 0
    sent = rig.sent()
    if status:
        answer, ending = sent
        assert (answer.kind, answer.flags) == (HEADERS, END_HEADERS | END_STREAM)
        assert rig.read(answer.payload) == [(b":status", b"%d" % status)]
        assert (ending.kind, ending.number) == (RST_STREAM, ErrorCode.NO_ERROR)
    else:
        (ending,) = sent
        assert (ending.kind, ending.number) == (RST_STREAM, ErrorCode.PROTOCOL_ERROR)
    # What the client had already sent on it is ignored, and other requests are served.
    assert rig.gets(data(1, b"late"), rig.headers(1, [(b"x", b"y")], end=True)) == []
    assert rig.sent() == []
    assert rig.gets(rig.headers(3, GET, end=True)) == [HeadersReceived(3, list(GET), True, False)]


def test_rejected_request_that_has_ended_gets_no_reset_after_its_answer(kind: CodecKind) -> None:
    rig = server(kind)
    events = rig.gets(rig.headers(1, [*POST, (b"content-length", b"5")], end=True))
    assert events == [HeadersRejected(1, 400, "content_length_without_body")]
    assert [each.kind for each in rig.sent()] == [HEADERS]
    rig.assert_alive()


ACCEPTED_REQUESTS: list[Headers] = [
    with_(GET, b":scheme", b"HtTpS"),
    with_(GET, b":authority", b"[2001:db8::1]:8080"),
    [*GET, (b"host", b"WEB")],
    [*without(GET, b":authority"), (b"host", b"web")],
    [(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*"), (b":authority", b"web")],
    [*GET, (b"te", b"trailers")],
    [*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")],
    [*GET, (b"x_underscore", b"")],
    [*GET, (b"x-tab-inside", b"a\tb")],
    [*GET, (b"x-obs-text", b"\xe4\xff")],
    [*POST, (b"content-length", b"0")],
    [*GET, *[(b"a", b"")] * 96],
    [GET[3], GET[2], GET[1], GET[0]],
]


@pytest.mark.parametrize("headers", ACCEPTED_REQUESTS)
def test_unusual_request_is_accepted_unchanged(kind: CodecKind, headers: Headers) -> None:
    rig = server(kind)
    assert rig.gets(rig.headers(1, headers, end=True)) == [HeadersReceived(1, list(headers), True, False)]


def test_oversized_header_list_keeps_the_tables_in_step(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, [*GET, (b"x-a", b"learnt"), *[(b"x-big", b"v" * 2000)] * 40]))
    headers = [*GET, (b"x-a", b"learnt")]  # the peer's encoder now refers to its table
    assert rig.gets(rig.headers(3, headers, end=True)) == [HeadersReceived(3, headers, True, False)]


REJECTED_RESPONSES: list[tuple[str, Headers, bool]] = [
    ("status_missing_or_malformed", [(b"server", b"x")], False),
    ("status_missing_or_malformed", [(b":status", b"20")], False),
    ("status_missing_or_malformed", [(b":status", b"600")], False),
    ("status_missing_or_malformed", [(b":status", b"abc")], False),
    ("pseudo_header_repeated", [*OK, *OK], False),
    ("pseudo_header_unknown", [*OK, (b":path", b"/")], False),
    ("pseudo_header_misplaced", [(b"a", b"b"), *OK], False),
    ("informational_response_malformed", [(b":status", b"101")], False),
    ("informational_response_malformed", [(b":status", b"100")], True),
    ("content_length_without_body", [*OK, (b"content-length", b"5")], True),
    ("content_length_malformed", [*OK, (b"content-length", b"x")], False),
    ("connection_specific_header", [*OK, (b"connection", b"x")], False),
    ("header_value_malformed", [*OK, (b"a", b"b\r\nc")], False),
    ("header_name_malformed", [*OK, (b"A", b"b")], False),
    ("header_list_too_large", [*OK, (b"x-big", b"v" * 17_000)], False),
    ("too_many_headers", [*OK, *[(b"a", b"")] * 100], False),
]


@pytest.mark.parametrize(("reason", "headers", "end"), REJECTED_RESPONSES)
def test_malformed_response_ends_its_stream_only(
    kind: CodecKind, reason: str, headers: Headers, end: bool
) -> None:
    rig = client(kind)
    first, second = rig.codec.open_stream(GET), rig.codec.open_stream(GET)
    rig.codec.take_output()
    assert rig.gets(rig.headers(first, headers, end=end)) == [
        StreamReset(first, ErrorCode.PROTOCOL_ERROR, is_local=True, reason=reason)
    ]
    assert [(each.kind, each.stream_id, each.number) for each in rig.sent()] == [
        (RST_STREAM, first, ErrorCode.PROTOCOL_ERROR)
    ]
    assert rig.gets(rig.headers(second, OK)) == [HeadersReceived(second, list(OK), False, False)]


BODY_STORIES: list[tuple[str, bytes, list[tuple[bytes, bool]], bool]] = [
    # name, content-length, DATA frames (payload, end), is it right
    ("exact", b"5", [(b"he", False), (b"llo", True)], True),
    ("exact, ended by an empty frame", b"5", [(b"hello", False), (b"", True)], True),
    ("too long", b"5", [(b"hello!", False)], False),
    ("too long in the second frame", b"5", [(b"hell", False), (b"oh", False)], False),
    ("too short", b"5", [(b"hell", True)], False),
    ("too short, ended by an empty frame", b"5", [(b"hell", False), (b"", True)], False),
    ("none announced", b"0", [(b"x", False)], False),
]


@pytest.mark.parametrize(("length", "pieces", "is_right"), [story[1:] for story in BODY_STORIES])
def test_body_is_held_to_its_content_length(
    kind: CodecKind, length: bytes, pieces: list[tuple[bytes, bool]], is_right: bool
) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, [*POST, (b"content-length", length)]))
    events = [event for payload, end in pieces for event in rig.gets(data(1, payload, end=end))]
    error = StreamReset(1, ErrorCode.PROTOCOL_ERROR, is_local=True, reason="body_differs_from_content_length")
    assert (error in events) is not is_right
    if is_right:
        assert isinstance(events[-1], DataReceived)
        assert events[-1].end_stream
    rig.assert_alive()


BAD_TRAILERS: list[tuple[str, Headers, bool]] = [
    ("trailers_without_end_of_stream", [(b"a", b"b")], False),
    ("pseudo_header_misplaced", [(b":path", b"/")], True),
    ("content_length_in_trailers", [(b"content-length", b"0")], True),
    ("header_name_malformed", [(b"A", b"b")], True),
    ("connection_specific_header", [(b"transfer-encoding", b"chunked")], True),
    ("too_many_headers", [(b"a", b"")] * 101, True),
]


@pytest.mark.parametrize(("reason", "trailers", "end"), BAD_TRAILERS)
def test_bad_trailers_end_their_stream_only(
    kind: CodecKind, reason: str, trailers: Headers, end: bool
) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, POST))
    assert rig.gets(rig.headers(1, trailers, end=end)) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, is_local=True, reason=reason)
    ]
    rig.assert_alive()


def test_trailers_before_the_promised_body_are_an_error(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, [*POST, (b"content-length", b"5")]))
    (event,) = rig.gets(rig.headers(1, [(b"a", b"b")], end=True))
    assert isinstance(event, StreamReset)
    assert event.reason == "body_differs_from_content_length"


@pytest.mark.parametrize("is_server", [True, False])
def test_header_lists_on_a_tunnel_are_an_error_of_the_stream(kind: CodecKind, is_server: bool) -> None:
    rig = server(kind) if is_server else client(kind)
    if is_server:
        rig.gets(rig.headers(1, CONNECT))
    else:
        rig.codec.open_stream(CONNECT)
        rig.gets(rig.headers(1, OK))
    assert rig.gets(rig.headers(1, [(b"a", b"b")], end=True)) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, is_local=True, reason="headers_on_tunnel")
    ]
    rig.assert_alive()


def test_data_before_the_response_head_is_an_error_of_the_stream(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.open_stream(GET)
    (event,) = rig.gets(data(1, b"x"))
    assert event == StreamReset(1, ErrorCode.PROTOCOL_ERROR, is_local=True, reason="data_before_headers")
    rig.assert_alive()


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_body_after_a_status_without_content_is_an_error(kind: CodecKind, status: bytes) -> None:
    rig = client(kind)
    rig.codec.open_stream(GET)
    rig.gets(rig.headers(1, [(b":status", status)]))
    (event,) = rig.gets(data(1, b"x"))
    assert isinstance(event, StreamReset)
    assert event.is_local
