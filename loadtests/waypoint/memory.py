"""What a waypoint weighs: idle, with open client connections, and while a large body passes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import trio

from loadtests.processes import resident_bytes
from loadtests.topology import inside
from loadtests.waypoint.site import Site

CONNECTIONS = 1000
SETTLE_S = 1.0
LOOK_EVERY_S = 0.05
MB = 1_000_000

# Opens connections, asks once on each, and keeps them until its input ends.
HOLD = """
import socket, sys
host, count = sys.argv[1], int(sys.argv[2])
held = []
for _ in range(count):
    s = socket.create_connection((host, 80)); held.append(s)
    s.sendall(b"GET / HTTP/1.1\\r\\nHost: shop\\r\\n\\r\\n")
for s in held:
    assert s.recv(65536).startswith(b"HTTP/1.1 200")
print("held", flush=True); sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Weighed:
    """Bytes of the waypoint's worker."""

    idle: int
    per_connection: float
    growth_down: int
    growth_up: int

    def rows(self, columns: int) -> list[list[str]]:
        def row(what: str, value: str, target: str, *, holds: bool) -> list[str]:
            return [what, *[""] * (columns - 2), value, "", "", target, "pass" if holds else "FAIL"][
                -(columns + 4) :
            ]

        return [
            row("worker after the loads, MB", f"{self.idle / MB:.0f}", "", holds=True),
            row(
                "KB per open client connection",
                f"{self.per_connection / 1e3:.1f}",
                "<= 60",
                holds=self.per_connection <= 60e3,
            ),
            row(
                "growth for 1 GiB down, MB",
                f"{self.growth_down / MB:.1f}",
                "<= 8",
                holds=self.growth_down <= 8 * MB,
            ),
            row(
                "growth for 1 GiB up, MB",
                f"{self.growth_up / MB:.1f}",
                "<= 8",
                holds=self.growth_up <= 8 * MB,
            ),
        ]


async def weigh(site: Site, pid: int, directory: Path) -> Weighed:
    idle = resident_bytes([pid])
    per_connection = await _connections(site, pid)
    before = resident_bytes([pid])
    down = await _peak(site, pid, ["curl", "-sS", "-o", "/dev/null", f"http://{site.vip}/big"]) - before
    big = directory / "upload"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    before = resident_bytes([pid])
    command = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-T",
        str(big),
        "-X",
        "POST",
        "-H",
        "Expect:",
        f"http://{site.vip}/sink",
    ]
    up = await _peak(site, pid, command) - before
    return Weighed(idle, per_connection, max(down, 0), max(up, 0))


async def _connections(site: Site, pid: int) -> float:
    before = resident_bytes([pid])
    command = inside(site.client, ["python3", "-c", HOLD, site.vip, str(CONNECTIONS)])
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        with trio.fail_after(60.0):
            await process.stdout.receive_some(100)
        await trio.sleep(SETTLE_S)
        after = resident_bytes([pid])
        await process.stdin.aclose()
        await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
    return (after - before) / CONNECTIONS


async def _peak(site: Site, pid: int, command: list[str]) -> int:
    """The largest resident size while the command runs."""
    peak = resident_bytes([pid])
    process = await trio.lowlevel.open_process(inside(site.client, command))
    while process.poll() is None:
        peak = max(peak, resident_bytes([pid]))
        await trio.sleep(LOOK_EVERY_S)
    return peak
