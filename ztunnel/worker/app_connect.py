"""TCP connections that the worker makes outside of the pool: to applications and to destinations without a
tunnel.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from transport.errors import MeshError
from transport.reactor import Reactor
from transport.socket_errors import translate
from transport.sockets import SpoofResult, start_connect
from ztunnel.worker.errors import ApplicationUnreachable
from ztunnel.worker.namespace import WorkloadNetwork

# Gets the connected socket, or why there is none.
Connected = Callable[[socket.socket | MeshError], None]


class AppConnect:
    """One connect, bounded in time. `cancel` ends it without a word.

    On the same host a connect is usually through before the call returns, so the result is looked at first:
    that spares an epoll registration and a pass. `done` may therefore be called before the constructor
    returns.
    """

    __slots__ = ("_address", "_done", "_registration", "_sock", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        network: WorkloadNetwork,
        address: tuple[str, int],
        done: Connected,
        *,
        source_ip: str | None,
        timeout_s: float,
    ) -> None:
        self._address = address
        self._done = done
        self._registration = None
        self._timer = None
        try:
            sock, spoof = start_connect(
                address,
                namespace=network.namespace,
                mark=network.mark,
                source_ip=source_ip,
                keepalive=network.is_keepalive_on,
            )
        except MeshError as error:
            done(error)
            return
        if spoof is SpoofResult.FAILED:
            network.on_spoof_failed(address)
        number = sock.connect_ex(address)
        if number in (0, errno.EISCONN):
            done(sock)
            return
        if number not in (errno.EALREADY, errno.EINPROGRESS):
            sock.close()
            done(self._error(number))
            return
        self._sock = sock
        self._registration = reactor.register(sock.fileno(), self._on_ready, self._on_ready, reading=False)
        self._registration.want_write(True)
        self._timer = reactor.call_later(timeout_s, self._on_timeout)

    def cancel(self) -> None:
        if self._registration is not None:
            self._stop()
            self._sock.close()

    def _stop(self) -> None:
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_ready(self) -> None:
        self._stop()
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._sock.close()
            self._done(self._error(number))
        else:
            self._done(self._sock)

    def _on_timeout(self) -> None:
        self._stop()
        self._sock.close()
        ip, port = self._address
        self._done(ApplicationUnreachable(f"no connection to {ip}:{port} in time"))

    def _error(self, number: int) -> MeshError:
        ip, port = self._address
        return translate(OSError(number, errno.errorcode.get(number, "")), f"connecting to {ip}:{port}")
