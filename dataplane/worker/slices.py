"""Long work in short slices between the loop's passes, so that traffic never waits for it.

Work is a generator that yields wherever it may be interrupted. One slice runs in each pass until its time is
up; an eventfd that stays readable while work is left brings the next pass at once without starving anybody.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator

from transport.reactor import Reactor

# A pause of the traffic of at most 20 ms is promised; one step may overrun the slice by some milliseconds.
SLICE_S = 0.004


class SliceRunner:
    """Runs generators one after the other, in order of arrival. What a generator raises is the reactor's to
    report.
    """

    def __init__(self, reactor: Reactor, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self._work: deque[Iterator[None]] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._reactor = reactor
        self._registration = reactor.register(self._fd, self._run_slice)

    def __len__(self) -> int:
        return len(self._work)

    def add(self, work: Iterator[None]) -> None:
        self._work.append(work)
        if len(self._work) == 1:
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        self._registration.close()
        self._work.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _run_slice(self) -> None:
        end = time.monotonic() + self._slice_s
        work = self._work
        while work:
            current = work[0]
            try:
                for _ in current:
                    if time.monotonic() >= end:
                        return
            except Exception as error:  # noqa: BLE001 - one bad piece of work must not stop those behind it
                self._reactor.on_callback_error(error, None)
            work.popleft()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
