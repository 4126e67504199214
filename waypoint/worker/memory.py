"""How much memory the worker holds, and whether that is too much to take on more.

The resident size is what the kernel counts before it ends a process, so it is what is looked at; what the C
library keeps of memory that was given back is returned to the kernel while there is too little.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_LOOK_EVERY_S: Final = 0.25
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int:
    with _STATM.open("rb", buffering=0) as file:
        return int(file.read(100).split()[1]) * _PAGE_BYTES


def trim() -> None:
    """Give back what the C library holds free; where there is no such call, nothing."""
    import ctypes  # noqa: PLC0415 - a megabyte that only a worker in need loads

    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


class MemoryWatch:
    """`limit_bytes` 0: no limit. Looks no more often than every `_LOOK_EVERY_S`."""

    def __init__(
        self,
        limit_bytes: int,
        clock: Callable[[], float],
        *,
        resident: Callable[[], int] = resident_bytes,
        release: Callable[[], None] = trim,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._resident = resident
        self._release = release
        self._looked_at = float("-inf")
        self._is_short = False

    @property
    def is_short(self) -> bool:
        """The worker holds as much as it may."""
        if self._limit_bytes and self._clock() - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = self._clock()
            if self._is_short:
                self._release()
            self._is_short = self._resident() >= self._limit_bytes
        return self._is_short
