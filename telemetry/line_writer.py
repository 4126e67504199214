"""Lines to a descriptor without ever making the caller wait.

A thread writes what callers queue, up to 64 lines for each system call (facts 11.4). The queue holds at most
`capacity` lines; beyond that new lines are dropped and counted, and the next line that fits says how many.
"""

from __future__ import annotations

import os
import threading
from collections import deque

CAPACITY = 10_000
_BATCH = 64


class LineWriter:
    """Owns the thread, not the descriptor. Start with `start`, end with `close`; both are idempotent."""

    def __init__(self, fd: int, *, capacity: int = CAPACITY) -> None:
        self.dropped = 0
        self._fd = fd
        self._capacity = capacity
        self._lines: deque[str] = deque()
        self._unreported = 0
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="line-writer", daemon=True)
            self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line (without newline), or drop it when the queue is full. Never blocks on I/O."""
        with self._wake:
            if len(self._lines) >= self._capacity:
                self.dropped += 1
                self._unreported += 1
                return
            if self._unreported:
                self._lines.append(f"{self._unreported} log lines were dropped: the writer was too slow")
                self._unreported = 0
            self._lines.append(line)
            self._wake.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most `timeout_s`, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._is_closing:
                    self._wake.wait()
                if not self._lines:
                    return
                batch = [self._lines.popleft() for _ in range(min(_BATCH, len(self._lines)))]
            data = "".join(line + "\n" for line in batch).encode("utf-8", "backslashreplace")
            if not self._write(data):
                return

    def _write(self, data: bytes) -> bool:
        """False when the descriptor is of no more use; what is queued is then lost, as nobody reads it."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                _wait_writable(self._fd)
            except OSError:
                with self._wake:
                    self.dropped += len(self._lines)
                    self._lines.clear()
                    self._capacity = 0
                return False
        return True


def _wait_writable(fd: int) -> None:
    """For a descriptor that somebody made non-blocking (a terminal shared with another program)."""
    import select  # noqa: PLC0415 - a rare path

    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll()
