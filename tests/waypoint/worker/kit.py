"""A proxy core on a thread of its own, real peers around it, and the words to talk to both.

Nothing sleeps: a test waits for what it expects, with a deadline that only a failure reaches.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from transport.reactor import Reactor, Registration
from transport.sockets import accept, open_listener, set_accepted_options
from transport.spiffe import SpiffeId
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.answers import NO_ROUTE, Answer
from waypoint.worker.checks import Check
from waypoint.worker.dial import Carrier, TcpDialler
from waypoint.worker.exchange import Exchange
from waypoint.worker.grpc_messages import CallMessages
from waypoint.worker.headers import Request
from waypoint.worker.plan import (
    Decider,
    Declared,
    DirectPlan,
    DirectTcpPlan,
    Matched,
    Plan,
    Source,
    TcpOutcome,
    TcpPlan,
)
from waypoint.worker.proxy import Proxy, ProxySettings
from waypoint.worker.tcp_exchange import TcpExchange
from waypoint.worker.tcp_stream import TcpStream
from waypoint.worker.tls_dial import TlsDialler
from waypoint.worker.upstreams import Upstreams, UpstreamSettings

PATIENCE_S = 15.0
T = TypeVar("T")


@dataclass
class Routes:
    """A decider by path prefix; the first that fits. `requests` are those that it saw."""

    by_prefix: list[tuple[bytes, Callable[[Request], Plan | Answer]]] = field(default_factory=list)
    tcp: Endpoint | None = None
    requests: list[Request] = field(default_factory=list)

    def checks(self, request: Request, source: Source) -> Sequence[Check]:
        return ()

    def match(self, request: Request, source: Source) -> Matched:
        raise AssertionError("there are no checks")

    def choose(self, request: Request, source: Source, matched: Matched | None = None) -> Plan | Answer:
        self.requests.append(request)
        for prefix, make in self.by_prefix:
            if request.path.startswith(prefix):
                return make(request)
        return NO_ROUTE

    def wants_server_name(self, source: Source) -> bool:
        return False

    def refuse_tcp(self, source: Source, server_name: str | None) -> str:
        return ""

    def choose_tcp(self, source: Source, server_name: str | None) -> TcpPlan | None:
        return None if self.tcp is None else DirectTcpPlan(self.tcp)

    def to(self, prefix: bytes, *endpoints: Endpoint, **plan: Any) -> Self:
        self.by_prefix.append((prefix, lambda request: DirectPlan(endpoints, request.method, **plan)))
        return self

    def answer(self, prefix: bytes, answer: Answer) -> Self:
        self.by_prefix.append((prefix, lambda _: answer))
        return self


class Log:
    """An observer that keeps all, and can be waited for."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.is_forgetful = False  # keeps no exchange: where memory is looked at
        self.rejected: list[tuple[int, str]] = []
        self.rejected_details: list[str] = []
        self.tcp: list[TcpOutcome] = []
        self._changed = threading.Condition()

    def on_call(self, exchange: Exchange) -> CallMessages:
        return CallMessages()

    def on_exchange(self, exchange: Exchange, source: Source) -> None:
        with self._changed:
            if not self.is_forgetful:
                self.exchanges.append(exchange)
            self._changed.notify_all()

    def on_rejected(self, source: Source, status: int, reason: str, details: str) -> None:
        with self._changed:
            self.rejected.append((status, reason))
            self.rejected_details.append(details)
            self._changed.notify_all()

    def on_tcp_open(self, exchange: TcpExchange, source: Source) -> None: ...

    def on_tcp(self, exchange: TcpExchange, source: Source) -> None:
        with self._changed:
            self.tcp.append(exchange.outcome)
            self._changed.notify_all()

    def until(self, is_so: Callable[[Log], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: is_so(self), PATIENCE_S), "it never came to that"


class RunningProxy:
    """A proxy with plain TCP listeners, one for each way to declare a protocol."""

    def __init__(
        self,
        routes: Decider | Callable[[Reactor, Upstreams], Decider],
        *,
        destination: tuple[str, int] | None = None,
        identity: SpiffeId | None = None,
        settings: ProxySettings | None = None,
        upstream_settings: UpstreamSettings | None = None,
        make_dialler: Callable[[Reactor, memoryview], Carrier] = TcpDialler,
    ) -> None:
        self.reactor = Reactor()
        self.failures: list[BaseException] = []
        self.reactor.on_callback_error = self._on_failure
        self.log = Log()
        self._buffer = memoryview(bytearray(256 * 1024))
        dialler = TlsDialler(make_dialler(self.reactor, self._buffer), self.reactor)
        self.upstreams = Upstreams(self.reactor, dialler, upstream_settings)
        decider = routes(self.reactor, self.upstreams) if callable(routes) else routes
        self.proxy = Proxy(
            self.reactor, decider, dialler, self.upstreams, settings=settings, observer=self.log
        )
        self._destination = destination
        self.identity = identity  # of all clients
        self.ports: dict[Declared, int] = {}
        self._listeners: list[socket.socket] = []
        for declared in Declared:
            self._listen(declared)
        self._thread = threading.Thread(target=self.reactor.run, daemon=True)

    def _on_failure(self, error: BaseException, registration: Registration | None) -> None:
        self.failures.append(error)

    def _listen(self, declared: Declared) -> None:
        listener = open_listener("127.0.0.1", 0, is_transparent=False).sock
        self._listeners.append(listener)
        self.ports[declared] = listener.getsockname()[1]

        def on_readable() -> None:
            while (accepted := accept(listener)) is not None:
                sock, peer = accepted
                set_accepted_options(sock, keepalive=False)
                stream = TcpStream(self.reactor, sock, self._buffer)
                destination = self._destination or ("127.0.0.1", self.ports[declared])
                self.proxy.accept(stream, Source(peer, destination, self.identity), declared)

        self.reactor.register(listener.fileno(), on_readable)

    @property
    def port(self) -> int:
        return self.ports[Declared.HTTP]

    def ask(self, question: Callable[[], T]) -> T:
        """Run on the reactor's thread and wait for the answer."""
        answered = threading.Event()
        found: list[T] = []

        def run() -> None:
            found.append(question())
            answered.set()

        self.reactor.call_soon_threadsafe(run)
        assert answered.wait(PATIENCE_S)
        return found[0]

    def __enter__(self) -> Self:
        self._own_descriptors = len(self.reactor._registrations)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ask(self.proxy.close)
        # Whatever was open closes in order; a stream that is never closed shows here.
        limit = time.monotonic() + PATIENCE_S
        while self.ask(lambda: len(self.reactor._registrations)) > self._own_descriptors:
            assert time.monotonic() < limit, "a descriptor is left open"
        self.reactor.stop()
        self._thread.join(PATIENCE_S)
        self.reactor.close()
        for listener in self._listeners:
            listener.close()
        assert self.failures == []


class ScriptedServer:
    """An upstream that a test plays itself, over plain sockets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.port: int = self._listener.getsockname()[1]

    def endpoint(self, application: Application = Application.HTTP1) -> Endpoint:
        return Endpoint(("127.0.0.1", self.port), application)

    def accept(self) -> socket.socket:
        sock, _ = self._listener.accept()
        sock.settimeout(PATIENCE_S)
        return sock

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def is_cut_off(port: int) -> bool:
    """Whether a new connection is ended without a byte; a reset may come before its connect succeeds."""
    try:
        with connect(port) as sock:
            return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """What comes up to and with `end`."""
    got = bytearray()
    while end not in got:
        piece = sock.recv(65536)
        assert piece, f"the end came before {end!r}: {bytes(got)!r}"
        got += piece
    return bytes(got)


def read_all(sock: socket.socket) -> bytes:
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            got += piece
    return bytes(got)


def exchange(port: int, request: bytes) -> bytes:
    """Send a request, read to the connection's end."""
    with connect(port) as sock:
        sock.sendall(request)
        return read_all(sock)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def running(arguments: Sequence[str], port: int, *, cwd: Path) -> Iterator[None]:
    """A server program, from when its port answers until the block's end."""
    with subprocess.Popen(
        list(arguments), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _await_port(process, port)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    gone = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        gone.wait(0.02)
    raise AssertionError(f"nothing listens on port {port}")


@contextlib.contextmanager
def nginx(folder: Path, locations: str) -> Iterator[int]:
    """nginx as the real upstream; gives its port."""
    port = free_port()
    binary = program("nginx")
    paths = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; client_max_body_size 0; {paths}
server {{ listen 127.0.0.1:{port}; {locations} }} }}"""
    )
    with running(
        [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"], port, cwd=folder
    ):
        yield port
