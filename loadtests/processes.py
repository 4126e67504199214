"""What contestants cost, read from /proc: CPU seconds, resident memory, descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def family(pids: Iterable[int]) -> set[int]:
    """The processes and all their living descendants: a contestant may start workers of its own."""
    members: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid in members or not Path(f"/proc/{pid}").exists():
            continue
        members.add(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting.extend(int(child) for child in children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return members


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the family so far. The kernel counts at clock-tick precision (10 ms)."""
    ticks = 0
    for pid in family(pids):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of proc(5)
    return ticks / TICKS_PER_S


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident set of the family, shared pages counted in each process (VmRSS)."""
    total = 0
    for pid in family(pids):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def open_descriptors(pids: Iterable[int]) -> int:
    total = 0
    for pid in family(pids):
        try:
            total += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, no paths
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
