"""What a service tells systemd: that it is ready, alive, or ending (sd_notify(3), systemd.service(5)).

Datagrams to the socket that `NOTIFY_SOCKET` names; without one everything here does nothing. The watchdog's
sign of life is sent from the process's own event loop, so a loop that hangs is noticed and restarted.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Self

import trio

_MICROSECONDS = 1_000_000.0


class ServiceManager:
    """`watchdog_s` None: nobody waits for signs of life."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int | None = None) -> Self:
        """WATCHDOG_USEC counts only for the process that WATCHDOG_PID names, if it names one."""
        wanted = environment.get("WATCHDOG_PID", "")
        is_ours = not wanted or wanted == str(os.getpid() if pid is None else pid)
        text = environment.get("WATCHDOG_USEC", "")
        microseconds = int(text) if is_ours and text.isascii() and text.isdigit() else 0
        watchdog_s = microseconds / _MICROSECONDS if microseconds else None
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s)

    def ready(self, status: str = "") -> None:
        self._tell("READY=1" + (f"\nSTATUS={status}" if status else ""))

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    async def stay_alive(self) -> None:
        """Signs of life at half of the watchdog's time, until cancelled."""
        while self.watchdog_s is not None and self._address:
            self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog_s / 2)
        await trio.sleep_forever()

    def _tell(self, state: str) -> None:
        """A manager that does not listen is no reason to end."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(state.encode(), address)
            except OSError:
                return
