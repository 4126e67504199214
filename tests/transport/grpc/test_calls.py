"""Our client against our server, over memory streams: results, errors, cancellation, deadlines, drain."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from transport.grpc.channel import ChannelSettings
from transport.grpc.server import CallContext, GrpcServer, ServerLimits, ServerStream
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus

from .harness import CHAT, ECHO, MemoryListener, connected, echo, echo_server, memory_channel, memory_server


async def test_unary_returns_the_handlers_answer() -> None:
    async with connected(echo_server()) as channel:
        assert await channel.unary(ECHO, b"hello", timeout_s=5) == b"hello"
        assert await channel.unary(ECHO, b"", timeout_s=5) == b""


async def test_large_messages_pass_in_both_directions() -> None:
    large = bytes(range(256)) * 20_000
    async with connected(echo_server()) as channel:
        assert await channel.unary(ECHO, large) == large


async def test_a_stream_ends_cleanly_after_half_close() -> None:
    async with connected(echo_server()) as channel, channel.stream(CHAT) as stream:
        for number in range(20):
            await stream.send(b"%d" % number)
        await stream.send_eof()
        assert [await stream.receive() for _ in range(20)] == [b"%d" % n for n in range(20)]
        assert await stream.receive() is None
        assert await stream.receive() is None


async def test_metadata_travels_both_ways() -> None:
    seen: list[CallContext] = []

    async def handler(request: bytes, context: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        seen.append(context)
        context.trailing_metadata.append(("x-trailer", "t"))
        return request

    server = GrpcServer({ECHO: handler}, {CHAT: _say_bye})
    async with connected(server) as channel:
        await channel.unary(ECHO, b"", metadata=[("authorization", "Bearer x"), ("raw-bin", b"\0\xff")])
        assert seen[0].metadata.get("authorization") == "Bearer x"
        assert seen[0].metadata.get_all("raw-bin") == [b"\0\xff"]
        assert seen[0].method == ECHO
        async with channel.stream(CHAT) as stream:
            assert await stream.receive() == b"bye"
            assert await stream.receive() is None
            assert stream.trailing_metadata.get("x-end") == "yes"


async def _say_bye(stream: ServerStream, context: CallContext) -> None:
    context.trailing_metadata.append(("x-end", "yes"))
    await stream.send(b"bye")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            GrpcError(GrpcStatus.NOT_FOUND, "no 100 % such thing é"),
            GrpcStatus.NOT_FOUND,
            "no 100 % such thing é",
        ),
        (RuntimeError("a secret"), GrpcStatus.INTERNAL, "internal error"),
        (KeyError("a secret"), GrpcStatus.INTERNAL, "internal error"),
        (
            ExceptionGroup("g", [GrpcError(GrpcStatus.ABORTED, "in a nursery")]),
            GrpcStatus.ABORTED,
            "in a nursery",
        ),
    ],
)
async def test_what_a_handler_raises_becomes_a_status(
    error: Exception, status: GrpcStatus, text: str
) -> None:
    logged: list[Exception] = []

    async def failing(_request: bytes, _context: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        raise error

    server = GrpcServer({ECHO: failing}, on_error=lambda _method, caught: logged.append(caught))
    async with connected(server) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(ECHO, b"x")
        assert (caught.value.status, caught.value.message) == (status, text)
        assert logged == ([error] if status is GrpcStatus.INTERNAL else [])
        assert channel.is_usable


async def test_a_status_after_messages_comes_after_them() -> None:
    async def handler(stream: ServerStream, _context: CallContext) -> None:
        await stream.send(b"1")
        await stream.send(b"2")
        raise GrpcError(GrpcStatus.DATA_LOSS, "then this")

    async with connected(GrpcServer(streams={CHAT: handler})) as channel, channel.stream(CHAT) as stream:
        assert await stream.receive() == b"1"
        assert await stream.receive() == b"2"
        with pytest.raises(GrpcError, match="then this"):
            await stream.receive()


async def test_sending_on_a_call_that_the_server_ended_raises() -> None:
    async def handler(_stream: ServerStream, _context: CallContext) -> None:
        await trio.lowlevel.checkpoint()
        raise GrpcError(GrpcStatus.PERMISSION_DENIED, "go away")

    async with connected(GrpcServer(streams={CHAT: handler})) as channel, channel.stream(CHAT) as stream:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(GrpcError):
            await stream.send(b"x")
        with pytest.raises(GrpcError, match="go away"):
            await stream.receive()


async def test_unknown_methods_are_unimplemented() -> None:
    async with connected(echo_server()) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary("/test.Echo/Nothing", b"")
        assert caught.value.status is GrpcStatus.UNIMPLEMENTED


async def test_admission_is_decided_before_a_message_is_read() -> None:
    def admit(context: CallContext) -> None:
        if context.metadata.get("authorization") != "Bearer good":
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "who are you?")

    server = GrpcServer({ECHO: echo}, admit=admit)
    async with connected(server) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(ECHO, b"x" * 1_000_000)
        assert caught.value.status is GrpcStatus.UNAUTHENTICATED
        assert await channel.unary(ECHO, b"x", metadata=[("authorization", "Bearer good")]) == b"x"


@pytest.mark.parametrize("limited_by", ["server", "method", "client"])
async def test_oversized_messages_are_refused_and_the_channel_lives(limited_by: str) -> None:
    limits = ServerLimits(max_message_bytes=1000 if limited_by == "server" else 1 << 20)
    server = GrpcServer(
        {ECHO: echo}, limits=limits, request_limits={ECHO: 1000} if limited_by == "method" else None
    )
    settings = ChannelSettings("x", 1, max_message_bytes=1000 if limited_by == "client" else 1 << 20)
    async with connected(server, settings) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(ECHO, b"x" * 1001)
        assert caught.value.status is GrpcStatus.RESOURCE_EXHAUSTED
        assert await channel.unary(ECHO, b"x" * 900) == b"x" * 900


async def test_the_deadline_travels_and_ends_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    left: list[float] = []

    async def slow(_request: bytes, context: CallContext) -> bytes:
        left.append(context.deadline - trio.current_time())
        await trio.sleep_forever()
        raise AssertionError

    async with connected(GrpcServer({ECHO: slow})) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(ECHO, b"", timeout_s=7)
        assert caught.value.status is GrpcStatus.DEADLINE_EXCEEDED
        assert left == [pytest.approx(7, abs=0.01)]
        assert channel.is_usable


async def test_cancelling_a_call_cancels_its_handler_and_nothing_else() -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def endless(_stream: ServerStream, _context: CallContext) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = GrpcServer({ECHO: echo}, {CHAT: endless})
    async with connected(server) as channel:
        with trio.CancelScope() as scope:
            async with channel.stream(CHAT) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive)
                await started.wait()
                scope.cancel()
        await cancelled.wait()
        assert await channel.unary(ECHO, b"still here") == b"still here"


async def test_cancelling_a_receive_loses_no_message() -> None:
    async with connected(echo_server()) as channel, channel.stream(CHAT) as stream:
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        await stream.send(b"kept")
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert await stream.receive() == b"kept"


async def test_cancelling_a_send_midway_resets_the_call() -> None:
    release = trio.Event()

    async def idle(stream: ServerStream, _context: CallContext) -> None:
        await release.wait()
        await stream.receive()

    server = GrpcServer({ECHO: echo}, {CHAT: idle})
    async with connected(server) as channel:
        async with channel.stream(CHAT) as stream:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send, b"x" * 3_000_000)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            with pytest.raises(GrpcError) as caught:
                await stream.send(b"more")
            assert caught.value.status is GrpcStatus.CANCELLED
        assert await channel.unary(ECHO, b"ok") == b"ok"


async def test_leaving_with_an_exception_keeps_the_exception() -> None:
    async with memory_server(echo_server()) as listener:
        with pytest.raises(ZeroDivisionError):
            async with memory_channel(listener.dial()) as channel, channel.stream(CHAT):
                raise ZeroDivisionError
        async with memory_channel(listener.dial()) as channel:
            assert await channel.unary(ECHO, b"1") == b"1"


async def test_an_idle_reader_stops_the_sender_and_not_the_others() -> None:
    """Credit is given for consumed messages only; other calls of the channel go on."""
    sent = 0
    release = trio.Event()

    async def lazy(stream: ServerStream, _context: CallContext) -> None:
        await release.wait()
        while await stream.receive() is not None:
            pass

    limits = ServerLimits(stream_window_bytes=65536)
    async with (
        connected(GrpcServer({ECHO: echo}, {CHAT: lazy}, limits=limits)) as channel,
        channel.stream(CHAT) as stream,
    ):

        async def flood() -> None:
            nonlocal sent
            for _ in range(100):
                await stream.send(b"m" * 8000)
                sent += 1
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked()
            assert sent == 65536 // 8005
            assert await channel.unary(ECHO, b"not blocked") == b"not blocked"
            release.set()
        assert sent == 100
        assert await stream.receive() is None


async def test_unread_bytes_of_one_connection_are_bounded() -> None:
    async def lazy(_stream: ServerStream, context: CallContext) -> None:
        await context.draining.wait()

    limits = ServerLimits(stream_window_bytes=65536, max_unread_bytes_per_connection=150_000)
    async with (
        connected(GrpcServer(streams={CHAT: lazy}, limits=limits)) as channel,
        trio.open_nursery() as nursery,
    ):
        outcomes: list[GrpcStatus] = []

        async def fill() -> None:
            async with channel.stream(CHAT) as stream:
                try:
                    while True:
                        await stream.send(b"z" * 8000)
                except GrpcError as error:
                    outcomes.append(error.status)

        for _ in range(4):
            nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == [GrpcStatus.RESOURCE_EXHAUSTED] * 2
        nursery.cancel_scope.cancel()


async def test_calls_above_the_stream_limit_wait_their_turn() -> None:
    running = most = 0

    async def counted(request: bytes, _context: CallContext) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.testing.wait_all_tasks_blocked()
        running -= 1
        return request

    server = GrpcServer({ECHO: counted}, limits=ServerLimits(max_streams_per_connection=3))
    async with connected(server) as channel:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(channel.unary, ECHO, b"%d" % number)
        assert most == 3


async def test_a_drain_lets_open_calls_finish_and_takes_no_new_ones() -> None:
    release = trio.Event()

    async def slow(request: bytes, _context: CallContext) -> bytes:
        await release.wait()
        return request

    server = GrpcServer({ECHO: slow})
    listener_done = trio.Event()
    async with trio.open_nursery() as outer:
        listener = MemoryListener()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await server.serve([listener], None, task_status=task_status)
            listener_done.set()

        await outer.start(serve)
        async with memory_channel(listener.dial()) as channel:
            results: list[bytes] = []

            async def call() -> None:
                results.append(await channel.unary(ECHO, b"finish me"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                server.begin_drain()
                await trio.testing.wait_all_tasks_blocked()
                assert not channel.is_usable
                with pytest.raises(ChannelUnavailable, match="received prior goaway"):
                    await channel.unary(ECHO, b"too late")
                release.set()
            assert results == [b"finish me"]
            await channel.wait_closed()
        await listener_done.wait()


async def test_a_lost_connection_fails_open_calls_and_cancels_handlers() -> None:
    cancelled = trio.Event()

    async def endless(_stream: ServerStream, _context: CallContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with memory_server(GrpcServer(streams={CHAT: endless})) as listener:
        dialled = listener.dial()
        async with memory_channel(dialled) as channel, channel.stream(CHAT) as stream:
            await trio.testing.wait_all_tasks_blocked()
            await dialled.send_stream.aclose()
            await cancelled.wait()
            with pytest.raises(ChannelUnavailable, match="transport is closing"):
                await stream.receive()
            assert not channel.is_usable
            with pytest.raises(ChannelUnavailable):
                await channel.unary(ECHO, b"")


async def test_connections_above_the_limit_are_closed_at_once() -> None:
    async with memory_server(echo_server(ServerLimits(max_connections=1))) as listener:
        async with memory_channel(listener.dial()) as first:
            assert await first.unary(ECHO, b"1") == b"1"
            with pytest.raises(ChannelUnavailable):
                async with memory_channel(listener.dial()):
                    pass
            assert await first.unary(ECHO, b"2") == b"2"
        await trio.testing.wait_all_tasks_blocked()
        async with memory_channel(listener.dial()) as again:
            assert await again.unary(ECHO, b"3") == b"3"


async def test_a_request_without_message_or_with_two_is_refused() -> None:
    async with connected(echo_server()) as channel:
        for count in (0, 2):
            async with channel.stream(ECHO) as stream:
                for _ in range(count):
                    await stream.send(b"m")
                await stream.send_eof()
                with pytest.raises(GrpcError) as caught:
                    await stream.receive()
                assert caught.value.status is GrpcStatus.INVALID_ARGUMENT


async def test_a_unary_request_that_never_comes_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        connected(echo_server(ServerLimits(request_timeout_s=5))) as channel,
        channel.stream(ECHO) as stream,
    ):
        with pytest.raises(GrpcError) as caught:
            await stream.receive()
        assert caught.value.status is GrpcStatus.DEADLINE_EXCEEDED


async def test_idle_connections_are_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(echo_server(ServerLimits(idle_timeout_s=100))) as channel:
        assert await channel.unary(ECHO, b"1") == b"1"
        await channel.wait_closed()
