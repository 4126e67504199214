"""Frames that end the connection, each with its code and its named reason (RFC 9113 4 to 6)."""

from __future__ import annotations

import pytest

from tests.transport.http2.wire import (
    ACK,
    CONNECT,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    Rig,
    client,
    data,
    frame,
    goaway,
    ping,
    rst,
    server,
    settings,
    window_update,
)
from transport.http2.codec import CodecKind
from transport.http2.error_codes import ErrorCode
from transport.http2.events import HeadersReceived
from transport.http2.settings import Http2Settings, Role

PROTOCOL = ErrorCode.PROTOCOL_ERROR
SIZE = ErrorCode.FRAME_SIZE_ERROR
FLOW = ErrorCode.FLOW_CONTROL_ERROR
COMPRESSION = ErrorCode.COMPRESSION_ERROR

# Against a server on which stream 1 is an open tunnel.
SERVER_CASES: list[tuple[ErrorCode, str, bytes]] = [
    # DATA
    (PROTOCOL, "data_on_stream_0", data(0, b"x")),
    (PROTOCOL, "data_on_idle_stream", data(3, b"x")),
    (PROTOCOL, "data_on_idle_stream", data(2, b"x")),
    (PROTOCOL, "padding_too_long", frame(DATA, PADDED, 1, b"\x01")),
    (PROTOCOL, "padding_too_long", frame(DATA, PADDED, 1, b"\x05abcd")),
    (SIZE, "frame_size_wrong", frame(DATA, PADDED, 1)),
    (SIZE, "frame_too_large", b"\x10\x00\x01" + frame(DATA, 0, 1)[3:]),
    # HEADERS, CONTINUATION, PUSH_PROMISE
    (PROTOCOL, "headers_on_wrong_stream_id", frame(HEADERS, END_HEADERS, 0, b"\x82")),
    (PROTOCOL, "headers_on_wrong_stream_id", frame(HEADERS, END_HEADERS, 2, b"\x82")),
    (PROTOCOL, "padding_too_long", frame(HEADERS, END_HEADERS | PADDED, 3, b"\x05\x82\x86")),
    (SIZE, "frame_size_wrong", frame(HEADERS, END_HEADERS | PADDED, 3)),
    (SIZE, "frame_size_wrong", frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 3, b"\x00\x00")),
    (SIZE, "frame_too_large", b"\x10\x00\x01" + frame(HEADERS, END_HEADERS, 3)[3:]),
    (PROTOCOL, "continuation_without_headers", frame(CONTINUATION, END_HEADERS, 1, b"\x82")),
    (PROTOCOL, "continuation_without_headers", frame(CONTINUATION, END_HEADERS, 0, b"\x82")),
    (PROTOCOL, "header_block_interrupted", frame(HEADERS, 0, 3, b"\x82") + data(1, b"x")),
    (PROTOCOL, "header_block_interrupted", frame(HEADERS, 0, 3, b"\x82") + ping()),
    (PROTOCOL, "header_block_interrupted", frame(HEADERS, 0, 3, b"\x82") + frame(0xEE)),
    (PROTOCOL, "header_block_interrupted", frame(HEADERS, 0, 3, b"\x82") + frame(CONTINUATION, 4, 1)),
    (PROTOCOL, "header_block_interrupted", frame(HEADERS, 0, 3, b"\x82") + frame(HEADERS, 4, 3, b"\x82")),
    (PROTOCOL, "push_promise_not_allowed", frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02\x82")),
    # HPACK
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\x80")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\xff\xff\xff\xff\xff\x0f")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\x40\x05ab")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\x82\x20")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\x3f\xe2\x1f")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 3, b"\x00\x81\xff\x00")),
    (COMPRESSION, "header_block_undecodable", frame(HEADERS, END_HEADERS, 1, b"\xfe")),
    # stream-less frames on a stream, and the other way round
    (PROTOCOL, "settings_on_a_stream", frame(SETTINGS, 0, 1)),
    (PROTOCOL, "ping_on_a_stream", frame(PING, 0, 1, b"12345678")),
    (PROTOCOL, "goaway_on_a_stream", frame(GOAWAY, 0, 1, bytes(8))),
    (PROTOCOL, "priority_on_stream_0", frame(PRIORITY, 0, 0, bytes(5))),
    (PROTOCOL, "rst_stream_on_idle_stream", rst(0)),
    (PROTOCOL, "rst_stream_on_idle_stream", rst(3)),
    (PROTOCOL, "rst_stream_on_idle_stream", rst(2)),
    # sizes
    (SIZE, "frame_size_wrong", frame(RST_STREAM, 0, 1, bytes(3))),
    (SIZE, "frame_size_wrong", frame(RST_STREAM, 0, 1, bytes(5))),
    (SIZE, "frame_size_wrong", frame(PING, 0, 0, bytes(7))),
    (SIZE, "frame_size_wrong", frame(WINDOW_UPDATE, 0, 1, bytes(3))),
    (SIZE, "frame_size_wrong", frame(WINDOW_UPDATE, 0, 0, bytes(5))),
    (SIZE, "frame_size_wrong", frame(GOAWAY, 0, 0, bytes(7))),
    (SIZE, "frame_size_wrong", frame(SETTINGS, 0, 0, bytes(5))),
    (SIZE, "frame_size_wrong", frame(SETTINGS, ACK, 0, bytes(6))),
    (SIZE, "frame_size_wrong", frame(PRIORITY, 0, 3, bytes(4))),  # on an idle stream: nothing to reset
    # SETTINGS values
    (PROTOCOL, "setting_is_not_0_or_1", settings((2, 2))),
    (PROTOCOL, "setting_is_not_0_or_1", settings((8, 2))),
    (PROTOCOL, "setting_is_not_0_or_1", settings((9, 2))),
    (FLOW, "initial_window_too_large", settings((4, 2**31))),
    (PROTOCOL, "max_frame_out_of_range", settings((5, 16_383))),
    (PROTOCOL, "max_frame_out_of_range", settings((5, 2**24))),
    (PROTOCOL, "connect_protocol_withdrawn", settings((8, 1)) + settings((8, 0))),
    # windows
    (PROTOCOL, "window_increment_0", window_update(0, 0)),
    (PROTOCOL, "window_increment_0", window_update(0, 2**31)),  # the reserved bit does not count
    (FLOW, "connection_window_overflow", window_update(0, 2**31 - 1)),
    (PROTOCOL, "window_update_on_idle_stream", window_update(3, 1)),
    (PROTOCOL, "window_update_on_idle_stream", window_update(2, 1)),
    (FLOW, "stream_window_overflow", window_update(1, 2**31 - 1 - 65_535) + settings((4, 65_536))),
]


@pytest.mark.parametrize(("code", "reason", "octets"), SERVER_CASES)
def test_frame_ends_the_connection_of_a_server(
    kind: CodecKind, code: ErrorCode, reason: str, octets: bytes
) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.assert_failed(rig.gets(octets), code, reason)
    assert rig.codec.open_streams == 0
    assert rig.codec.is_going_away


@pytest.mark.parametrize(("code", "reason", "octets"), SERVER_CASES)
def test_frame_ends_the_connection_even_if_it_comes_in_single_octets(
    kind: CodecKind, code: ErrorCode, reason: str, octets: bytes
) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    events = [event for position in range(len(octets)) for event in rig.gets(octets[position : position + 1])]
    rig.assert_failed(events, code, reason)


CLIENT_CASES: list[tuple[ErrorCode, str, bytes]] = [
    (PROTOCOL, "headers_on_wrong_stream_id", frame(HEADERS, END_HEADERS, 2, b"\x88")),
    (PROTOCOL, "headers_on_idle_stream", frame(HEADERS, END_HEADERS, 3, b"\x88")),
    (PROTOCOL, "data_on_idle_stream", data(3, b"x")),
    (PROTOCOL, "push_promise_not_allowed", frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02\x82")),
    (PROTOCOL, "server_enabled_push", settings((2, 1))),
    (PROTOCOL, "rst_stream_on_idle_stream", rst(3)),
    (PROTOCOL, "window_update_on_idle_stream", window_update(3, 1)),
]


@pytest.mark.parametrize(("code", "reason", "octets"), CLIENT_CASES)
def test_frame_ends_the_connection_of_a_client(
    kind: CodecKind, code: ErrorCode, reason: str, octets: bytes
) -> None:
    rig = client(kind)
    rig.codec.open_stream(GET)
    rig.assert_failed(rig.gets(octets), code, reason)


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\n",
    ],
)
def test_server_refuses_another_protocol_at_the_first_wrong_octet(kind: CodecKind, opening: bytes) -> None:
    rig = Rig(Role.SERVER, kind)
    rig.assert_failed(rig.gets(opening), PROTOCOL, "bad_preface")


def test_server_waits_for_the_rest_of_the_preface(kind: CodecKind) -> None:
    rig = Rig(Role.SERVER, kind)
    for position in range(len(PREFACE)):
        assert rig.gets(PREFACE[position : position + 1]) == []
    assert len(rig.gets(settings())) == 1


@pytest.mark.parametrize("first", [ping(), SETTINGS_ACK, window_update(0, 5), frame(0xEE), data(1, b"x")])
def test_first_frame_must_be_settings(kind: CodecKind, first: bytes) -> None:
    rig = Rig(Role.SERVER, kind)
    rig.assert_failed(rig.gets(PREFACE, first), PROTOCOL, "settings_not_first")
    rig = Rig(Role.CLIENT, kind)
    rig.assert_failed(rig.gets(first), PROTOCOL, "settings_not_first")


def test_stream_ids_must_grow(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(5, GET, end=True))
    rig.assert_failed(rig.gets(rig.headers(3, GET, end=True)), PROTOCOL, "stream_id_not_increasing")


def test_connection_window_overrun_ends_the_connection(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=100_000, connection_window=100_000))
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    rig.gets(data(1, bytes(60_000)))
    rig.assert_failed(rig.gets(data(3, bytes(60_000))), FLOW, "connection_window_overrun")


def test_events_before_the_failure_are_kept_and_what_follows_is_not_read(kind: CodecKind) -> None:
    rig = server(kind)
    events = rig.gets(rig.headers(1, CONNECT), data(0), rig.headers(3, CONNECT))
    assert events[0] == HeadersReceived(1, list(CONNECT), False, False)
    assert len(events) == 2
    # The caller works through the list without looking ahead: nothing below has an effect, nothing raises.
    rig.codec.send_headers(1, OK)
    assert rig.codec.sendable(1) == 0
    rig.codec.send_data(1, b"")
    assert rig.codec.frame_in_place(1, memoryview(bytearray(20)), 0, end_stream=True) == 0
    rig.codec.consumed(1, 0)
    rig.codec.reset(1, ErrorCode.CANCEL)
    rig.codec.ping(b"12345678")
    rig.codec.goaway()
    rig.assert_failed(events, PROTOCOL, "data_on_stream_0")


@pytest.mark.parametrize(
    "octets",
    [
        frame(0xEE, 0xFF, 0, b"extension"),
        frame(0xEE, 0xFF, 77, b"extension" * 5000),
        frame(0x10, 0, 0, b"\x00\x00\x00\x01u=3"),  # PRIORITY_UPDATE
        frame(PRIORITY, 0, 9, bytes(5)),
        frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x00"),
        settings((0xBEEF, 7), (9, 1)),
        frame(PING, 0xFE, 0, b"12345678"),  # undefined flags
        frame(DATA, 0xF6 & ~PADDED, 1, b"x"),
        goaway(0),
        window_update(1, 2**31 | 1),  # reserved bit before the increment
        window_update(0, 2**31 | 1),
        b"\x00\x00\x01\x00\x00\x80\x00\x00\x01x",  # reserved bit before the stream id
    ],
)
def test_what_must_be_ignored_is_ignored(kind: CodecKind, octets: bytes) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.gets(octets)
    assert rig.codec.open_streams == 1
    rig.assert_alive()


def test_end_stream_flag_on_other_frames_means_nothing(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    assert rig.gets(frame(WINDOW_UPDATE, END_STREAM, 1, b"\x00\x00\x00\x01")) == []
    assert rig.gets(data(1, b"x"))[0].end_stream is False  # type: ignore[union-attr]
