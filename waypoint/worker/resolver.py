"""Endpoints that are known by a name only (ServiceEntry with resolution DNS): resolved when they are dialled.

Names are asked for in the reactor's threads, as the machine's resolver answers them, once however many wait.
An answer is kept for `_KEPT_S`; a failure for `_FAILED_S`, so that a name that is not there does not cost a
look-up for each request. Bounds: `_MAX_NAMES`; the reactor's own bound on waiting work.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from transport.errors import MeshError
from transport.reactor import Reactor
from waypoint.state.hosts import Application, Endpoint
from waypoint.state.members import is_address
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.dial import Carrier, Dial, DialDone
from waypoint.worker.errors import NameNotResolved

_KEPT_S: Final = 5.0
_FAILED_S: Final = 1.0
_MAX_NAMES: Final = 1024

Lookup: TypeAlias = Callable[[str], Sequence[str]]
Answered: TypeAlias = Callable[[Sequence[str] | MeshError], None]


def look_up(name: str) -> list[str]:
    """The machine's answer, IPv4 and IPv6; raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Names to addresses. Runs on the reactor's thread."""

    def __init__(self, reactor: Reactor, lookup: Lookup = look_up) -> None:
        self._reactor = reactor
        self._lookup = lookup
        self._answers: dict[str, tuple[float, Sequence[str] | MeshError]] = {}  # -> until when, what
        self._waiting: dict[str, list[Answered]] = {}

    def resolve(self, name: str, answered: Answered) -> None:
        """`answered` is called later, never from inside."""
        known = self._answers.get(name)
        if known is not None and known[0] > self._reactor.now:
            self._reactor.call_soon(lambda: answered(known[1]))
            return
        waiting = self._waiting.get(name)
        if waiting is not None:
            waiting.append(answered)
            return
        self._waiting[name] = [answered]
        self._reactor.run_in_thread(lambda: self._lookup(name), lambda found: self._tell(name, found))

    def _tell(self, name: str, found: Sequence[str] | BaseException) -> None:
        answer: Sequence[str] | MeshError
        if isinstance(found, BaseException) or not found:
            answer = NameNotResolved(f"{name}: {found or 'no address'}")
        else:
            answer = found
        if len(self._answers) >= _MAX_NAMES:
            self._answers.clear()
        kept_s = _FAILED_S if isinstance(answer, MeshError) else _KEPT_S
        self._answers[name] = (self._reactor.now + kept_s, answer)
        for answered in self._waiting.pop(name, ()):
            answered(answer)


class ResolvingDialler(Carrier):
    """Hands endpoints with addresses through, and those with names on when they have one."""

    def __init__(self, inner: Carrier, resolver: Resolver, random: Callable[[], float]) -> None:
        super().__init__(inner.reactor)
        self.inner = inner
        self.resolver = resolver
        self.random = random

    def carry(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        if is_address(endpoint.address[0]):
            return self.inner.carry(endpoint, done, application)
        return _NamedDial(self, endpoint, done, application)


class _NamedDial:
    __slots__ = ("_application", "_dial", "_done", "_endpoint", "_inner", "_random")

    def __init__(
        self, owner: ResolvingDialler, endpoint: Endpoint, done: DialDone, application: Application | None
    ) -> None:
        self._inner = owner.inner
        self._endpoint = endpoint
        self._done: DialDone | None = done
        self._application = application
        self._random = owner.random
        self._dial: Dial | None = None
        owner.resolver.resolve(endpoint.address[0], self._on_answer)

    def _on_answer(self, answer: Sequence[str] | MeshError) -> None:
        done = self._done
        if done is None:
            return
        if isinstance(answer, MeshError):
            self._done = None
            done(answer)
            return
        own = self._endpoint
        chosen = answer[int(self._random() * len(answer))]
        endpoint = Endpoint(
            (chosen, own.address[1]),
            own.application,
            own.identities,
            own.hbone_address,
            own.circuit,
            tls=own.tls,
        )
        self._dial = self._inner.carry(endpoint, self._on_dialled, self._application)

    def _on_dialled(self, result: ByteStream | MeshError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def cancel(self) -> None:
        self._done = None
        if self._dial is not None:
            self._dial.cancel()
