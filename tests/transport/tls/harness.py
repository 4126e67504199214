"""Two ends of a TLS connection over real loopback, in one reactor whose clock can be moved.

`Recorder` is a handler that writes down what happens and can be given an action per event. `Bench` makes the
ends and runs the loop until a condition holds, which it checks after each event.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from OpenSSL import SSL

from tests.kit.certificates import TestAuthority, issue, shared_root
from transport.errors import MeshError
from transport.reactor import Reactor, Registration
from transport.tls.context import make_context
from transport.tls.peer import PeerCertificate
from transport.tls.pump import TlsPump

SERVER_ID = "spiffe://mesh.test/ns/shop/sa/server"
CLIENT_ID = "spiffe://mesh.test/ns/shop/sa/client"
_PATIENCE_S = 20.0  # real seconds until a test that waits for nothing fails


class Clock:
    """Real time, plus what a test skips."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_s


class Recorder:
    """A handler. `events` are names, e.g. `handshake`, `data`, `eof`, `lost`; `actions` run on them.

    Actions may look at the pump with `recorder.pump`. `received` is all plaintext so far.
    """

    def __init__(self, bench: Bench, actions: Mapping[str, Callable[[Recorder], None]]) -> None:
        self.bench = bench
        self.actions = dict(actions)
        self.events: list[str] = []
        self.received = bytearray()
        self.error: MeshError | None = None
        self.flushes = 0
        self.pump: TlsPump

    def _record(self, event: str) -> None:
        assert "lost" not in self.events, f"{event} after lost"
        self.events.append(event)
        self.bench.reactor.call_soon(self.bench.check)
        self._act(event)

    def _act(self, event: str) -> None:
        action = self.actions.get(event)
        if action is not None:
            action(self)

    def on_handshake(self, peer: PeerCertificate) -> None:
        assert self.pump.peer is peer
        self._record("handshake")

    def on_data(self, data: memoryview) -> None:
        self.received += data
        self._record("data")

    def on_eof(self) -> None:
        self._record("eof")

    def on_lost(self, error: MeshError | None) -> None:
        self.error = error
        self._record("lost")

    def on_drained(self) -> None:
        self._record("drained")

    def before_flush(self) -> None:
        self.flushes += 1
        self._act("flush")


Actions = Mapping[str, Callable[[Recorder], None]]


def accept_any(peer: PeerCertificate) -> None:
    """A `verify` that takes every identity."""


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """A client's and a server's TCP socket, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


class Bench:
    """The reactor and everything to be closed with it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reactor = Reactor(clock=self.clock)
        self.errors: list[BaseException] = []
        self.reactor.on_callback_error = self._on_error
        self._condition: Callable[[], bool] = lambda: False
        self._sockets: list[socket.socket] = []

    def _on_error(self, error: BaseException, registration: Registration | None) -> None:
        self.errors.append(error)
        self.reactor.call_soon(self.check)

    def close(self) -> None:
        self.reactor.close()
        for sock in self._sockets:
            sock.close()

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock

    # Ends of connections

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client, server = connected_pair()
        return self._keep(client), self._keep(server)

    def server(self, sock: socket.socket, actions: Actions | None = None, **options: Any) -> Recorder:
        return self._attach(sock, actions, is_server=True, **{"context": server_context(), **options})

    def client(self, sock: socket.socket, actions: Actions | None = None, **options: Any) -> Recorder:
        return self._attach(sock, actions, is_server=False, **{"context": client_context(), **options})

    def _attach(
        self, sock: socket.socket, actions: Actions | None, *, is_server: bool, **options: Any
    ) -> Recorder:
        self._keep(sock)
        handler = Recorder(self, actions or {})
        options = {"verify": accept_any, **options}
        handler.pump = TlsPump(
            self.reactor, sock, options.pop("context"), handler, is_server=is_server, **options
        )
        return handler

    def opened(
        self, server_actions: Actions | None = None, client_actions: Actions | None = None
    ) -> tuple[Recorder, Recorder]:
        """A server and a client after the handshake."""
        client_sock, server_sock = self.pair()
        server = self.server(server_sock, server_actions)
        client = self.client(client_sock, client_actions)
        self.until(lambda: "handshake" in server.events and "handshake" in client.events)
        return server, client

    # Running

    def check(self) -> None:
        if self._condition():
            self.reactor.stop()

    def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until `condition` holds; it is looked at after each event."""
        self._condition = condition
        timer = self.reactor.call_later(
            _PATIENCE_S, lambda: pytest.fail("the awaited condition did not come about")
        )
        self.reactor.call_soon(self.check)
        self.reactor.run()
        timer.cancel()
        if not condition():
            pytest.fail(f"stopped without the awaited condition: {self.errors}")

    def settle(self) -> None:
        """Run until nothing is ready any more."""
        quiet = 0

        def look() -> None:
            nonlocal quiet
            quiet = 0 if self.reactor._epoll.poll(0.002) else quiet + 1
            if quiet > 3:
                self.reactor.stop()
            else:
                self.reactor.call_soon_threadsafe(look)

        self._condition = lambda: False
        self.reactor.call_soon(look)
        self.reactor.run()

    def skip(self, seconds: float) -> None:
        """Let time pass at once; due timers run in the next pass."""
        self.clock.skipped_s += seconds

    def until_lost(self, *handlers: Recorder) -> None:
        self.until(lambda: all("lost" in handler.events for handler in handlers))


# Contexts. Making keys is what takes time, so the ordinary ones are made once.

_made: dict[tuple[str, bool], SSL.Context] = {}


def context_for(identity: str, *, is_server: bool) -> SSL.Context:
    key = identity, is_server
    if key not in _made:
        _made[key] = issued_context(shared_root(), identity, is_server=is_server)
    return _made[key]


def issued_context(
    authority: TestAuthority,
    identity: str | list[str] | None,
    *,
    is_server: bool,
    roots: str | None = None,
    **flaws: Any,
) -> SSL.Context:
    chain, key = issue(authority, identity, **flaws)
    return make_context([chain], key, roots or shared_root().pem, is_server=is_server)


def server_context() -> SSL.Context:
    return context_for(SERVER_ID, is_server=True)


def client_context() -> SSL.Context:
    return context_for(CLIENT_ID, is_server=False)
