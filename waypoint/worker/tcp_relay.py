"""Two byte streams joined: what is no HTTP goes through as it is.

Each direction on its own: a stream that is congested pauses the other, an end is passed on, a loss of one is
a reset of the other.
"""

from __future__ import annotations

from collections.abc import Callable

from transport.errors import MeshError
from waypoint.worker.byte_stream import ByteStream


class TcpRelay:
    """Owns both streams. `on_over` gets bytes to and from the upstream and how it ended, once."""

    def __init__(
        self,
        downstream: ByteStream,
        upstream: ByteStream,
        on_over: Callable[[int, int, MeshError | None], None],
    ) -> None:
        self._ends = (_End(self, downstream), _End(self, upstream))
        self._ends[0].other, self._ends[1].other = self._ends[1], self._ends[0]
        self._on_over = on_over
        self._is_over = False

    def start(self, first: bytes | bytearray = b"") -> None:
        """Begin; `first` was read from the downstream already."""
        down, up = self._ends
        if first:
            down.received_bytes += len(first)
            up.stream.write(bytes(first))
        up.stream.start(up)
        down.stream.start(down)

    @property
    def sent_bytes(self) -> int:
        """From the client to the upstream so far."""
        return self._ends[0].received_bytes

    @property
    def received_bytes(self) -> int:
        return self._ends[1].received_bytes

    def end_client(self) -> None:
        """The client's end came before the start."""
        self._ends[0].on_eof()

    def abort(self, error: MeshError | None = None) -> None:
        """End both at once; `error` is why."""
        self.lose(None, error)

    def end_if_done(self) -> None:
        down, up = self._ends
        if down.is_ended and up.is_ended and not self._is_over:
            self._is_over = True
            down.stream.close()
            up.stream.close()
            self._on_over(down.received_bytes, up.received_bytes, None)

    def lose(self, lost: _End | None, error: MeshError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        for end in self._ends:
            if end is not lost:
                if error is None and lost is not None:
                    end.stream.close()
                else:
                    end.stream.abort()
        down, up = self._ends
        self._on_over(down.received_bytes, up.received_bytes, error)


class _End:
    """One stream's handler."""

    __slots__ = ("is_ended", "other", "received_bytes", "relay", "stream")

    other: _End

    def __init__(self, relay: TcpRelay, stream: ByteStream) -> None:
        self.relay = relay
        self.stream = stream
        self.received_bytes = 0
        self.is_ended = False

    def on_data(self, data: memoryview) -> None:
        self.received_bytes += len(data)
        sink = self.other.stream
        sink.write(data)
        if sink.is_congested:
            self.stream.pause()

    def on_eof(self) -> None:
        self.is_ended = True
        self.other.stream.end()
        self.relay.end_if_done()

    def on_drained(self) -> None:
        if not self.other.is_ended:
            self.other.stream.resume()

    def on_lost(self, error: MeshError | None) -> None:
        self.relay.lose(self, error)
