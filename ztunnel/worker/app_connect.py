"""TCP connections that the worker makes outside of the pool: to applications and to destinations without a
tunnel.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from transport.errors import MeshError
from transport.reactor import Reactor
from transport.socket_errors import translate
from transport.sockets import SpoofResult, begin_connect
from ztunnel.worker.errors import ApplicationUnreachable
from ztunnel.worker.namespace import WorkloadNetwork

# Gets the connected socket, or why there is none.
Connected = Callable[[socket.socket | MeshError], None]


class AppConnect:
    """One connect that takes time, bounded. `cancel` ends it without a word."""

    __slots__ = ("_address", "_done", "_registration", "_sock", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        address: tuple[str, int],
        done: Connected,
        timeout_s: float,
    ) -> None:
        self._address = address
        self._done = done
        self._sock = sock
        self._registration = reactor.register(sock.fileno(), self._on_ready, self._on_ready, reading=False)
        self._registration.want_write(True)
        self._timer = reactor.call_later(timeout_s, self._on_timeout)

    def cancel(self) -> None:
        if not self._registration.is_closed:
            self._stop()
            self._sock.close()

    def _stop(self) -> None:
        self._registration.close()
        self._timer.cancel()

    def _on_ready(self) -> None:
        self._stop()
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._sock.close()
            self._done(_error(number, self._address))
        else:
            self._done(self._sock)

    def _on_timeout(self) -> None:
        self._stop()
        self._sock.close()
        ip, port = self._address
        self._done(ApplicationUnreachable(f"no connection to {ip}:{port} in time"))


def connect(
    reactor: Reactor,
    network: WorkloadNetwork,
    address: tuple[str, int],
    done: Connected,
    *,
    source_ip: str | None,
    timeout_s: float,
) -> AppConnect | None:
    """Connect from the workload's namespace; None if `done` has been called already.

    On the same host a connect is usually through before the system call returns, so the result is looked at
    first: that spares an epoll registration and a pass.
    """
    try:
        sock = network.client_socket(is_ipv6=":" in address[0])
        if begin_connect(sock, address, source_ip) is SpoofResult.FAILED:
            network.on_spoof_failed(address)
    except MeshError as error:
        done(error)
        return None
    number = sock.connect_ex(address)
    if number == errno.EISCONN or not number:
        done(sock)
        return None
    if number in (errno.EALREADY, errno.EINPROGRESS):
        return AppConnect(reactor, sock, address, done, timeout_s)
    sock.close()
    done(_error(number, address))
    return None


def _error(number: int, address: tuple[str, int]) -> MeshError:
    ip, port = address
    return translate(OSError(number, os.strerror(number)), f"connecting to {ip}:{port}")
