"""The seam to decisions: what is asked about a request, and what is told about how it went.

The worker forwards; whoever implements `Decider` routes, balances and retries. Everything is called on the
reactor's thread, synchronously: what a decision needs is there, or the answer is made without it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transport.http2.events import Header
from transport.spiffe import SpiffeId
from waypoint.worker.answers import NO_HEALTHY_UPSTREAM, Answer
from waypoint.worker.failures import Failure, is_safe_to_repeat
from waypoint.worker.headers import Request

MAX_SAFE_REPEATS = 2  # waypoint-facts 6


class Application(enum.Enum):
    """What an endpoint speaks."""

    HTTP1 = "http/1.1"
    HTTP2 = "h2"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a try goes. `identities`: who may answer over HBONE; empty: plain TCP.

    `hbone_address` is the tunnel's other end, by default port 15008 of the endpoint itself.
    """

    address: tuple[str, int]
    application: Application = Application.HTTP1
    identities: tuple[SpiffeId, ...] = ()
    hbone_address: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Whom a byte stream comes from and where it wanted to go. Identity is the certificate's, or None."""

    address: tuple[str, int] = ("", 0)
    destination: tuple[str, int] = ("", 0)
    identity: SpiffeId | None = None


class Declared(enum.Enum):
    """What a port is declared to speak (waypoint.proto's Protocol)."""

    DETECT = 0
    HTTP = 1
    TCP = 4


@dataclass(slots=True)
class Outcome:
    """How an exchange went; complete when `Plan.on_over` gets it. Status 0: no response began."""

    status: int = 0
    flag: str = "-"
    details: str = "via_upstream"
    upstream: Endpoint | None = None
    attempts: int = 0
    request_body_bytes: int = 0
    response_body_bytes: int = 0
    duration_s: float = 0.0
    upstream_time_s: float | None = None
    grpc_status: bytes = b""
    failure_text: str = ""


class Plan(Protocol):
    """One request's way. Times None: no limit."""

    timeout_s: float | None  # the whole exchange, all tries and the response's end included
    try_timeout_s: float | None  # one try, until its response begins
    idle_timeout_s: float | None  # nothing at all happens for so long
    delay_s: float  # before the first try (an injected fault)

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:
        """Where the next try goes; `tried` are those before it, the latest last."""

    def retry_after_failure(self, failure: Failure, tried: Sequence[Endpoint]) -> float | None:
        """Seconds until another try, or None to give up."""

    def retry_after_response(
        self, status: int, headers: Sequence[Header], tried: Sequence[Endpoint]
    ) -> float | None:
        """The same for a response that began; it is passed on if the answer is None."""

    def on_response(self, status: int, headers: list[Header]) -> None:
        """Change a response's fields in place before they leave. Answers made here pass too."""

    def on_try_over(self, endpoint: Endpoint, status: int, failure: Failure | None) -> None:
        """A try that `pick` named is over: exactly once each. Status 0: no response began."""

    def on_over(self, outcome: Outcome) -> None:
        """The last call."""


class Decider(Protocol):
    """Decides requests and plain connections."""

    def choose(self, request: Request, source: Source) -> Plan | Answer:
        """What becomes of a request; may change `request`."""

    def choose_tcp(self, source: Source) -> Endpoint | None:
        """Where a connection that is no HTTP goes; None: nowhere."""


@dataclass(slots=True)
class DirectPlan:
    """The simplest plan: endpoints in turn, safe repetitions only. Base of richer ones, and for tests."""

    endpoints: Sequence[Endpoint]
    method: bytes = b"GET"
    timeout_s: float | None = None
    try_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    delay_s: float = 0.0

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:
        if not self.endpoints:
            return NO_HEALTHY_UPSTREAM
        return self.endpoints[len(tried) % len(self.endpoints)]

    def retry_after_failure(self, failure: Failure, tried: Sequence[Endpoint]) -> float | None:
        return 0.0 if len(tried) <= MAX_SAFE_REPEATS and is_safe_to_repeat(failure, self.method) else None

    def retry_after_response(
        self,
        status: int,  # noqa: ARG002 - the seam's
        headers: Sequence[Header],  # noqa: ARG002
        tried: Sequence[Endpoint],  # noqa: ARG002
    ) -> float | None:
        return None

    def on_response(self, status: int, headers: list[Header]) -> None: ...

    def on_try_over(self, endpoint: Endpoint, status: int, failure: Failure | None) -> None: ...

    def on_over(self, outcome: Outcome) -> None: ...
