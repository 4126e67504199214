"""gRPC server: unary and bidirectional handlers over TLS or plaintext listeners.

Order for each call: HTTP/2 and gRPC form of the request, deadline, `admit` (authentication, before any
message is read), handler. A handler ends its call with its return value, with a GrpcError (whose status and
message travel), or with any other exception (INTERNAL, fixed text; the cause goes to `on_error` only).
A client that resets its call, or is lost, cancels the handler.
Invariants: connections, calls per connection, message sizes, unread bytes and handshake time are bounded;
nothing that one connection does ends another.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import structlog
import trio

from transport.errors import MeshError
from transport.grpc.call import Call
from transport.grpc.connection import Connection, ConnectionLimits
from transport.grpc.frame_tap import TapLimits
from transport.grpc.metadata import Headers, Metadata, MetadataItems, decode_timeout, encode_metadata
from transport.grpc.status import GrpcError, GrpcStatus, encode_message
from transport.grpc.tls import accept_tls

log = structlog.get_logger("grpc")


@dataclass(slots=True)
class CallContext:
    """What a handler knows of its call. `deadline` is in trio's clock, infinity without one."""

    method: str
    metadata: Metadata
    peer_address: tuple[str, int]
    peer_certificate: bytes | None  # DER, verified; None without client certificate
    deadline: float
    draining: trio.Event  # set when the server is ending: long-lived handlers return then
    trailing_metadata: list[tuple[str, str | bytes]] = field(default_factory=list)


class ServerStream:
    """The handler's end of a bidirectional call."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def receive(self) -> bytes | None:
        """The next request; None after the client's half-close."""
        return await self._call.receive()

    async def send(self, message: bytes) -> None:
        """Waits for flow control; the first message sends the response headers."""
        _send_response_headers(self._call)
        await self._call.send(message)


UnaryHandler: TypeAlias = Callable[[bytes, CallContext], Awaitable[bytes]]
StreamHandler: TypeAlias = Callable[[ServerStream, CallContext], Awaitable[None]]
Admission: TypeAlias = Callable[[CallContext], None]
ContextSource: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server gives to all, one connection and one call; at each bound the newcomer is refused."""

    max_connections: int = 4096
    max_streams_per_connection: int = 100
    max_message_bytes: int = 16 * 1024 * 1024
    max_unread_bytes_per_connection: int = 64 * 1024 * 1024
    stream_window_bytes: int = 256 * 1024
    handshake_timeout_s: float = 10.0
    request_timeout_s: float = 30.0  # for the one message of a unary call to arrive
    response_timeout_s: float = 120.0  # for its answer to leave
    idle_timeout_s: float = 900.0  # a connection without calls
    keepalive_ping_s: float = 60.0
    keepalive_timeout_s: float = 20.0

    @property
    def of_connection(self) -> ConnectionLimits:
        return ConnectionLimits(
            stream_window_bytes=self.stream_window_bytes,
            connection_window_bytes=4 * 1024 * 1024,
            max_streams=self.max_streams_per_connection,
            max_message_bytes=self.max_message_bytes,
            max_held_bytes=self.max_unread_bytes_per_connection,
            keepalive_ping_s=self.keepalive_ping_s,
            keepalive_timeout_s=self.keepalive_timeout_s,
            settings_timeout_s=self.handshake_timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            tap=TapLimits(max_frame_bytes=64 * 1024),
        )


def log_error(method: str, error: Exception) -> None:
    log.error("grpc_handler_failed", method=method, exc_info=error)


class GrpcServer:
    """`unary` and `streams` map full method names (`/package.Service/Method`) to handlers; `request_limits`
    lowers the message size for single methods.

    Built inert. `serve` runs until it is cancelled or a drain (`begin_drain`) is complete."""

    def __init__(
        self,
        unary: Mapping[str, UnaryHandler] | None = None,
        streams: Mapping[str, StreamHandler] | None = None,
        *,
        limits: ServerLimits | None = None,
        request_limits: Mapping[str, int] | None = None,
        admit: Admission | None = None,
        on_error: Callable[[str, Exception], None] = log_error,
    ) -> None:
        self._unary = dict(unary or {})
        self._streams = dict(streams or {})
        self._limits = limits or ServerLimits()
        self._request_limits = dict(request_limits or {})
        self._admit = admit
        self._on_error = on_error
        self._connections: set[Connection] = set()
        self._pending = 0
        self._draining = trio.Event()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        tls: ContextSource | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Owns and closes `listeners`. `tls` may be a function, asked per connection: certificates rotate.

        Cancelling ends all calls at once; `begin_drain` with a deadline around `serve` is the gentle way.
        """

        async def handle(stream: trio.abc.Stream) -> None:
            await self._serve_connection(stream, tls)

        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, handle, list(listeners), handler_nursery=connections)
                )
                task_status.started()
                await self._draining.wait()
                accepting.cancel_scope.cancel()
            for connection in list(self._connections):
                connection.begin_drain()

    def begin_drain(self) -> None:
        """No new connections or calls; open calls go on; `serve` returns after the last. Idempotent."""
        self._draining.set()

    async def _serve_connection(self, stream: trio.abc.Stream, tls: ContextSource | None) -> None:
        if self._pending >= self._limits.max_connections:
            await trio.aclose_forcefully(stream)
            return
        self._pending += 1
        try:
            await self._serve_admitted(stream, tls)
        except MeshError as error:
            log.info("grpc_connection_refused", peer=peer_address(stream)[0], reason=str(error))
        except Exception as error:  # noqa: BLE001 - one connection's defect must not end the server
            self._on_error("connection", error)
        finally:
            self._pending -= 1
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _serve_admitted(self, stream: trio.abc.Stream, tls: ContextSource | None) -> None:
        address = peer_address(stream)
        certificate: bytes | None = None
        transport = stream
        if tls is not None:
            context = tls if isinstance(tls, ssl.SSLContext) else tls()
            with trio.move_on_after(self._limits.handshake_timeout_s) as scope:
                transport, certificate = await accept_tls(stream, context)
            if scope.cancelled_caught:
                return
        async with trio.open_nursery() as nursery:

            def on_request(call: Call) -> None:
                limit = self._request_limits.get(_path(call))
                if limit is not None:
                    call.limit_messages(limit)
                nursery.start_soon(self._serve_call, call, address, certificate)

            if self._draining.is_set():
                return
            connection = Connection(transport, self._limits.of_connection, on_request=on_request)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)

    async def _serve_call(self, call: Call, address: tuple[str, int], certificate: bytes | None) -> None:
        context: CallContext | None = None
        status, message = GrpcStatus.OK, ""
        with trio.CancelScope() as scope:
            call.on_abort = scope.cancel
            if call.is_over:
                return
            try:
                context = self._make_context(call.headers or [], address, certificate)
                scope.deadline = context.deadline
                await self._dispatch(call, context)
            except _NotGrpc:
                call.send_headers([(b":status", b"415")], end_stream=True)
            except Exception as error:  # noqa: BLE001 - the border: a handler's failure becomes a status
                status, message = self._to_status(context, error)
        if scope.cancelled_caught:
            status, message = GrpcStatus.DEADLINE_EXCEEDED, "deadline exceeded"
        self._finish(call, status, message, context.trailing_metadata if context is not None else ())

    def _make_context(
        self, headers: Headers, address: tuple[str, int], certificate: bytes | None
    ) -> CallContext:
        fields = dict(headers)
        content_type = fields.get(b"content-type", b"")
        if fields.get(b":method") != b"POST" or not content_type.startswith(b"application/grpc"):
            raise _NotGrpc
        if fields.get(b"grpc-encoding", b"identity") != b"identity":
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "compression is not supported")
        timeout = fields.get(b"grpc-timeout")
        context = CallContext(
            method=fields.get(b":path", b"").decode("latin-1"),
            metadata=Metadata.from_headers(headers),
            peer_address=address,
            peer_certificate=certificate,
            deadline=math.inf if timeout is None else trio.current_time() + decode_timeout(timeout),
            draining=self._draining,
        )
        if context.method not in self._unary and context.method not in self._streams:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "unknown method")
        if context.deadline <= trio.current_time():
            raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "deadline exceeded")
        return context

    async def _dispatch(self, call: Call, context: CallContext) -> None:
        if self._admit is not None:
            self._admit(context)
        stream_handler = self._streams.get(context.method)
        if stream_handler is not None:
            await stream_handler(ServerStream(call), context)
            return
        request: bytes | None = None
        with trio.move_on_after(self._limits.request_timeout_s) as waiting:
            request = await call.receive()
            if request is not None and await call.receive() is not None:
                raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "more than one request message")
        if waiting.cancelled_caught:
            raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the request did not arrive in time")
        if request is None:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "no request message")
        response = await self._unary[context.method](request, context)
        _send_response_headers(call)
        with trio.move_on_after(self._limits.response_timeout_s) as sending:
            await call.send(response)
        if sending.cancelled_caught:
            raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the response was not read in time")

    def _to_status(self, context: CallContext | None, error: Exception) -> tuple[GrpcStatus, str]:
        cause = sole_cause(error)
        if isinstance(cause, GrpcError):
            return cause.status, cause.message
        with suppress(Exception):  # a failing log hook must not take the connection with it
            self._on_error(context.method if context is not None else "?", error)
        return GrpcStatus.INTERNAL, "internal error"

    def _finish(self, call: Call, status: GrpcStatus, message: str, metadata: MetadataItems) -> None:
        trailers: Headers = [] if call.has_sent_headers else response_headers()
        trailers.append((b"grpc-status", str(int(status)).encode()))
        if message:
            trailers.append((b"grpc-message", encode_message(message)))
        with suppress(GrpcError):  # a handler's bad trailing metadata must not cost the status
            trailers += encode_metadata(metadata)
        call.send_headers(trailers, end_stream=True)


class _NotGrpc(Exception):
    """The request is HTTP/2 but not gRPC."""


def sole_cause(error: BaseException) -> BaseException:
    """What is inside exception groups of one: handlers with nurseries raise those."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _path(call: Call) -> str:
    return dict(call.headers or []).get(b":path", b"").decode("latin-1")


def response_headers() -> Headers:
    return [(b":status", b"200"), (b"content-type", b"application/grpc+proto")]


def _send_response_headers(call: Call) -> None:
    if not call.has_sent_headers:
        call.send_headers(response_headers(), end_stream=False)


def peer_address(stream: trio.abc.Stream) -> tuple[str, int]:
    """("", 0) for a stream that is no IP socket."""
    if not isinstance(stream, trio.SocketStream):
        return "", 0
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "", 0
    if not isinstance(name, tuple):
        return "", 0
    host = str(name[0])
    return host.removeprefix("::ffff:") if "." in host else host, int(name[1])
