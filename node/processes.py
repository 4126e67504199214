"""Processes by number and start time: numbers are used again, the two together are not."""

from __future__ import annotations

import os
from pathlib import Path

import trio

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Of the running kernel; empty where it does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int:
    """In clock ticks since the boot (proc(5), field 22 of stat); 0 if there is no such process."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


async def wait_end(pid: int, started: int) -> None:
    """Until that very process has ended; at once if it is not there."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        await trio.lowlevel.checkpoint()
        return
    try:
        if start_time(pid) == started:
            await trio.lowlevel.wait_readable(handle)
    finally:
        os.close(handle)
