"""Stream life: errors that end one stream only, late frames, limits, GOAWAY (RFC 9113 5.1, 5.4.2, 6.8)."""

from __future__ import annotations

import pytest

from tests.transport.http2.wire import (
    CONNECT,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    PRIORITY,
    RST_STREAM,
    SETTINGS_ACK,
    Rig,
    client,
    data,
    frame,
    goaway,
    ping,
    resets,
    rst,
    server,
    settings,
    window_update,
)
from transport.http2.codec import CodecKind
from transport.http2.error_codes import ErrorCode
from transport.http2.errors import CodecMisuse, GoingAway, StreamLimitReached
from transport.http2.events import GoAwayReceived, HeadersReceived, PingAcked, StreamReset
from transport.http2.settings import Http2Settings

STREAM_FAULTS: list[tuple[ErrorCode, str, bytes]] = [
    (ErrorCode.PROTOCOL_ERROR, "window_increment_0", window_update(1, 0)),
    (ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overflow", window_update(1, 2**31 - 1)),
    (ErrorCode.FRAME_SIZE_ERROR, "frame_size_wrong", frame(PRIORITY, 0, 1, bytes(4))),
    (ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overrun", data(1, bytes(70_000))),
    (ErrorCode.FLOW_CONTROL_ERROR, "stream_window_overrun", data(1, bytes(40_000)) + data(1, bytes(40_000))),
    (ErrorCode.STREAM_CLOSED, "data_after_end_of_stream", data(1, b"x", end=True) + data(1, b"y")),
    (ErrorCode.STREAM_CLOSED, "data_after_end_of_stream", data(1, end=True) + data(1, end=True)),
]


@pytest.mark.parametrize(("code", "reason", "octets"), STREAM_FAULTS)
def test_fault_of_one_stream_leaves_the_others_alone(
    kind: CodecKind, code: ErrorCode, reason: str, octets: bytes
) -> None:
    rig = server(kind, Http2Settings(initial_window=66_000))
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    events = rig.gets(octets)
    assert resets(events) == [StreamReset(1, code, is_local=True, reason=reason)]
    assert [(each.stream_id, each.number) for each in rig.sent() if each.kind == RST_STREAM] == [(1, code)]
    assert rig.codec.open_streams == 1
    (event,) = rig.gets(data(3, b"unharmed"))
    assert bytes(event.data) == b"unharmed"  # type: ignore[union-attr]
    # Sending on the stream that is gone is dropped: the caller may not know yet.
    rig.codec.send_headers(1, OK)
    rig.codec.send_data(1, b"")
    rig.codec.consumed(1, 5)
    assert rig.codec.sendable(1) == 0
    assert rig.codec.frame_in_place(1, memoryview(bytearray(100)), 0) == 0
    assert rig.sent() == []


def test_headers_after_end_of_stream_end_the_stream(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, GET, end=True))
    assert resets(rig.gets(rig.headers(1, GET, end=True))) == [
        StreamReset(1, ErrorCode.STREAM_CLOSED, is_local=True, reason="headers_after_end_of_stream")
    ]
    rig.assert_alive()


def test_reset_by_the_peer_is_reported_once(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    assert rig.gets(rst(1, ErrorCode.CANCEL), rst(1, ErrorCode.CANCEL)) == [StreamReset(1, ErrorCode.CANCEL)]
    assert rig.sent() == []
    assert rig.codec.open_streams == 0


def test_unknown_error_code_is_passed_on_as_a_number(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    assert rig.gets(rst(1, 0xDEAD_BEEF)) == [StreamReset(1, 0xDEAD_BEEF)]


def test_late_frames_on_a_stream_that_we_reset_are_ignored(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.codec.reset(1, ErrorCode.CANCEL)
    assert [(each.kind, each.number) for each in rig.sent()] == [(RST_STREAM, ErrorCode.CANCEL)]
    late = [data(1, b"x"), window_update(1, 5), rig.headers(1, [(b"a", b"b")], end=True), rst(1)]
    assert rig.gets(*late) == []
    assert rig.sent() == []
    rig.codec.reset(1, ErrorCode.CANCEL)  # a second time: nothing
    assert rig.sent() == []
    rig.assert_alive()


def test_late_frames_on_a_finished_stream_are_answered_with_one_reset(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, GET, end=True))
    rig.codec.send_headers(1, OK, end_stream=True)
    rig.codec.take_output()
    assert rig.gets(window_update(1, 5), frame(PRIORITY, 0, 1, bytes(5)), rst(1)) == []
    assert rig.sent() == []
    assert rig.gets(data(1, b"x"), data(1, b"y"), rig.headers(1, [(b"a", b"b")])) == []
    assert [(each.kind, each.number) for each in rig.sent()] == [(RST_STREAM, ErrorCode.STREAM_CLOSED)]
    rig.assert_alive()


def test_late_data_is_credited_to_the_connection(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=100_000, connection_window=100_000))
    for stream in range(1, 41, 2):  # 20 x 20 KB would exhaust the connection window four times over
        rig.gets(rig.headers(stream, CONNECT))
        rig.codec.reset(stream, ErrorCode.CANCEL)
        assert rig.gets(data(stream, bytes(20_000))) == []
    rig.assert_alive()


def test_held_data_of_a_reset_stream_is_credited_to_the_connection(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=100_000, connection_window=100_000))
    for stream in range(1, 41, 2):
        events = rig.gets(rig.headers(stream, CONNECT), data(stream, bytes(20_000)))
        assert not resets(events)
        if stream % 4 == 1:
            rig.codec.reset(stream, ErrorCode.CANCEL)
        else:
            rig.gets(rst(stream))
        rig.codec.consumed(stream, 20_000)  # too late, and without effect: it must not be credited twice
    credit = 100_000 - 20 * 20_000 + sum(each.number for each in rig.sent() if each.stream_id == 0)
    assert 0 < credit <= 100_000
    rig.assert_alive()


def test_held_data_of_a_finished_stream_can_still_be_consumed(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=100_000, connection_window=100_000))
    for stream in range(1, 41, 2):
        rig.gets(rig.headers(stream, CONNECT), data(stream, bytes(20_000), end=True))
        rig.codec.send_headers(stream, OK, end_stream=True)
        assert rig.codec.open_streams == 0
        rig.codec.consumed(stream, 15_000)
        rig.codec.consumed(stream, 5_000)
        rig.codec.consumed(stream, 5_000)  # more than was there: without effect
    credit = (
        100_000
        - 20 * 20_000
        + sum(each.number for each in rig.sent() if each.kind == 8 and not each.stream_id)
    )
    assert 0 < credit <= 100_000
    rig.assert_alive()


def test_more_streams_than_advertised_are_refused(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(max_concurrent_streams=2))
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    assert rig.gets(rig.headers(5, CONNECT), data(5, b"eager")) == []
    assert [(each.kind, each.stream_id, each.number) for each in rig.sent()] == [
        (RST_STREAM, 5, ErrorCode.REFUSED_STREAM)
    ]
    rig.codec.reset(1, ErrorCode.CANCEL)
    assert rig.gets(rig.headers(7, CONNECT)) == [HeadersReceived(7, list(CONNECT), False, False)]


def test_client_assumes_a_stream_limit_until_settings_arrive(kind: CodecKind) -> None:
    from transport.http2.settings import Role  # noqa: PLC0415

    rig = Rig(Role.CLIENT, kind, Http2Settings(assumed_peer_streams=2))
    rig.codec.open_stream(CONNECT)
    rig.codec.open_stream(CONNECT)
    with pytest.raises(StreamLimitReached):
        rig.codec.open_stream(CONNECT)
    rig.gets(settings((3, 3)), SETTINGS_ACK)
    assert rig.codec.peer_max_streams == 3
    assert rig.codec.open_stream(CONNECT) == 5
    rig.gets(settings((3, 0)))
    with pytest.raises(StreamLimitReached):
        rig.codec.open_stream(CONNECT)


def test_limit_counts_only_open_streams(kind: CodecKind) -> None:
    rig = client(kind, None, (3, 1))
    rig.codec.open_stream(GET, end_stream=True)
    with pytest.raises(StreamLimitReached):
        rig.codec.open_stream(GET)
    rig.gets(rig.headers(1, OK, end=True))
    assert rig.codec.open_stream(GET) == 3


def test_peer_without_a_stream_limit_has_none(kind: CodecKind) -> None:
    rig = client(kind, Http2Settings(assumed_peer_streams=1))
    for _ in range(150):
        rig.codec.open_stream(GET)
    assert rig.codec.open_streams == 150


def test_goaway_refuses_what_the_peer_did_not_process_and_keeps_the_rest(kind: CodecKind) -> None:
    rig = client(kind)
    first, second, third = (rig.codec.open_stream(CONNECT) for _ in range(3))
    rig.codec.take_output()
    events = rig.gets(goaway(second, ErrorCode.NO_ERROR, b"bye"))
    assert events == [
        GoAwayReceived(second, ErrorCode.NO_ERROR, b"bye"),
        StreamReset(third, ErrorCode.REFUSED_STREAM, reason="goaway"),
    ]
    assert rig.codec.is_going_away
    with pytest.raises(GoingAway):
        rig.codec.open_stream(CONNECT)
    rig.gets(rig.headers(first, OK))
    rig.codec.send_data(first, b"still here")
    assert any(each.payload == b"still here" for each in rig.sent())
    # The peer narrows it down; it cannot widen it again.
    assert resets(rig.gets(goaway(first))) == [StreamReset(second, ErrorCode.REFUSED_STREAM, reason="goaway")]
    assert rig.gets(goaway(2**31 - 1))[0] == GoAwayReceived(first, 0, b"")
    assert rig.codec.open_streams == 1


def test_graceful_goaway_takes_streams_until_the_second_one(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.codec.goaway(last_stream_id=2**31 - 1)
    (frame_,) = rig.sent()
    assert (frame_.kind, frame_.payload[:4], frame_.number) == (GOAWAY, b"\x7f\xff\xff\xff", 0)
    assert rig.codec.is_going_away
    assert len(rig.gets(rig.headers(3, CONNECT))) == 1
    rig.codec.goaway(debug=b"drain")
    (frame_,) = rig.sent()
    assert frame_.payload == b"\x00\x00\x00\x03\x00\x00\x00\x00drain"
    assert rig.gets(rig.headers(5, CONNECT)) == []
    assert [(each.kind, each.stream_id, each.number) for each in rig.sent()] == [
        (RST_STREAM, 5, ErrorCode.REFUSED_STREAM)
    ]
    rig.codec.send_headers(1, OK)
    assert [each.kind for each in rig.sent()] == [HEADERS]


def test_client_that_said_goodbye_opens_nothing(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.goaway()
    with pytest.raises(GoingAway):
        rig.codec.open_stream(CONNECT)


def test_server_hears_a_clients_goaway_and_goes_on(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    assert rig.gets(goaway(0)) == [GoAwayReceived(0, 0, b"")]
    assert rig.codec.open_streams == 1
    rig.assert_alive()


def test_ping_is_acknowledged_and_ours_is_reported(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.ping(b"12345678")
    assert [each.payload for each in rig.sent()] == [b"12345678"]
    assert rig.gets(ping(b"other...", ack=True)) == []
    assert rig.gets(ping(b"12345678", ack=True)) == [PingAcked(b"12345678")]
    assert rig.gets(ping(b"12345678", ack=True)) == []
    rig.assert_alive()


def test_misuse_is_told_to_the_caller(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    codec = rig.codec
    for call in (
        lambda: codec.send_headers(3, OK),
        lambda: codec.send_data(2, b"x"),
        lambda: codec.reset(5, ErrorCode.CANCEL),
        lambda: codec.open_stream(GET),
        lambda: codec.ping(b"short"),
        lambda: codec.send_data(1, bytes(65_536)),
        lambda: codec.frame_in_place(1, memoryview(bytearray(70_000)), 65_536),
        lambda: codec.send_headers(1, [(b":status", b"100")], end_stream=True),
    ):
        with pytest.raises(CodecMisuse):
            call()
    codec.send_headers(1, OK)
    with pytest.raises(CodecMisuse):
        codec.send_headers(1, [(b"a", b"b")])
    codec.end_stream(1)
    with pytest.raises(CodecMisuse):
        codec.send_data(1, b"more")
    for _ in range(16):
        codec.ping(b"12345678")
    with pytest.raises(CodecMisuse):
        codec.ping(b"12345678")


def test_highest_peer_stream_counts_refused_ones(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(max_concurrent_streams=1))
    rig.gets(rig.headers(1, CONNECT), rig.headers(7, CONNECT))
    assert rig.codec.highest_peer_stream == 7


def test_skipped_stream_id_counts_as_closed_for_small_frames(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(5, CONNECT))
    assert rig.gets(window_update(3, 1), rst(3)) == []
    rig.assert_alive()
