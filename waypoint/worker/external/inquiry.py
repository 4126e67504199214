"""One question to a service: a whole request out, a whole bounded answer back, by a deadline.

It goes the way of any request: the service's cluster, its limits, its balancing and its tunnels. It is asked
once, and once more if a kept-alive connection was over before the first octet of an answer. `done` is called
exactly once, perhaps before `start` returns, unless the inquiry was cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from transport.errors import MeshError
from transport.http1.errors import UnwritableHead
from transport.http2.error_codes import ErrorCode
from transport.http2.events import Header
from transport.reactor import Timer
from waypoint.state.cluster import Cluster
from waypoint.state.hosts import Application, Host
from waypoint.worker.body_pipe import BodyPipe
from waypoint.worker.failures import Failure
from waypoint.worker.headers import value_of
from waypoint.worker.http_connection import HttpConnection
from waypoint.worker.upstreams import Upstreams

MAX_ANSWER_BYTES: Final = 256 * 1024


class _NoSource:
    """What was made here owes nobody."""

    def consumed(self, stream_id: int, flow_bytes: int) -> None: ...


_NO_SOURCE: Final = _NoSource()


@dataclass(slots=True)
class Reply:
    status: int = 0
    headers: list[Header] = field(default_factory=list)
    trailers: list[Header] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)


Done = Callable[[Reply | str], None]


class Inquiry:
    """Implements Waiter and StreamUser. A text in place of the reply says why there is none."""

    def __init__(self, upstreams: Upstreams, cluster: Cluster, application: Application, done: Done) -> None:
        self._upstreams = upstreams
        self._cluster = cluster
        self._application = application
        self._done: Done | None = done
        self._host: Host | None = None
        self._head: list[Header] = []
        self._body = b""
        self._pipe = BodyPipe(_NO_SOURCE, 0)
        self._was_repeated = False
        self._connection: HttpConnection | None = None
        self._stream_id = 0
        self._reply = Reply()
        self._timer: Timer | None = None

    def start(self, head: list[Header], body: bytes, timeout_s: float) -> None:
        circuit = self._cluster.circuit
        if not circuit.may_request():
            self._end("overflow: too many requests to the provider")
            return
        host = self._cluster.balancer.pick(self._upstreams.reactor.now, None)
        if host is None:
            circuit.end_request()
            self._end("no endpoint of the provider is usable")
            return
        self._host = host
        host.active += 1
        self._head, self._body = head, body
        self._timer = self._upstreams.reactor.call_later(timeout_s, self._on_timeout)
        self._acquire(host)

    def _acquire(self, host: Host) -> None:
        pipe = self._pipe = BodyPipe(_NO_SOURCE, 0)
        pipe.settle()
        if self._body:
            pipe.push(memoryview(self._body), 0, end=True)
        pipe.is_all_received = True
        self._upstreams.acquire(host.endpoint, self._application, self)

    def cancel(self) -> None:
        """Nobody wants the answer any more. Idempotent."""
        self._done = None
        self._give_up("")

    def _on_timeout(self) -> None:
        self._give_up("the provider did not answer in time")

    def _give_up(self, reason: str) -> None:
        host, connection = self._host, self._connection
        if host is None:
            return
        if connection is not None:
            self._connection = None
            connection.reset(self._stream_id, ErrorCode.CANCEL)
        else:
            self._upstreams.cancel(host.endpoint, self._application, self)
        self._end(reason)

    # Waiter

    def on_connection(self, connection: HttpConnection) -> None:
        pipe = self._pipe
        is_ended = pipe.is_empty
        try:
            self._stream_id = connection.open(self._head, is_ended, self)
        except UnwritableHead:
            self._end("the question cannot be written")
            connection.release(0)
            return
        except MeshError as error:
            self._end(f"the connection failed: {error}")
            return
        self._connection = connection
        pipe.connect(connection, self._stream_id, is_ended=is_ended)

    def on_connect_failed(self, failure: Failure) -> None:
        self._end(f"no connection: {failure.text or failure.cause.value}")

    # StreamUser

    def on_headers(self, headers: list[Header], end_stream: bool, is_trailers: bool) -> None:
        reply = self._reply
        if is_trailers:
            reply.trailers = headers
            self._on_end()
            return
        status = value_of(headers, b":status")
        reply.status = int(status) if status.isdigit() else 0
        if 100 <= reply.status < 200:
            if reply.status == 101:
                self._give_up("the provider changed the protocol")
            return
        reply.headers = [line for line in headers if line[0][:1] != b":"]
        if end_stream:
            self._on_end()

    def on_body(self, data: memoryview, flow_bytes: int, end_stream: bool) -> None:
        connection = self._connection
        if connection is None:
            return
        self._reply.body += data
        if flow_bytes:
            connection.consumed(self._stream_id, flow_bytes)
        if len(self._reply.body) > MAX_ANSWER_BYTES:
            self._give_up(f"the provider's answer is larger than {MAX_ANSWER_BYTES} bytes")
        elif end_stream:
            self._on_end()

    def on_reset(self, failure: Failure) -> None:
        connection, self._connection = self._connection, None
        is_stale = connection is not None and connection.is_reused and not self._reply.status
        if is_stale and self._host is not None and not self._was_repeated:
            self._was_repeated = True
            self._acquire(self._host)
            return
        self._end(f"the provider broke off: {failure.text or failure.cause.value}")

    def on_writable(self) -> None:
        self._pipe.pump()

    def _on_end(self) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._pipe.is_all_sent:
            connection.release(self._stream_id)
        else:
            connection.reset(self._stream_id, ErrorCode.CANCEL)  # it answered before it had heard all
        self._end(self._reply)

    def _end(self, result: Reply | str) -> None:
        done, self._done = self._done, None
        host, self._host = self._host, None
        if self._timer is not None:
            self._timer.cancel()
        if host is not None:
            host.active -= 1
            self._cluster.circuit.end_request()
            self._report(host, result)
        if done is not None:
            done(result)

    def _report(self, host: Host, result: Reply | str) -> None:
        """To outlier detection; a question that was withdrawn says nothing about the host."""
        now = self._upstreams.reactor.now
        if isinstance(result, Reply):
            self._cluster.on_response(host, result.status, now)
        elif result:
            self._cluster.on_local_failure(host, now, is_timeout=False)
