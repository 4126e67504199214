"""Bodies that are larger than any buffer, readers that do not read, and neighbours that must not suffer."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waypoint.worker.kit import (
    PATIENCE_S,
    Routes,
    RunningProxy,
    ScriptedServer,
    connect,
    nginx,
    program,
    read_until,
)
from tests.waypoint.worker.test_combinations import CURL_VERSIONS, curl, nghttpd
from transport.http2.codec import make_codec
from transport.http2.events import DataReceived, HeadersReceived, StreamReset
from transport.http2.settings import Role
from waypoint.state.hosts import Application, Endpoint

SIZE = 256 * 1024 * 1024
BOUND = 8 * 1024 * 1024


@contextlib.contextmanager
def bounded_memory(bound: int) -> Iterator[None]:
    """Python's own allocations stay within `bound` of where they were."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak - before < bound
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    with (folder / "file").open("wb") as file:
        file.truncate(SIZE)  # sparse
    return folder


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("upstream", ["nginx", "nghttpd"])
def test_256_mib_pass_in_bounded_memory(big: Path, tmp_path: Path, version: str, upstream: str) -> None:
    with contextlib.ExitStack() as stack:
        if upstream == "nginx":
            endpoint = Endpoint(("127.0.0.1", stack.enter_context(nginx(tmp_path, f"root {big};"))))
        else:
            endpoint = stack.enter_context(nghttpd(big))
        proxy = stack.enter_context(RunningProxy(Routes().to(b"/", endpoint)))
        stack.enter_context(bounded_memory(BOUND))
        url = f"http://127.0.0.1:{proxy.port}/file"
        command = [program("curl"), "-sS", version, "--max-time", "120", url, "-o", "/dev/null"]
        done = subprocess.run(
            [*command, "-w", "%{size_download}"], capture_output=True, check=True, timeout=130
        )
        assert int(done.stdout) == SIZE


@pytest.mark.parametrize("application", list(Application))
def test_a_reader_that_does_not_read_stops_the_sender(tmp_path: Path, application: Application) -> None:
    web = tmp_path / "web"
    web.mkdir()
    with (web / "file").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    (web / "small").write_bytes(b"small")
    with contextlib.ExitStack() as stack:
        if application is Application.HTTP2:
            endpoint = stack.enter_context(nghttpd(web))
        else:
            endpoint = Endpoint(("127.0.0.1", stack.enter_context(nginx(tmp_path, f"root {web};"))))
        proxy = stack.enter_context(RunningProxy(Routes().to(b"/", endpoint)))
        stack.enter_context(bounded_memory(BOUND))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n")
        head = read_until(client, b"\r\n\r\n")
        # Meanwhile others are served.
        assert curl(proxy.port, "/small", "--http1.1") == b"small"
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < 64 * 1024 * 1024:
            got += len(client.recv(1 << 20))


def test_an_upload_waits_for_a_server_that_does_not_read() -> None:
    body = hashlib.sha256(b"seed").digest() * 1024 * 1024  # 32 MiB
    with (
        ScriptedServer() as server,
        RunningProxy(Routes().to(b"/", server.endpoint())) as proxy,
        connect(proxy.port) as client,
    ):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        sender = threading.Thread(target=client.sendall, args=(head + body,))
        with bounded_memory(BOUND):
            sender.start()
            with server.accept() as upstream:
                got = read_until(upstream, b"\r\n\r\n").partition(b"\r\n\r\n")[2]
                seen = hashlib.sha256(got)
                size = len(got)
                while size < len(body):
                    piece = upstream.recv(65536)
                    seen.update(piece)
                    size += len(piece)
                assert seen.digest() == hashlib.sha256(body).digest()
                upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert read_until(client, b"ok")
        sender.join(PATIENCE_S)


class H2Client:
    """A client at the level of frames, to be a bad neighbour with."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.codec = make_codec(Role.CLIENT)
        self.codec.start()
        self.statuses: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.is_crediting = True

    def get(self, path: bytes, *, method: bytes = b"GET", end: bool = True) -> int:
        head = [(b":method", method), (b":scheme", b"http"), (b":authority", b"a"), (b":path", path)]
        stream_id = self.codec.open_stream(head, end)
        self.send()
        return stream_id

    def send(self) -> None:
        output = self.codec.take_output()
        if output:
            self.sock.sendall(output)

    def step(self) -> None:
        data = self.sock.recv(65536)
        assert data, "the connection ended"
        for event in self.codec.receive(data):
            if isinstance(event, HeadersReceived):
                self.statuses.setdefault(event.stream_id, dict(event.headers).get(b":status", b""))
                if event.end_stream:
                    self.ended.add(event.stream_id)
            elif isinstance(event, DataReceived):
                if self.is_crediting:
                    self.codec.consumed(event.stream_id, event.flow_bytes)
                if event.end_stream:
                    self.ended.add(event.stream_id)
            elif isinstance(event, StreamReset):
                self.resets[event.stream_id] = event.code
        self.send()


def test_one_bad_stream_never_ends_another(tmp_path: Path) -> None:
    with ScriptedServer() as server, nginx(tmp_path, 'location / { return 200 "hello"; }') as port:
        routes = Routes().to(b"/bad", server.endpoint()).to(b"/", Endpoint(("127.0.0.1", port)))
        with RunningProxy(routes) as proxy, connect(proxy.port) as sock:
            client = H2Client(sock)
            bad = [client.get(b"/bad/%d" % number) for number in range(3)]
            upstreams = [server.accept() for _ in bad]
            for upstream in upstreams:
                read_until(upstream, b"\r\n\r\n")
            upstreams[0].sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
            upstreams[1].sendall(b"nonsense\r\n\r\n")
            upstreams[2].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
            for upstream in upstreams:
                upstream.close()
            while len(client.resets) < 2 or len(client.ended) < 1:
                client.step()
            good = client.get(b"/good")
            while good not in client.ended:
                client.step()
            assert client.statuses[good] == b"200"
            assert client.statuses[bad[1]] == b"502"
            assert set(client.resets) == {bad[0], bad[2]}


def test_a_malformed_request_ends_its_stream_only(tmp_path: Path) -> None:
    with (
        nginx(tmp_path, 'location / { return 200 "hello"; }') as port,
        RunningProxy(Routes().to(b"/", Endpoint(("127.0.0.1", port)))) as proxy,
        connect(proxy.port) as sock,
    ):
        client = H2Client(sock)
        wrong = client.get(b"/a b")
        good = client.get(b"/")
        while good not in client.ended or wrong not in client.ended:
            client.step()
        assert (client.statuses[wrong], client.statuses[good]) == (b"400", b"200")


def test_refused_streams_are_repeated() -> None:
    with (
        ScriptedServer() as server,
        RunningProxy(Routes().to(b"/", server.endpoint(Application.HTTP2))) as proxy,
        connect(proxy.port) as sock,
    ):
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        with server.accept() as upstream:
            codec = make_codec(Role.SERVER)
            codec.start()
            seen: list[int] = []
            body = b""
            while body != b"body" or len(seen) < 2:
                for event in codec.receive(upstream.recv(65536)):
                    if isinstance(event, HeadersReceived):
                        seen.append(event.stream_id)
                    elif isinstance(event, DataReceived) and event.end_stream and len(seen) == 1:
                        codec.reset(event.stream_id, 7)  # type: ignore[arg-type]
                    elif isinstance(event, DataReceived):
                        body += bytes(event.data)
                upstream.sendall(codec.take_output())
            codec.send_headers(seen[-1], [(b":status", b"204")], True)
            upstream.sendall(codec.take_output())
            assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 204")
        proxy.log.until(lambda log: len(log.exchanges) == 1)
        assert proxy.log.exchanges[0].outcome.attempts == 2
