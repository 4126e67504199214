"""Processes that outlive the agent: started, found again, signalled, ended, never mistaken for others.

Theory of operation. A process is started in a session of its own, in the network namespace of the calling
thread; its workers are in that session too. All of them carry the folder of their waypoint in their
environment, so that they are found by looking through /proc, by any agent and with no record that could be
stale. A handle is a pidfd, which never means another process. Nothing here waits for a process other than
by its pidfd, so it makes no difference whether it is this agent's child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import trio

from node.errors import WaypointProcessError
from node.waypoints.order import STATE_DIR
from transport.netns import NetworkNamespace

PROC: Final = Path("/proc")
ENVIRONMENT_LOOKS: Final = 1000
ENVIRONMENT_LOOK_S: Final = 0.001
_DEFAULTED: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; a child decides for itself


class Process:
    """A control process. Owns the pidfd; `close` leaves the process alone."""

    def __init__(self, pid: int, environment: Mapping[str, str], namespace: tuple[int, int]) -> None:
        """Raises WaypointProcessError when there is no such process (any more)."""
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise WaypointProcessError(f"process {pid} is gone: {error.strerror}") from error
        self.pid = pid
        self.ended = trio.Event()
        self.environment = environment
        self.namespace = namespace

    @property
    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def watch(self) -> None:
        """Sets `ended` once it has; for one task of whoever owns the process."""
        await trio.lowlevel.wait_readable(self._pidfd)
        self.ended.set()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def reap(self) -> str:
        """Once it has ended: how, for the operator."""
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return "it ended"  # another agent's child
        code = os.waitstatus_to_exitcode(status)
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"

    def close(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def start(argv: tuple[str, ...], environment: Mapping[str, str], namespace: NetworkNamespace) -> Process:
    """Blocks until the program is loaded. Raises WaypointProcessError or the namespace's error."""
    devices = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    with namespace.entered():
        try:
            pid = os.posix_spawn(
                argv[0], argv, environment, file_actions=devices, setsid=True, setsigdef=_DEFAULTED
            )
        except OSError as error:
            raise WaypointProcessError(f"cannot start {argv[0]}: {error.strerror}") from error
    process = Process(pid, dict(environment), namespace.identity)
    _await_environment(process)
    return process


def _await_environment(process: Process) -> None:
    """The kernel lets the parent go on a moment before /proc shows the child's environment."""
    for _ in range(ENVIRONMENT_LOOKS):
        found = Found.read(process.pid)
        if process.has_ended or (found is not None and found.environment):
            return
        time.sleep(ENVIRONMENT_LOOK_S)


@dataclass(frozen=True, slots=True)
class Found:
    """A process of a waypoint, as /proc shows it."""

    pid: int
    is_leader: bool  # of its session: the control process
    environment: Mapping[str, str]

    def open(self) -> Process:
        """Raises WaypointProcessError when it is gone."""
        try:
            status = (PROC / str(self.pid) / "ns/net").stat()
        except OSError as error:
            raise WaypointProcessError(f"process {self.pid} is gone") from error
        return Process(self.pid, self.environment, (status.st_dev, status.st_ino))

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """None for a process that has ended, or is not to be looked at."""
        try:
            raw = (PROC / str(pid) / "environ").read_bytes()
            session = os.getsid(pid)
        except OSError:
            return None
        pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
        values = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
        return cls(pid, session == pid, values)


def processes_under(directory: Path) -> Iterator[Found]:
    """All processes of waypoints whose folders are in `directory`, the folder's own included."""
    wanted = str(directory)
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        found = Found.read(int(entry.name))
        if found is None:
            continue
        folder = found.environment.get(STATE_DIR, "")
        if folder == wanted or folder.startswith(f"{wanted}/"):
            yield found


def kill_all(folder: Path) -> int:
    """SIGKILL for everything of one waypoint; gives how many there were."""
    count = 0
    for found in processes_under(folder):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(found.pid)
            try:
                again = Found.read(found.pid)  # the handle is open now: the number cannot go to another
                if again is not None and again.environment.get(STATE_DIR) == found.environment[STATE_DIR]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    count += 1
            finally:
                os.close(pidfd)
    return count


def check_address(address: str, namespace: NetworkNamespace) -> None:
    """Raises WaypointProcessError unless the address is one of the namespace's."""
    import socket  # noqa: PLC0415 - the name is a common word here

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.entered():
        probe = socket.socket(family, socket.SOCK_STREAM)
    with probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise WaypointProcessError(f"cannot use address {address}: {error.strerror}") from error
            raise WaypointProcessError(f"address {address} is not here") from error
