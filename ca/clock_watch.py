"""Steps of the wall clock, found by a clock that nobody sets.

CLOCK_BOOTTIME goes on while the machine sleeps and is never set; CLOCK_REALTIME is set by people and by NTP.
Their difference changes slowly (NTP slews by at most 0.5 ms a second) unless the wall clock was stepped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE_S = 2.0


def realtime_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """`look` from time to time, at least every few minutes. The clocks are arguments for tests."""

    def __init__(
        self, realtime: Callable[[], float] = realtime_s, boottime: Callable[[], float] = boottime_s
    ) -> None:
        self._realtime = realtime
        self._boottime = boottime
        self._difference_s = realtime() - boottime()
        self.steps = 0
        self.last_step_s = 0.0

    def look(self) -> float:
        """Seconds that the wall clock was stepped by since the last look, positive for forward; else 0."""
        difference_s = self._realtime() - self._boottime()
        step_s = difference_s - self._difference_s
        self._difference_s = difference_s
        if abs(step_s) < TOLERANCE_S:
            return 0.0
        self.steps += 1
        self.last_step_s = step_s
        return step_s
