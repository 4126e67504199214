"""Cancelled anywhere: nothing leaks, the channel and the server live on."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hyperframe.frame import RstStreamFrame

from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.server import CallContext, GrpcServer, ServerLimits, ServerStream
from transport.grpc.status import GrpcError, GrpcStatus
from transport.grpc.tls import SYSTEM_ROOTS, TlsTrust

from .harness import (
    CHAT,
    ECHO,
    RawPeer,
    connected,
    echo,
    echo_server,
    memory_channel,
    memory_server,
    message,
    serving,
)


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after a number of task steps."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@pytest.mark.parametrize("steps", range(1, 60))
async def test_a_unary_call_cancelled_at_any_step_leaves_the_channel_usable(steps: int) -> None:
    running = 0

    async def counted(request: bytes, context: CallContext) -> bytes:
        nonlocal running
        running += 1
        try:
            return await echo(request, context)
        finally:
            running -= 1

    limits = ServerLimits(stream_window_bytes=65536)
    async with connected(GrpcServer({ECHO: counted}, limits=limits)) as channel:
        with trio.CancelScope() as scope:
            instrument = CancelAfter(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await channel.unary(ECHO, b"x" * 200_000)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await trio.testing.wait_all_tasks_blocked()
        assert running == 0
        assert channel._connection.open_calls == 0
        assert await channel.unary(ECHO, b"after") == b"after"


@pytest.mark.parametrize("is_tls", [False, True])
async def test_connecting_may_be_cancelled(is_tls: bool) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")  # accepts in the kernel, never answers
    trust = TlsTrust(SYSTEM_ROOTS) if is_tls else None
    settings = ChannelSettings("127.0.0.1", listeners[0].socket.getsockname()[1], trust)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hold_open, settings)
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
    assert scope.cancelled_caught
    await listeners[0].aclose()


async def _hold_open(settings: ChannelSettings) -> None:
    async with open_channel(settings):
        raise AssertionError("there is nobody to answer")


async def test_many_connections_come_and_go_without_residue() -> None:
    server = echo_server()
    async with serving(server) as port:
        settings = ChannelSettings("127.0.0.1", port)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(_one_call, settings)
        with trio.fail_after(10):  # a leak never gets back to where it was
            while server.open_connections or trio.lowlevel.current_statistics().tasks_living > before:
                await trio.testing.wait_all_tasks_blocked()


async def _one_call(settings: ChannelSettings) -> None:
    async with open_channel(settings) as channel:
        assert await channel.unary(ECHO, b"x") == b"x"


async def test_calls_work_over_a_transport_that_buffers_nothing() -> None:
    async with memory_server(echo_server()) as listener:
        client, far = trio.testing.lockstep_stream_pair()
        listener.offer(far)
        async with memory_channel(client) as channel:
            payload = b"0123456789" * 50_000
            assert await channel.unary(ECHO, payload) == payload


async def test_a_client_that_does_not_read_stops_the_server_at_the_window() -> None:
    sent = 0

    async def flood(stream: ServerStream, _context: CallContext) -> None:
        nonlocal sent
        while True:
            await stream.send(b"f" * 60_000)
            sent += 60_005

    async with connected(GrpcServer({ECHO: echo}, {CHAT: flood})) as channel:
        async with channel.stream(CHAT) as stream:
            await trio.testing.wait_all_tasks_blocked()
            window = 4 * 1024 * 1024
            assert window - 60_005 <= sent <= window
            assert await channel.unary(ECHO, b"not blocked") == b"not blocked"
            for _ in range(40):
                assert await stream.receive() is not None
            await trio.testing.wait_all_tasks_blocked()
            assert sent > window
        await trio.testing.wait_all_tasks_blocked()
        stopped_at = sent
        await trio.testing.wait_all_tasks_blocked()
        assert sent == stopped_at


async def test_a_unary_answer_that_nobody_reads_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    done = trio.Event()

    async def large(_request: bytes, _context: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        done.set()
        return b"x" * 1_000_000

    server = GrpcServer({ECHO: large}, limits=ServerLimits(response_timeout_s=5))
    async with memory_server(server) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        await peer.send(peer.request(1), message(1, b"", end_stream=True))
        await done.wait()
        await trio.sleep(6)
        reset = await peer.expect(RstStreamFrame)
        assert reset.stream_id == 1


async def test_a_draining_server_does_not_wait_for_a_mute_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = echo_server()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await nursery.start(server.serve, listeners, None)
        mute = await trio.open_tcp_stream("127.0.0.1", port)
        await RawPeer(mute).start_as_client()
        while not server.open_connections:
            await trio.lowlevel.checkpoint()
        server.begin_drain()
    await mute.aclose()


async def test_a_long_lived_handler_sees_the_drain() -> None:
    async def until_drain(stream: ServerStream, context: CallContext) -> None:
        await stream.send(b"hello")
        await context.draining.wait()
        raise GrpcError(GrpcStatus.UNAVAILABLE, "restarting")

    server = GrpcServer(streams={CHAT: until_drain})
    async with connected(server) as channel, channel.stream(CHAT) as stream:
        assert await stream.receive() == b"hello"
        server.begin_drain()
        with pytest.raises(GrpcError, match="restarting"):
            await stream.receive()
