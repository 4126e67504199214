"""A coarse timer wheel: O(1) start and cancel; a timer never fires early and at most two ticks late.

Pure: time is an argument. Connections start and cancel far more timers than ever fire (handshake, connect,
keepalive, idle), so a timer is one list slot and cancelling it is one attribute write.

Theory: a ring of slots, one per tick. A timer lies in the slot of its due tick modulo the ring's size; when
a slot passes, the timers whose tick lies a turn or more ahead stay in it. A cancelled timer stays until its
slot passes but drops its callback at once, so what that references is freed. `next_deadline` is kept as a
plain float: the loop compares it with its clock once per pass, and that is the whole cost of the wheel while
nothing is due. A tick is a power of two of a second, so that the time of a tick is exact in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable

TICKS_PER_S = 32
TICK_S = 1 / TICKS_PER_S
_SLOTS = 1024  # one turn is 32 s: a longer timer is looked at once a turn
_MASK = _SLOTS - 1


class Timer:
    """A started timer. `cancel` is idempotent and allowed in any state, also from inside its own callback."""

    __slots__ = ("_callback", "_due_tick")

    def __init__(self, due_tick: int, callback: Callable[[], None]) -> None:
        self._due_tick = due_tick
        self._callback: Callable[[], None] | None = callback

    @property
    def is_pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def take(self) -> Callable[[], None] | None:
        """The callback, for the loop to call now; None if the timer has been cancelled. It is spent then."""
        callback, self._callback = self._callback, None
        return callback


class TimerWheel:
    """Timers in a ring. `next_deadline`: no timer is due before it (it may be early; inf = none is held)."""

    __slots__ = ("_held", "_origin", "_passed_tick", "_slots", "next_deadline")

    def __init__(self, now: float) -> None:
        self._origin = self._aligned(now)
        self._passed_tick = 0  # the slots up to this tick have passed
        self._slots: list[list[Timer]] = [[] for _ in range(_SLOTS)]
        self._held = 0  # timers in slots, cancelled ones included
        self.next_deadline = math.inf

    def start(self, now: float, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Have `callback` handed out by an `expire` not before `now + delay_s`."""
        due = max(self._tick_at(now + delay_s), self._passed_tick) + 1
        timer = Timer(due, callback)
        self._slots[due & _MASK].append(timer)
        self._held += 1
        self.next_deadline = min(self.next_deadline, self._origin + due * TICK_S)
        return timer

    def expire(self, now: float) -> list[Timer]:
        """The timers due at `now`, in the order of their ticks. The caller `take`s each right before calling
        it, so that one callback can still cancel the next.
        """
        due: list[Timer] = []
        target = self._tick_at(now)
        if target <= self._passed_tick:
            return due
        # After a pause longer than a turn, one turn still visits every slot.
        for tick in range(max(self._passed_tick + 1, target - _SLOTS + 1), target + 1):
            slot = self._slots[tick & _MASK]
            if slot:
                self._pass(slot, target, due)
        self._passed_tick = target
        self.next_deadline = self._find_deadline()
        due.sort(key=lambda timer: timer._due_tick)
        return due

    def rebase(self, old_now: float, new_now: float) -> None:
        """Go on with another clock: what was due in x seconds by the old one is due in x by the new (to a
        tick)."""
        shift = self._aligned(new_now - old_now)
        self._origin += shift
        self.next_deadline += shift

    def _pass(self, slot: list[Timer], target: int, due: list[Timer]) -> None:
        kept: list[Timer] = []
        for timer in slot:
            if timer.is_pending:
                (due if timer._due_tick <= target else kept).append(timer)
        self._held -= len(slot) - len(kept)
        slot[:] = kept

    def _find_deadline(self) -> float:
        if self._held:
            for tick in range(self._passed_tick + 1, self._passed_tick + _SLOTS + 1):
                if self._slots[tick & _MASK]:
                    return self._origin + tick * TICK_S
        return math.inf

    def _tick_at(self, now: float) -> int:
        return math.floor((now - self._origin) * TICKS_PER_S)

    @staticmethod
    def _aligned(seconds: float) -> float:
        return math.floor(seconds * TICKS_PER_S) / TICKS_PER_S
