"""One HTTP/2 connection of either role, on trio, with the h2 library as its engine (met only here).

Owns the byte stream, one reader, one writer and one keepalive task; calls live on top of it.
Invariants:
- Every h2 operation is synchronous and its output is moved to `_outbound` at once; only the writer task
  touches the stream's sending side.
- Senders stop at `SEND_HIGH_WATER_BYTES` of unsent output; control frames may exceed it up to
  `OUTBOUND_LIMIT_BYTES`, where the peer is one that provokes answers and reads none: the connection ends.
- When the connection ends, each open call fails with the same GrpcError, and `run()` returns normally.
- Connection-level credit is given at arrival (a slow call must not stop the others; what they may hold is
  bounded by the stream windows and `max_held_bytes`), stream-level credit as messages are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio
from hyperframe.frame import GoAwayFrame

from transport.grpc.call import ENHANCE_YOUR_CALM, Call
from transport.grpc.frame_tap import FrameRefused, FrameTap, GoAway, TapLimits
from transport.grpc.metadata import Headers
from transport.grpc.status import (
    ChannelUnavailable,
    GrpcError,
    GrpcStatus,
    status_from_reset,
)

SEND_HIGH_WATER_BYTES = 256 * 1024
OUTBOUND_LIMIT_BYTES = 4 * 1024 * 1024
READ_BYTES = 64 * 1024
FLUSH_GRACE_S = 1.0
REFUSED_STREAM = 0x7
MAX_STREAM_ID = 2**31 - 1
DRAIN_PROBE = b"drain..."
KEEPALIVE_PROBE = b"alive..."
GOAWAY_TEXT = "received prior goaway"
CLOSING_TEXT = "transport is closing"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    stream_window_bytes: int = 4 * 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    max_streams: int = 100  # that the peer may have open
    max_message_bytes: int = 200 * 1024 * 1024
    max_held_bytes: int | None = None  # received and not yet taken, over all calls
    keepalive_ping_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    settings_timeout_s: float = 10.0
    idle_timeout_s: float = math.inf  # without open calls
    tap: TapLimits = field(default_factory=TapLimits)


class Connection:
    """Built inert; `run()` does all I/O. `on_request(call)` is called for each call of a client."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        limits: ConnectionLimits,
        *,
        on_request: Callable[[Call], None] | None = None,
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._on_request = on_request
        self._is_server = on_request is not None
        self._tap = FrameTap(limits.tap, is_server=self._is_server)
        self._h2 = self._make_engine()
        self._calls: dict[int, Call] = {}
        self._pending_credit: dict[int, int] = {}
        self._pending_connection_credit = 0
        self._outbound = bytearray()
        self._is_writing = False
        self._writer_wake = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._last_heard = 0.0
        self._reads = 0
        self._last_call_at = 0.0
        self._goaway_to: int | None = None  # highest of our calls that the peer will still serve
        self._accept_to = MAX_STREAM_ID
        self._drain_begun = trio.Event()
        self._drain_heard = trio.Event()
        self._highest_accepted = 0
        self.failure: GrpcError | None = None
        self.peer_ready = trio.Event()  # the peer's SETTINGS have arrived
        self.ended = trio.Event()

    def _make_engine(self) -> h2.connection.H2Connection:
        config = h2.config.H2Configuration(client_side=not self._is_server, header_encoding=False)
        engine = h2.connection.H2Connection(config)
        code = h2.settings.SettingCodes
        values = {
            code.INITIAL_WINDOW_SIZE: self._limits.stream_window_bytes,
            code.MAX_FRAME_SIZE: self._limits.tap.max_frame_bytes,
            code.MAX_HEADER_LIST_SIZE: self._limits.tap.max_header_block_bytes,
        }
        if self._is_server:
            values[code.MAX_CONCURRENT_STREAMS] = self._limits.max_streams
        else:
            values[code.ENABLE_PUSH] = 0
        engine.local_settings = h2.settings.Settings(client=not self._is_server, initial_values=values)
        engine.max_inbound_frame_size = self._limits.tap.max_frame_bytes
        return engine

    # --- life ---

    async def run(self) -> None:
        """Until the connection has ended for any reason; the reason is in `failure`. Closes the stream."""
        self._last_heard = self._last_call_at = trio.current_time()
        self._begin()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_loop)
                nursery.start_soon(self._read_loop)
                nursery.start_soon(self._keepalive_loop)
                nursery.start_soon(self._drain_when_asked)
                await self.ended.wait()
                with trio.move_on_after(FLUSH_GRACE_S):
                    await self._flushed()
                nursery.cancel_scope.cancel()
        finally:
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: closed here"))
            await trio.aclose_forcefully(self._stream)

    def _begin(self) -> None:
        self._h2.initiate_connection()
        extra = self._limits.connection_window_bytes - 65535
        if extra > 0:
            self._h2.increment_flow_control_window(extra)
        if self._is_server:
            # h2 answers one stream too many with a connection error, which a client that raced our
            # SETTINGS does not deserve. It may count higher; we refuse the surplus stream by stream.
            self._h2.local_settings.max_concurrent_streams = 10 * self._limits.max_streams + 1000
            self._h2.local_settings.acknowledge()
        self._collect()

    async def wait_ready(self) -> None:
        """Until the peer's SETTINGS are here; raises why the connection failed before."""
        await self.peer_ready.wait()
        if self.failure is not None:
            raise self.failure

    def fail(self, error: GrpcError) -> None:
        """Ends the connection and all its calls. The first reason stays. Idempotent, synchronous."""
        if self.failure is not None:
            return
        self.failure = error
        for call in list(self._calls.values()):
            call.on_failed(error)
        self.ended.set()
        self.peer_ready.set()
        self._progress.unpark_all()

    def close(self) -> None:
        """Orderly: GOAWAY(NO_ERROR), flush for a bounded time, close. Open calls fail as CANCELLED."""
        if self.failure is None:
            for call in list(self._calls.values()):
                call.abort(GrpcError(GrpcStatus.CANCELLED, "the channel is closed"))
            self._goaway(0, self._highest_accepted)
            self.fail(ChannelUnavailable("the channel is closed"))

    def begin_drain(self) -> None:
        """Server: announce the end, accept what is already on its way, finish what is open, then end.

        RFC 9113 6.8: GOAWAY with the highest id first, the real one a round trip later (PING).
        """
        if self._drain_begun.is_set() or self.failure is not None:
            return
        self._drain_begun.set()
        self._goaway(0, MAX_STREAM_ID)
        self._h2.ping(DRAIN_PROBE)
        self._collect()

    @property
    def is_usable(self) -> bool:
        """May a new call be opened?"""
        return self.failure is None and self._goaway_to is None

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    # --- calls ---

    async def open_call(
        self,
        headers: Headers,
        check_headers: Callable[[Headers], GrpcError | None],
        max_message_bytes: int,
    ) -> Call:
        """Client: sends the request headers; waits while the peer's stream limit is reached.

        Raises ChannelUnavailable on a channel that is lost or going away.
        """
        await trio.lowlevel.checkpoint()
        while self.is_usable and len(self._calls) >= self._h2.remote_settings.max_concurrent_streams:
            await self._progress.park()
        if self.failure is not None:
            raise self.failure
        if self._goaway_to is not None:
            raise ChannelUnavailable(GOAWAY_TEXT)
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers)
        except h2.exceptions.ProtocolError as error:
            raise ChannelUnavailable(f"{GOAWAY_TEXT}: no further stream on this connection") from error
        call = Call(
            self, stream_id, is_client=True, max_message_bytes=max_message_bytes, check_headers=check_headers
        )
        self._calls[stream_id] = call
        self._last_call_at = trio.current_time()
        self._collect()
        return call

    def room(self, stream_id: int) -> int:
        if self.failure is not None or len(self._outbound) >= SEND_HIGH_WATER_BYTES:
            return 0
        try:
            window = self._h2.local_flow_control_window(stream_id)
        except h2.exceptions.ProtocolError:
            return 0
        return max(0, min(window, self._h2.max_outbound_frame_size, SEND_HIGH_WATER_BYTES))

    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool) -> None:
        self._tap.earn()
        self._do(lambda: self._h2.send_data(stream_id, data, end_stream=end_stream))

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        self._do(lambda: self._h2.send_headers(stream_id, headers, end_stream=end_stream))

    def reset(self, stream_id: int, error_code: int) -> None:
        self._do(lambda: self._h2.reset_stream(stream_id, error_code))

    def credit(self, stream_id: int, flow_bytes: int) -> None:
        pending = self._pending_credit.get(stream_id, 0) + flow_bytes
        if pending * 2 >= self._limits.stream_window_bytes and stream_id in self._h2.streams:
            self._pending_credit[stream_id] = 0
            self._do(lambda: self._h2.increment_flow_control_window(pending, stream_id))
        else:
            self._pending_credit[stream_id] = pending

    def forget(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)
        self._pending_credit.pop(stream_id, None)
        self._last_call_at = trio.current_time()
        self._progress.unpark_all()
        self._end_if_drained()

    async def wait_for_progress(self) -> None:
        """Until a window, the outbound buffer or a call's state has changed."""
        await self._progress.park()

    def _do(self, operation: Callable[[], None]) -> None:
        """One h2 operation. A stream that h2 has closed meanwhile makes it void: its call learns by event."""
        if self.failure is not None:
            return
        try:
            operation()
        except (h2.exceptions.ProtocolError, KeyError):
            return
        finally:
            self._collect()

    # --- output ---

    def _collect(self) -> None:
        data = self._h2.data_to_send()
        if not data:
            return
        self._outbound += data
        self._writer_wake.set()
        if len(self._outbound) > OUTBOUND_LIMIT_BYTES:
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: the peer reads nothing"))

    def _goaway(self, error_code: int, last_stream_id: int, debug: bytes = b"") -> None:
        # Beside h2, which would refuse every later frame of the streams that are to be finished.
        frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=error_code, additional_data=debug)
        self._outbound += frame.serialize()
        self._writer_wake.set()

    async def _write_loop(self) -> None:
        try:
            while True:
                await self._writer_wake.wait()
                self._writer_wake = trio.Event()
                while self._outbound:
                    data, self._outbound = self._outbound, bytearray()
                    self._is_writing = True
                    await self._stream.send_all(data)
                    self._is_writing = False
                    self._progress.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._is_writing = False
            self._outbound.clear()
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: {describe(error)}"))
            self._progress.unpark_all()

    async def _flushed(self) -> None:
        while self._outbound or self._is_writing:
            await self._progress.park()

    # --- input ---

    async def _read_loop(self) -> None:
        try:
            while self.failure is None:
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: the peer closed the connection"))
                    return
                self._last_heard = trio.current_time()
                self._reads += 1
                self._feed(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: {describe(error)}"))

    def _feed(self, data: bytes) -> None:
        try:
            for part in self._tap.feed(data, self._last_heard):
                if isinstance(part, GoAway):
                    self._on_goaway(part)
                    continue
                for event in self._h2.receive_data(part):
                    self._on_event(event)
                    if self.failure is not None:
                        return
        except FrameRefused as refused:
            self._goaway(refused.error_code, self._h2.highest_inbound_stream_id, refused.reason.encode())
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: refused the peer's frames: {refused.reason}"))
        except h2.exceptions.ProtocolError as error:
            self._collect()  # h2 has prepared the GOAWAY
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: HTTP/2 protocol error of the peer: {error}"))
        else:
            self._collect()
        finally:
            self._progress.unpark_all()

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._on_data(event)
            case h2.events.RequestReceived():
                self._on_request_headers(event)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                call = self._calls.get(event.stream_id)
                if call is not None:
                    call.on_headers(_raw(event.headers), is_end=event.stream_ended is not None)
            case h2.events.StreamEnded():
                if (call := self._calls.get(event.stream_id)) is not None:
                    call.on_end()
            case h2.events.StreamReset():
                if (call := self._calls.get(event.stream_id)) is not None:
                    status = status_from_reset(int(event.error_code))
                    call.on_failed(
                        GrpcError(status, f"stream reset by the peer, code {int(event.error_code)}")
                    )
            case h2.events.RemoteSettingsChanged():
                self.peer_ready.set()
            case h2.events.PingAckReceived():
                if event.ping_data == DRAIN_PROBE:
                    self._drain_heard.set()
            case _:
                pass

    def _on_data(self, event: h2.events.DataReceived) -> None:
        self._pending_connection_credit += event.flow_controlled_length
        if self._pending_connection_credit * 2 >= self._limits.connection_window_bytes:
            amount, self._pending_connection_credit = self._pending_connection_credit, 0
            self._do(lambda: self._h2.increment_flow_control_window(amount))
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        call.on_data(event.data, event.flow_controlled_length)
        limit = self._limits.max_held_bytes
        if limit is not None and sum(call.held_bytes for call in self._calls.values()) > limit:
            error = GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "too much unread on this connection")
            call.abort(error, ENHANCE_YOUR_CALM)

    def _on_request_headers(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        if stream_id > self._accept_to:
            return  # after the final GOAWAY: the client knows that we did not see it
        if len(self._calls) >= self._limits.max_streams:
            self.reset(stream_id, REFUSED_STREAM)
            return
        self._highest_accepted = max(self._highest_accepted, stream_id)
        call = Call(self, stream_id, is_client=False, max_message_bytes=self._limits.max_message_bytes)
        self._calls[stream_id] = call
        call.headers = _raw(event.headers)
        assert self._on_request is not None
        self._on_request(call)

    def _on_goaway(self, goaway: GoAway) -> None:
        text = goaway.debug.decode("ascii", "replace") if goaway.debug else f"code {goaway.error_code}"
        self._goaway_to = goaway.last_stream_id
        error = ChannelUnavailable(f"{GOAWAY_TEXT}: {text}")
        if self._is_server:
            return  # a client that goes away ends its calls itself
        for stream_id, call in list(self._calls.items()):
            if stream_id > goaway.last_stream_id:
                call.on_failed(error)
        if goaway.error_code != 0 or not self._calls:
            self.fail(error)

    async def _drain_when_asked(self) -> None:
        """After a round trip the client knows; one that does not answer gets no more than a keepalive."""
        await self._drain_begun.wait()
        with trio.move_on_after(self._limits.keepalive_timeout_s):
            await self._drain_heard.wait()
        self._accept_to = self._highest_accepted
        self._goaway(0, self._highest_accepted)
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self.failure is not None or self._calls:
            return
        if self._drain_begun.is_set() and self._accept_to != MAX_STREAM_ID:
            self.fail(ChannelUnavailable("drained"))
        elif self._goaway_to is not None and not self._is_server:
            self.fail(ChannelUnavailable(GOAWAY_TEXT))

    # --- time ---

    async def _keepalive_loop(self) -> None:
        """PING after silence while calls are open; any byte is a sign of life. Ends idle connections."""
        limits = self._limits
        with trio.move_on_after(limits.settings_timeout_s):
            await self.peer_ready.wait()
        if not self.peer_ready.is_set():
            self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: the peer does not speak HTTP/2"))
        while self.failure is None:
            now = trio.current_time()
            if not self._calls and now - self._last_call_at >= limits.idle_timeout_s:
                self.close()
                return
            silent_s = now - self._last_heard
            if not self._calls or silent_s < limits.keepalive_ping_s:
                await trio.sleep(
                    limits.keepalive_ping_s if not self._calls else limits.keepalive_ping_s - silent_s
                )
                continue
            self._do(lambda: self._h2.ping(KEEPALIVE_PROBE))
            reads = self._reads
            await trio.sleep(limits.keepalive_timeout_s)
            if self._reads == reads and self._calls:
                self.fail(ChannelUnavailable(f"{CLOSING_TEXT}: keepalive timed out"))


def _raw(headers: list[h2.events.Header] | None) -> Headers:  # type: ignore[name-defined]
    return [(bytes(name), bytes(value)) for name, value in headers or ()]


def describe(error: BaseException) -> str:
    """The innermost cause's text: trio wraps what the socket or TLS said."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) or type(cause).__name__
