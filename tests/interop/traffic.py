"""What applications do at both ends of a tunnel: send bulk that can be checked, end, reset, stall."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
PATIENCE_S = 40.0
_LINGER_RESET = struct.pack("ii", 1, 0)
_BLOCK = random.Random(7).randbytes(MIB)
# A socket that takes nothing for so long counts as stalled. On a slow machine a test then sends less before
# it looks at the memory; nothing fails for that.
_STALLED_S = 0.4


def block(number: int) -> bytes:
    """The `number`-th MiB of a stream: no two alike, so that loss, repetition and disorder all show."""
    return number.to_bytes(8, "big") + _BLOCK[8:]


def digest(blocks: int) -> str:
    """Of a stream of so many blocks."""
    total = hashlib.sha256()
    for number in range(blocks):
        total.update(block(number))
    return total.hexdigest()


def receive_digest(sock: socket.socket, blocks: int | None = None) -> str:
    """Of the next so many blocks, or of all until the end."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(256 * 1024))
    missing = float("inf") if blocks is None else blocks * MIB
    while missing and (count := sock.recv_into(buffer[: int(min(missing, len(buffer)))])):
        total.update(buffer[:count])
        missing -= count
    return total.hexdigest()


@dataclass
class Background:
    """Threads of a test whose failures are the test's: `join` raises the first."""

    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    received: dict[str, str] = field(default_factory=dict)

    def send(self, sock: socket.socket, blocks: range, *, is_end: bool) -> None:
        """Send these blocks, and with `is_end` then end this direction."""

        def work() -> None:
            for number in blocks:
                sock.sendall(block(number))
            if is_end:
                sock.shutdown(socket.SHUT_WR)

        self._start(work)

    def receive(self, name: str, sock: socket.socket, blocks: int | None = None) -> None:
        self._start(lambda: self.received.update({name: receive_digest(sock, blocks)}))

    def join(self) -> dict[str, str]:
        """What was received, by name."""
        for thread in self.threads:
            thread.join(PATIENCE_S)
        if self.failures:
            raise self.failures[0]
        assert not any(thread.is_alive() for thread in self.threads), "the transfer hangs"
        return self.received

    def _start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - `join` raises it
                self.failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()


def exchange(near: socket.socket, far: socket.socket, *, blocks: int) -> None:
    """So many MiB each way at once, unchanged; then `near` ends its direction, then `far`."""
    work = Background()
    work.send(near, range(blocks), is_end=True)
    work.send(far, range(blocks), is_end=False)
    work.receive("up", far)
    work.receive("down", near, blocks)
    assert work.join() == {"up": digest(blocks), "down": digest(blocks)}
    far.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""


@dataclass(frozen=True, slots=True)
class StalledTransfer:
    is_stalled: bool  # the way was full before all was sent
    grown_bytes: int  # of the watched process, until then
    received: str  # digest of all, once the reader read


def stalled_transfer(
    sender: socket.socket, reader: socket.socket, *, blocks: int, pid: int
) -> StalledTransfer:
    """Send to a reader that does not read until nothing moves, look at the process, then read on."""
    before = resident_bytes(pid)
    begun, rest = _send_until_stalled(sender, blocks)
    grown = resident_bytes(pid) - before
    work = Background()
    work.receive("all", reader, blocks)
    sender.sendall(rest)
    work.send(sender, range(begun, blocks), is_end=False)
    return StalledTransfer(begun < blocks, grown, work.join()["all"])


def _send_until_stalled(sock: socket.socket, blocks: int) -> tuple[int, bytes]:
    """How many blocks were begun, and the rest of the last one."""
    sock.setblocking(False)
    rest = b""
    begun = 0
    while begun < blocks or rest:
        if not rest:
            rest = block(begun)
            begun += 1
        if not select.select([], [sock], [], _STALLED_S)[1]:
            break
        rest = rest[sock.send(rest) :]
    sock.settimeout(PATIENCE_S)
    return begun, rest


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def resident_bytes(pid: int) -> int:
    """Of a process, now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
