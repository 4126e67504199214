"""One direction of an exchange: body pieces and trailers from one connection's stream to another's.

The sender gets credit only for what the other side took; what it did not take is kept, and bounded by what
the sender may send without credit. After `keep`, what was sent is remembered up to a bound, so that it can be
sent once more elsewhere; all pipes of a worker together remember no more than a `ReplayBudget`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from transport.http2.events import Header


class BodySource(Protocol):
    def consumed(self, stream_id: int, flow_bytes: int) -> None: ...


class BodySink(Protocol):
    def sendable(self, stream_id: int) -> int: ...

    def send_data(self, stream_id: int, data: bytes | memoryview, end_stream: bool) -> None: ...

    def send_headers(self, stream_id: int, headers: list[Header], end_stream: bool) -> None: ...


class ReplayBudget:
    """What all pipes of a worker may remember together. At the bound a request is not repeated."""

    __slots__ = ("left_bytes",)

    def __init__(self, whole_bytes: int) -> None:
        self.left_bytes = whole_bytes


class BodyPipe:
    """From `source` to `sink`, which may come later (`connect`) or change (`rewind`)."""

    __slots__ = (
        "_budget",
        "_held",
        "_replay",
        "_replay_room",
        "_sink",
        "_sink_id",
        "_source",
        "_source_id",
        "body_bytes",
        "held_bytes",
        "is_all_received",
        "is_all_sent",
        "is_discarding",
        "trailers",
    )

    def __init__(self, source: BodySource, source_id: int, *, may_rewind: bool = True) -> None:
        self._source = source
        self._source_id = source_id
        self._sink: BodySink | None = None
        self._sink_id = 0
        self._held: deque[memoryview] | None = None
        self._replay: list[bytes] | None = (
            [] if may_rewind else None
        )  # nothing was sent, so nothing is missing
        self._replay_room = 0
        self._budget: ReplayBudget | None = None
        self.trailers: list[Header] | None = None
        self.body_bytes = 0
        self.held_bytes = 0
        self.is_all_received = False
        self.is_all_sent = False
        self.is_discarding = False

    @property
    def is_empty(self) -> bool:
        """All is received and nothing is left to send: headers can end the stream."""
        return self.is_all_received and not self._held and self.trailers is None

    def keep(self, room_bytes: int, budget: ReplayBudget) -> None:
        """Remember so much of what is sent; called before anything was. `settle` gives all of it back."""
        self._replay_room = room_bytes
        self._budget = budget

    @property
    def can_rewind(self) -> bool:
        """Whether all that was sent is remembered."""
        return self._replay is not None

    def push(self, data: memoryview, flow_bytes: int, *, end: bool) -> None:
        """A piece from the source; `data` is valid during the call only."""
        size = len(data)
        self.body_bytes += size
        if end:
            self.is_all_received = True
        sink = self._sink
        if sink is None or self._held:
            if self.is_discarding:
                self._source.consumed(self._source_id, flow_bytes)
            else:
                self._hold(data, flow_bytes)
            return
        room = sink.sendable(self._sink_id) if size else 0
        if room >= size:
            if self._replay is not None and size:
                self._remember(bytes(data))
            if end:
                self.is_all_sent = True
            sink.send_data(self._sink_id, data, end)
            if flow_bytes:
                self._source.consumed(self._source_id, flow_bytes)
            return
        if room:
            piece = data[:room]
            if self._replay is not None:
                self._remember(bytes(piece))
            sink.send_data(self._sink_id, piece, False)
            self._source.consumed(self._source_id, room)
        self._hold(data[room:], flow_bytes - room)
        if room:
            self.pump()  # only a room of 0 enrols for more

    def _hold(self, data: memoryview, flow_bytes: int) -> None:
        size = len(data)
        if flow_bytes > size:
            self._source.consumed(self._source_id, flow_bytes - size)  # padding
        if size:
            if self._held is None:
                self._held = deque()
            self._held.append(memoryview(bytes(data)))
            self.held_bytes += size

    def peek(self, limit_bytes: int) -> bytes:
        """The first of what is held."""
        found = bytearray()
        for piece in self._held or ():
            found += piece[: limit_bytes - len(found)]
            if len(found) >= limit_bytes:
                break
        return bytes(found)

    def take_held(self) -> list[memoryview]:
        """All that is held, which this pipe forgets; no credit was given for it."""
        held, self._held = self._held, None
        self.held_bytes = 0
        return list(held or ())

    def credit_held(self) -> None:
        """Let the source send more although nothing was passed on: for whoever needs to see so much."""
        credited = self._source if isinstance(self._source, _Credited) else _Credited(self._source, 0)
        fresh = self.held_bytes - credited.before
        if fresh > 0:
            credited.source.consumed(self._source_id, fresh)
            credited.before = self.held_bytes
            self._source = credited

    def push_trailers(self, headers: list[Header]) -> None:
        """The source's last word."""
        self.is_all_received = True
        self.trailers = headers
        self.pump()

    def connect(self, sink: BodySink, sink_id: int, *, is_ended: bool) -> None:
        """Send to `sink` from now on; `is_ended`: its headers have ended the stream."""
        self._sink, self._sink_id = sink, sink_id
        if is_ended:
            self.is_all_sent = True
        else:
            self.pump()

    def rewind(self) -> None:
        """Forget the sink; what it got comes first for the next one."""
        replay = self._replay
        assert replay is not None
        self._sink = None
        self.is_all_sent = False
        if replay:
            held = self._held or deque()
            held.extendleft(memoryview(piece) for piece in reversed(replay))
            # What is sent again was credited when it was sent first.
            self._held = held
            self._replay = []
            size = sum(map(len, replay))
            self.held_bytes += size
            self._replay_room += size
            if self._budget is not None:
                self._budget.left_bytes += size
            self._source = _Credited(self._source, size)

    def settle(self) -> None:
        """There will be no other sink: remember nothing. Idempotent."""
        replay, self._replay = self._replay, None
        if replay and self._budget is not None:
            self._budget.left_bytes += sum(map(len, replay))

    def discard(self) -> None:
        """Take all that still comes and send none of it."""
        self._sink = None
        self.is_discarding = True
        self.settle()
        self.trailers = None
        held, self._held = self._held, None
        if held:
            self._source.consumed(self._source_id, self.held_bytes)
        self.held_bytes = 0

    def pump(self) -> None:
        """Send what is held, as far as the sink takes it."""
        sink = self._sink
        if sink is None or self.is_all_sent:
            return
        held = self._held
        while held:
            piece = held[0]
            room = sink.sendable(self._sink_id)
            if room <= 0:
                return
            if room < len(piece):
                held[0] = piece[room:]
                piece = piece[:room]
            else:
                held.popleft()
            self.held_bytes -= len(piece)
            if self._replay is not None:
                self._remember(bytes(piece))
            is_last = self.is_all_received and not held and self.trailers is None
            if is_last:
                self.is_all_sent = True
            sink.send_data(self._sink_id, piece, is_last)
            self._source.consumed(self._source_id, len(piece))
        if self.is_all_received and not self.is_all_sent:
            self.is_all_sent = True
            if self.trailers is not None:
                sink.send_headers(self._sink_id, self.trailers, True)
            else:
                sink.send_data(self._sink_id, b"", True)

    def _remember(self, piece: bytes) -> None:
        replay, budget, size = self._replay, self._budget, len(piece)
        assert replay is not None
        self._replay_room -= size
        if self._replay_room < 0 or budget is None or budget.left_bytes < size:
            self.settle()
        else:
            budget.left_bytes -= size
            replay.append(piece)


class _Credited:
    """A source that was given credit for its first bytes already."""

    __slots__ = ("before", "source")

    def __init__(self, source: BodySource, before: int) -> None:
        self.source = source
        self.before = before

    def consumed(self, stream_id: int, flow_bytes: int) -> None:
        known = min(self.before, flow_bytes)
        self.before -= known
        if flow_bytes > known:
            self.source.consumed(stream_id, flow_bytes - known)
