"""The lean codec with curl and nginx over real loopback sockets.

The shells here are the smallest that a codec can live in: read, receive(), act, send take_output(), mind the
flags. `Responder` answers each request with what it got; nginx stands before it as a reverse proxy too.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.kit.requirements import need_program
from tests.transport.http1.wire import content
from transport.http1.codec import Http1Codec, make_codec
from transport.http1.events import ConnectionFailed, DataReceived, Event, Header, HeadersReceived
from transport.http1.settings import Role

BODY = bytes(range(256)) * 6000  # 1 536 000: curl asks for a 100 before it sends so much
PIECE = 50_000


class Responder:
    """Answers with the request's content, or with BODY; by length, or by chunks with a trailer at /chunks."""

    def __init__(self) -> None:
        self.codec: Http1Codec = make_codec(Role.SERVER)
        self.requests: list[list[Header]] = []
        self.received = bytearray()

    def on_event(self, event: Event) -> None:
        match event:
            case HeadersReceived(stream, headers, ends, False):
                self.requests.append(headers)
                self.received.clear()
                if self.codec.awaits_continue:
                    self.codec.send_headers(stream, [(b":status", b"100")])
                if ends:
                    self.respond(stream)
            case DataReceived(stream, data, _, ends):
                self.received += data
                if ends:
                    self.respond(stream)
            case HeadersReceived(stream):
                self.respond(stream)
            case ConnectionFailed():
                raise AssertionError(event)

    def respond(self, stream: int) -> None:
        body = bytes(self.received) or BODY
        if dict(self.requests[-1])[b":path"] != b"/chunks":
            self.codec.send_headers(stream, [(b":status", b"200"), (b"content-length", b"%d" % len(body))])
            self.codec.send_data(stream, body, end_stream=True)
            return
        self.codec.send_headers(stream, [(b":status", b"200"), (b"trailer", b"x-sum")])
        for start in range(0, len(body), PIECE):
            self.codec.send_data(stream, body[start : start + PIECE])
        self.codec.send_headers(stream, [(b"x-sum", b"1")])

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, until either side has had enough."""
        async with stream:
            while not self.codec.is_finished:
                octets = await stream.receive_some()
                events = self.codec.receive(octets) if octets else self.codec.receive_eof()
                while events:
                    for event in events:
                        self.on_event(event)
                    events = self.codec.resume()
                await stream.send_all(self.codec.take_output())


class Farm:
    """A listening Responder for each connection."""

    def __init__(self) -> None:
        self.responders: list[Responder] = []
        self.port = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        responder = Responder()
        self.responders.append(responder)
        await responder.serve(stream)

    @property
    def requests(self) -> list[list[Header]]:
        return [request for responder in self.responders for request in responder.requests]


@asynccontextmanager
async def farm() -> AsyncIterator[Farm]:
    made = Farm()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, made.handle, [listener])
        yield made
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def nginx(folder: Path, backend: int) -> AsyncIterator[trio.SocketStream]:
    """nginx that serves `folder` and passes /to/ on to the backend; a connection to it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr notice;\n"
        "events {}\n"
        "http { access_log off; client_max_body_size 0; keepalive_timeout 60;\n"
        + "".join(
            f" {kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f" server {{ listen 127.0.0.1:{port}; root {folder};\n"
        f"  location /to/ {{ proxy_pass http://127.0.0.1:{backend}/; proxy_http_version 1.1;\n"
        '   proxy_set_header Connection ""; proxy_request_buffering off; proxy_buffering off; } } }\n'
    )
    command = [need_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                command, check=False, stderr=subprocess.PIPE, task_status=task_status
            )
        )
        seen = bytearray()
        while b"event method" not in seen:  # said once its sockets listen
            octets = await process.stderr.receive_some()
            assert octets, f"nginx ended: {seen!r}"
            seen += octets
        nursery.start_soon(swallow, process.stderr)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield stream
        process.terminate()


async def swallow(output: trio.abc.ReceiveStream) -> None:
    async for _ in output:
        pass


async def exchange(
    codec: Http1Codec, stream: trio.SocketStream, headers: Sequence[Header], body: bytes = b""
) -> tuple[dict[bytes, bytes], bytes, list[Header]]:
    """One request; returns the response's headers, content and trailers."""
    number = codec.open_stream(headers, end_stream=not body)
    for start in range(0, len(body), PIECE):
        codec.send_data(number, body[start : start + PIECE])
    if body:
        codec.end_stream(number)
    found: dict[bytes, bytes] = {}
    received = b""
    trailers: list[Header] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, codec.take_output())
        while not codec.is_idle and not codec.is_finished:
            octets = await stream.receive_some(65_536)
            events = codec.receive(octets) if octets else codec.receive_eof()
            received += content(events)
            for event in events:
                assert not isinstance(event, ConnectionFailed), event
                if isinstance(event, HeadersReceived) and event.is_trailers:
                    trailers = event.headers
                elif isinstance(event, HeadersReceived):
                    found = dict(event.headers)
    return found, received, trailers


def get(method: bytes, path: bytes) -> list[Header]:
    return [(b":method", method), (b":scheme", b"http"), (b":authority", b"web"), (b":path", path)]


async def curl(*arguments: str) -> bytes:
    command = [need_program("curl"), "--silent", "--show-error", "--fail", "--max-time", "20", *arguments]
    finished = await trio.run_process(command, capture_stdout=True)
    output: bytes = finished.stdout
    return output


async def test_curl_gets_by_length_and_by_chunks_on_one_connection() -> None:
    async with farm() as server:
        url = f"http://127.0.0.1:{server.port}"
        output = await curl(f"{url}/length", f"{url}/chunks", f"{url}/length")
        assert output == BODY * 3
        assert len(server.responders) == 1
        paths = [dict(request)[b":path"] for request in server.requests]
        assert paths == [b"/length", b"/chunks", b"/length"]


async def test_curl_head_has_no_content() -> None:
    async with farm() as server:
        output = await curl("--head", f"http://127.0.0.1:{server.port}/length")
        assert b"content-length: %d" % len(BODY) in output


@pytest.mark.parametrize("header", ["X-Plain: 1", "Transfer-Encoding: chunked"])
async def test_curl_posts_after_the_100(tmp_path: Path, header: str) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(BODY[::-1])
    async with farm() as server:
        url = f"http://127.0.0.1:{server.port}/chunks"
        output = await curl("--header", header, "--data-binary", f"@{upload}", url)
        assert output == BODY[::-1]
        (request,) = server.requests
        assert dict(request)[b"expect"] == b"100-continue"


async def test_curl_offers_h2c_in_vain() -> None:
    async with farm() as server:
        output = await curl("--http2", f"http://127.0.0.1:{server.port}/length")
        assert output == BODY
        assert b"upgrade" not in dict(server.requests[0])


async def test_files_of_nginx(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    codec = make_codec(Role.CLIENT)
    async with farm() as backend, nginx(tmp_path, backend.port) as stream:
        found, received, _ = await exchange(codec, stream, get(b"GET", b"/file"))
        assert (found[b":status"], received) == (b"200", BODY)
        head, received, _ = await exchange(codec, stream, get(b"HEAD", b"/file"))
        assert (head[b"content-length"], received) == (b"%d" % len(BODY), b"")
        etag = (b"if-none-match", found[b"etag"])
        unchanged, received, _ = await exchange(codec, stream, [*get(b"GET", b"/file"), etag])
        assert (unchanged[b":status"], received) == (b"304", b"")
        missing, received, _ = await exchange(codec, stream, get(b"GET", b"/missing"))
        assert missing[b":status"] == b"404"
        assert received
        refused, _, _ = await exchange(codec, stream, get(b"POST", b"/file"), b"x")
        assert refused[b":status"] == b"405"
        assert codec.current_stream == 5


async def test_through_nginx_both_ways(tmp_path: Path) -> None:
    codec = make_codec(Role.CLIENT)
    async with farm() as backend, nginx(tmp_path, backend.port) as stream:
        for path in (b"/to/length", b"/to/chunks"):
            found, received, _ = await exchange(codec, stream, get(b"GET", path))
            assert (found[b":status"], received) == (b"200", BODY)
            found, received, _ = await exchange(codec, stream, get(b"POST", path), BODY[:-1])
            assert (found[b":status"], received) == (b"200", BODY[:-1])
        assert len(backend.requests) == 4
