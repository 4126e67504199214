"""What comes after what: keep-alive, pipelining, 100-continue, upgrades, and how connections end (server)."""

from __future__ import annotations

import pytest

from tests.transport.http1.wire import (
    GET,
    GET_OCTETS,
    HEAD,
    OK,
    POST,
    SWITCHED,
    UPGRADE_OCTETS,
    WEBSOCKET,
    assert_failed,
    assert_over,
    assert_rejected,
    client,
    head_of,
    request,
    response,
    server,
    story,
)
from transport.http1.codec import CodecKind, make_codec
from transport.http1.errors import CodecMisuse, ConnectionSpent, ExchangeInProgress
from transport.http1.settings import Http1Settings, Role

EMPTY_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
SWITCHING = [(b":status", b"101"), (b"upgrade", b"websocket")]


def test_exchanges_follow_each_other(kind: CodecKind) -> None:
    codec = server(kind)
    for number in range(1, 4):
        assert codec.is_idle is True
        assert story(codec.receive(GET_OCTETS)) == [("headers", number, GET, True)]
        assert not bool(codec.is_idle)
        codec.send_headers(number, OK, end_stream=True)
        assert bytes(codec.take_output()) == EMPTY_OK
    assert codec.current_stream == 3


def test_pipelined_requests_wait_for_the_response_before(kind: CodecKind) -> None:
    codec = server(kind)
    assert story(codec.receive(GET_OCTETS * 3)) == [("headers", 1, GET, True)]
    assert codec.is_held
    assert codec.resume() == []
    codec.send_headers(1, [*OK, (b"content-length", b"1")])
    assert codec.resume() == []
    codec.send_data(1, b"x", end_stream=True)
    assert story(codec.resume()) == [("headers", 2, GET, True)]
    assert codec.is_held
    codec.send_headers(2, OK, end_stream=True)
    assert story(codec.resume()) == [("headers", 3, GET, True)]
    assert not bool(codec.is_held)
    codec.send_headers(3, OK, end_stream=True)
    assert codec.is_idle


def test_what_is_held_has_a_bound(kind: CodecKind) -> None:
    codec = server(kind, Http1Settings(max_held=100))
    codec.receive(GET_OCTETS)
    assert codec.receive(bytes(100)) == []
    assert_failed(codec, codec.receive(b"x"), "held_input_too_long")


def test_a_partial_request_is_not_held(kind: CodecKind) -> None:
    codec = server(kind)
    assert codec.receive(GET_OCTETS[:10]) == []
    assert not codec.is_held
    assert not codec.is_idle
    assert story(codec.receive(GET_OCTETS[10:])) == [("headers", 1, GET, True)]


def test_an_error_in_a_pipelined_request_comes_after_the_response_before(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS + b"bad\r\n\r\n" + GET_OCTETS)
    codec.send_headers(1, OK, end_stream=True)
    assert bytes(codec.take_output()) == EMPTY_OK
    assert_rejected(codec, codec.resume(), 400, "method_malformed")


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"Connection: keep-alive, CLOSE", b"connection: x,close ,"]
)
def test_connection_close_makes_the_exchange_the_last(kind: CodecKind, line: bytes) -> None:
    codec = server(kind)
    assert story(codec.receive(request(line, start=b"GET / HTTP/1.1") + GET_OCTETS)) == [
        ("headers", 1, GET, True)
    ]
    codec.send_headers(1, OK, end_stream=True)
    _, fields = head_of(codec.take_output())
    assert (b"connection", b"close") in fields
    assert_over(codec)


def test_goaway_makes_the_exchange_the_last(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS)
    codec.goaway()
    assert not codec.is_finished
    codec.send_headers(1, OK, end_stream=True)
    _, fields = head_of(codec.take_output())
    assert (b"connection", b"close") in fields
    assert_over(codec)


def test_goaway_ends_an_idle_connection(kind: CodecKind) -> None:
    codec = server(kind)
    codec.goaway()
    assert codec.is_finished
    assert codec.take_output() == b""


def test_response_before_the_request_has_ended(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(request(b"Content-Length: 6"))
    codec.send_headers(1, [(b":status", b"413")], end_stream=True)
    assert story(codec.receive(b"abcdef" + GET_OCTETS)) == [
        ("data", 1, "abcdef", True),
        ("headers", 2, GET, True),
    ]


def test_last_response_before_the_request_has_ended(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(request(b"Content-Length: 6"))
    codec.goaway()
    codec.send_headers(1, [(b":status", b"413")], end_stream=True)
    assert codec.is_output_ended
    assert not codec.is_finished
    codec.receive(b"abcdef")
    assert codec.is_finished


def test_eof_between_requests_finishes(kind: CodecKind) -> None:
    codec = server(kind)
    assert codec.receive_eof() == []
    assert codec.is_finished


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"GET / HT", "eof_in_head"),
        (request(b"Content-Length: 3") + b"ab", "eof_in_content"),
        (request(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n", "eof_in_content"),
    ],
)
def test_eof_within_a_request_fails(kind: CodecKind, octets: bytes, reason: str) -> None:
    codec = server(kind)
    codec.receive(octets)
    assert_failed(codec, codec.receive_eof(), reason)


def test_a_client_that_half_closes_gets_its_answers(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS * 2)
    assert codec.receive_eof() == []
    codec.send_headers(1, OK, end_stream=True)
    assert not codec.is_finished
    assert story(codec.resume()) == [("headers", 2, GET, True)]
    codec.send_headers(2, OK, end_stream=True)
    _, fields = head_of(bytes(codec.take_output())[len(EMPTY_OK) :])
    assert (b"connection", b"close") in fields
    assert codec.is_finished


def test_a_client_that_half_closes_within_a_pipelined_request(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS + b"GET /")
    codec.receive_eof()
    codec.send_headers(1, OK, end_stream=True)
    assert_failed(codec, codec.resume(), "eof_in_head")


def test_continue_is_sent_when_the_caller_says_so(kind: CodecKind) -> None:
    codec = server(kind)
    events = codec.receive(request(b"Expect: 100-continue", b"Content-Length: 3"))
    expected = [*POST, (b"expect", b"100-continue"), (b"content-length", b"3")]
    assert story(events) == [("headers", 1, expected, False)]
    assert codec.awaits_continue is True
    assert codec.take_output() == b""
    codec.send_headers(1, [(b":status", b"100")])
    assert bytes(codec.take_output()) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not bool(codec.awaits_continue)
    assert story(codec.receive(b"abc")) == [("data", 1, "abc", True)]
    codec.send_headers(1, OK, end_stream=True)
    assert codec.is_idle


def test_content_that_does_not_wait_for_the_continue(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(request(b"Expect: 100-continue", b"Content-Length: 3") + b"a")
    assert not codec.awaits_continue


def test_nothing_of_the_new_protocol_is_seen_before_the_101(kind: CodecKind) -> None:
    codec = server(kind)
    assert story(codec.receive(UPGRADE_OCTETS + b"early")) == [("headers", 1, WEBSOCKET, False)]
    assert codec.receive(b" data") == []
    assert codec.is_held
    codec.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
    assert codec.resume() == []
    codec.take_output()
    codec.send_headers(1, SWITCHING)
    start, fields = head_of(codec.take_output())
    assert start == b"HTTP/1.1 101 Switching Protocols"
    assert sorted(fields) == [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
    assert story(codec.resume()) == [("data", 1, "early data", False)]
    assert story(codec.receive(GET_OCTETS)) == [("data", 1, GET_OCTETS.decode(), False)]
    codec.send_data(1, b"raw")
    assert bytes(codec.take_output()) == b"raw"
    assert story(codec.receive_eof()) == [("data", 1, "", True)]
    assert not codec.is_finished
    codec.send_data(1, b"last", end_stream=True)
    assert bytes(codec.take_output()) == b"last"
    assert codec.is_finished


def test_the_end_of_the_new_protocol_may_come_before_the_101(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(UPGRADE_OCTETS + b"early")
    assert codec.receive_eof() == []
    codec.send_headers(1, SWITCHING)
    assert story(codec.resume()) == [("data", 1, "early", True)]


def test_the_end_alone_may_come_before_the_101(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(UPGRADE_OCTETS)
    assert codec.receive_eof() == []
    codec.send_headers(1, SWITCHING)
    assert story(codec.resume()) == [("data", 1, "", True)]


def test_after_a_refused_upgrade_it_is_http_again(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(UPGRADE_OCTETS + GET_OCTETS)
    codec.send_headers(1, [(b":status", b"403")], end_stream=True)
    assert story(codec.resume()) == [("headers", 2, GET, True)]


def test_early_data_of_a_refused_upgrade_is_no_request(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(UPGRADE_OCTETS + b"\x81\x05hello")
    codec.send_headers(1, [(b":status", b"403")], end_stream=True)
    codec.take_output()
    assert_rejected(codec, codec.resume(), 400, "method_malformed")


@pytest.mark.parametrize("upgrade", [b"other", b"h2c", b""])
def test_a_101_for_something_else_is_a_misuse(kind: CodecKind, upgrade: bytes) -> None:
    codec = server(kind)
    codec.receive(UPGRADE_OCTETS)
    with pytest.raises(CodecMisuse):
        codec.send_headers(1, [(b":status", b"101"), (b"upgrade", upgrade)])


def test_a_101_without_being_asked_is_a_misuse(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS)
    with pytest.raises(CodecMisuse):
        codec.send_headers(1, SWITCHING)


def test_no_data_leaves_before_the_101(kind: CodecKind) -> None:
    codec = client(kind, WEBSOCKET, end_stream=False)
    with pytest.raises(CodecMisuse):
        codec.send_data(1, b"early")
    codec.receive(SWITCHED)
    codec.send_data(1, b"late")
    assert bytes(codec.take_output()) == b"late"


def test_one_request_at_a_time(kind: CodecKind) -> None:
    codec = client(kind)
    with pytest.raises(ExchangeInProgress):
        codec.open_stream(GET, end_stream=True)
    codec.receive(response(b"Content-Length: 1"))
    with pytest.raises(ExchangeInProgress):
        codec.open_stream(GET, end_stream=True)
    codec.receive(b"x")
    assert codec.open_stream(HEAD, end_stream=True) == 2


def test_a_client_s_goaway_lets_its_exchange_end(kind: CodecKind) -> None:
    codec = client(kind)
    codec.goaway()
    with pytest.raises(ConnectionSpent):
        codec.open_stream(GET, end_stream=True)
    assert story(codec.receive(response(b"Content-Length: 1") + b"x"))[-1] == ("data", 1, "x", True)
    assert codec.is_finished


def test_reset_ends_the_connection_without_an_end_of_the_message(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS)
    codec.send_headers(1, OK)
    codec.send_data(1, b"abc")
    codec.reset(1)
    assert bytes(codec.take_output()).endswith(b"\r\n\r\n3\r\nabc\r\n")
    assert_over(codec)


def test_a_pool_sees_what_a_connection_is_good_for(kind: CodecKind) -> None:
    codec = make_codec(Role.CLIENT, None, kind)
    assert (codec.open_streams, codec.is_going_away) == (0, False)
    codec.open_stream(GET, end_stream=True)
    codec.consumed(1, 5)
    assert (codec.open_streams, codec.is_going_away) == (1, False)
    codec.receive(response(b"Content-Length: 1", b"Connection: close"))
    assert (codec.open_streams, codec.is_going_away) == (1, True)
    codec.receive(b"x")
    assert (codec.open_streams, codec.is_going_away) == (0, True)


def test_what_comes_too_late_is_dropped(kind: CodecKind) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS)
    codec.send_headers(1, OK, end_stream=True)
    codec.take_output()
    codec.send_headers(1, OK)
    codec.send_data(1, b"x", end_stream=True)
    codec.end_stream(1)
    codec.reset(1)
    assert codec.frame_around(1, 5) is None
    assert codec.sendable(1) == 0
    assert codec.take_output() == b""
    assert codec.is_idle


@pytest.mark.parametrize("stream_id", [0, 2, -1])
def test_streams_that_never_were_are_a_misuse(kind: CodecKind, stream_id: int) -> None:
    codec = server(kind)
    codec.receive(GET_OCTETS)
    with pytest.raises(CodecMisuse):
        codec.send_headers(stream_id, OK)


def test_a_server_opens_no_streams(kind: CodecKind) -> None:
    with pytest.raises(CodecMisuse):
        make_codec(Role.SERVER, kind=kind).open_stream(GET)
