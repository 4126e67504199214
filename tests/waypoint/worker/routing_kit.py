"""A waypoint that routes as it is told: resources as bytes in, a proxy in front of real servers out."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.waypoint.resources import PLACE, VIP, Resource, put
from tests.waypoint.worker.kit import PATIENCE_S, RunningProxy
from transport.http1.codec import CodecKind
from transport.reactor import Reactor
from waypoint.state.place import Place
from waypoint.state.store import WaypointState
from waypoint.worker.checks import CheckSource
from waypoint.worker.decider import RoutingDecider
from waypoint.worker.proxy import ProxySettings
from waypoint.worker.upstreams import Upstreams, UpstreamSettings


@dataclass
class Seen:
    """A request as a server got it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name]
        return ",".join(found) if found else None


@dataclass
class Reply:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_s: float = 0.0


class App:
    """An HTTP/1.1 server on a port of its own; answers with its name, or as `reply` says."""

    def __init__(self, name: str = "app", reply: Callable[[Seen], Reply] | None = None) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self._changed = threading.Condition()
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def handle_any(self) -> None:
                body = self._body()
                seen = Seen(self.command, self.path, list(self.headers.items()), body)
                with app._changed:
                    app.seen.append(seen)
                    app._changed.notify_all()
                answer = reply(seen) if reply is not None else Reply(body=app.name.encode())
                if answer.delay_s:
                    threading.Event().wait(answer.delay_s)
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") == "chunked":
                    whole = b""
                    while size := int(self.rfile.readline(), 16):
                        whole += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return whole
                return self.rfile.read(int(self.headers.get("content-length", "0")))

            do_GET = do_POST = do_PUT = do_OPTIONS = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None: ...  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def until(self, count: int) -> list[Seen]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, PATIENCE_S)
            return list(self.seen)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Waypoint(RunningProxy):
    """A proxy whose decisions are those of a `WaypointState`; put resources in before and meanwhile."""

    state: WaypointState
    decider: RoutingDecider
    upstreams_of_checks: Upstreams

    def __init__(
        self,
        *resources: Resource,
        place: Place = PLACE,
        destination: tuple[str, int] = (VIP, 80),
        codec: CodecKind = "lean",
        seed: int = 1,
        upstream_settings: UpstreamSettings | None = None,
        check_sources: Callable[[WaypointState, Reactor], Sequence[CheckSource]] = lambda state, reactor: (),
        **fields: Any,
    ) -> None:
        def make(reactor: Reactor, upstreams: Upstreams) -> RoutingDecider:
            source = random.Random(seed)
            self.state = WaypointState(place, clock=lambda: reactor.now, random=source.random)
            assert put(self.state, *resources) == {}
            self.upstreams_of_checks = upstreams
            self.sources = check_sources(self.state, reactor)
            self.decider = RoutingDecider(
                self.state,
                reactor,
                upstreams,
                random=source.random,
                wall_clock=time.time,
                check_sources=self.sources,
            )
            return self.decider

        super().__init__(
            make,
            destination=destination,
            settings=ProxySettings(codec=codec),
            upstream_settings=upstream_settings or UpstreamSettings(codec=codec),
            **fields,
        )

    def put(self, *resources: Resource) -> dict[str, str]:
        def put_all() -> dict[str, str]:
            refused = put(self.state, *resources)
            self.proxy.normalization = self.state.mesh_settings.normalization  # as the worker does
            return refused

        return self.ask(put_all)

    def remove(self, type_url: str, *names: str) -> None:
        self.ask(lambda: self.state.apply(type_url, (), names))

    def get(
        self, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP/1.1 request on a connection of its own; `x_name=` becomes `x-name`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return response.status, fields, response.read()

    def bodies(self, count: int, path: str = "/", **headers: str) -> list[bytes]:
        return [self.get(path, "GET", None, **headers)[2] for _ in range(count)]

    def __exit__(self, *parameters: object) -> None:
        self.ask(self.decider.close)
        for source in self.sources:
            self.ask(source.close)
        super().__exit__(*parameters)


@contextlib.contextmanager
def apps(*names: str) -> Iterator[list[App]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(App(name)) for name in names]
