"""The pump after the handshake: data, pressure, ends and re-entrancy."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import socket
import struct
import weakref
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transport.tls.harness import Bench, Recorder
from transport.socket_errors import ConnectionLost
from transport.tls.errors import HandlerFailed, PeerStalled, TlsBroken, TlsTruncated
from transport.tls.pump import HIGH_WATER_BYTES, LOW_WATER_BYTES

pytestmark = pytest.mark.timeout(60)

# Data


def test_data_arrives_in_order_whatever_its_type_and_size(bench: Bench) -> None:
    server, client = bench.opened()
    pieces: list[bytes | bytearray | memoryview] = [b"a", bytearray(b"bc"), memoryview(b"xdefx")[1:4], b""]
    pieces += [os.urandom(16384), os.urandom(700_001)]
    for piece in pieces:
        client.pump.write(piece)
    expected = b"".join(bytes(piece) for piece in pieces)
    bench.until(lambda: len(server.received) >= len(expected))
    assert server.received == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 70_000) | st.integers(16_380, 16_390), max_size=12), seed=st.integers())
def test_any_mixture_of_sizes_both_ways_arrives_unchanged(bench: Bench, sizes: list[int], seed: int) -> None:
    server, client = bench.opened()
    source = random.Random(seed)
    sent = {server: bytearray(), client: bytearray()}
    for size in sizes:
        for sender in (server, client):
            data = source.randbytes(size)
            sender.pump.write(data)
            sent[sender] += data
    bench.until(
        lambda: len(server.received) == len(sent[client]) and len(client.received) == len(sent[server])
    )
    assert server.received == sent[client]
    assert client.received == sent[server]


def test_written_buffer_may_be_reused_at_once(bench: Bench) -> None:
    server, client = bench.opened()
    buffer = bytearray(b"first")
    client.pump.write(buffer)
    buffer[:] = b"other"
    bench.until(lambda: len(server.received) == 5)
    assert server.received == b"first"


def test_writes_of_one_pass_leave_in_one_flush_and_one_on_data(bench: Bench) -> None:
    server, client = bench.opened()
    bench.settle()
    flushes = client.flushes

    def write_often() -> None:
        for _ in range(50):
            client.pump.write(b"x")

    bench.reactor.call_soon(write_often)
    bench.until(lambda: len(server.received) == 50)
    assert client.flushes == flushes + 1
    assert server.events.count("data") == 1


def test_before_flush_may_write_and_can_be_asked_for(bench: Bench) -> None:
    def frame(recorder: Recorder) -> None:
        if recorder.pump.peer_address:
            recorder.pump.write(b"framed")

    server, client = bench.opened()
    bench.settle()
    client.actions["flush"] = frame
    flushes = client.flushes
    client.pump.request_flush()
    client.pump.request_flush()
    bench.until(lambda: len(server.received) == 6)
    bench.settle()
    assert client.flushes == flushes + 1
    bench.reactor.mark_dirty(client.pump)
    bench.until(lambda: len(server.received) == 12)


def test_data_sent_with_the_end_of_the_handshake_is_delivered_after_on_handshake(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, {"handshake": lambda recorder: recorder.pump.write(b"server first")})
    client = bench.client(client_sock, {"handshake": lambda recorder: recorder.pump.write(b"client first")})
    bench.until(lambda: len(server.received) == len(client.received) == 12)
    assert server.events == client.events == ["handshake", "data"]


def test_writing_before_the_handshake_is_a_mistake(bench: Bench) -> None:
    client_sock, _ = bench.pair()
    client = bench.client(client_sock)
    with pytest.raises(RuntimeError, match="on_handshake"):
        client.pump.write(b"too early")


# Pressure


def test_backlog_towards_a_slow_reader_is_bounded_and_drains(bench: Bench) -> None:
    """The writer stops while congested: what waits is bounded, and nothing is lost or reordered."""
    total = 24 * 1024 * 1024
    piece = os.urandom(1024 * 1024 // 4)
    sent = hashlib.sha256()
    written = peak = 0

    def write_more(recorder: Recorder) -> None:
        nonlocal written, peak
        while written < total and not recorder.pump.is_congested:
            recorder.pump.write(piece)
            sent.update(piece)
            written += len(piece)
            peak = max(peak, recorder.pump.backlog_bytes)

    def note_low(recorder: Recorder) -> None:
        assert recorder.pump.backlog_bytes < LOW_WATER_BYTES
        write_more(recorder)

    server, client = bench.opened()
    server.pump.pause_reading()
    client.actions["drained"] = note_low
    bench.reactor.call_soon(lambda: write_more(client))
    bench.settle()
    assert client.pump.is_congested
    assert written < total
    assert HIGH_WATER_BYTES < client.pump.backlog_bytes <= HIGH_WATER_BYTES + 2 * len(piece)
    assert "drained" not in client.events
    assert not server.received
    server.pump.resume_reading()
    bench.until(lambda: len(server.received) == total)
    assert hashlib.sha256(server.received).digest() == sent.digest()
    assert client.events.count("drained") >= 1
    assert peak <= HIGH_WATER_BYTES + 2 * len(piece)
    bench.settle()
    assert client.pump.backlog_bytes == 0


def test_drained_is_not_signalled_without_congestion(bench: Bench) -> None:
    server, client = bench.opened()
    client.pump.write(bytes(1000))
    bench.until(lambda: len(server.received) == 1000)
    bench.settle()
    assert "drained" not in client.events


@pytest.mark.parametrize("size", [100, 5000, 100_000, 131_072, 400_000])
def test_whoever_saw_congestion_is_told_when_it_is_over(bench: Bench, size: int) -> None:
    """However large the writes are that led to it; else a handler that stopped would wait for ever."""
    server, client = bench.opened()
    server.pump.pause_reading()
    written = 0

    def write_until_congested() -> None:
        nonlocal written
        for _ in range(max(1, 200_000 // size)):
            if client.pump.is_congested:
                return
            client.pump.write(bytes(size))
            written += size
        bench.reactor.call_soon_threadsafe(write_until_congested)

    bench.reactor.call_soon(write_until_congested)
    bench.settle()
    assert client.pump.is_congested
    assert client.pump.backlog_bytes <= HIGH_WATER_BYTES + 2 * max(size, 16384)
    server.pump.resume_reading()
    bench.until(lambda: "drained" in client.events and len(server.received) == written)
    assert not client.pump.is_congested


def test_paused_reader_gets_nothing_until_it_resumes(bench: Bench) -> None:
    server, client = bench.opened()
    server.pump.pause_reading()
    client.pump.write(b"x")
    bench.settle()
    assert server.events == ["handshake"]
    server.pump.resume_reading()
    bench.until(lambda: server.received == b"x")


def test_reader_paused_before_the_handshake_gets_early_data_later(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, {"handshake": lambda recorder: recorder.pump.pause_reading()})
    client = bench.client(client_sock, {"handshake": lambda recorder: recorder.pump.write(b"early")})
    bench.until(lambda: "handshake" in server.events)
    bench.settle()
    assert server.events == ["handshake"]
    server.pump.resume_reading()
    bench.until(lambda: server.received == b"early")
    client.pump.write(b" late")
    bench.until(lambda: server.received == b"early late")


def test_reader_that_pauses_at_each_piece_gets_everything(bench: Bench) -> None:
    def pause_a_while(recorder: Recorder) -> None:
        recorder.pump.pause_reading()
        bench.reactor.call_soon(recorder.pump.resume_reading)

    server, client = bench.opened(server_actions={"data": pause_a_while})
    data = os.urandom(3_000_000)
    client.pump.write(data)
    bench.until(lambda: len(server.received) == len(data))
    assert server.received == data


def test_reader_that_pauses_between_two_fills_of_the_shared_buffer_gets_the_rest_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.tls.engine.PLAIN_BYTES", 20_000)  # one record fills it
    server, client = bench.opened(server_actions={"data": lambda recorder: recorder.pump.pause_reading()})
    data = os.urandom(100_000)
    client.pump.write(data)
    for pieces in range(1, 7):
        bench.settle()
        assert server.events.count("data") == pieces
        assert server.received == data[: pieces * 16384]
        server.pump.resume_reading()
    bench.until(lambda: len(server.received) == len(data))
    client.pump.write(b"more")
    bench.settle()
    server.pump.resume_reading()
    bench.until(lambda: server.received == data + b"more")


def test_one_busy_connection_does_not_starve_another(bench: Bench) -> None:
    """Each readable callback takes one recv: the small message overtakes the rest of the bulk."""
    busy_server, busy_client = bench.opened()
    server, client = bench.opened()
    busy_client.pump.write(bytes(8_000_000))
    bench.settle()
    before = len(busy_server.received)

    def write_both() -> None:
        busy_client.pump.write(bytes(32_000_000))
        client.pump.write(b"x")

    bench.reactor.call_soon(write_both)
    bench.until(lambda: len(server.received) == 1)
    assert len(busy_server.received) - before < 32_000_000


# Ends


def test_close_delivers_what_was_written_and_ends_both_sides_in_order(bench: Bench) -> None:
    server, client = bench.opened(server_actions={"eof": lambda recorder: recorder.pump.close()})
    client.pump.write(b"goodbye")
    client.pump.close()
    client.pump.close()
    client.pump.write(b"ignored")
    bench.until_lost(server, client)
    assert server.received == b"goodbye"
    assert server.events == ["handshake", "data", "eof", "lost"]
    assert client.events == ["handshake", "lost"]
    assert server.error is None
    assert client.error is None


def test_close_does_not_wait_for_the_time_limit_when_the_peer_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.tls.pump._CLOSE_TIMEOUT_S", 1e6)
    server, client = bench.opened(server_actions={"eof": lambda recorder: recorder.pump.close()})
    client.pump.pause_reading()
    client.pump.close()
    bench.until_lost(server, client)


def test_handler_that_closes_on_data_does_not_hear_of_the_end_that_came_with_it(bench: Bench) -> None:
    server, client = bench.opened(server_actions={"data": lambda recorder: recorder.pump.close()})

    def write_and_close() -> None:
        client.pump.write(b"last words")
        client.pump.close()

    bench.reactor.call_soon(write_and_close)
    bench.until_lost(server, client)
    assert server.events == ["handshake", "data", "lost"]


def test_half_closed_connection_still_carries_the_other_direction(bench: Bench) -> None:
    server, client = bench.opened()
    client.pump._engine.close_notify()
    bench.reactor.mark_dirty(client.pump)
    bench.until(lambda: "eof" in server.events)
    server.pump.write(b"still here")
    bench.until(lambda: client.received == b"still here")
    server.pump.close()
    bench.until_lost(server)


def test_large_backlog_is_delivered_before_the_end(bench: Bench) -> None:
    server, client = bench.opened()
    server.pump.pause_reading()
    data = os.urandom(20_000_000)
    client.pump.write(data)
    client.pump.close()
    bench.settle()
    assert "lost" not in client.events
    server.actions["eof"] = lambda recorder: recorder.pump.close()
    server.pump.resume_reading()
    bench.until_lost(server, client)
    assert server.received == data
    assert server.error is None


def test_peer_that_never_takes_the_rest_is_reset_after_a_while(bench: Bench) -> None:
    server, client = bench.opened()
    server.pump.pause_reading()
    client.pump.write(bytes(20_000_000))
    client.pump.close()
    bench.settle()
    bench.skip(5.1)
    bench.until_lost(client)
    assert isinstance(client.error, PeerStalled)
    server.pump.resume_reading()
    bench.until_lost(server)
    assert isinstance(server.error, ConnectionLost)


def test_slow_peer_gets_the_rest_however_long_it_takes_as_long_as_it_takes_some(bench: Bench) -> None:
    server, client = bench.opened({"eof": lambda recorder: recorder.pump.close()})
    server.pump.pause_reading()
    data = os.urandom(24_000_000)
    client.pump.write(data)
    client.pump.close()
    bench.settle()
    server.actions["data"] = lambda recorder: recorder.pump.pause_reading()
    for _ in range(400):
        if "eof" in server.events:
            break
        backlog = client.pump.backlog_bytes
        server.pump.resume_reading()
        bench.settle()
        if client.pump.backlog_bytes < backlog:
            bench.skip(4.9)
    bench.until_lost(server, client)
    assert server.received == data
    assert client.error is None


def test_peer_that_goes_on_sending_after_our_close_does_not_hold_the_connection(bench: Bench) -> None:
    def keep_sending(recorder: Recorder) -> None:
        if not recorder.pump.is_congested:
            recorder.pump.write(bytes(100_000))
        recorder.pump.request_flush()

    server, client = bench.opened()
    bench.reactor.call_soon(lambda: keep_sending(server))
    bench.until(lambda: bool(client.received))
    server.actions["drained"] = keep_sending
    client.pump.close()
    bench.settle()
    assert "lost" not in client.events
    bench.skip(5.1)
    bench.until_lost(client)
    bench.until(lambda: "lost" in server.events or "eof" in server.events)


def test_abort_resets_and_reports_the_given_error(bench: Bench) -> None:
    server, client = bench.opened()
    error = TlsTruncated("as an example")
    client.pump.write(bytes(100))
    client.pump.abort(error)
    client.pump.abort()
    client.pump.close()
    client.pump.pause_reading()
    client.pump.resume_reading()
    client.pump.request_flush()
    bench.until_lost(server, client)
    assert client.error is error
    assert isinstance(server.error, ConnectionLost)


def test_reset_mid_stream_is_reported_once(bench: Bench) -> None:
    server, client = bench.opened()
    client.pump.write(bytes(5_000_000))
    server.pump.write(bytes(5_000_000))
    bench.until(lambda: bool(server.received))
    client.pump._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.pump.abort()
    bench.until_lost(server)
    assert isinstance(server.error, ConnectionLost)
    assert server.events.count("lost") == 1


def test_forged_record_breaks_the_connection(bench: Bench) -> None:
    server, client = bench.opened()
    client.pump._sock.send(b"\x17\x03\x03\x00\x40" + bytes(64))
    bench.until_lost(server)
    assert isinstance(server.error, TlsBroken)
    bench.until_lost(client)
    assert isinstance(client.error, TlsBroken)  # the peer's alert says why


def test_lost_pump_frees_its_memory_without_the_garbage_collector(bench: Bench) -> None:
    server, client = bench.opened()
    server.actions["eof"] = lambda recorder: recorder.pump.close()
    ssl = weakref.ref(client.pump._engine._connection)
    gc.disable()
    try:
        client.pump.close()
        bench.until_lost(server, client)
        assert ssl() is None
    finally:
        gc.enable()


# Re-entrancy: a handler may call anything from anywhere


def _close_then_abort(recorder: Recorder) -> None:
    recorder.pump.close()
    recorder.pump.abort()


def _write_then_close(recorder: Recorder) -> None:
    if recorder.pump.is_open:
        recorder.pump.write(b"bye")
    recorder.pump.close()


def _write_a_lot_then_abort(recorder: Recorder) -> None:
    recorder.pump.write(bytes(3_000_000))
    recorder.pump.abort()


def _pause_then_close(recorder: Recorder) -> None:
    recorder.pump.pause_reading()
    recorder.pump.close()


_CALLS: dict[str, Callable[[Recorder], None]] = {
    "close": lambda recorder: recorder.pump.close(),
    "abort": lambda recorder: recorder.pump.abort(),
    "close then abort": _close_then_abort,
    "write then close": _write_then_close,
    "write a lot then abort": _write_a_lot_then_abort,
    "pause then close": _pause_then_close,
}
_EVENTS = ["handshake", "data", "eof", "flush", "drained", "lost"]


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize("event", _EVENTS)
def test_handler_may_end_the_connection_in_any_callback(bench: Bench, event: str, call: str) -> None:
    server, client = _provoke(bench, event, _CALLS[call])
    assert server.events.count("lost") == client.events.count("lost") == 1
    assert server.events[-1] == client.events[-1] == "lost"


@pytest.mark.parametrize("event", _EVENTS)
def test_handler_that_fails_in_any_callback_loses_its_connection_only(bench: Bench, event: str) -> None:
    bystander, other = bench.opened()

    def fail(recorder: Recorder) -> None:
        raise KeyError("defect")

    server, _ = _provoke(bench, event, fail)
    assert [type(error) for error in bench.errors] == [KeyError]
    bench.errors.clear()
    if event != "lost":
        assert isinstance(server.error, HandlerFailed)
    other.pump.write(b"x")
    bench.until(lambda: bystander.received == b"x")


def _provoke(bench: Bench, event: str, action: Callable[[Recorder], None]) -> tuple[Recorder, Recorder]:
    """Make `event` happen on a server whose action on it, once, is `action`; until both ends are lost."""

    def once(recorder: Recorder) -> None:
        recorder.actions.pop(event)
        action(recorder)

    client_sock, server_sock = bench.pair()
    ends = {"eof": lambda recorder: recorder.pump.close()}
    server = bench.server(server_sock, {**ends, event: once})
    client = bench.client(client_sock, ends)
    bench.until(lambda: "handshake" in client.events and {"handshake", "lost"} & set(server.events) != set())
    if event == "data" and "lost" not in server.events:
        client.pump.write(bytes(500_000))
    elif event in {"eof", "lost"} and "lost" not in server.events:
        client.pump.write(b"x")
        client.pump.close()
    elif event == "drained":
        client.pump.pause_reading()
        server.pump.write(bytes(30_000_000))
        bench.settle()
        client.pump.resume_reading()
    bench.until_lost(server, client)
    bench.settle()
    return server, client
