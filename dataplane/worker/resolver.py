"""Names of workloads without addresses, resolved by the host's resolver on threads of their own.

A slow name server must not hold up TLS handshakes, so this does not use the reactor's pool. Answers are kept
for a short while; one lookup of a name is under way at a time, and the number of names that wait is bounded.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dataplane.worker.errors import NameNotResolved
from transport.errors import MeshError
from transport.reactor import Reactor

_THREADS = 2
_MAX_LOOKUPS = 256
_MAX_CACHED = 4096
_KEEP_S = 10.0  # getaddrinfo tells no time to live

Resolved = Callable[[str | MeshError], None]


class Resolver:
    """Built inert; threads start with the first lookup."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._pool: ThreadPoolExecutor | None = None
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._waiting: dict[str, list[tuple[bool, Resolved]]] = {}

    def resolve(self, hostname: str, done: Resolved, *, is_ipv6_preferred: bool) -> None:
        """One address, at random among those of the preferred family, else of the other."""
        cached = self._cache.get(hostname)
        if cached is not None and cached[0] > self._reactor.now:
            done(_pick(hostname, cached[1], is_ipv6_preferred=is_ipv6_preferred))
            return
        waiting = self._waiting.get(hostname)
        if waiting is not None:
            waiting.append((is_ipv6_preferred, done))
            return
        if len(self._waiting) >= _MAX_LOOKUPS:
            done(NameNotResolved(f"{hostname}: {_MAX_LOOKUPS} other names are being resolved"))
            return
        self._waiting[hostname] = [(is_ipv6_preferred, done)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")
        self._pool.submit(self._look_up, hostname)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, hostname: str) -> None:
        addresses: tuple[str, ...] = ()
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
            addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        with contextlib.suppress(OSError):  # the reactor has been closed meanwhile
            self._reactor.call_soon_threadsafe(lambda: self._on_found(hostname, addresses))

    def _on_found(self, hostname: str, addresses: tuple[str, ...]) -> None:
        if addresses:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[hostname] = (self._reactor.now + _KEEP_S, addresses)
        for is_ipv6_preferred, done in self._waiting.pop(hostname, ()):
            done(_pick(hostname, addresses, is_ipv6_preferred=is_ipv6_preferred))


def _pick(hostname: str, addresses: tuple[str, ...], *, is_ipv6_preferred: bool) -> str | MeshError:
    preferred = [address for address in addresses if (":" in address) is is_ipv6_preferred]
    if not addresses:
        return NameNotResolved(f"{hostname} does not resolve to any address")
    return random.choice(preferred or addresses)
