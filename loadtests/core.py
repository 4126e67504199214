"""`python -m loadtests.core`: CPU time that a request costs a waypoint's proxy core, without sockets and TLS.

Clients and applications are byte strings in this process; their own cost is measured beside and left out. The
figures are for before and after: they hardly depend on what else the machine does, unlike a load's rate. The
best of the rounds counts.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from dataplane.state.model import ADDRESS_TYPE
from dataplane.worker.log import WorkerLog
from dataplane.worker.records import RecordQueue
from loadtests.waypoint.mycelia import key_of, resources_of, service_routes
from loadtests.waypoint.protection import GUARDED, policies
from loadtests.waypoint.routes import GRPC_PORT
from loadtests.waypoint.site import Site
from transport.errors import MeshError
from transport.http2 import codec as http2
from transport.http2.events import DataReceived, Header, HeadersReceived
from transport.http2.settings import Role
from transport.reactor import Reactor
from transport.spiffe import SpiffeId
from waypoint.state.authorization import AUTHORIZATION_TYPE
from waypoint.state.hosts import Application, Endpoint
from waypoint.state.place import Place
from waypoint.state.routes import ROUTES_TYPE
from waypoint.state.store import WaypointState
from waypoint.worker.authorization import Authorization
from waypoint.worker.byte_stream import NOBODY, StreamHandler
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.http2_connection import SETTINGS
from waypoint.worker.plan import Source
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.proxy import Proxy
from waypoint.worker.telemetry import Telemetry, pack_exchanges
from waypoint.worker.tracing import RequestTracer
from waypoint.worker.upstreams import Upstreams

_SITE: Final = Site("core", 1)
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: shop.default:80\r\nuser-agent: h2load nghttp2/1.52.0\r\naccept: */*\r\n\r\n"
)
_RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 27 Nov 2026 13:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 13\r\nConnection: keep-alive\r\n\r\nhello, world\n"
)
_MESSAGE: Final = b"\0\0\0\0\x05hello"
_BATCH: Final = 64
_WARM_UP: Final = 10  # batches


class MemoryStream:
    """Implements ByteStream: what is written is kept, what is fed is read."""

    def __init__(self) -> None:
        self.handler: StreamHandler = NOBODY
        self.written = bytearray()
        self.backlog_bytes = 0
        self.is_congested = False

    def start(self, handler: StreamHandler) -> None:
        self.handler = handler

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def take(self) -> bytearray:
        found, self.written = self.written, bytearray()
        return found

    def end(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class _Dial:
    def cancel(self) -> None: ...


class _MemoryDialler:
    """Implements Dialler."""

    def __init__(self, reactor: Reactor) -> None:
        self.streams: list[MemoryStream] = []
        self._reactor = reactor

    def dial(
        self,
        endpoint: Endpoint,  # noqa: ARG002 - all lead here
        done: Callable[[MemoryStream | MeshError], None],
        application: Application | None = None,  # noqa: ARG002
    ) -> _Dial:
        stream = MemoryStream()
        self.streams.append(stream)
        self._reactor.call_soon(lambda: done(stream))
        return _Dial()


class Http2Peer:
    """One end in memory of a connection of the proxy's."""

    def __init__(self, role: Role, stream: MemoryStream) -> None:
        self.codec = http2.make_codec(role, SETTINGS, "lean")
        self.codec.start()
        self.stream = stream

    def receive(self) -> list[Any]:
        """Events of what the proxy wrote."""
        events = list(self.codec.receive(memoryview(bytes(self.stream.take()))))
        for event in events:
            if isinstance(event, DataReceived):
                self.codec.consumed(event.stream_id, event.flow_bytes)
        return events

    def send(self) -> None:
        output = self.codec.take_output()
        if output:
            self.stream.handler.on_data(memoryview(output))


class Core:
    """A proxy on a state as the load of loadtests.waypoint has it."""

    def __init__(self) -> None:
        self.reactor = reactor = Reactor()
        self.state = state = WaypointState(
            Place("default", "waypoint"), clock=lambda: reactor.now, random=random.random
        )
        addresses = resources_of(_SITE)
        state.apply(ADDRESS_TYPE, [(one.name, one.value) for one in addresses.upserts], ())
        routes = service_routes("shop").SerializeToString()
        state.apply(ROUTES_TYPE, [(key_of("shop"), routes)], ())
        state.apply(ROUTES_TYPE, [(key_of(GUARDED), service_routes(GUARDED).SerializeToString())], ())
        guards = [(f"default/{each.name}", each.SerializeToString()) for each in policies(key_of(GUARDED))]
        state.apply(AUTHORIZATION_TYPE, guards, ())
        log = WorkerLog(lambda _: True, lambda: reactor.now)
        self.dialler = _MemoryDialler(reactor)
        upstreams = Upstreams(reactor, self.dialler)
        decider = RoutingDecider(
            state,
            reactor,
            upstreams,
            random=random.random,
            wall_clock=time.time,
            check_sources=(Authorization(state, log, PolicyCounts()),),
        )
        records = RecordQueue(reactor, lambda _: True, pack_exchanges, limit=1000, is_on=False)
        self.proxy = Proxy(
            reactor,
            decider,
            self.dialler,
            upstreams,
            observer=Telemetry(state, records, reactor),
            tracer=RequestTracer(state, random.random, random.getrandbits),
        )
        self.spent = 0.0

    def source(self, number: int, port: int, service: str = "shop") -> Source:
        identity = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/client")
        return Source((_SITE.client_ip, 40_000 + number), (_SITE.vip_of(service), port), identity)

    def charged(self, work: Callable[[], None]) -> None:
        """Run a part that is the proxy's, to the end of its pass."""
        before = time.thread_time()
        self.reactor.now = time.monotonic()
        self.reactor._is_in_pass = True
        work()
        self.reactor._finish_pass()
        self.reactor._is_in_pass = False
        self.spent += time.thread_time() - before


def measure_http1(core: Core, batches: int, service: str = "shop") -> float:
    """Microseconds a request: 64 client connections, HTTP/1.1 on both sides."""
    clients = [MemoryStream() for _ in range(_BATCH)]
    for number, client in enumerate(clients):
        core.charged(partial(core.proxy.accept, client, core.source(number, 80, service)))
    request, response = memoryview(_REQUEST), memoryview(_RESPONSE)

    def ask() -> None:
        for client in clients:
            client.handler.on_data(request)

    def answer() -> None:
        for stream in core.dialler.streams:
            if stream.take():
                stream.handler.on_data(response)

    for number in range(batches + _WARM_UP):
        if number == _WARM_UP:
            core.spent = 0.0
        core.charged(ask)
        core.charged(answer)
        for client in clients:
            assert client.take().startswith(b"HTTP/1.1 200")
    return core.spent / batches / _BATCH * 1e6


class _Applications:
    """Behind the proxy: over HTTP/1.1, or gRPC servers."""

    def __init__(self, core: Core, *, is_grpc: bool) -> None:
        self._core = core
        self._is_grpc = is_grpc
        self._peers: dict[MemoryStream, Http2Peer] = {}
        self._answered: list[MemoryStream] = []

    def work(self) -> None:
        """Take in requests and prepare the answers."""
        for stream in self._core.dialler.streams:
            if not self._is_grpc:
                if stream.take():
                    self._answered.append(stream)
                continue
            peer = self._peers.get(stream)
            if peer is None:
                peer = self._peers[stream] = Http2Peer(Role.SERVER, stream)
            for event in peer.receive():
                if _is_end(event):
                    self._answer(peer, event.stream_id)

    @staticmethod
    def _answer(peer: Http2Peer, stream_id: int) -> None:
        codec = peer.codec
        codec.send_headers(stream_id, [(b":status", b"200"), (b"content-type", b"application/grpc")])
        codec.send_data(stream_id, _MESSAGE)
        codec.send_headers(stream_id, [(b"grpc-status", b"0")], end_stream=True)

    def feed(self) -> None:
        """Hand the answers to the proxy."""
        for peer in self._peers.values():
            peer.send()
        for stream in self._answered:
            stream.handler.on_data(memoryview(_RESPONSE))
        self._answered.clear()


def _is_end(event: Any) -> bool:
    return isinstance(event, HeadersReceived | DataReceived) and event.end_stream


def measure_http2(core: Core, batches: int, *, is_grpc: bool) -> float:
    """The same with clients over HTTP/2: eight connections, eight requests at a time on each; or gRPC."""
    peers = []
    for number in range(8):
        stream = MemoryStream()
        source = core.source(number, GRPC_PORT if is_grpc else 80)
        core.charged(partial(core.proxy.accept, stream, source))
        peers.append(Http2Peer(Role.CLIENT, stream))
    applications = _Applications(core, is_grpc=is_grpc)

    def ask() -> None:
        for peer in peers:
            peer.send()

    for number in range(batches + _WARM_UP):
        if number == _WARM_UP:
            core.spent = 0.0
        for peer in peers:
            for _ in range(8):
                stream_id = peer.codec.open_stream(_head(is_grpc=is_grpc), end_stream=not is_grpc)
                if is_grpc:
                    peer.codec.send_data(stream_id, _MESSAGE, end_stream=True)
        done = 0
        for _ in range(6):  # connections are made in the first
            core.charged(ask)
            applications.work()
            core.charged(applications.feed)
            done += sum(_is_end(event) for peer in peers for event in peer.receive())
            if done == _BATCH:
                break
        assert done == _BATCH, done
    return core.spent / batches / _BATCH * 1e6


def _head(*, is_grpc: bool) -> list[Header]:
    method, path = (b"POST", b"/echo.Echo/Say") if is_grpc else (b"GET", b"/")
    head = [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", b"shop.default:80"),
        (b":path", path),
    ]
    head.append((b"user-agent", b"h2load nghttp2/1.52.0"))
    if is_grpc:
        return [*head, (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return [*head, (b"accept", b"*/*")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.core", description=__doc__)
    parser.add_argument("--batches", type=int, default=150, help="of 64 requests, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name, measure in (
        ("http1", measure_http1),
        ("http1, 100 policies", partial(measure_http1, service=GUARDED)),
        ("http2", partial(measure_http2, is_grpc=False)),
        ("grpc", partial(measure_http2, is_grpc=True)),
    ):
        figures = [measure(Core(), options.batches) for _ in range(options.rounds)]
        print(f"{name:20} {min(figures):6.1f} us a request")


if __name__ == "__main__":
    main()
