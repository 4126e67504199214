"""Flow control in both directions, frame sizes, and cutting of DATA (RFC 9113 5.2, 6.9)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.transport.http2.wire import (
    CONNECT,
    DATA,
    END_STREAM,
    OK,
    PREFACE,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    Frame,
    Rig,
    client,
    data,
    frame,
    merged,
    parse,
    ping,
    rst,
    server,
    settings,
    window_update,
)
from transport.http2.codec import CodecKind
from transport.http2.error_codes import ErrorCode
from transport.http2.events import ConnectionFailed, DataReceived, PeerSettings, StreamReset, WindowOpened
from transport.http2.settings import MIB, Http2Settings, Role


def tunnel(kind: CodecKind, settings_: Http2Settings | None = None, *peer: tuple[int, int]) -> Rig:
    """A client on whose stream 1 a tunnel stands."""
    rig = client(kind, settings_, *peer)
    rig.codec.open_stream(CONNECT)
    rig.gets(rig.headers(1, OK))
    rig.codec.take_output()
    return rig


def test_client_opens_with_its_settings_and_the_connection_window(kind: CodecKind) -> None:
    rig = Rig(Role.CLIENT, kind)
    output = bytes(rig.codec.take_output())
    assert output.startswith(PREFACE)
    first, second = parse(output)
    assert first.kind == SETTINGS
    pairs = {
        int.from_bytes(first.payload[at : at + 2], "big"): int.from_bytes(
            first.payload[at + 2 : at + 6], "big"
        )
        for at in range(0, len(first.payload), 6)
    }
    assert pairs == {4: 4 * MIB, 5: MIB, 6: 16 * 1024, 2: 0}
    assert (second.kind, second.stream_id, second.number) == (WINDOW_UPDATE, 0, 16 * MIB - 65_535)


def test_server_opens_with_its_settings_and_no_preface(kind: CodecKind) -> None:
    rig = Rig(Role.SERVER, kind, Http2Settings(enable_connect_protocol=True))
    first, second = rig.sent()
    pairs = {
        int.from_bytes(first.payload[at : at + 2], "big"): int.from_bytes(
            first.payload[at + 2 : at + 6], "big"
        )
        for at in range(0, len(first.payload), 6)
    }
    assert pairs == {4: 4 * MIB, 5: MIB, 6: 64 * 1024, 3: 200, 8: 1}
    assert (second.kind, second.stream_id) == (WINDOW_UPDATE, 0)


def test_settings_are_acknowledged_and_reported(kind: CodecKind) -> None:
    rig = Rig(Role.CLIENT, kind)
    rig.codec.take_output()
    assert rig.gets(settings((3, 7), (4, 1000), (5, 20_000), (6, 5000), (8, 1))) == [
        PeerSettings(1000, 20_000, 7, 5000, True)
    ]
    assert [(each.kind, each.flags) for each in rig.sent()] == [(SETTINGS, 1)]
    assert rig.codec.peer_max_frame == 20_000


def test_sendable_is_the_smaller_window(kind: CodecKind) -> None:
    rig = tunnel(kind, None, (4, 10_000))
    assert rig.codec.sendable(1) == 10_000
    rig.codec.send_data(1, bytes(4_000))
    assert rig.codec.sendable(1) == 6_000
    rig.gets(window_update(1, 1_000_000))
    assert rig.codec.sendable(1) == 65_535 - 4_000
    rig.gets(window_update(0, 10))
    assert rig.codec.sendable(1) == 65_535 - 4_000 + 10


def test_window_opened_comes_only_when_less_than_a_frame_was_left(kind: CodecKind) -> None:
    rig = tunnel(kind)
    assert rig.gets(window_update(1, 100), window_update(0, 100)) == []
    rig.codec.send_data(1, bytes(65_635 - 16_384))
    assert rig.gets(window_update(1, 1), window_update(0, 1)) == []
    rig.codec.send_data(1, bytes(16_385))
    assert rig.codec.sendable(1) == 0
    assert rig.gets(window_update(1, 5)) == [WindowOpened(1)]
    assert rig.codec.sendable(1) == 0
    assert rig.gets(window_update(0, 3)) == [WindowOpened(0)]
    assert rig.codec.sendable(1) == 3
    assert rig.gets(window_update(0, 20_000), window_update(0, 1)) == [WindowOpened(0)]
    rig.codec.end_stream(1)
    assert rig.gets(window_update(1, 1)) == [], "nothing more is to be sent on it"


def test_smaller_initial_window_may_make_a_stream_window_negative(kind: CodecKind) -> None:
    rig = tunnel(kind)
    rig.codec.send_data(1, bytes(50_000))
    rig.gets(settings((4, 10_000)))
    assert rig.codec.sendable(1) == 0  # 10 000 - 50 000
    assert rig.gets(window_update(1, 40_000)) == []
    assert rig.codec.sendable(1) == 0
    assert rig.gets(window_update(1, 1)) == [WindowOpened(1)]
    assert rig.codec.sendable(1) == 1
    rig.codec.end_stream(1)


def test_stream_can_be_ended_with_no_window_left(kind: CodecKind) -> None:
    rig = tunnel(kind, None, (4, 0))
    rig.codec.end_stream(1)
    assert [(each.kind, each.flags, each.payload) for each in rig.sent()] == [(DATA, END_STREAM, b"")]


def test_larger_initial_window_opens_starved_streams(kind: CodecKind) -> None:
    rig = tunnel(kind, None, (4, 0))
    assert rig.codec.sendable(1) == 0
    opened, settings_event = rig.gets(settings((4, 5)))
    assert opened == WindowOpened(1)
    assert isinstance(settings_event, PeerSettings)
    assert rig.codec.sendable(1) == 5


def test_data_is_cut_at_the_peers_frame_size(kind: CodecKind) -> None:
    rig = tunnel(kind)
    rig.codec.send_data(1, bytes(range(256)) * 160, end_stream=True)  # 40 960
    assert [(len(each.payload), each.flags) for each in rig.sent()] == [
        (16_384, 0),
        (16_384, 0),
        (8_192, END_STREAM),
    ]


@pytest.mark.parametrize("payload_bytes", [0, 1, 16_384, 16_385, 40_000])
def test_frames_are_made_in_place(kind: CodecKind, payload_bytes: int) -> None:
    rig = tunnel(kind)
    body = bytes(number % 251 for number in range(payload_bytes))
    buffer = bytearray(60_000)
    for index, start in enumerate(range(0, payload_bytes, 16_384)):
        piece = body[start : start + 16_384]
        at = index * (16_384 + 9) + 9
        buffer[at : at + len(piece)] = piece
    total = rig.codec.frame_in_place(1, memoryview(buffer), payload_bytes, end_stream=True)
    sent = parse(buffer[:total])
    assert b"".join(each.payload for each in sent) == body
    assert [each.flags for each in sent] == [0] * (len(sent) - 1) + [END_STREAM]
    assert rig.codec.sendable(1) == 0
    assert rig.sent() == []


def test_nothing_to_frame_in_place_makes_no_frame(kind: CodecKind) -> None:
    rig = tunnel(kind)
    assert rig.codec.frame_in_place(1, memoryview(bytearray(9)), 0) == 0
    rig.codec.send_data(1, b"")
    assert rig.sent() == []


def test_megabyte_frames_to_a_peer_that_takes_them(kind: CodecKind) -> None:
    rig = tunnel(kind, None, (5, MIB), (4, 4 * MIB))
    rig.gets(window_update(0, 16 * MIB))
    buffer = bytearray(MIB + 9)
    assert rig.codec.frame_in_place(1, memoryview(buffer), MIB) == MIB + 9
    assert bytes(buffer[:9]) == b"\x10\x00\x00\x00\x00\x00\x00\x00\x01"


def test_credit_is_given_lazily_for_what_was_consumed(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=80_000, connection_window=100_000))
    rig.gets(rig.headers(1, CONNECT), data(1, bytes(60_000)))
    rig.codec.consumed(1, 30_000)
    assert rig.sent() == []
    rig.codec.consumed(1, 10_000)
    assert [(each.stream_id, each.number) for each in rig.sent()] == [(1, 40_000)]
    rig.codec.consumed(1, 10_000)
    assert [(each.stream_id, each.number) for each in rig.sent()] == [(0, 50_000)]


def test_whole_window_can_flow_without_stalling(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=65_536, connection_window=70_000))
    rig.gets(rig.headers(1, CONNECT))
    stream_window, connection_window = 65_536, 70_000
    for _ in range(200):
        size = min(stream_window, connection_window, 9_999)
        assert size > 0, "stalled"
        (event,) = rig.gets(data(1, bytes(size)))
        assert isinstance(event, DataReceived)
        rig.codec.consumed(1, event.flow_bytes)
        stream_window -= size
        connection_window -= size
        for each in rig.sent():
            assert each.kind == WINDOW_UPDATE
            if each.stream_id:
                stream_window += each.number
            else:
                connection_window += each.number


def test_no_stream_credit_after_the_peer_has_ended(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=80_000, connection_window=1_000_000))
    rig.gets(rig.headers(1, CONNECT), data(1, bytes(70_000), end=True))
    rig.codec.consumed(1, 70_000)
    assert rig.sent() == []


def test_padding_is_credited_by_the_codec(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=65_536, connection_window=70_000))
    rig.gets(rig.headers(1, CONNECT))
    for _ in range(1000):  # 256 KB of padding
        (event,) = rig.gets(data(1, b"x", padding=255))
        assert isinstance(event, DataReceived)
        assert (bytes(event.data), event.flow_bytes) == (b"x", 1)
        rig.codec.consumed(1, 1)
    rig.assert_alive()


def test_padded_end_of_stream(kind: CodecKind) -> None:
    rig = server(kind)
    events = rig.gets(rig.headers(1, CONNECT), data(1, b"ab", end=True, padding=9))
    assert merged(events[1:]) == [DataReceived(1, memoryview(b"ab"), 2, True)]
    events = rig.gets(rig.headers(3, CONNECT), data(3, b"", end=True, padding=9))
    assert merged(events[1:]) == [DataReceived(3, memoryview(b""), 0, True)]
    rig.assert_alive()


def test_client_may_count_on_the_default_window_until_it_has_our_settings(kind: CodecKind) -> None:
    small = Http2Settings(initial_window=1_000, connection_window=100_000)
    rig = server(kind, small, acked=False)
    assert isinstance(rig.gets(rig.headers(1, CONNECT), data(1, bytes(50_000)))[-1], DataReceived)
    rig.gets(SETTINGS_ACK)  # now the window is 1 000 - 50 000
    (event,) = rig.gets(data(1, b"x"))
    assert isinstance(event, StreamReset)
    assert event.code == ErrorCode.FLOW_CONTROL_ERROR
    (event,) = rig.gets(rig.headers(3, CONNECT), data(3, bytes(1_001)))[1:]
    assert isinstance(event, StreamReset)


def test_partial_data_is_delivered_before_its_frame_is_complete() -> None:
    rig = server("lean")
    rig.gets(rig.headers(1, CONNECT))
    octets = data(1, bytes(1_000), end=True)
    (first,) = rig.gets(octets[:509])
    assert isinstance(first, DataReceived)
    assert (len(first.data), first.end_stream) == (500, False)
    (second,) = rig.gets(octets[509:])
    assert isinstance(second, DataReceived)
    assert (len(second.data), second.end_stream) == (500, True)


def test_pieces_end_where_something_is_special() -> None:
    rig = server("lean")
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    plain = data(1, b"one") + data(3, b"two") + data(1, b"three")
    for special in (
        data(1, b"last", end=True),
        data(1, b"padded", padding=3),
        data(1),
        data(5, b"nobody's"),
        data(3, bytes(100))[:50],
        data(3, b"x")[:9],
        ping(),
    ):
        pieces, taken = rig.codec.receive_data(memoryview(plain + special))
        assert [(stream, bytes(payload), size) for stream, payload, size in pieces] == [
            (1, b"one", 3),
            (3, b"two", 3),
            (1, b"three", 5),
        ]
        assert taken == len(plain)


def test_pieces_never_exceed_a_window() -> None:
    rig = server("lean", Http2Settings(initial_window=70_000, connection_window=100_000))
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    octets = b"".join(data(stream, bytes(10_000)) for stream in (1, 1, 1, 1, 1, 1, 1, 1, 3))
    pieces, taken = rig.codec.receive_data(memoryview(octets))
    assert (len(pieces), taken) == (7, 7 * 10_009)  # the stream's window
    pieces, _ = rig.codec.receive_data(memoryview(data(3, bytes(10_000)) * 4))
    assert len(pieces) == 3  # the connection's window


def test_no_piece_amid_a_frame_or_before_the_preface() -> None:
    rig = server("lean")
    rig.gets(rig.headers(1, CONNECT))
    whole = memoryview(data(1, b"piece"))
    rig.gets(data(1, bytes(100))[:50])
    assert rig.codec.receive_data(whole) == ((), 0)
    rig.gets(bytes(59))
    rig.gets(ping()[:5])
    assert rig.codec.receive_data(whole) == ((), 0)
    fresh = Rig(Role.SERVER, "lean")
    assert fresh.codec.receive_data(whole) == ((), 0)


def filling(payload: bytes) -> Callable[[memoryview], int]:
    """A `read` that finds this waiting."""

    def read(buffer: memoryview) -> int:
        buffer[: len(payload)] = payload
        return len(payload)

    return read


def test_message_is_read_and_framed_in_one_go(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.codec.send_headers(1, OK)
    rig.sent()
    before = rig.codec.sendable(1)
    assert rig.codec.send_message(1, filling(b"hello"), memoryview(bytearray(100)), 50) == 5
    assert rig.sent() == [Frame(DATA, 0, 1, b"hello")]
    assert rig.codec.sendable(1) == before - 5


def test_large_message_stays_in_the_buffer_and_an_end_sends_nothing(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.codec.send_headers(1, OK)
    rig.sent()
    before = rig.codec.sendable(1)
    buffer = memoryview(bytearray(100))
    assert rig.codec.send_message(1, filling(bytes(51)), buffer, 50) == 51
    assert rig.codec.send_message(1, filling(b""), buffer, 50) == 0
    assert rig.sent() == []
    assert rig.codec.sendable(1) == before


def test_message_is_not_read_when_the_windows_may_not_take_it(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT), rig.headers(3, CONNECT))
    for stream in (1, 3):
        rig.codec.send_headers(stream, OK)

    def read(_: memoryview) -> int:
        raise AssertionError("read without room")

    assert rig.codec.send_message(1, read, memoryview(bytearray(65_536)), 50) == -1  # window: 65 535
    rig.codec.send_data(1, bytes(65_000))
    assert rig.codec.send_message(3, read, memoryview(bytearray(600)), 50) == -1  # the connection's
    rig.gets(rst(3))
    assert rig.codec.send_message(3, read, memoryview(bytearray(10)), 50) == -1
    rig.codec.end_stream(1)
    assert rig.codec.send_message(1, read, memoryview(bytearray(10)), 50) == -1


def test_delivered_data_views_the_input() -> None:
    rig = server("lean")
    rig.gets(rig.headers(1, CONNECT))
    buffer = bytearray(data(1, b"before"))
    (event,) = rig.codec.receive(memoryview(buffer))
    assert isinstance(event, DataReceived)
    buffer[-6:] = b"after!"
    assert bytes(event.data) == b"after!"


def test_reset_amid_a_frame_drops_its_rest(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    octets = data(1, bytes(1_000), end=True)
    rig.gets(octets[:500])
    rig.codec.reset(1, ErrorCode.CANCEL)
    assert rig.gets(octets[500:]) == []
    rig.assert_alive()


def test_unknown_frames_of_any_size_are_skipped_without_being_kept() -> None:
    rig = server("lean")
    rig.gets(rig.headers(1, CONNECT))
    octets = frame(0xBE, 0, 0, bytes(MIB))
    for start in range(0, len(octets), 100_000):
        assert rig.gets(octets[start : start + 100_000]) == []
    rig.assert_alive()


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_window": 0},
        {"initial_window": 2**31},
        {"connection_window": 65_534},
        {"max_frame": 16_383},
        {"max_frame": 2**24},
        {"max_concurrent_streams": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Http2Settings(**wrong)  # type: ignore[arg-type]


def test_failed_codec_gives_no_credit(kind: CodecKind) -> None:
    rig = server(kind, Http2Settings(initial_window=65_536, connection_window=65_536))
    events = rig.gets(rig.headers(1, CONNECT), data(1, bytes(60_000)), data(0))
    assert isinstance(events[-1], ConnectionFailed)
    rig.codec.take_output()
    rig.codec.consumed(1, 60_000)
    assert rig.sent() == []
