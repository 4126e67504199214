"""The lean codec and nghttp2's own programs over a real loopback socket (prior knowledge, no TLS)."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.transport.http2.wire import merged
from transport.http2.codec import Http2Codec, make_codec
from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    StreamReset,
    WindowOpened,
)
from transport.http2.settings import Role

pytestmark = pytest.mark.skipif(
    not (shutil.which("nghttp") and shutil.which("nghttpd") and shutil.which("h2load")),
    reason="nghttp2-client and nghttp2-server are not installed",
)

BODY = bytes(range(256)) * 1500  # 384 000: several windows of 65 535


class Responder:
    """A server without any policy: answers each request with BODY, and a POST with the sum of its octets."""

    def __init__(self) -> None:
        self.codec: Http2Codec = make_codec(Role.SERVER)
        self.codec.start()
        self.unsent: dict[int, memoryview] = {}
        self.sums: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        match event:
            case HeadersReceived(stream, headers, ends, _):
                if (b":method", b"POST") in headers:
                    self.sums[stream] = 0
                if ends:
                    self.respond(stream)
            case DataReceived(stream, data, flow_bytes, ends):
                self.sums[stream] += sum(data)
                self.codec.consumed(stream, flow_bytes)
                if ends:
                    self.respond(stream)
            case WindowOpened(0):
                for stream in list(self.unsent):
                    self.push(stream)
            case WindowOpened(stream):
                self.push(stream)
            case StreamReset(stream):
                self.unsent.pop(stream, None)
            case ConnectionFailed():
                raise AssertionError(event)

    def respond(self, stream: int) -> None:
        body = b"%d" % self.sums.pop(stream) if stream in self.sums else BODY
        self.codec.send_headers(stream, [(b":status", b"200"), (b"content-length", b"%d" % len(body))])
        self.unsent[stream] = memoryview(body)
        self.push(stream)

    def push(self, stream: int) -> None:
        """Send what the windows allow."""
        left = self.unsent.pop(stream, memoryview(b""))
        size = min(self.codec.sendable(stream), len(left))
        if size:
            self.codec.send_data(stream, left[:size], end_stream=size == len(left))
        if size < len(left):
            self.unsent[stream] = left[size:]

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, until the peer has had enough."""
        async with stream:
            await stream.send_all(self.codec.take_output())
            async for octets in stream:
                for event in self.codec.receive(octets):
                    self.on_event(event)
                try:
                    await stream.send_all(self.codec.take_output())
                except trio.BrokenResourceError:
                    return  # the client is gone with our last acknowledgement still on its way


@asynccontextmanager
async def responding() -> AsyncIterator[int]:
    """A port on which every connection gets a Responder."""

    async def handle(stream: trio.SocketStream) -> None:
        await Responder().serve(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def run(*command: str) -> bytes:
    """The standard output of a program that must succeed."""
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    assert isinstance(done.stdout, bytes)
    return done.stdout


async def test_nghttp_gets_a_large_body_through_default_windows() -> None:
    async with responding() as port:
        assert await run("nghttp", f"http://127.0.0.1:{port}/") == BODY


async def test_nghttp_gets_with_padding_small_frames_and_a_tiny_table() -> None:
    async with responding() as port:
        url = f"http://127.0.0.1:{port}/path?query"
        options = [
            "--padding=200",
            "--window-bits=10",
            "--connection-window-bits=11",
            "--header-table-size=0",
        ]
        assert await run("nghttp", *options, url) == BODY


async def test_nghttp_posts_a_body_larger_than_our_window(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(BODY * 20)  # 7.7 MB: beyond the stream window of 4 MiB
    async with responding() as port:
        answer = await run("nghttp", "-d", str(upload), f"http://127.0.0.1:{port}/upload")
    assert answer == b"%d" % sum(BODY * 20)


async def test_nghttp_sends_long_headers_in_continuations_and_trailers(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"abc")
    long = [f"-Hx-long-{number}: {'v' * 4000}" for number in range(3)]
    async with responding() as port:
        url = f"http://127.0.0.1:{port}/"
        command = ["nghttp", "--continuation", *long, "--trailer=x-sum: 1", "-d", str(upload), url]
        assert await run(*command) == b"%d" % sum(b"abc")


async def test_h2load_runs_many_streams_at_once() -> None:
    async with responding() as port:
        report = await run("h2load", "-n", "300", "-c", "3", "-m", "50", f"http://127.0.0.1:{port}/")
    assert b"300 succeeded, 0 failed" in report


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def nghttpd(folder: Path) -> AsyncIterator[trio.SocketStream]:
    """A connection to an nghttpd that serves this folder and echoes uploads."""
    port = free_port()
    command = [
        "nghttpd",
        "--no-tls",
        "--echo-upload",
        "-v",
        "--address=127.0.0.1",
        f"--htdocs={folder}",
        str(port),
    ]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        assert process.stdout is not None
        seen = b""
        while f"listen 127.0.0.1:{port}".encode() not in seen:
            octets = await process.stdout.receive_some()
            assert octets, f"nghttpd ended: {seen!r}"
            seen += octets
        nursery.start_soon(swallow, process.stdout)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield stream
        process.terminate()


async def swallow(output: trio.abc.ReceiveStream) -> None:
    async for _ in output:
        pass


async def finish(codec: Http2Codec, stream: trio.SocketStream) -> list[Event]:
    """Exchange until no stream is open; DATA is consumed."""
    seen: list[Event] = []
    while codec.open_streams:
        await stream.send_all(codec.take_output())
        octets = await stream.receive_some()
        assert octets, "nghttpd closed the connection"
        for event in codec.receive(octets):
            assert not isinstance(event, ConnectionFailed | GoAwayReceived), event
            if isinstance(event, DataReceived):
                codec.consumed(event.stream_id, event.flow_bytes)
            seen = merged([*seen, event])
    return seen


def request(method: bytes, path: bytes) -> list[tuple[bytes, bytes]]:
    return [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"127.0.0.1")]


async def test_client_gets_files_from_nghttpd(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    codec = make_codec(Role.CLIENT)
    codec.start()
    async with nghttpd(tmp_path) as stream:
        for _ in range(3):
            codec.open_stream(request(b"GET", b"/file"), end_stream=True)
        codec.open_stream(request(b"HEAD", b"/file"), end_stream=True)
        codec.open_stream(request(b"GET", b"/missing"), end_stream=True)
        events = await finish(codec, stream)
    statuses = {
        event.stream_id: event.headers[0][1] for event in events if isinstance(event, HeadersReceived)
    }
    assert statuses == {1: b"200", 3: b"200", 5: b"200", 7: b"200", 9: b"404"}
    sizes = dict.fromkeys([1, 3, 5], 0)
    for event in events:
        if isinstance(event, DataReceived) and event.stream_id in sizes:
            sizes[event.stream_id] += len(event.data)
    assert set(sizes.values()) == {len(BODY)}


async def test_client_posts_to_nghttpd_and_gets_it_back(tmp_path: Path) -> None:
    codec = make_codec(Role.CLIENT)
    codec.start()
    async with nghttpd(tmp_path) as stream:
        upload = codec.open_stream(request(b"POST", b"/echo"))
        left = memoryview(BODY)
        received = bytearray()
        while codec.open_streams:
            size = min(codec.sendable(upload), len(left))
            if size:
                codec.send_data(upload, left[:size], end_stream=size == len(left))
                left = left[size:]
            await stream.send_all(codec.take_output())
            for event in codec.receive(await stream.receive_some()):
                assert not isinstance(event, ConnectionFailed), event
                if isinstance(event, DataReceived):
                    received += event.data
                    codec.consumed(upload, event.flow_bytes)
    assert received == BODY
