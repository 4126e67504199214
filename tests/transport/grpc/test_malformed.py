"""Peers that break HTTP/2 or gRPC: the stated answer, and the server serves on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from transport.grpc.channel import ChannelSettings
from transport.grpc.server import ServerLimits
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus

from .harness import (
    CHAT,
    ECHO,
    PREFACE,
    MemoryListener,
    RawPeer,
    data,
    echo_server,
    memory_channel,
    memory_server,
    message,
    request_fields,
)


async def assert_serving(listener: MemoryListener) -> None:
    async with memory_channel(listener.dial()) as channel:
        assert await channel.unary(ECHO, b"fine") == b"fine"


def bad(fields: Sequence[tuple[str, str]]) -> Callable[[RawPeer], list[Frame | bytes]]:
    return lambda peer: [peer.headers(1, fields)]


WITHOUT_METHOD = [field for field in request_fields() if field[0] != ":method"]

BROKEN: list[tuple[str, Callable[[RawPeer], list[Frame | bytes]]]] = [
    ("data on an idle stream", lambda _: [DataFrame(1, data=b"x")]),
    ("frame above the announced size", lambda _: [b"\x10\0\0\0\0\0\0\0\1"]),
    ("settings with a broken length", lambda _: [b"\0\0\x05\x04\0\0\0\0\0" + b"x" * 5]),
    (
        "settings with a forbidden window",
        lambda _: [SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 2**31})],
    ),
    ("ping of seven bytes", lambda _: [b"\0\0\x07\x06\0\0\0\0\0" + b"x" * 7]),
    ("even stream id", lambda peer: [peer.headers(2, request_fields())]),
    ("broken hpack", lambda _: [HeadersFrame(1, data=b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"])]),
    ("continuation without headers", lambda _: [b"\0\0\0\x09\0\0\0\0\1"]),
    ("headers interrupted by ping", lambda _: [HeadersFrame(1, data=b"\x82"), PingFrame(0)]),
    ("upper-case name", bad([*request_fields(), ("X-A", "1")])),
    ("connection header", bad([*request_fields(), ("connection", "close")])),
    ("no method", bad(WITHOUT_METHOD)),
    ("pseudo-field after others", bad([*WITHOUT_METHOD, (":method", "POST")])),
    ("window overflow", lambda _: [WindowUpdateFrame(0, window_increment=2**31 - 1)]),
    ("window update of zero", lambda _: [b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"]),
    ("ping flood", lambda _: [PingFrame(0).serialize() * 5000]),
    ("settings flood", lambda _: [SettingsFrame(0).serialize() * 5000]),
    ("push promise from a client", lambda _: [b"\0\0\x04\x05\x04\0\0\0\1\0\0\0\2"]),
]


@pytest.mark.parametrize(("name", "make"), BROKEN, ids=[name for name, _ in BROKEN])
async def test_a_broken_connection_gets_goaway_and_ends_alone(
    name: str, make: Callable[[RawPeer], list[Frame | bytes]]
) -> None:
    async with memory_server(echo_server()) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        await peer.send(*make(peer))
        goaway = await peer.expect(GoAwayFrame)
        assert isinstance(goaway, GoAwayFrame)
        assert goaway.error_code != 0
        while await peer.next_frame() is not None:
            pass
        await assert_serving(listener)


async def test_no_preface_ends_the_connection() -> None:
    async with memory_server(echo_server()) as listener:
        stream = listener.dial()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while part := await stream.receive_some():
            received += part
        assert b"secret" not in received
        await assert_serving(listener)


async def test_a_silent_client_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(echo_server(ServerLimits(handshake_timeout_s=10))) as listener:
        stream = listener.dial()
        began = trio.current_time()
        while await stream.receive_some():
            pass
        assert trio.current_time() - began == pytest.approx(10, abs=1.5)


async def _open_and_reset_forever(peer: RawPeer) -> None:
    for stream_id in itertools.count(1, 2):
        await peer.send(peer.request(stream_id, CHAT), RstStreamFrame(stream_id, error_code=8))
        await trio.testing.wait_all_tasks_blocked()


async def test_a_rapid_resetter_is_told_to_calm_down() -> None:
    async with memory_server(echo_server()) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        with pytest.raises(trio.BrokenResourceError):
            await _open_and_reset_forever(peer)
        goaway = await peer.expect(GoAwayFrame)
        assert isinstance(goaway, GoAwayFrame)
        assert goaway.error_code == 0xB
        await assert_serving(listener)


async def test_a_surplus_stream_is_refused_and_the_others_live() -> None:
    async with memory_server(echo_server(ServerLimits(max_streams_per_connection=2))) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        await peer.send(*(peer.request(stream_id, CHAT) for stream_id in (1, 3, 5)))
        reset = await peer.expect(RstStreamFrame)
        assert isinstance(reset, RstStreamFrame)
        assert (reset.stream_id, reset.error_code) == (5, 0x7)
        await peer.send(message(1, b"alive", end_stream=True))
        assert (await peer.expect(DataFrame)).stream_id == 1


async def trailers_of(peer: RawPeer, stream_id: int) -> dict[str, str]:
    """The last header block of the stream."""
    while True:
        frame = await peer.expect(HeadersFrame)
        assert isinstance(frame, HeadersFrame)
        fields = dict(peer.decoder.decode(frame.data))
        if frame.stream_id == stream_id and "END_STREAM" in frame.flags:
            return {str(key): str(value) for key, value in fields.items()}


@pytest.mark.parametrize(
    ("extra", "payload", "status"),
    [
        ([("grpc-encoding", "gzip")], b"", GrpcStatus.UNIMPLEMENTED),
        ([("grpc-timeout", "soon")], b"", GrpcStatus.INVALID_ARGUMENT),
        ([("grpc-timeout", "0n")], b"", GrpcStatus.DEADLINE_EXCEEDED),
        ([], b"\1\0\0\0\1x", GrpcStatus.INTERNAL),
        ([], b"\0\0\0\0\x05x", GrpcStatus.INTERNAL),
        ([], b"\0\xff\xff\xff\xff", GrpcStatus.RESOURCE_EXHAUSTED),
    ],
    ids=["compression", "bad timeout", "no time", "compressed message", "cut message", "huge message"],
)
async def test_a_broken_call_gets_a_status(
    extra: list[tuple[str, str]], payload: bytes, status: GrpcStatus
) -> None:
    async with memory_server(echo_server()) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        await peer.send(peer.request(1, extra=extra), data(1, payload, end_stream=True))
        trailers = await trailers_of(peer, 1)
        assert trailers["grpc-status"] == str(int(status))
        assert trailers[":status"] == "200"
        await peer.send(peer.request(3), message(3, b"next", end_stream=True))
        assert (await trailers_of(peer, 3))["grpc-status"] == "0"


async def test_http_that_is_not_grpc_gets_415() -> None:
    async with memory_server(echo_server()) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        fields = [field for field in request_fields() if field[0] != "content-type"]
        await peer.send(peer.headers(1, fields, end_stream=True))
        assert (await trailers_of(peer, 1))[":status"] == "415"


async def _ping_forever(peer: RawPeer) -> None:
    await peer.start_as_client()
    while True:
        await peer.send(PingFrame(0).serialize() * 100)


async def test_a_peer_that_provokes_answers_and_reads_none_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Unbounded memory streams would hide it: this stream takes nothing from the server.
    async with memory_server(echo_server()) as listener:
        client, server = trio.testing.lockstep_stream_pair()
        listener.offer(server)
        peer = RawPeer(client)
        with pytest.raises(trio.BrokenResourceError):
            await _ping_forever(peer)
        await assert_serving(listener)


# --- a broken server ---


@pytest.mark.parametrize(
    ("fields", "end_stream", "status"),
    [
        ([(":status", "503")], True, GrpcStatus.UNAVAILABLE),
        ([(":status", "404"), ("content-type", "text/html")], False, GrpcStatus.UNIMPLEMENTED),
        ([(":status", "200"), ("content-type", "text/html")], False, GrpcStatus.UNKNOWN),
        ([(":status", "200"), ("content-type", "application/grpc")], True, GrpcStatus.UNKNOWN),
        (
            [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "7")],
            True,
            GrpcStatus.PERMISSION_DENIED,
        ),
        (
            [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")],
            False,
            GrpcStatus.INTERNAL,
        ),
    ],
)
async def test_odd_responses_become_errors(
    fields: list[tuple[str, str]], end_stream: bool, status: GrpcStatus
) -> None:
    client, server = trio.testing.memory_stream_pair()
    peer = RawPeer(server)
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.start_as_server()
            await peer.expect(HeadersFrame)
            await peer.send(peer.headers(1, fields, end_stream=end_stream))
            if not end_stream:
                await peer.send(data(1, b"<html>this is no message</html>"))

        nursery.start_soon(answer)
        async with memory_channel(client) as channel:
            with pytest.raises(GrpcError) as caught:
                await channel.unary(ECHO, b"")
            assert caught.value.status is status


async def test_a_stream_without_trailers_is_an_error() -> None:
    client, server = trio.testing.memory_stream_pair()
    peer = RawPeer(server)
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.start_as_server()
            await peer.expect(HeadersFrame)
            await peer.send(peer.headers(1, [(":status", "200"), ("content-type", "application/grpc")]))
            await peer.send(message(1, b"answer", end_stream=True))

        nursery.start_soon(answer)
        async with memory_channel(client) as channel:
            with pytest.raises(GrpcError, match="without a status"):
                await channel.unary(ECHO, b"")


async def test_goaway_fails_unserved_calls_and_lets_served_ones_finish() -> None:
    client, server = trio.testing.memory_stream_pair()
    peer = RawPeer(server)
    results: list[object] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.start_as_server)
        async with memory_channel(client) as channel, trio.open_nursery() as calls:

            async def call() -> None:
                try:
                    results.append(await channel.unary(ECHO, b""))
                except ChannelUnavailable as error:
                    results.append(str(error))

            calls.start_soon(call)
            await peer.expect(HeadersFrame)
            calls.start_soon(call)
            await peer.expect(HeadersFrame)
            await peer.send(GoAwayFrame(0, last_stream_id=1, additional_data=b"restarting"))
            await trio.testing.wait_all_tasks_blocked()
            assert results == ["gRPC UNAVAILABLE: received prior goaway: restarting [MYC-1302]"]
            await peer.send(
                peer.headers(1, [(":status", "200"), ("content-type", "application/grpc")]),
                message(1, b"served"),
                peer.headers(1, [("grpc-status", "0")], end_stream=True),
            )
            await channel.wait_closed()
        assert results[1:] == [b"served"]


@pytest.mark.parametrize("raw", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\0\2\2\x46", PREFACE])
async def test_a_server_of_another_protocol_is_unavailable(raw: bytes) -> None:
    client, server = trio.testing.memory_stream_pair()
    await server.send_all(raw)
    await server.send_eof()
    with pytest.raises(ChannelUnavailable):
        async with memory_channel(client, ChannelSettings("x", 1)):
            raise AssertionError
