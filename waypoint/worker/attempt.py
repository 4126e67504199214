"""One try of an exchange at one endpoint: from the wish for a connection to the end of the response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transport.errors import MeshError
from transport.http1.errors import UnwritableHead
from transport.http2.error_codes import ErrorCode
from transport.http2.events import Header
from transport.reactor import Timer
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.answers import UNWRITABLE_REQUEST
from waypoint.worker.failures import Cause, Failure
from waypoint.worker.headers import value_of
from waypoint.worker.http_connection import HttpConnection

if TYPE_CHECKING:
    from waypoint.worker.exchange import Exchange


class Attempt:
    """Implements Waiter and StreamUser."""

    __slots__ = (
        "_exchange",
        "_is_told",
        "_timer",
        "_was_reused",
        "application",
        "connection",
        "endpoint",
        "grpc_status",
        "has_responded",
        "is_over",
        "opened_at",
        "status",
        "stream_id",
    )

    def __init__(self, exchange: Exchange, endpoint: Endpoint, application: Application) -> None:
        self._exchange = exchange
        self.endpoint = endpoint
        self.application = application
        self.connection: HttpConnection | None = None
        self.stream_id = 0
        self.status = 0
        self.grpc_status = b""
        self.has_responded = False
        self.is_over = False
        self.opened_at = 0.0
        self._was_reused = False
        self._is_told = False
        self._timer: Timer | None = None

    # Waiter

    def on_connection(self, connection: HttpConnection) -> None:
        exchange = self._exchange
        pipe = exchange.request_pipe
        is_ended = pipe.is_empty and not exchange.request.upgrade
        self.opened_at = connection.reactor.now
        try:
            self.stream_id = connection.open(exchange.request.head(), is_ended, self)
        except UnwritableHead:
            self.tell(None)
            exchange.on_unwritable(UNWRITABLE_REQUEST)
            connection.release(0)
            return
        except MeshError as error:
            self._fail(Failure(Cause.REFUSED, str(error)))  # the codec knows better: nothing was sent
            return
        self.connection = connection
        self._was_reused = connection.is_reused
        plan = exchange.plan
        if plan is not None and plan.try_timeout_s is not None:
            self._timer = connection.reactor.call_later(plan.try_timeout_s, self._on_timeout)
        pipe.connect(connection, self.stream_id, is_ended=is_ended)

    def on_connect_failed(self, failure: Failure) -> None:
        self._fail(failure)

    # StreamUser

    def on_headers(self, headers: list[Header], end_stream: bool, is_trailers: bool) -> None:
        exchange = self._exchange
        if is_trailers:
            if exchange.request.is_grpc:
                self.grpc_status = value_of(headers, b"grpc-status")
            exchange.on_response_trailers(headers)
            return
        status = int(headers[0][1])
        if status >= 200 or status == 101:
            self.status = status
            self.has_responded = True
            self._stop_timer()
            if end_stream and exchange.request.is_grpc:
                self.grpc_status = value_of(headers, b"grpc-status")
            exchange.on_response(self, status, headers, end_stream)
        else:
            exchange.on_informational(headers)

    def on_body(self, data: memoryview, flow_bytes: int, end_stream: bool) -> None:
        exchange = self._exchange
        pipe = exchange.response_pipe
        assert pipe is not None
        if exchange.messages is not None:
            exchange.messages.responses.feed(data)
        pipe.push(data, flow_bytes, end=end_stream)
        if end_stream or exchange.is_upgraded:
            exchange.check_end()

    def on_reset(self, failure: Failure) -> None:
        if failure.cause is Cause.CLOSED and self._was_reused and not self.has_responded:
            failure = Failure(Cause.STALE, failure.text)
        self.connection = None
        self._fail(failure)

    def on_writable(self) -> None:
        self._exchange.request_pipe.pump()
        self._exchange.check_end()

    # Ends

    def _on_timeout(self) -> None:
        self._timer = None
        self.drop()
        self._fail(Failure(Cause.TRY_TIMEOUT))

    def _fail(self, failure: Failure) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._stop_timer()
        self.tell(failure)
        self._exchange.on_attempt_failed(self, failure)

    def tell(self, failure: Failure | None) -> None:
        """The plan hears of each try's end once."""
        plan = self._exchange.plan
        if not self._is_told and plan is not None:
            self._is_told = True
            plan.on_try_over(self.endpoint, self.status, failure, self.grpc_status)

    def finish(self) -> None:
        """The response ended in order, and the request too: the connection is free again."""
        self.is_over = True
        self._stop_timer()
        self.tell(None)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release(self.stream_id)

    def cancel(self) -> None:
        """Nobody wants the response, or the rest of it."""
        if not self.is_over:
            self.is_over = True
            self._stop_timer()
            self.tell(None)
            self.drop()

    def drop(self) -> None:
        """Give up the stream, or the wish for one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.reset(self.stream_id, ErrorCode.CANCEL)
        else:
            self._exchange.proxy.upstreams.cancel(self.endpoint, self.application, self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
