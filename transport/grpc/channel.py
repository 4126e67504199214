"""gRPC client channel: one connection, unary calls and bidirectional streams on it.

A channel does not reconnect: when the connection is lost its calls raise ChannelUnavailable and the owner
opens another one (xDS and CA clients have their own backoff rules and re-read roots and tokens then).
Leaving a stream or a unary call early, by cancellation or exception, sends RST_STREAM(CANCEL).
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from transport.grpc.call import Call
from transport.grpc.connection import Connection, ConnectionLimits, describe
from transport.grpc.metadata import Headers, Metadata, MetadataItems, encode_metadata, encode_timeout
from transport.grpc.status import (
    ChannelUnavailable,
    GrpcError,
    GrpcStatus,
    decode_message,
    status_from_http,
    status_from_text,
)
from transport.grpc.tls import TlsHandshakeError, TlsTrust, client_context, connect_tls

USER_AGENT = b"mycelia-grpc/1"


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """`tls=None` is plaintext: tests and loopback only. A keepalive of 0 s or less is not meant to exist."""

    host: str
    port: int
    tls: TlsTrust | None = None
    connect_timeout_s: float = 5.0  # for TCP, and once more for TLS and the peer's SETTINGS
    keepalive_ping_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    max_message_bytes: int = 200 * 1024 * 1024

    @property
    def limits(self) -> ConnectionLimits:
        return ConnectionLimits(
            max_message_bytes=self.max_message_bytes,
            keepalive_ping_s=self.keepalive_ping_s,
            keepalive_timeout_s=self.keepalive_timeout_s,
            settings_timeout_s=self.connect_timeout_s,
        )


class BidiStream:
    """One bidirectional call. One task sends and one receives at a time."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, message: bytes) -> None:
        """Raises GrpcError if the call is over; `receive` then has the true status."""
        await self._call.send(message)

    async def send_eof(self) -> None:
        """Half-closes: the server sees the end of the requests."""
        await trio.lowlevel.checkpoint()
        self._call.send_end()

    async def receive(self) -> bytes | None:
        """The next message; None when the server ended the call with OK; raises GrpcError otherwise."""
        message = await self._call.receive()
        if message is None:
            _raise_unless_ok(self._call)
        return message

    async def initial_metadata(self) -> Metadata:
        headers = await self._call.wait_headers()
        return Metadata.from_headers(headers or [])

    @property
    def trailing_metadata(self) -> Metadata:
        return Metadata.from_headers(self._call.trailers or [])


class Channel:
    """Made by `open_channel`."""

    def __init__(self, connection: Connection, settings: ChannelSettings) -> None:
        self._connection = connection
        self._settings = settings

    @property
    def is_usable(self) -> bool:
        """False once the connection is lost or the server is going away; calls already open may go on."""
        return self._connection.is_usable

    async def wait_closed(self) -> None:
        await self._connection.ended.wait()

    async def unary(
        self, method: str, request: bytes, *, metadata: MetadataItems = (), timeout_s: float | None = None
    ) -> bytes:
        """One request, one response; raises GrpcError, DEADLINE_EXCEEDED after `timeout_s`."""
        with trio.move_on_after(math.inf if timeout_s is None else timeout_s):
            async with self._calling(method, metadata, timeout_s) as call:
                await _send_request(call, request)
                response = await call.receive()
                if response is None:
                    _raise_unless_ok(call)
                    raise GrpcError(GrpcStatus.INTERNAL, "the server sent no response message")
                if await call.receive() is not None:
                    raise GrpcError(GrpcStatus.INTERNAL, "the server sent more than one response message")
                _raise_unless_ok(call)
                return response
        raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, f"no response within {timeout_s} s")

    @asynccontextmanager
    async def stream(self, method: str, *, metadata: MetadataItems = ()) -> AsyncIterator[BidiStream]:
        """Opens the call; leaving the block before the server has ended it cancels it."""
        async with self._calling(method, metadata, None) as call:
            yield BidiStream(call)

    @asynccontextmanager
    async def _calling(
        self, method: str, metadata: MetadataItems, timeout_s: float | None
    ) -> AsyncIterator[Call]:
        headers = self._request_headers(method, metadata, timeout_s)
        call = await self._connection.open_call(headers, check_response, self._settings.max_message_bytes)
        try:
            yield call
        finally:
            call.abort(GrpcError(GrpcStatus.CANCELLED, "cancelled by the caller"))

    def _request_headers(self, method: str, metadata: MetadataItems, timeout_s: float | None) -> Headers:
        settings = self._settings
        name = (settings.tls.server_name if settings.tls else "") or settings.host
        authority = f"[{name}]:{settings.port}" if ":" in name else f"{name}:{settings.port}"
        headers: Headers = [
            (b":method", b"POST"),
            (b":scheme", b"https" if settings.tls else b"http"),
            (b":path", method.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc+proto"),
            (b"user-agent", USER_AGENT),
            (b"grpc-accept-encoding", b"identity"),
        ]
        if timeout_s is not None:
            headers.append((b"grpc-timeout", encode_timeout(timeout_s)))
        return headers + encode_metadata(metadata)


@asynccontextmanager
async def open_channel(settings: ChannelSettings) -> AsyncIterator[Channel]:
    """Connects, and closes on leaving. Raises ChannelUnavailable, and TlsMaterialError for bad roots.

    An exception of the block leaves as it is (not wrapped in a group).
    """
    connection = Connection(await _connect(settings), settings.limits)
    async with running_channel(connection, settings) as channel:
        yield channel


@asynccontextmanager
async def running_channel(connection: Connection, settings: ChannelSettings) -> AsyncIterator[Channel]:
    """`open_channel` over a connection that is made already (tests use memory streams)."""
    body_error: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            await connection.wait_ready()
            yield Channel(connection, settings)
        except Exception as error:  # noqa: BLE001 - carried past the nursery, which would wrap it
            body_error = error
        finally:
            connection.close()
    if body_error is not None:
        raise body_error


async def _connect(settings: ChannelSettings) -> trio.abc.Stream:
    target = f"{settings.host}:{settings.port}"
    context = client_context(settings.tls) if settings.tls is not None else None
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(settings.connect_timeout_s):
            tcp = await trio.open_tcp_stream(settings.host, settings.port)
        stream = tcp
        _set_keepalive(tcp)
        if settings.tls is not None and context is not None:
            with trio.fail_after(settings.connect_timeout_s):
                stream = await connect_tls(tcp, context, settings.tls, settings.host)
    except OSError as error:
        await _discard(stream)
        raise ChannelUnavailable(
            f"cannot connect to {target}: {describe_os(error)}",
            next_step="is the server running and reachable?",
        ) from error
    except trio.TooSlowError as error:
        await _discard(stream)
        raise ChannelUnavailable(
            f"cannot connect to {target} within {settings.connect_timeout_s:g} s"
        ) from error
    except TlsHandshakeError as error:
        await _discard(stream)
        raise ChannelUnavailable(f"{target}: {error.text}", next_step=error.next_step) from error
    except BaseException:
        await _discard(stream)
        raise
    return stream


async def _discard(stream: trio.abc.Stream | None) -> None:
    if stream is not None:
        await trio.aclose_forcefully(stream)


def _set_keepalive(stream: trio.SocketStream) -> None:
    """Istio's values: a silent path dies after 300 s + 9 x 75 s even without calls."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)


def describe_os(error: OSError) -> str:
    """trio's text for a failed connect is long; the last attempt's errno says it."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[-1]
    return cause.strerror or str(cause) if isinstance(cause, OSError) else describe(error)


def check_response(headers: Headers) -> GrpcError | None:
    """The verdict on a response's initial headers: None if it is gRPC's."""
    fields = dict(headers)
    http_status = fields.get(b":status", b"")
    if http_status != b"200":
        number = int(http_status) if http_status.isdigit() else 0
        text = f"the server answered HTTP {http_status.decode('latin-1')}"
        return GrpcError(status_from_http(number), text)
    content_type = fields.get(b"content-type", b"")
    if not content_type.startswith(b"application/grpc"):
        return GrpcError(GrpcStatus.UNKNOWN, "the response is not gRPC")
    encoding = fields.get(b"grpc-encoding", b"identity")
    if encoding != b"identity":
        return GrpcError(GrpcStatus.INTERNAL, "the response uses a compression that was not offered")
    return None


async def _send_request(call: Call, request: bytes) -> None:
    """A server may answer before it has read everything; its status then says more than our failed send."""
    try:
        await call.send(request)
    except GrpcError:
        if call.failure is not None:
            raise
    call.send_end()


def _raise_unless_ok(call: Call) -> None:
    if call.trailers is None:
        raise GrpcError(GrpcStatus.INTERNAL, "the server ended the stream without a status")
    fields = dict(call.trailers)
    if b"grpc-status" not in fields:
        raise GrpcError(GrpcStatus.UNKNOWN, "the server's trailers have no grpc-status")
    status = status_from_text(fields[b"grpc-status"])
    if status is not GrpcStatus.OK:
        raise GrpcError(status, decode_message(fields.get(b"grpc-message", b"")))
