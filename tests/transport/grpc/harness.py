"""Helpers of the gRPC tests: servers on loopback, pairs over memory streams, a scripted raw peer."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import hpack
import trio
import trio.testing
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

from transport.grpc.channel import Channel, ChannelSettings, running_channel
from transport.grpc.connection import Connection, ConnectionLimits
from transport.grpc.messages import encode
from transport.grpc.server import CallContext, GrpcServer, ServerLimits, ServerStream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ECHO = "/test.Echo/Unary"
CHAT = "/test.Echo/Chat"
MemoryEnd: TypeAlias = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
SETTINGS = ChannelSettings("server.test", 1)


async def echo(request: bytes, _context: CallContext) -> bytes:
    await trio.lowlevel.checkpoint()
    return request


async def chat(stream: ServerStream, _context: CallContext) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


def echo_server(limits: ServerLimits | None = None) -> GrpcServer:
    return GrpcServer({ECHO: echo}, {CHAT: chat}, limits=limits)


@asynccontextmanager
async def serving(server: GrpcServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """`server` on loopback; gives the port; ends it at once on leaving."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listeners[0].socket.getsockname()[1]
        await nursery.start(server.serve, listeners, tls)
        yield port
        nursery.cancel_scope.cancel()


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Hands out the server ends of memory stream pairs."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](16)

    def dial(self) -> MemoryEnd:
        client, server = trio.testing.memory_stream_pair()
        self.offer(server)
        return client

    def offer(self, server: trio.abc.Stream) -> None:
        """The next connection that the server accepts."""
        self._send.send_nowait(server)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._send.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def memory_server(server: GrpcServer) -> AsyncIterator[MemoryListener]:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [listener], None)
        yield listener
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory_channel(
    stream: trio.abc.Stream, settings: ChannelSettings = SETTINGS
) -> AsyncIterator[Channel]:
    async with running_channel(Connection(stream, settings.limits), settings) as channel:
        yield channel


@asynccontextmanager
async def connected(server: GrpcServer, settings: ChannelSettings = SETTINGS) -> AsyncIterator[Channel]:
    """A channel to `server` over memory."""
    async with memory_server(server) as listener, memory_channel(listener.dial(), settings) as channel:
        yield channel


class RawPeer:
    """The far end of a memory stream, frame by frame, with no rules of its own."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._buffer = bytearray()

    async def send(self, *frames: Frame | bytes) -> None:
        await self.stream.send_all(b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames))

    async def start_as_client(self) -> None:
        await self.send(PREFACE, SettingsFrame(0))

    async def start_as_server(self) -> None:
        while len(self._buffer) < len(PREFACE):
            self._buffer += await self.stream.receive_some()
        assert self._buffer.startswith(PREFACE)
        del self._buffer[: len(PREFACE)]
        await self.send(SettingsFrame(0))

    async def next_frame(self) -> Frame | None:
        """None at the end of the stream."""
        while True:
            frame = self._parse()
            if frame is not None:
                return frame
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer += data

    def _parse(self) -> Frame | None:
        if len(self._buffer) < 9:
            return None
        frame, length = Frame.parse_frame_header(memoryview(bytes(self._buffer[:9])))
        if len(self._buffer) < 9 + length:
            return None
        frame.parse_body(memoryview(bytes(self._buffer[9 : 9 + length])))
        del self._buffer[: 9 + length]
        return frame

    async def expect(self, kind: type[Frame]) -> Frame:
        """The next frame of `kind`; others are passed over."""
        while True:
            frame = await self.next_frame()
            assert frame is not None, f"the stream ended before {kind.__name__}"
            if isinstance(frame, kind):
                return frame

    def headers(
        self, stream_id: int, fields: Sequence[tuple[str, str]], *, end_stream: bool = False
    ) -> HeadersFrame:
        frame = HeadersFrame(stream_id, data=self.encoder.encode(fields))
        frame.flags.add("END_HEADERS")
        if end_stream:
            frame.flags.add("END_STREAM")
        return frame

    def request(
        self, stream_id: int, path: str = ECHO, *, extra: Sequence[tuple[str, str]] = ()
    ) -> HeadersFrame:
        return self.headers(stream_id, [*request_fields(path), *extra])


def request_fields(path: str = ECHO) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "server.test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def data(stream_id: int, payload: bytes, *, end_stream: bool = False) -> DataFrame:
    frame = DataFrame(stream_id, data=payload)
    if end_stream:
        frame.flags.add("END_STREAM")
    return frame


def message(stream_id: int, payload: bytes, *, end_stream: bool = False) -> DataFrame:
    return data(stream_id, encode(payload), end_stream=end_stream)


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


SMALL_WINDOW = ConnectionLimits(stream_window_bytes=65536, connection_window_bytes=1024 * 1024)
