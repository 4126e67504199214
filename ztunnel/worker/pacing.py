"""Bytes per second: who may read how much now, and who waits for his turn.

A connection asks before each read and takes what it read, so the bytes of a bucket are never more than it
allows. Whoever finds it empty stops reading (the kernel's window, or the tunnel's, then stops the sender) and
stands in line; a timer gives each in line a turn of at most `_TURN_BYTES`, in order, and nobody overtakes
those who wait. A direction that waits costs one entry of a dict, which goes with its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dataplane.state.buckets import Buckets
from transport.reactor import Reactor, Timer
from ztunnel.state.connection_limits import Paced
from ztunnel.worker.limit_counts import IS_PACED, LimitCounts

_TURN_BYTES: Final = 64 * 1024
_WORTHWHILE_BYTES: Final = 16 * 1024  # fewer are not worth a turn, where the burst has more

Turn = Callable[[], None]
_LineKey = tuple[Buckets, bytes]


class _Line:
    """Those who wait for one bucket, in order."""

    __slots__ = ("_book", "_key", "is_waking", "timer", "waiting")

    def __init__(self, book: PaceBook, key: _LineKey) -> None:
        self._book = book
        self._key = key
        self.waiting: dict[Turn, Pace] = {}
        self.timer: Timer | None = None
        self.is_waking = False

    def arm(self, delay_s: float) -> None:
        if self.timer is None:
            self.timer = self._book.reactor.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        """One turn for each, while there is something to give."""
        self.timer = None
        self.is_waking = True
        try:
            for turn, pace in list(self.waiting.items()):
                if pace.available() <= 0:
                    break
                if self.waiting.pop(turn, None) is not None:  # it has not left during another's turn
                    turn()
        finally:
            self.is_waking = False
        if self.waiting:
            self.arm(max(next(iter(self.waiting.values())).delay_s(), 0.0))
        elif self.timer is None:
            self._book.lines.pop(self._key, None)


class PaceBook:
    """All lines of one workload."""

    def __init__(self, reactor: Reactor, counts: LimitCounts) -> None:
        self.reactor = reactor
        self.counts = counts
        self.lines: dict[_LineKey, _Line] = {}

    def pace(self, paced: Sequence[Paced]) -> Pace:
        """For one connection; `paced` is not empty."""
        return Pace(self, paced)

    def close(self) -> None:
        for line in self.lines.values():
            if line.timer is not None:
                line.timer.cancel()
        self.lines.clear()


class Pace:
    """The buckets that both directions of one connection take from."""

    __slots__ = ("_book", "_key", "_least", "_paced")

    def __init__(self, book: PaceBook, paced: Sequence[Paced]) -> None:
        self._book = book
        self._paced = tuple(paced)
        self._key: _LineKey = (paced[0].buckets, paced[0].key)
        self._least = min(_WORTHWHILE_BYTES, *(max(each.buckets.burst // 8, 1) for each in paced))

    def grant(self) -> int:
        """How many bytes may be read now; 0: `wait`."""
        line = self._book.lines.get(self._key)
        if line is not None and line.waiting and not line.is_waking:
            return 0
        return self.available()

    def available(self) -> int:
        now = self._book.reactor.now
        room = min(each.buckets.available(each.key, now) for each in self._paced)
        return 0 if room < self._least else min(room, _TURN_BYTES)

    def take(self, count: int) -> None:
        """What was read of the grant, in the same callback."""
        now = self._book.reactor.now
        for each in self._paced:
            each.buckets.take(each.key, now, count)

    def wait(self, turn: Turn) -> None:
        """Call `turn` once when there is something; waiting twice is waiting once."""
        book = self._book
        line = book.lines.get(self._key)
        if line is None:
            line = book.lines[self._key] = _Line(book, self._key)
        if turn in line.waiting:
            return
        line.waiting[turn] = self
        for each in self._paced:
            book.counts.count(each.counting.policy, each.counting.name, IS_PACED)
        if not line.is_waking:
            line.arm(self.delay_s())

    def leave(self, *turns: Turn) -> None:
        """The connection is over."""
        line = self._book.lines.get(self._key)
        if line is not None:
            for turn in turns:
                line.waiting.pop(turn, None)

    def delay_s(self) -> float:
        now = self._book.reactor.now
        return max(each.buckets.look(each.key, now, self._least).wait_s for each in self._paced)
