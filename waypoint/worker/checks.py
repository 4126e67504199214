"""The seam to protection: what looks at a request after its route is known and before it goes anywhere.

A source is asked once for each served port and generation of the state; a port that nothing protects has no
checks and pays one truth test per request. Everything is called on the reactor's thread. Order and reasons:
waypoint-facts 2 and 11, config-api 8.5.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from transport.http2.events import Header
from waypoint.worker.answers import Answer
from waypoint.worker.plan import Source

if TYPE_CHECKING:
    from waypoint.worker.examination import Examination
    from waypoint.worker.headers import Request
    from waypoint.worker.ways import ServedPort

ResponseHook: TypeAlias = Callable[[int, list[Header]], None]


class Phase(enum.IntEnum):
    """Lower ones come first."""

    EXTERNAL = 1  # asks a service outside, before credentials are looked at
    AUTHENTICATE = 2  # validates credentials, and writes what they say
    AUTHORIZE = 3
    LIMIT = 4
    FILTER = 5


class Pending(Protocol):
    """A check that waits for something. It ends with one call of `Examination.go_on`, or with `cancel`."""

    def cancel(self) -> None:
        """The client has gone: nobody wants the result, `go_on` must not be called."""


class Check(Protocol):
    """One policy, or all of a kind, as they concern one port."""

    phase: Phase

    def examine(self, examination: Examination) -> Answer | Pending | None:
        """None: go on. An answer: the client gets it. Must not raise: what cannot be judged is refused."""


@runtime_checkable
class KnowingCheck(Protocol):
    """A check that may know without an examination that it would let a request pass."""

    def lets_pass(self, request: Request, source: Source) -> bool:
        """True: `examine` would say None and leave no trace, if no check before it found credentials."""


class StreamCheck(Protocol):
    """The same for connections that are no HTTP."""

    needs_server_name: bool  # of the client's TLS, if it speaks TLS

    def refuse(self, source: Source, server_name: str | None) -> str:
        """Why the connection is refused, for the log; empty: it is not."""


class CheckSource(Protocol):
    """A kind of policy; lives as long as the worker and owns what outlasts a generation: buckets, caches."""

    def checks(self, port: ServedPort) -> Sequence[Check]: ...

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]: ...

    def close(self) -> None: ...


def checks_of(sources: Sequence[CheckSource], port: ServedPort) -> tuple[Check, ...]:
    """All checks of a port in the order of phases, within a phase in the order of the sources."""
    found = (check for source in sources for check in source.checks(port))
    return tuple(sorted(found, key=lambda check: check.phase))
