"""The worker's end of the channel to its control process: a stream socket in the reactor.

Incoming messages are handed over in order, but not faster than they are worked off: while too many wait,
reading pauses and the control process waits. Outgoing messages queue without a bound only for answers that
were asked for; `try_send` refuses when the control process does not read.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable

from dataplane.ipc import MAX_DESCRIPTORS_PER_READ, IpcBroken, MessageReader, encode
from proto.mycelia import worker_pb2 as pb
from transport.reactor import Reactor

_READ_BYTES = 256 * 1024
_MAX_WAITING = 64
_MAX_BACKLOG = 4 * 1024 * 1024


class ControlLink:
    """Owns `sock`. `on_message` gets each message with its descriptor; `on_closed` comes once, when the other
    end is gone or not to be trusted any more.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        *,
        on_message: Callable[[pb.ToWorker, int | None], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._reader = MessageReader(pb.ToWorker)
        self._waiting: deque[tuple[pb.ToWorker, int | None]] = deque()
        self._is_held = False
        self._is_taking = False
        self._out = bytearray()
        self.is_open = True
        sock.setblocking(False)
        self._registration = reactor.register(sock.fileno(), self._on_readable, self.flush)

    def hold(self) -> None:
        """Hand over nothing until `go_on`: a message is being worked off in slices."""
        self._is_held = True

    def go_on(self) -> None:
        self._is_held = False
        if not self._is_taking:
            self._take()

    def send(self, message: pb.ToControl) -> None:
        if self.is_open:
            self._out += encode(message)
            self._reactor.mark_dirty(self)

    def try_send(self, message: pb.ToControl) -> bool:
        """`send` unless the control process is too far behind."""
        if len(self._out) >= _MAX_BACKLOG and self.is_open:
            return False
        self.send(message)
        return True

    @property
    def backlog_bytes(self) -> int:
        return len(self._out)

    def flush(self) -> None:
        out = self._out
        if not self.is_open:
            return
        if out:
            try:
                sent = self._sock.send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._close(f"writing to the control process: {error.strerror}")
                return
            del out[:sent]
        self._registration.want_write(bool(out))

    def close(self) -> None:
        """Close without telling `on_closed`; messages and descriptors that wait are dropped."""
        if not self.is_open:
            return
        self.is_open = False
        self._registration.close()
        self._sock.close()
        self._reader.close()
        while self._waiting:
            descriptor = self._waiting.popleft()[1]
            if descriptor is not None:
                os.close(descriptor)

    def finish(self) -> None:
        """Send what is left, waiting for it a little while, and close. For the end of the process only."""
        if self.is_open:
            try:
                self._sock.settimeout(2.0)
                self._sock.sendall(self._out)
            except OSError:
                pass  # the control process is gone: nobody is left to be told
            self._out.clear()
            self.close()

    def _close(self, reason: str) -> None:
        self.close()
        self._on_closed(reason)

    def _on_readable(self) -> None:
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._sock, _READ_BYTES, MAX_DESCRIPTORS_PER_READ, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(f"reading from the control process: {error.strerror}")
            return
        if not data:
            self._close("the control process has closed the channel")
            return
        try:
            messages = self._reader.feed(data, descriptors)
        except IpcBroken as error:
            self._close(error.text)
            return
        if flags & socket.MSG_CTRUNC:
            self._close("the kernel dropped descriptors (too many are open)")
            return
        self._waiting.extend(messages)
        self._take()

    def _take(self) -> None:
        self._is_taking = True
        while self._waiting and not self._is_held and self.is_open:
            self._on_message(*self._waiting.popleft())
        self._is_taking = False
        if len(self._waiting) >= _MAX_WAITING:
            self._registration.pause()
        else:
            self._registration.resume()
