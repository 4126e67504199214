"""Where one workload's sockets live: its network namespace, mark and spoofing; and a small stock of fresh
sockets.

Entering a namespace and coming back costs as much as the rest of a connect, so a busy workload makes several
sockets at a time. An unused socket keeps its namespace alive, so what is left over is closed soon.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from transport.netns import NetworkNamespace
from transport.reactor import Reactor, Timer
from transport.sockets import client_sockets

_MAX_BATCH = 16
_BUSY_S = 0.05  # the stock was used up within this time: make more the next time
_KEEP_S = 1.0


class WorkloadNetwork:
    """`namespace` None means the process's own. `is_spoofing` becomes known when the listeners are open."""

    def __init__(
        self,
        reactor: Reactor,
        namespace: NetworkNamespace | None,
        *,
        mark: int | None,
        is_keepalive_on: bool,
        on_spoof_failed: Callable[[tuple[str, int]], None],
    ) -> None:
        self.namespace = namespace
        self.mark = mark
        self.is_keepalive_on = is_keepalive_on
        self.is_spoofing = False
        self.on_spoof_failed = on_spoof_failed
        self._reactor = reactor
        self._stock: dict[bool, list[socket.socket]] = {False: [], True: []}  # by is_ipv6
        self._batch = 1
        self._filled_at = 0.0
        self._timer: Timer | None = None

    def client_socket(self, *, is_ipv6: bool) -> socket.socket:
        """A socket for `transport.sockets.begin_connect`. Raises MeshError."""
        stock = self._stock[is_ipv6]
        if not stock:
            self._fill(stock, is_ipv6=is_ipv6)
        return stock.pop()

    def close(self) -> None:
        """Drop the stock and the namespace handle."""
        self._empty()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.namespace is not None:
            self.namespace.close()

    def _fill(self, stock: list[socket.socket], *, is_ipv6: bool) -> None:
        now = self._reactor.now
        self._batch = min(self._batch * 2, _MAX_BATCH) if now - self._filled_at < _BUSY_S else 1
        self._filled_at = now
        stock += client_sockets(
            self._batch,
            is_ipv6=is_ipv6,
            namespace=self.namespace,
            mark=self.mark,
            keepalive=self.is_keepalive_on,
        )
        if self._batch > 1 and self._timer is None:
            self._timer = self._reactor.call_later(_KEEP_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._reactor.now - self._filled_at >= _KEEP_S:
            self._empty()
        else:
            self._timer = self._reactor.call_later(_KEEP_S, self._on_timer)

    def _empty(self) -> None:
        for stock in self._stock.values():
            while stock:
                stock.pop().close()
