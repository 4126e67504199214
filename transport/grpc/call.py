"""One gRPC call on one HTTP/2 stream, either side: messages in and out with flow control.

The connection feeds it (`on_*`, synchronous) and carries what it sends (`Wire`).
Invariants:
- Flow-control credit is given for a message when a reader takes it, and for the message being assembled
  only while a reader waits for it. So what an idle reader makes us hold is at most one stream window.
- The first end wins: after a failure or the peer's end nothing else changes the outcome.
- A message is sent whole or the stream is reset: cancelling `send` midway resets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from transport.grpc.messages import PREFIX, MessageDecoder
from transport.grpc.metadata import Headers
from transport.grpc.status import GrpcError, GrpcStatus

CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB
NO_ERROR = 0x0
SMALL_BYTES = 64 * 1024  # up to here one copy is cheaper than a second DATA frame


class Wire(Protocol):
    """What a call needs of its connection. All but the wait are synchronous and never fail."""

    def room(self, stream_id: int) -> int: ...
    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool) -> None: ...
    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None: ...
    def credit(self, stream_id: int, flow_bytes: int) -> None: ...
    def reset(self, stream_id: int, error_code: int) -> None: ...
    def forget(self, stream_id: int) -> None: ...
    async def wait_for_progress(self) -> None: ...


class Call:
    def __init__(
        self,
        wire: Wire,
        stream_id: int,
        *,
        is_client: bool,
        max_message_bytes: int,
        check_headers: Callable[[Headers], GrpcError | None] | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.headers: Headers | None = None
        self.trailers: Headers | None = None
        self.failure: GrpcError | None = None
        self.is_remote_done = False
        self.is_local_done = False
        self.has_sent_headers = is_client
        self.on_abort: Callable[[], None] | None = None
        self.held_bytes = 0
        self._is_client = is_client
        self._wire = wire
        self._decoder = MessageDecoder(max_message_bytes)
        self._check_headers = check_headers
        self._messages: deque[tuple[bytes, int]] = deque()
        self._partial_credited = 0
        self._inbound_error: GrpcError | None = None
        self._is_reading = False
        self._changed = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()

    # --- fed by the connection ---

    def on_headers(self, headers: Headers, *, is_end: bool) -> None:
        """Initial headers or trailers, told apart by order and END_STREAM (trailers-only is both)."""
        if self.headers is None:
            self.headers = headers
            error = self._check_headers(headers) if self._check_headers is not None else None
            if error is not None:
                self.abort(error)
                return
            if is_end:
                self.trailers = headers
        else:
            self.trailers = headers
        if is_end:
            self.on_end()
        self._changed.unpark_all()

    def on_data(self, data: bytes, flow_bytes: int) -> None:
        if self.failure is not None or self.is_remote_done or self._inbound_error is not None:
            return
        if flow_bytes > len(data):
            self._wire.credit(self.stream_id, flow_bytes - len(data))
        self.held_bytes += len(data)
        try:
            messages = self._decoder.feed(data)
        except GrpcError as error:
            self._refuse_inbound(error)
            return
        for message in messages:
            self._messages.append((message, PREFIX.size + len(message) - self._partial_credited))
            self._partial_credited = 0
        if self._is_reading and not self._messages:
            self._credit_partial()
        self._changed.unpark_all()

    def on_end(self) -> None:
        if self.is_remote_done or self.failure is not None:
            return
        if self._decoder.partial_bytes and self._inbound_error is None:
            self._refuse_inbound(GrpcError(GrpcStatus.INTERNAL, "the stream ended inside a message"))
        if self.is_over:
            return
        self.is_remote_done = True
        if self._is_client and not self.is_local_done:
            self.is_local_done = True  # the status is here: nothing that we still send could matter
            self._wire.reset(self.stream_id, NO_ERROR)
        self._close_if_done()
        self._changed.unpark_all()

    def _refuse_inbound(self, error: GrpcError) -> None:
        """What arrives cannot be used. A client is done with the call; a server's handler learns it by
        `receive`, so that the client gets a status and no bare reset. Later data is dropped, uncredited."""
        if self._is_client:
            self.abort(error)
            return
        self._inbound_error = error
        self._decoder = MessageDecoder(0)
        self._changed.unpark_all()

    def on_failed(self, error: GrpcError) -> None:
        """RST_STREAM from the peer, or the connection is lost."""
        if not self.is_over:
            self._fail(error)

    # --- used by the two sides ---

    def limit_messages(self, max_bytes: int) -> None:
        """A smaller bound than the connection's, before the first message."""
        self._decoder = MessageDecoder(max_bytes)

    def abort(self, error: GrpcError, error_code: int = CANCEL) -> None:
        """Ends the call from here: RST_STREAM, and `error` for whoever still uses it. Idempotent."""
        if not self.is_over:
            self._wire.reset(self.stream_id, error_code)
            self._fail(error)

    @property
    def is_over(self) -> bool:
        return self.failure is not None or (self.is_remote_done and self.is_local_done)

    def _fail(self, error: GrpcError) -> None:
        self.failure = error
        self._wire.forget(self.stream_id)
        self._changed.unpark_all()
        if self.on_abort is not None:
            self.on_abort()

    async def wait_headers(self) -> Headers | None:
        """The peer's initial headers; None if the call failed before."""
        while self.headers is None and self.failure is None:
            await self._changed.park()
        return self.headers

    async def receive(self) -> bytes | None:
        """The next message, None after the last; raises the call's failure. One reader at a time.

        Messages that arrived before a failure are still delivered. Cancelling loses no message.
        """
        if self._is_reading:
            raise trio.BusyResourceError("another task is already receiving on this call")
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._messages:
            self._is_reading = True
            try:
                self._credit_partial()
                while not (self._messages or self._is_inbound_over):
                    await self._changed.park()
            finally:
                self._is_reading = False
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if self._messages:
            message, owed = self._messages.popleft()
            self.held_bytes -= PREFIX.size + len(message)
            self._give(owed)
            return message
        error = self.failure or self._inbound_error
        if error is not None:
            raise error
        return None

    @property
    def _is_inbound_over(self) -> bool:
        return self.is_remote_done or self.failure is not None or self._inbound_error is not None

    async def send(self, message: bytes) -> None:
        """Returns when the last byte is in the connection's bounded outbound buffer."""
        async with self._sending:
            self._require_sendable()
            head, body = PREFIX.pack(0, len(message)), memoryview(message)
            if len(message) < SMALL_BYTES:
                head, body = head + message, memoryview(b"")
            is_complete = False
            try:
                await self._send_view(memoryview(head))
                await self._send_view(body)
                is_complete = True
            finally:
                if not is_complete:
                    self.abort(GrpcError(GrpcStatus.CANCELLED, "sending a message was interrupted"))

    async def _send_view(self, view: memoryview) -> None:
        while view:
            room = self._wire.room(self.stream_id)
            if room <= 0:
                await self._wire.wait_for_progress()
                self._require_sendable()
                continue
            self._wire.send_data(self.stream_id, view[:room], end_stream=False)
            view = view[room:]

    def _require_sendable(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.is_over:
            raise GrpcError(GrpcStatus.CANCELLED, "the peer has ended the call")
        if self.is_local_done:
            raise GrpcError(GrpcStatus.FAILED_PRECONDITION, "the sending side is closed already")

    def send_headers(self, headers: Headers, *, end_stream: bool) -> None:
        """Initial headers, or trailers with `end_stream`. Ignored once the call is over.

        A server's trailers end the call: a client that has not half-closed gets RST_STREAM(NO_ERROR).
        """
        if self.failure is not None or self.is_local_done:
            return
        self._wire.send_headers(self.stream_id, headers, end_stream=end_stream)
        self.has_sent_headers = True
        if not end_stream:
            return
        self.is_local_done = True
        if not self._is_client and not self.is_remote_done:
            self.is_remote_done = True
            self._wire.reset(self.stream_id, NO_ERROR)
        self._close_if_done()

    def send_end(self) -> None:
        """Half-close. Idempotent."""
        if self.failure is not None or self.is_local_done:
            return
        self._wire.send_data(self.stream_id, b"", end_stream=True)
        self.is_local_done = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.is_local_done and self.is_remote_done:
            self._wire.forget(self.stream_id)

    # --- flow control ---

    def _credit_partial(self) -> None:
        owed = self._decoder.partial_bytes - self._partial_credited
        if owed > 0:
            self._partial_credited += owed
            self._give(owed)

    def _give(self, flow_bytes: int) -> None:
        if flow_bytes > 0 and not self.is_remote_done and self.failure is None:
            self._wire.credit(self.stream_id, flow_bytes)
