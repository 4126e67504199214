"""Floods at a real waypoint, at both places where it reads HTTP/2, and over HTTP/1 (authz-cases 11).

Each attacker is cut off with the code that says why, and neighbours go on. Nothing is said of time here.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.kit import attacks
from tests.kit.attacks import (
    DATA,
    FLOODS,
    HTTP1_ATTACKS,
    OPENING,
    RST,
    connect_block,
    frame,
    head,
    request_block,
)
from tests.transport.hbone.kit import context_for
from tests.waypoint.worker.kit import (
    PATIENCE_S,
    Routes,
    RunningProxy,
    ScriptedServer,
    connect,
    nginx,
    read_until,
)
from tests.waypoint.worker.test_hbone import CLIENT, WAYPOINT, Mesh
from tests.waypoint.worker.test_streaming import BOUND, H2Client, bounded_memory
from transport.http2 import frames
from transport.http2.error_codes import ErrorCode
from waypoint.state.hosts import Endpoint
from waypoint.worker.plan import Declared

PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GOAWAY = 7
MOST_BYTES = 64 << 20  # an attacker that has sent so much was not cut off


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder: Path = tmp_path_factory.mktemp("nginx")
    (folder / "big").write_bytes(bytes(8 << 20))
    locations = f'location / {{ return 200 "hello"; }} location /big {{ root {folder}; }}'
    with nginx(folder, locations) as port:
        yield Endpoint(("127.0.0.1", port))


@pytest.fixture
def proxy(backend: Endpoint) -> Iterator[RunningProxy]:
    with RunningProxy(Routes(tcp=backend).to(b"/", backend)) as proxy:
        proxy.log.is_forgetful = True
        yield proxy


@contextlib.contextmanager
def neighbours(port: int) -> Iterator[None]:
    """An HTTP/1 and an HTTP/2 client that were there before, are served after, and so is a new one."""
    with connect(port) as old, connect(port) as other:
        client = H2Client(other)
        _serve(old, client)
        yield
        _serve(old, client)
        with connect(port) as new:
            new.sendall(PLAIN)
            read_until(new, b"hello")


def _serve(sock: socket.socket, client: H2Client) -> None:
    sock.sendall(PLAIN)
    assert read_until(sock, b"hello").startswith(b"HTTP/1.1 200")
    stream = client.get(b"/")
    while stream not in client.ended:
        client.step()
    assert client.statuses[stream] == b"200"


def attack(sock: socket.socket, pieces: Iterator[bytes]) -> bytes:
    """Send until the other side ends it, reading what it says; returns all that it said."""
    sock.setblocking(False)
    said, sent, waiting = bytearray(), 0, b""
    try:
        while sent < MOST_BYTES:
            waiting = waiting or next(pieces)
            with contextlib.suppress(BlockingIOError):
                count = sock.send(waiting)
                waiting, sent = waiting[count:], sent + count
            with contextlib.suppress(BlockingIOError):
                piece = sock.recv(65536)
                if not piece:
                    return bytes(said)
                said += piece
    except (ConnectionResetError, BrokenPipeError):
        return bytes(said)
    raise AssertionError(f"{sent} bytes were accepted")


def told_code(port: int, pieces: Callable[[], Iterator[bytes]]) -> int:
    """The GOAWAY's code that an attacker over plain TCP gets.

    A kernel throws away what was not read when a reset follows, so who sends much more than is read may miss
    it: one of a few attackers must not.
    """
    for _ in range(5):
        with connect(port) as sock:
            sock.sendall(OPENING)
            said = attack(sock, pieces())
        with contextlib.suppress(AssertionError):
            return goaway_in(said)
    raise AssertionError("no attacker was told")


def goaway_in(said: bytes) -> int:
    """The code of the GOAWAY in what was said; read by hand, since no codec would follow such a talk."""
    position = 0
    while position + 9 <= len(said):
        size, kind = int.from_bytes(said[position : position + 3], "big"), said[position + 3]
        if kind == GOAWAY:
            return int.from_bytes(said[position + 13 : position + 17], "big")
        position += 9 + size
    raise AssertionError("there is no GOAWAY")


@pytest.mark.parametrize("name", FLOODS)
def test_a_client_that_floods_its_http2_connection_is_told_to_calm_down(
    proxy: RunningProxy, name: str
) -> None:
    with neighbours(proxy.port), bounded_memory(BOUND):
        code = told_code(proxy.port, lambda: FLOODS[name](request_block(b"POST")))
        assert code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.fixture
def tunnels(backend: Endpoint) -> Iterator[tuple[Mesh, int]]:
    """A waypoint behind port 15008 and an honest client's way through it."""
    with contextlib.ExitStack() as stack:
        waypoint = Mesh(WAYPOINT, Routes(tcp=backend).to(b"/", backend), Declared.HTTP)
        stack.enter_context(waypoint.running())
        vip = Endpoint(("10.0.0.1", 80), identities=(WAYPOINT,), hbone_address=("127.0.0.1", waypoint.port))
        honest = Mesh(CLIENT, Routes(tcp=vip), Declared.TCP)
        stack.enter_context(honest.running())
        yield waypoint, honest.proxy.ports[Declared.TCP]


@pytest.mark.parametrize("name", FLOODS)
def test_a_node_that_floods_its_hbone_connection_is_told_to_calm_down(
    tunnels: tuple[Mesh, int], name: str
) -> None:
    waypoint, port = tunnels
    with neighbours(port), bounded_memory(BOUND), connect(waypoint.port) as sock:
        tls = SSL.Connection(context_for(CLIENT, is_server=False), sock)
        tls.set_connect_state()
        sock.settimeout(PATIENCE_S)
        _handshake(tls)
        said = _attack_over_tls(sock, tls, FLOODS[name](connect_block(b"10.0.0.1:80")))
        assert goaway_in(said) == ErrorCode.ENHANCE_YOUR_CALM


def _handshake(tls: SSL.Connection) -> None:
    while True:
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            continue
        return


def _attack_over_tls(sock: socket.socket, tls: SSL.Connection, pieces: Iterator[bytes]) -> bytes:
    sock.setblocking(False)
    said, sent, waiting = bytearray(), 0, OPENING
    try:
        while sent < MOST_BYTES:
            waiting = waiting or b"".join(piece for piece, _ in zip(pieces, range(50), strict=False))
            with contextlib.suppress(SSL.WantWriteError, SSL.WantReadError):
                count = tls.send(waiting)
                waiting, sent = waiting[count:], sent + count
            with contextlib.suppress(SSL.WantReadError):
                said += tls.recv(65536)
    except (SSL.ZeroReturnError, SSL.SysCallError, SSL.Error):
        return bytes(said)
    raise AssertionError(f"{sent} bytes were accepted")


@pytest.mark.parametrize("name", HTTP1_ATTACKS)
def test_an_http1_client_that_never_ends_its_head_is_cut_off(proxy: RunningProxy, name: str) -> None:
    with neighbours(proxy.port), bounded_memory(BOUND), connect(proxy.port) as sock:
        said = attack(sock, HTTP1_ATTACKS[name](b""))
        assert said.count(b"HTTP/1.1") <= 1  # one answer, however many requests
        if name == "endless head":
            assert said == b"" or said.startswith(b"HTTP/1.1 431 ")


def test_tiny_chunks_pass_and_harm_nobody(proxy: RunningProxy) -> None:
    with neighbours(proxy.port), bounded_memory(BOUND), connect(proxy.port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                sock.sendall(b"1\r\nx\r\n" * 1000)
            sock.sendall(b"0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"


def test_pipelined_requests_without_a_reader_are_bounded(proxy: RunningProxy) -> None:
    with neighbours(proxy.port), bounded_memory(BOUND), connect(proxy.port) as sock:
        sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for piece in attacks.pipelined(b""):
                sock.sendall(piece)


@pytest.mark.parametrize("window", [0, 1])
def test_windows_that_stay_shut_hold_little_and_harm_nobody(proxy: RunningProxy, window: int) -> None:
    with neighbours(proxy.port), bounded_memory(4 * BOUND), connect(proxy.port) as sock:
        setting = b"\x00\x04" + window.to_bytes(4, "big")
        block = request_block().replace(b"\x01/", b"\x04/big")
        heads = b"".join(attacks.head(stream, block) for stream in range(1, 201, 2))
        sock.sendall(frames.PREFACE + attacks.frame(attacks.SETTINGS, 0, 0, setting) + heads)
        with neighbours(proxy.port):
            proxy.ask(lambda: None)


def test_a_request_given_up_in_the_same_breath_reaches_no_application() -> None:
    """It costs a decode; the one beside it, with a body that came in the same input too, is served."""
    with ScriptedServer() as server:
        routes = Routes(tcp=server.endpoint()).to(b"/", server.endpoint())
        with RunningProxy(routes) as proxy, connect(proxy.port) as sock:
            post, get = request_block(b"POST"), request_block()
            given_up = (
                head(1, post, end=False) + frame(DATA, 0, 1, b"abc") + frame(RST, 0, 1, bytes((0, 0, 0, 8)))
            )
            sock.sendall(OPENING + given_up + head(3, get))
            with server.accept() as upstream:
                assert read_until(upstream, b"\r\n\r\n").startswith(b"GET / ")
                upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                read_until(sock, b"ok")
            proxy.log.until(lambda log: len(log.exchanges) == 1)
