"""Token buckets by key. Pure; time is given, in seconds.

A bucket gives one token each `interval_s`, evenly, and `burst` at once. It is kept as the one moment at which
it will be full again (GCRA): it costs one number and is exact at any time.

Bounds: `max_keys` buckets. A bucket that is full is the same as none, so those are forgotten to make room; if
all are in use, further keys share one bucket: nobody gets a fresh bucket by making others be forgotten.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_KEYS: Final = 50_000
_SWEEP: Final = 1_000  # buckets looked at when there is no room
_TURNED: Final = 100  # of those, how many in use go to the end
_ROUNDING: Final = 1e-9


class Room(NamedTuple):
    """What a bucket says: `wait_s` > 0 is how long until there is room."""

    remaining: int
    reset_s: float
    wait_s: float


class Buckets:
    """All buckets of one limit. Not thread-safe."""

    __slots__ = ("_full_at", "_max_keys", "_overflow", "burst", "interval_s")

    def __init__(self, interval_s: float, burst: int, max_keys: int = MAX_KEYS) -> None:
        self.interval_s = interval_s
        self.burst = burst
        self._max_keys = max_keys
        self._full_at: dict[bytes, float] = {}
        self._overflow = 0.0

    def __len__(self) -> int:
        return len(self._full_at)

    def look(self, key: bytes, now: float, tokens: int = 1) -> Room:
        """What would be if so many more were taken."""
        held = self._full_at.get(key)
        if held is None:
            is_crowded = len(self._full_at) >= self._max_keys and not self._make_room(now)
            held = self._overflow if is_crowded else now
        full_at = max(held, now) + tokens * self.interval_s
        over_s = full_at - now - self.burst * self.interval_s
        if over_s > _ROUNDING:
            return Room(0, full_at - tokens * self.interval_s - now, over_s)
        return Room(int(-over_s / self.interval_s + 1e-6), full_at - now, 0.0)

    def available(self, key: bytes, now: float) -> int:
        """How many could be taken at once."""
        return self.look(key, now, 0).remaining

    def take(self, key: bytes, now: float, tokens: int = 1) -> None:
        """After a look at the same moment that found room."""
        held = self._full_at
        if key in held or len(held) < self._max_keys:
            held[key] = max(held.get(key, now), now) + tokens * self.interval_s
        else:
            self._overflow = max(self._overflow, now) + tokens * self.interval_s

    def _make_room(self, now: float) -> bool:
        """Forget full buckets among some, the oldest first."""
        held = self._full_at
        oldest = [key for key, _ in zip(held, range(_SWEEP), strict=False)]
        full = [key for key in oldest if held[key] <= now]
        for key in full:
            del held[key]
        for key in oldest[:_TURNED]:  # those in use go to the end, so that another look sees others
            if key in held:
                held[key] = held.pop(key)
        return bool(full)
