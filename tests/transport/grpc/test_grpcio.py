"""grpcio as the real peer, in both roles, plaintext and TLS."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trio

from ca.authority import Authority
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.server import CallContext, GrpcServer, ServerLimits, ServerStream
from transport.grpc.status import GrpcError, GrpcStatus
from transport.grpc.tls import TlsTrust, server_context

from .harness import CHAT, ECHO, chat, echo, serving

BIG = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
FAIL = "/test.Echo/Fail"
SLOW = "/test.Echo/Slow"


@pytest.fixture(name="authority")
def _authority(tmp_path: Path) -> Authority:
    return Authority.load_or_create(
        tmp_path / "ca", trust_domain="cluster.local", now=dt.datetime.now(dt.UTC)
    )


async def fail(_request: bytes, _context: CallContext) -> bytes:
    await trio.lowlevel.checkpoint()
    raise GrpcError(GrpcStatus.FAILED_PRECONDITION, "100 % sure: é\n")


class Cancelled:
    def __init__(self) -> None:
        self.event = threading.Event()

    async def slow(self, stream: ServerStream, _context: CallContext) -> None:
        await stream.send(b"started")
        try:
            await trio.sleep_forever()
        finally:
            self.event.set()


def our_server(cancelled: Cancelled | None = None) -> GrpcServer:
    limits = ServerLimits(max_message_bytes=64 << 20)
    return GrpcServer(
        {ECHO: echo, FAIL: fail}, {CHAT: chat, SLOW: (cancelled or Cancelled()).slow}, limits=limits
    )


async def in_thread(work: Callable[[grpc.Channel], None], port: int, roots: str | None = None) -> None:
    def run() -> None:
        if roots is None:
            made = grpc.insecure_channel(f"127.0.0.1:{port}", options=BIG)
        else:
            credentials = grpc.ssl_channel_credentials(roots.encode())
            made = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=BIG)
        with made as channel:
            work(channel)

    await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plaintext", "tls"])
async def test_grpcio_client_calls_our_server(authority: Authority, is_tls: bool) -> None:
    def work(channel: grpc.Channel) -> None:
        unary = channel.unary_unary(ECHO)
        assert unary(b"hello", timeout=10) == b"hello"
        assert unary(b"", timeout=10) == b""
        large = b"L" * 10_000_000
        assert unary(large, timeout=20) == large
        stream = channel.stream_stream(CHAT)
        assert list(stream(iter([b"%d" % n for n in range(100)]), timeout=10)) == [
            b"%d" % n for n in range(100)
        ]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(FAIL)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "100 % sure: é\n"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/no/Such")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    context = None
    if is_tls:
        context = server_context(authority.server_credential([], ["127.0.0.1"], now=dt.datetime.now(dt.UTC)))
    async with serving(our_server(), context) as port:
        await in_thread(work, port, authority.roots_pem if is_tls else None)


async def test_grpcio_cancellation_reaches_our_handler() -> None:
    cancelled = Cancelled()

    def work(channel: grpc.Channel) -> None:
        call = channel.stream_stream(SLOW)(iter([]), timeout=30)
        assert next(call) == b"started"
        call.cancel()
        assert cancelled.event.wait(10)

    async with serving(our_server(cancelled)) as port:
        await in_thread(work, port)


async def test_grpcio_deadline_is_seen_by_our_handler() -> None:
    cancelled = Cancelled()

    def work(channel: grpc.Channel) -> None:
        call = channel.stream_stream(SLOW)(iter([]), timeout=1.0)
        assert next(call) == b"started"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert cancelled.event.wait(10)

    async with serving(our_server(cancelled)) as port:
        await in_thread(work, port)


async def test_grpcio_survives_our_drain() -> None:
    server = our_server()
    drained = trio.Event()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await server.serve(listeners, None, task_status=task_status)
            drained.set()

        await nursery.start(serve)

        def work(channel: grpc.Channel) -> None:
            step = threading.Event()

            def requests() -> Iterator[bytes]:
                yield b"1"
                step.wait(10)
                yield b"2"

            call = channel.stream_stream(CHAT)(requests(), timeout=20)
            assert next(call) == b"1"
            trio.from_thread.run_sync(server.begin_drain)
            step.set()
            assert list(call) == [b"2"]

        await in_thread(work, port)
        await drained.wait()


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.metadata: list[tuple[str, str]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        self.metadata = [(key, value) for key, value in details.invocation_metadata]
        match details.method:
            case method if method == ECHO:
                return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
            case method if method == CHAT:
                return grpc.stream_stream_rpc_method_handler(lambda requests, _context: iter(requests))
            case method if method == FAIL:
                return grpc.unary_unary_rpc_method_handler(self._fail)
            case method if method == SLOW:
                return grpc.stream_stream_rpc_method_handler(self._slow)
        return None

    def _fail(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing here: é %")
        raise AssertionError

    def _slow(self, _requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.cancelled.set)
        yield b"started"
        self.cancelled.wait(20)


@contextmanager
def grpcio_server(authority: Authority | None = None) -> Iterator[tuple[int, Handler, grpc.Server]]:
    handler = Handler()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=BIG)
    server.add_generic_rpc_handlers((handler,))
    if authority is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = authority.server_credential([], ["127.0.0.1"], now=dt.datetime.now(dt.UTC))
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(pair.key_pem, pair.chain_pem.encode())])
        )
    server.start()
    try:
        yield port, handler, server
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("is_tls", [False, True], ids=["plaintext", "tls"])
async def test_our_client_calls_grpcio_server(authority: Authority, is_tls: bool) -> None:
    with grpcio_server(authority if is_tls else None) as (port, handler, _):
        trust = TlsTrust(authority.roots_pem) if is_tls else None
        async with open_channel(ChannelSettings("127.0.0.1", port, trust)) as channel:
            assert (
                await channel.unary(ECHO, b"hello", metadata=[("clusterid", "c")], timeout_s=10) == b"hello"
            )
            assert ("clusterid", "c") in handler.metadata
            large = b"L" * 10_000_000
            assert await channel.unary(ECHO, large, timeout_s=20) == large
            with pytest.raises(GrpcError) as caught:
                await channel.unary(FAIL, b"", timeout_s=10)
            assert caught.value.status is GrpcStatus.NOT_FOUND
            assert caught.value.message == "nothing here: é %"
            with pytest.raises(GrpcError) as caught:
                await channel.unary("/no/Such", b"", timeout_s=10)
            assert caught.value.status is GrpcStatus.UNIMPLEMENTED
            async with channel.stream(CHAT) as stream:
                for number in range(50):
                    await stream.send(b"%d" % number)
                await stream.send_eof()
                received = [message async for message in _messages(stream.receive)]
                assert received == [b"%d" % number for number in range(50)]


async def _messages(receive: Callable[[], object]):  # type: ignore[no-untyped-def]
    while (message := await receive()) is not None:  # type: ignore[misc]
        yield message


async def test_our_cancellation_reaches_grpcio() -> None:
    with grpcio_server() as (port, handler, _):
        async with open_channel(ChannelSettings("127.0.0.1", port)) as channel:
            async with channel.stream(SLOW) as stream:
                assert await stream.receive() == b"started"
            assert await trio.to_thread.run_sync(handler.cancelled.wait, 10)
            assert await channel.unary(ECHO, b"alive", timeout_s=10) == b"alive"


async def test_a_stopping_grpcio_server_ends_the_channel() -> None:
    with grpcio_server() as (port, _, server):
        async with open_channel(ChannelSettings("127.0.0.1", port)) as channel:
            assert await channel.unary(ECHO, b"1", timeout_s=10) == b"1"
            server.stop(None)
            await channel.wait_closed()
            with pytest.raises(GrpcError) as caught:
                await channel.unary(ECHO, b"2", timeout_s=10)
            assert caught.value.status is GrpcStatus.UNAVAILABLE
