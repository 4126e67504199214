"""One incarnation of one data worker: its process, its channel, what is queued for it.

The worker gets one end of a stream socket pair as an inherited descriptor. Messages go out in the order
of `send`; an AddWorkload carries one descriptor with its first byte. Whatever is queued is bounded by
MAX_QUEUED_BYTES; a worker that falls so far behind is given up (and started anew by its supervisor).
The worker runs in a session of its own: a Ctrl-C in a terminal is for the control process alone, and
workers outlive a crash of it for as long as their connections need (they notice the end of the channel
and drain).
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence

import trio

from dataplane.control.errors import WorkerLost, WorkerUnanswering
from dataplane.ipc import IpcBroken, MessageReader, encode
from proto.mycelia import worker_pb2 as pb

MAX_QUEUED_BYTES = 256 * 1024 * 1024
HELLO_TIMEOUT_S = 30.0
_CHUNK_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024

Command = Callable[[int], Sequence[str]]


def worker_of(package: str) -> Command:
    """The command that runs a data worker of `ztunnel` or `waypoint`."""
    return lambda fd: (sys.executable, "-m", f"{package}.worker", "--fd", str(fd))


class WorkerLink:
    """`run` owns the process and the channel, and ends with them."""

    def __init__(
        self,
        index: int,
        on_message: Callable[[WorkerLink, pb.ToControl], None],
        command: Command,
    ) -> None:
        self.index = index
        self.pid = 0
        self.is_drained = False
        self._on_message = on_message
        self._command = command
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._queued_bytes = 0
        self._wake = trio.Event()
        self._is_overfull = False
        self._is_closed = False
        self._failure = ""

    def send(self, message: pb.ToWorker, descriptor: int | None = None) -> None:
        """Queue one message; takes the descriptor over. After the end of the link it goes nowhere."""
        if self._is_closed:
            if descriptor is not None:
                os.close(descriptor)
            return
        frame = encode(message)
        self._queue.append((frame, descriptor))
        self._queued_bytes += len(frame)
        self._is_overfull = self._queued_bytes > MAX_QUEUED_BYTES
        self._wake.set()

    async def run(self, on_hello: Callable[[WorkerLink], None]) -> None:
        """Start the process and serve it until it ends; it always raises `WorkerLost`,
        `WorkerUnanswering`, or what cancels it.

        `on_hello` is called when the worker is up; what it sends is the first that the worker gets.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        process: trio.Process | None = None
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    self._command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            self.pid = process.pid
            sock = trio.socket.from_stdlib_socket(ours)
            await self._serve(sock, process, on_hello)
        except OSError as error:
            raise WorkerLost(f"worker {self.index}: {error}") from error
        finally:
            ours.close()
            self._drop_queue()
            if process is not None:
                with trio.CancelScope(shield=True):
                    await _reap(process)
        if self._failure:
            raise WorkerLost(self._failure)
        raise WorkerLost(f"worker {self.index} (pid {self.pid}) ended with status {process.returncode}")

    async def _serve(
        self, sock: trio.socket.SocketType, process: trio.Process, on_hello: Callable[[WorkerLink], None]
    ) -> None:
        """Returns when the worker has closed its end or has ended."""
        reader = MessageReader(pb.ToControl)
        try:
            backlog: deque[pb.ToControl] = deque()
            with trio.move_on_after(HELLO_TIMEOUT_S) as scope:
                while not backlog:
                    data = await sock.recv(_READ_BYTES)
                    if not data:
                        return
                    backlog.extend(message for message, _ in reader.feed(data))
            if scope.cancelled_caught or backlog.popleft().WhichOneof("message") != "hello":
                raise WorkerUnanswering(f"worker {self.index} (pid {process.pid}) did not say hello")
            on_hello(self)
            for message in backlog:
                self._on_message(self, message)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, sock, nursery.cancel_scope)
                await self._read(sock, reader)
                nursery.cancel_scope.cancel()
        except IpcBroken as error:
            raise WorkerLost(f"worker {self.index} (pid {process.pid}): {error.text}") from error
        finally:
            reader.close()

    async def _read(self, sock: trio.socket.SocketType, reader: MessageReader[pb.ToControl]) -> None:
        """Hand messages over until the channel ends; what was wrong with it is kept for `run` to raise."""
        try:
            while data := await sock.recv(_READ_BYTES):
                for message, _ in reader.feed(data):
                    self._on_message(self, message)
        except IpcBroken as error:
            self._failure = f"worker {self.index} (pid {self.pid}): {error.text}"
        except OSError as error:
            self._failure = f"worker {self.index} (pid {self.pid}): {error}"

    async def _write(self, sock: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        try:
            while True:
                while self._queue:
                    if self._is_overfull:
                        self._failure = f"worker {self.index} does not take what it is sent"
                        scope.cancel()
                        return
                    await self._write_some(sock)
                self._wake = trio.Event()
                await self._wake.wait()
        except (BrokenPipeError, ConnectionResetError):
            scope.cancel()  # the process is gone; its status tells more

    async def _write_some(self, sock: trio.socket.SocketType) -> None:
        """One frame with a descriptor, or several without."""
        frame, descriptor = self._queue.popleft()
        pieces = [frame]
        size = len(frame)
        if descriptor is None:
            while self._queue and size < _CHUNK_BYTES and self._queue[0][1] is None:
                pieces.append(self._queue.popleft()[0])
                size += len(pieces[-1])
        self._queued_bytes -= size
        self._is_overfull = self._queued_bytes > MAX_QUEUED_BYTES
        data = memoryview(b"".join(pieces))
        try:
            if descriptor is not None:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
                data = data[await sock.sendmsg([data], [rights]) :]
        finally:
            if descriptor is not None:
                os.close(descriptor)
        while data:
            data = data[await sock.send(data) :]

    def _drop_queue(self) -> None:
        self._is_closed = True
        self._queued_bytes = 0
        while self._queue:
            descriptor = self._queue.popleft()[1]
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


async def _reap(process: trio.Process) -> None:
    """The channel is closed, so the worker drains and ends by itself; one that does not is ended.

    A worker that still has connections would keep them for a while; the supervisor, however, is about
    to start another one in its place, or the program ends.
    """
    with trio.move_on_after(1.0):
        await process.wait()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with trio.move_on_after(2.0):
            await process.wait()
            return
