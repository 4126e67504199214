"""What both ends of an HBONE connection share: TLS pump, codec, tunnels, keepalive.

One loop pass costs one TLS write however many tunnels wrote. Events of one read are gathered for each tunnel,
so that a tunnel's user makes one system call for them. The peer's faults end a tunnel where HTTP/2 allows it,
else this connection, never more. Everything runs on the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from transport.errors import MeshError
from transport.hbone.connect import Headers
from transport.hbone.errors import (
    HboneConnectionLost,
    HboneKeepaliveTimeout,
    HboneProtocolError,
    TunnelClosed,
    TunnelReset,
    TunnelUnprocessed,
)
from transport.hbone.frame_buffer import FrameBuffer, Layout
from transport.hbone.tunnel import TunnelHandler, TunnelStream
from transport.http2.codec import CodecKind, Http2Codec
from transport.http2.error_codes import ErrorCode
from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    HeadersRejected,
    PeerSettings,
    Piece,
    PingAcked,
    StreamReset,
    WindowOpened,
)
from transport.reactor import Reactor, Timer
from transport.tls.pump import TlsPump


@dataclass(frozen=True, slots=True)
class HboneSettings:
    """What a connection needs beside its codec: keepalive and handshake times, the codec's name."""

    keepalive_interval_s: float = 10.0
    keepalive_timeout_s: float = 20.0
    handshake_timeout_s: float = 10.0
    codec: CodecKind = "lean"
    stream_window_bytes: int = 4 * 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    max_frame_bytes: int = 1024 * 1024
    max_peer_streams: int = 200
    assumed_peer_streams: int = 100


class HboneConnection:
    """One TLS connection with HTTP/2 on it; client and server derive from it. Implements TlsHandler."""

    __slots__ = (
        "_buffer",
        "_is_closing",
        "_keepalive",
        "_ping_counter",
        "_settings",
        "_timer",
        "blocked",
        "codec",
        "error",
        "is_established",
        "is_lost",
        "layout",
        "pump",
        "reactor",
        "streams",
    )

    pump: TlsPump  # set by the derived class once it can take callbacks

    def __init__(
        self, reactor: Reactor, codec: Http2Codec, buffer: FrameBuffer, settings: HboneSettings
    ) -> None:
        self.reactor = reactor
        self.codec = codec
        self.streams: dict[int, TunnelStream] = {}
        self.blocked: dict[int, TunnelStream] = {}
        self.is_established = False
        self.is_lost = False
        self.error: MeshError | None = None
        self._buffer = buffer
        self.layout: Layout = buffer.layout(16384)
        self._settings = settings
        self._timer: Timer | None = None
        self._ping_counter = 0
        self._is_closing = False

    # Commands

    def wake(self) -> None:
        """Have the codec's output sent at the end of this pass."""
        self.pump.request_flush()

    def forget(self, tunnel: TunnelStream) -> None:
        """The tunnel is over: nothing is delivered to it any more."""
        tunnel.is_over = True
        tunnel.handler = None  # breaks the cycle with what holds us
        self.blocked.pop(tunnel.stream_id, None)
        if self.streams.pop(tunnel.stream_id, None) is not None:
            self._on_stream_over()

    def abort(self, error: MeshError) -> None:
        """End the connection and all its tunnels with `error`, at once."""
        if self.is_lost:
            return
        self.error = self.error or error
        self.pump.abort(error)

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, *, error: MeshError | None = None) -> None:
        """Say GOAWAY and close; tunnels that are still open end with `error`, by default TunnelClosed."""
        if self.is_lost or self._is_closing:
            return
        self._is_closing = True
        if self.is_established:
            self.codec.goaway(code)
            self._write_output()
        self._end_all(error or TunnelClosed("the connection was closed on this side"))
        self.pump.close()

    # TlsHandler

    def on_data(self, data: memoryview) -> None:
        # Most often this is DATA, and then that is all, and there is nothing to say: no credit is due, or the
        # output of what was delivered is on its way already. So this pass need not flush.
        codec = self.codec
        pieces, taken = codec.receive_data(data)
        if pieces:
            self._hand_over(pieces)
        if taken < len(data):
            self._take_in(data[taken:] if taken else data)
        output = codec.take_output()
        if output:
            self.pump.write(output)

    def _hand_over(self, pieces: Sequence[Piece]) -> None:
        """Pieces of one tunnel that follow each other go together: one system call for them all."""
        find, relieve = self.streams.get, self.reactor.relieve
        current, chunks, flow_bytes = 0, [], 0
        handler: TunnelHandler | None = None
        for stream_id, piece, size in pieces:
            if stream_id == current and handler is not None:
                chunks.append(piece)
                flow_bytes += size
                continue
            if handler is not None:
                handler.on_tunnel_data(chunks, flow_bytes)
                relieve()
            current, chunks, flow_bytes = stream_id, [piece], size
            tunnel = find(stream_id)
            handler = None if tunnel is None else tunnel.handler
            if handler is None:
                self.codec.consumed(stream_id, size)
        if handler is not None:
            handler.on_tunnel_data(chunks, flow_bytes)

    def _take_in(self, data: memoryview) -> None:
        """The general case of `_hand_over`: whatever the peer sent."""
        stream_id = 0
        chunks: list[memoryview] = []
        flow_bytes = 0
        for event in self.codec.receive(data):
            if type(event) is DataReceived:
                if event.stream_id == stream_id:
                    chunks.append(event.data)
                    flow_bytes += event.flow_bytes
                else:
                    if stream_id:
                        self._deliver(stream_id, chunks, flow_bytes)
                    stream_id = event.stream_id
                    chunks = [event.data]
                    flow_bytes = event.flow_bytes
                if event.end_stream:
                    self._deliver(stream_id, chunks, flow_bytes)
                    self._on_end(stream_id)
                    stream_id = 0
                continue
            if stream_id:
                self._deliver(stream_id, chunks, flow_bytes)
                stream_id = 0
            if type(event) is HeadersReceived:
                self._on_headers(event)
            else:
                self._on_event(event)
        if stream_id:
            self._deliver(stream_id, chunks, flow_bytes)

    def _deliver(self, stream_id: int, chunks: list[memoryview], flow_bytes: int) -> None:
        tunnel = self.streams.get(stream_id)
        if tunnel is None or tunnel.handler is None:
            self.codec.consumed(stream_id, flow_bytes)
        elif flow_bytes:
            tunnel.handler.on_tunnel_data(chunks, flow_bytes)

    def _on_end(self, stream_id: int) -> None:
        tunnel = self.streams.get(stream_id)
        if tunnel is not None:
            self._remote_end(tunnel)

    def on_eof(self) -> None:
        """The peer closed TLS: nothing can follow on any tunnel."""
        self.abort(HboneConnectionLost("the peer closed the HBONE connection"))

    def on_lost(self, error: MeshError | None) -> None:
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        cause = self.error or error
        self.error = cause
        if self.streams:
            lost = cause if isinstance(cause, HboneConnectionLost) else None
            self._end_all(lost or HboneConnectionLost(f"the HBONE connection broke: {cause or 'closed'}"))
        self._on_connection_lost(cause)

    def on_drained(self) -> None:
        self._unblock_all()

    def before_flush(self) -> None:
        output = self.codec.take_output()
        if output:
            self.pump.write(output)

    # For derived classes

    def _on_headers(self, event: HeadersReceived) -> None:
        raise NotImplementedError

    def _on_headers_rejected(self, event: HeadersRejected) -> None:
        """The codec turned a request away."""

    def _on_stream_over(self) -> None:
        """A tunnel ended."""

    def _on_connection_lost(self, error: MeshError | None) -> None:
        """The socket is closed."""

    def _on_peer_settings(self) -> None:
        """The peer's limits are known, or changed."""

    def _on_goaway(self, event: GoAwayReceived) -> None:
        """The peer takes no new streams."""

    def _lose(self, tunnel: TunnelStream, error: MeshError | None) -> None:
        """The tunnel is over, not by its user's wish: forget it and tell."""
        handler = tunnel.handler
        self.forget(tunnel)
        if handler is not None:
            handler.on_tunnel_reset(error)

    def _start(self) -> None:
        """TLS is up: send the preface."""
        self.is_established = True
        self.codec.start()
        self.wake()
        self._timer = self.reactor.call_later(self._settings.keepalive_interval_s, self._send_ping)

    # Events

    def _on_event(self, event: Event) -> None:
        match event:
            case WindowOpened():
                if event.stream_id == 0:
                    self._unblock_all()
                else:
                    tunnel = self.blocked.pop(event.stream_id, None)
                    if tunnel is not None and tunnel.handler is not None:
                        tunnel.handler.on_tunnel_writable()
            case StreamReset():
                self._on_stream_reset(event)
            case PingAcked():
                self._on_ping_acked()
            case PeerSettings():
                self.layout = self._buffer.layout(self.codec.peer_max_frame)
                self._on_peer_settings()
            case HeadersRejected():
                self._on_headers_rejected(event)
            case GoAwayReceived():
                self._on_goaway(event)
            case ConnectionFailed():
                self._on_connection_failed(event)
            case DataReceived() | HeadersReceived():
                raise AssertionError("handled by the caller, because they are frequent")
            case _:
                assert_never(event)

    def _remote_end(self, tunnel: TunnelStream) -> None:
        tunnel.is_remote_ended = True
        handler = tunnel.handler
        if tunnel.is_local_ended:
            self.forget(tunnel)
        if handler is not None:
            handler.on_tunnel_end()

    def _on_stream_reset(self, event: StreamReset) -> None:
        tunnel = self.streams.get(event.stream_id)
        if tunnel is None:
            return
        self._lose(tunnel, _reset_error(event))

    def _on_connection_failed(self, event: ConnectionFailed) -> None:
        self.error = HboneProtocolError(f"HTTP/2 error {code_name(event.code)}: {event.reason}")
        self._is_closing = True
        self._write_output()
        self._end_all(self.error)
        self.pump.close()

    def _unblock_all(self) -> None:
        if not self.blocked:
            return
        blocked, self.blocked = self.blocked, {}
        for tunnel in blocked.values():
            if tunnel.handler is not None and not tunnel.is_over:
                tunnel.handler.on_tunnel_writable()

    def _end_all(self, error: MeshError) -> None:
        streams = list(self.streams.values())
        for tunnel in streams:
            if not tunnel.is_over:
                self._lose(tunnel, error)

    def _write_output(self) -> None:
        output = self.codec.take_output()
        if output:
            self.pump.write(output)

    # Keepalive (ztunnel-facts 2.8): not data-aware on purpose, as the peers' is not.

    def _send_ping(self) -> None:
        self._ping_counter += 1
        self.codec.ping(self._ping_counter.to_bytes(8, "big"))
        self.wake()
        self._timer = self.reactor.call_later(self._settings.keepalive_timeout_s, self._on_ping_timeout)

    def _on_ping_acked(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.is_lost:
            self._timer = self.reactor.call_later(self._settings.keepalive_interval_s, self._send_ping)

    def _on_ping_timeout(self) -> None:
        self._timer = None
        text = f"no answer to an HTTP/2 PING in {self._settings.keepalive_timeout_s:g} s"
        self.abort(HboneKeepaliveTimeout(text))


def code_name(code: int) -> str:
    """The name of an HTTP/2 error code, or its number."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"code {code}"


def _reset_error(event: StreamReset) -> MeshError | None:
    code = event.code
    if event.is_local:
        return TunnelReset(f"the peer broke HTTP/2 on this stream: {event.reason}", error_code=code)
    if code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL):
        return None
    if code == ErrorCode.REFUSED_STREAM:
        return TunnelUnprocessed("the peer refused the stream (REFUSED_STREAM)")
    if code == ErrorCode.STREAM_CLOSED:
        return TunnelReset("broken pipe: the peer had closed the stream", error_code=code)
    return TunnelReset(f"stream reset by the peer: {code_name(code)}", error_code=code)


def plain_headers(status: int, extra: Headers | None = None) -> Headers:
    """A response's header list."""
    return [(b":status", b"%d" % status), *(extra or [])]
