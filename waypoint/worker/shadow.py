"""A copy of a request for a mirror (waypoint-facts 10): sent as the request comes, its answer thrown away.

It never slows the request down: what the mirror does not take is kept up to `_MAX_HELD_BYTES`, then the copy
is given up. It is not repeated, and ends after `_LONGEST_S` at the latest. Owned by the proxy, which bounds
their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from transport.errors import MeshError
from transport.http1.errors import UnwritableHead
from transport.http2.error_codes import ErrorCode
from transport.http2.events import Header
from transport.reactor import Timer
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.body_pipe import BodyPipe
from waypoint.worker.failures import Failure
from waypoint.worker.http_connection import HttpConnection

if TYPE_CHECKING:
    from waypoint.worker.proxy import Proxy

MAX_SHADOWS: Final = 1024  # at once in a worker; further requests are not mirrored
_MAX_HELD_BYTES: Final = 256 * 1024
_LONGEST_S: Final = 60.0


class _NoSource:
    """The request's own way gives credit."""

    def consumed(self, stream_id: int, flow_bytes: int) -> None: ...


_NO_SOURCE: Final = _NoSource()


class Shadow:
    """Implements Waiter and StreamUser."""

    def __init__(
        self, proxy: Proxy, endpoint: Endpoint, application: Application, head: list[Header]
    ) -> None:
        self._proxy = proxy
        self._endpoint = endpoint
        self._application = application
        self._head = head
        self._pipe = BodyPipe(_NO_SOURCE, 0)
        self._pipe.settle()
        self._connection: HttpConnection | None = None
        self._stream_id = 0
        self._has_response_ended = False
        self._is_over = False
        self._timer: Timer = proxy.reactor.call_later(_LONGEST_S, self.cancel)

    def start(self, *, is_ended: bool) -> None:
        """`is_ended`: the request has no body."""
        circuit = self._endpoint.circuit
        if circuit is not None and not circuit.may_request():
            self._timer.cancel()
            self._is_over = True
            return
        self._proxy.shadows[self] = None
        self._pipe.is_all_received = is_ended
        self._proxy.upstreams.acquire(self._endpoint, self._application, self)

    def push(self, data: memoryview, *, end: bool) -> None:
        """A piece of the request's body, valid during the call only."""
        if self._is_over:
            return
        self._pipe.push(data, 0, end=end)
        if self._pipe.held_bytes > _MAX_HELD_BYTES:
            self.cancel()
        else:
            self._check_end()

    def push_trailers(self, headers: list[Header]) -> None:
        if not self._is_over:
            self._pipe.push_trailers(headers)
            self._check_end()

    @property
    def is_whole(self) -> bool:
        """All of the request has come."""
        return self._pipe.is_all_received

    def cancel(self) -> None:
        """Give it up."""
        if self._is_over:
            return
        connection = self._connection
        self._finish()
        if connection is not None:
            connection.reset(self._stream_id, ErrorCode.CANCEL)
        else:
            self._proxy.upstreams.cancel(self._endpoint, self._application, self)

    # Waiter

    def on_connection(self, connection: HttpConnection) -> None:
        pipe = self._pipe
        is_ended = pipe.is_empty
        try:
            self._stream_id = connection.open(self._head, is_ended, self)
        except UnwritableHead:
            self._finish()
            connection.release(0)
            return
        except MeshError:
            self._finish()
            return
        self._connection = connection
        pipe.connect(connection, self._stream_id, is_ended=is_ended)

    def on_connect_failed(self, failure: Failure) -> None:  # noqa: ARG002 - nobody asks
        self._finish()

    # StreamUser

    def on_headers(self, headers: list[Header], end_stream: bool, is_trailers: bool) -> None:  # noqa: ARG002
        if end_stream or is_trailers:
            self._has_response_ended = True
            self._check_end()

    def on_body(self, data: memoryview, flow_bytes: int, end_stream: bool) -> None:  # noqa: ARG002
        connection = self._connection
        if connection is not None and flow_bytes:
            connection.consumed(self._stream_id, flow_bytes)
        if end_stream:
            self._has_response_ended = True
            self._check_end()

    def on_reset(self, failure: Failure) -> None:  # noqa: ARG002 - nobody asks
        self._finish()

    def on_writable(self) -> None:
        self._pipe.pump()
        self._check_end()

    def _check_end(self) -> None:
        connection = self._connection
        if not self._has_response_ended or connection is None or self._is_over:
            return
        if self._pipe.is_all_sent:
            self._finish()
            connection.release(self._stream_id)
        else:
            self.cancel()  # an early answer: nobody wants the rest

    def _finish(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._timer.cancel()
        self._connection = None
        self._proxy.shadows.pop(self, None)
        if self._endpoint.circuit is not None:
            self._endpoint.circuit.end_request()
