"""A peer that makes us work for nothing is told to calm down (authz-cases 11); a lively one is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.transport.http2.wire import (
    CONNECT,
    CONTINUATION,
    END_HEADERS,
    GET,
    HEADERS,
    OK,
    PRIORITY,
    SETTINGS_ACK,
    Rig,
    client,
    data,
    frame,
    ping,
    rst,
    server,
    settings,
    window_update,
)
from transport.http2.codec import CodecKind
from transport.http2.error_codes import ErrorCode
from transport.http2.events import ConnectionFailed, Event
from transport.http2.settings import FloodLimits, Http2Settings

CALM = ErrorCode.ENHANCE_YOUR_CALM


def flood(rig: Rig, inputs: Iterator[bytes], most: int) -> tuple[int, list[Event]]:
    """Feed until the codec has enough; the output is taken each time, as by a caller that can write."""
    for count in range(most):
        events = rig.gets(next(inputs))
        if events and isinstance(events[-1], ConnectionFailed):
            return count, events
        rig.codec.take_output()
    raise AssertionError(f"{most} inputs were accepted")


def odd() -> Iterator[int]:
    return iter(range(1, 2**31, 2))


def rapid_resets(rig: Rig) -> Iterator[bytes]:
    for stream in odd():
        yield rig.headers(stream, CONNECT) + rst(stream)


def invalid_requests(rig: Rig) -> Iterator[bytes]:
    for stream in odd():
        yield rig.headers(stream, [*GET, (b"Bad", b"")])


def made_resets(rig: Rig) -> Iterator[bytes]:
    """The peer makes us reset its streams ("MadeYouReset")."""
    for stream in odd():
        yield rig.headers(stream, GET) + window_update(stream, 0)


def repeat(octets: bytes) -> Callable[[Rig], Iterator[bytes]]:
    def forever(_: Rig) -> Iterator[bytes]:
        while True:
            yield octets

    return forever


def late_headers(rig: Rig) -> Iterator[bytes]:
    yield rig.headers(1, GET, end=True) + rst(1)
    while True:
        yield rig.headers(1, GET, end=True)


def late_resets(rig: Rig) -> Iterator[bytes]:
    yield rig.headers(1, GET, end=True)
    while True:
        yield rst(1)


def refused_streams(rig: Rig) -> Iterator[bytes]:
    for stream in odd():
        yield rig.headers(stream, CONNECT)


FLOODS: list[tuple[str, Callable[[Rig], Iterator[bytes]], int, int]] = [
    # reason, the flood, how many are let pass at least, and at most
    ("rapid_reset_flood", rapid_resets, 400, 600),
    ("rapid_reset_flood", invalid_requests, 400, 600),
    ("rapid_reset_flood", made_resets, 400, 600),
    ("rapid_reset_flood", refused_streams, 600, 1000),
    ("ping_or_settings_flood", repeat(ping()), 900, 1100),
    ("ping_or_settings_flood", repeat(ping(ack=True)), 900, 1100),
    ("ping_or_settings_flood", repeat(settings((4, 100_000))), 900, 1100),
    ("ping_or_settings_flood", repeat(settings()), 900, 1100),
    ("ping_or_settings_flood", repeat(SETTINGS_ACK), 900, 1100),
    ("priority_flood", repeat(frame(PRIORITY, 0, 1, bytes(5))), 90, 300),
    ("priority_flood", repeat(frame(0xEE, 0, 1, bytes(5))), 90, 300),
    ("window_update_flood", repeat(window_update(0, 1)), 90, 300),
    ("late_frame_flood", late_headers, 900, 1100),
    ("late_frame_flood", late_resets, 900, 1100),
]


@pytest.mark.parametrize(("reason", "inputs", "least", "most"), FLOODS)
def test_flood_ends_the_connection(
    kind: CodecKind, reason: str, inputs: Callable[[Rig], Iterator[bytes]], least: int, most: int
) -> None:
    rig = server(kind)
    count, events = flood(rig, inputs(rig), most)
    assert count >= least
    rig.assert_failed(events, CALM, reason)


def test_empty_data_flood(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    assert rig.gets(data(1)) == []
    assert len(rig.gets(data(1, b"x"), data(1))) == 1  # content in between: the count starts anew
    rig.assert_failed(rig.gets(data(1)), CALM, "empty_data_flood")


def test_empty_padded_data_is_empty(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    rig.assert_failed(rig.gets(data(1, padding=200), data(1, padding=200)), CALM, "empty_data_flood")


def test_continuation_flood(kind: CodecKind) -> None:
    rig = server(kind)
    octets = frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 0, 1) * 65
    rig.assert_failed(rig.gets(octets), CALM, "continuation_flood")


def test_header_block_is_bounded_over_continuations(kind: CodecKind) -> None:
    rig = server(kind)
    octets = frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 0, 1, bytes(16_000)) * 9
    rig.assert_failed(rig.gets(octets), CALM, "header_block_too_large")


def test_header_block_is_bounded_within_one_frame(kind: CodecKind) -> None:
    rig = server(kind)
    header = frame(HEADERS, END_HEADERS, 1, bytes(131_073))[:9]
    rig.assert_failed(rig.gets(header), CALM, "header_block_too_large")


def test_overlong_settings(kind: CodecKind) -> None:
    rig = server(kind)
    rig.assert_failed(rig.gets(settings(*[(0x99, 0)] * 33)), CALM, "settings_too_long")


def test_reply_queue_is_bounded_when_nobody_takes_the_output(kind: CodecKind) -> None:
    rig = server(kind)
    rig.codec.ping(b"12345678")
    first = rig.gets(ping() * 999)
    rig.codec.ping(b"12345678")  # our keepalive renews the allowance for PINGs, not the room in the queue
    events = first + rig.gets(ping() * 999)
    rig.assert_failed(events, CALM, "reply_queue_full")


def test_pings_at_the_pace_of_our_keepalive_go_on_for_ever(kind: CodecKind) -> None:
    rig = server(kind)
    for _ in range(50):
        rig.codec.ping(b"12345678")
        rig.gets(ping(b"12345678", ack=True), ping() * 100)
        rig.codec.take_output()
    rig.assert_alive()


def test_ping_per_data_frame_is_fair(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(rig.headers(1, CONNECT))
    for _ in range(3000):  # bandwidth probes of a peer that reads what we send
        rig.gets(ping(), window_update(1, 100), window_update(0, 100))
        rig.codec.send_data(1, bytes(20))
        rig.codec.take_output()
    rig.assert_alive()


def test_window_update_per_kilobyte_sent_is_fair(kind: CodecKind) -> None:
    rig = server(kind)
    rig.gets(settings((5, 1 << 20), (4, 1 << 20)), rig.headers(1, CONNECT), window_update(0, 1 << 20))
    for _ in range(3):
        rig.codec.send_data(1, bytes(1_000_000))
        rig.gets((window_update(1, 2_000) + window_update(0, 2_000)) * 500)
        rig.codec.take_output()
    rig.assert_alive()


def test_resets_of_tunnels_that_were_in_use_are_no_flood(kind: CodecKind) -> None:
    rig = server(kind)
    for stream in range(1, 4001, 2):
        rig.gets(rig.headers(stream, CONNECT))
        rig.codec.send_headers(stream, OK)
        rig.gets(data(stream, b"x"))
        rig.codec.consumed(stream, 1)
        rig.gets(rst(stream))
        rig.codec.take_output()
    rig.assert_alive()


def test_early_resets_among_many_good_streams_are_no_flood(kind: CodecKind) -> None:
    rig = server(kind)
    for stream in range(1, 4001, 2):
        rig.gets(rig.headers(stream, GET, end=True))
        if stream % 6 == 1:
            rig.gets(rst(stream))
        else:
            rig.codec.send_headers(stream, OK, end_stream=True)
        rig.codec.take_output()
    rig.assert_alive()


def test_our_own_cancellations_are_no_flood(kind: CodecKind) -> None:
    rig = server(kind)
    for stream in range(1, 3001, 2):
        rig.gets(rig.headers(stream, CONNECT))
        rig.codec.reset(stream, ErrorCode.CANCEL)
        rig.codec.take_output()
    rig.assert_alive()


def test_burst_beyond_the_stream_limit_before_our_settings_arrive_is_no_flood(kind: CodecKind) -> None:
    rig = server(kind, acked=False)
    for stream in range(1, 1801, 2):
        rig.gets(rig.headers(stream, CONNECT))
    assert rig.codec.open_streams == 200
    rig.assert_alive()


def test_flood_of_informational_responses(kind: CodecKind) -> None:
    rig = client(kind)
    rig.codec.open_stream(GET)
    inputs = repeat(rig.headers(1, [(b":status", b"103")]))(rig)
    _, events = flood(rig, inputs, 1100)
    rig.assert_failed(events, CALM, "ping_or_settings_flood")


def test_server_that_resets_every_stream_is_tolerated_by_a_client(kind: CodecKind) -> None:
    rig = client(kind, Http2Settings())
    for _ in range(1500):
        stream = rig.codec.open_stream(CONNECT)
        rig.gets(rst(stream, ErrorCode.REFUSED_STREAM))
        rig.codec.take_output()
    rig.assert_alive()


AT_ONCE = Http2Settings(limits=FloodLimits(resets_at_once=20))


def given_up(rig: Rig, count: int, first: int = 1) -> list[bytes]:
    return [rig.headers(stream, CONNECT) + rst(stream) for stream in range(first, first + 2 * count, 2)]


def test_a_burst_in_one_input_is_a_flood_before_the_connections_count_is_reached(
    kind: CodecKind,
) -> None:
    rig = server(kind, AT_ONCE)
    rig.assert_failed(rig.gets(*given_up(rig, 21)), CALM, "rapid_reset_flood")


def test_as_many_over_several_inputs_are_not(kind: CodecKind) -> None:
    rig = server(kind, AT_ONCE)
    for round_number in range(5):
        events = rig.gets(*given_up(rig, 20, first=1 + 40 * round_number))
        assert not isinstance(events[-1], ConnectionFailed)
        rig.codec.take_output()


def test_many_old_streams_may_be_given_up_at_once(kind: CodecKind) -> None:
    rig = server(kind, AT_ONCE)
    streams = range(1, 121, 2)
    for stream in streams:
        rig.gets(rig.headers(stream, CONNECT))
    events = rig.gets(*(rst(stream) for stream in streams))
    assert len(events) == len(streams)
    assert not isinstance(events[-1], ConnectionFailed)
