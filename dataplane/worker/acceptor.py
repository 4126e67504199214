"""One listening socket in the reactor, and what becomes of its connections."""

from __future__ import annotations

import socket
from collections.abc import Callable

from dataplane.worker.log import WorkerLog
from transport.errors import MeshError
from transport.reactor import Reactor, Registration, Timer
from transport.socket_errors import NoBufferSpace, TooManyDescriptors
from transport.sockets import accept

_ACCEPTS_PER_PASS = 64
_PAUSE_S = 0.1  # without descriptors: until some connections have ended

Starter = Callable[[socket.socket, tuple[str, int]], None]


class Acceptor:
    """Owns `sock`. `admits` is asked for each connection and counts it; one that it refuses is closed.

    `start` owns an accepted socket. `label` says in the log whose listener this is.
    """

    __slots__ = ("_admits", "_label", "_log", "_pause_timer", "_reactor", "_registration", "_start", "sock")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        start: Starter,
        *,
        admits: Callable[[], bool],
        log: WorkerLog,
        label: str,
    ) -> None:
        self._reactor = reactor
        self.sock = sock
        self._start = start
        self._admits = admits
        self._log = log
        self._label = label
        self._pause_timer: Timer | None = None
        self._registration: Registration = reactor.register(sock.fileno(), self._on_readable)

    def close(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._registration.close()
        self.sock.close()

    def accept_waiting(self) -> None:
        """Takes what connected before now, as far as one pass goes."""
        self._on_readable()

    def _on_readable(self) -> None:
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                accepted = accept(self.sock)
            except (TooManyDescriptors, NoBufferSpace) as error:
                self._log.limited("error", "accept_paused", reason=error.text, workload=self._label)
                self._pause()
                return
            except MeshError as error:
                self._log.write("error", "listener_broken", reason=error.text, workload=self._label)
                self.close()
                return
            if accepted is None:
                return
            sock, peer = accepted
            if self._admits():
                self._start(sock, peer)
            else:
                sock.close()
                self._log.limited("error", "connections_refused", workload=self._label)

    def _pause(self) -> None:
        self._registration.pause()
        self._pause_timer = self._reactor.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        self._registration.resume()
