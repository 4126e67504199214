"""The seam to decisions: what is asked about a request, and what is told about how it went.

The worker forwards; whoever implements `Decider` routes, balances and retries. Everything is called on the
reactor's thread, synchronously: what a decision needs is there, or the answer is made without it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dataplane.state.model import Service, Workload
from transport.errors import MeshError
from transport.http2.events import Header
from transport.spiffe import SpiffeId
from waypoint.state.hosts import Endpoint
from waypoint.worker.answers import NO_HEALTHY_UPSTREAM, Answer
from waypoint.worker.failures import Failure, is_safe_to_repeat
from waypoint.worker.headers import Request

if TYPE_CHECKING:
    from waypoint.state.route_table import RouteEntry
    from waypoint.worker.checks import Check
    from waypoint.worker.ways import ServedPort

MAX_SAFE_REPEATS = 2  # waypoint-facts 6
MAX_REPLAY_BYTES = 1 << 20  # waypoint-facts 6: the retry buffer


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
    """How an exchange went; complete when `Plan.on_over` gets it. Status 0: no response began.

    `flag` is `-`, one of Envoy's flags, or several joined with commas.
    """

    status: int = 0
    flag: str = "-"
    details: str = "via_upstream"
    upstream: Endpoint | None = None
    attempts: int = 0
    request_body_bytes: int = 0
    response_body_bytes: int = 0
    request_header_bytes: int = 0  # as HTTP/1.1 would write them
    response_header_bytes: int = 0
    duration_s: float = 0.0
    upstream_time_s: float | None = None
    grpc_status: bytes = b""
    failure_text: str = ""
    route_name: str = ""
    service: Service | None = None  # that the request was for
    service_port: int = 0
    cluster: str = ""  # the backend chosen: "namespace/hostname:port" and perhaps "/subset"
    workload: Workload | None = None  # of the endpoint that the latest try went to
    policy: str = ""  # what denied it: "kind/namespace/name" and which part of it
    response_headers: Sequence[Header] = ()  # as they left
    entry: RouteEntry | None = None  # the match that took it

    def add_flag(self, flag: str) -> None:
        """Join a flag to those that are there."""
        self.flag = flag if self.flag == "-" else f"{self.flag},{flag}"


@dataclass(slots=True)
class TcpOutcome:
    """How a relayed connection went. `error` None: it ended in order."""

    sent_bytes: int = 0
    received_bytes: int = 0
    duration_s: float = 0.0
    error: MeshError | None = None
    flag: str = "-"
    upstream: Endpoint | None = None
    server_name: str = ""
    route_name: str = ""
    service: Service | None = None
    service_port: int = 0
    cluster: str = ""
    workload: Workload | None = None
    policy: str = ""


class Plan(Protocol):
    """One request's way. Times None: no limit."""

    timeout_s: float | None  # the whole exchange, all tries and the response's end included
    try_timeout_s: float | None  # one try, until its response begins
    idle_timeout_s: float | None  # nothing at all happens for so long
    delay_s: float  # before the first try (an injected fault)
    replay_bytes: int  # how much of the request's body is kept for another try; 0: there is none
    shadows: Sequence[Endpoint]  # where copies of the request go, for nobody's answer

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:
        """Where the next try goes; `tried` are those before it, the latest last."""

    def retry_after_failure(
        self, failure: Failure, tried: Sequence[Endpoint], *, is_body_held: bool
    ) -> float | None:
        """Seconds until another try, or None to give up."""

    def retry_after_response(
        self, status: int, headers: Sequence[Header], tried: Sequence[Endpoint], *, is_body_held: bool
    ) -> float | None:
        """The same for a response that began; it is passed on if the answer is None."""

    def on_response(self, status: int, headers: list[Header]) -> None:
        """Change a response's fields in place before they leave. Answers made here pass too."""

    def on_try_over(
        self, endpoint: Endpoint, status: int, failure: Failure | None, grpc_status: bytes
    ) -> None:
        """A try that `pick` named is over: exactly once each. Status 0: no response began."""

    def on_over(self, outcome: Outcome) -> None:
        """The last call: what the plan knows goes into the outcome."""


class TcpPlan(Protocol):
    """The way of a connection that is no HTTP. Times None: no limit."""

    idle_s: float | None  # no byte in either direction
    longest_s: float | None  # from its beginning

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | None:
        """Where to connect; None: nowhere, or to nobody else."""

    def on_try_over(self, endpoint: Endpoint, error: MeshError | None) -> None:
        """A connection that `pick` named is over, or could not be made: exactly once each."""

    def on_connected(self, outcome: TcpOutcome) -> None:
        """A connection is there: what the plan knows of it goes into the outcome."""

    def on_over(self, outcome: TcpOutcome) -> None:
        """The last call: what the plan knows goes into the outcome."""


class Matched:
    """A request's port and the rule that takes it; None: no rule does."""

    __slots__ = ("entry", "port")

    def __init__(self, port: ServedPort, entry: RouteEntry | None) -> None:
        self.port = port
        self.entry = entry

    @property
    def route_name(self) -> str:
        return "" if self.entry is None else self.entry.rule.name


class Decider(Protocol):
    """Decides requests and plain connections."""

    def checks(self, request: Request, source: Source) -> Sequence[Check]:
        """What has still to let a request pass before `choose`, in order; mostly nothing."""

    def match(self, request: Request, source: Source) -> Matched:
        """The rule that takes a request. Asked for where there are checks only."""

    def choose(self, request: Request, source: Source, matched: Matched | None = None) -> Plan | Answer:
        """What becomes of a request, by the rule that was matched before or else now; may change it."""

    def wants_server_name(self, source: Source) -> bool:
        """Whether `choose_tcp` needs the name in a TLS ClientHello."""

    def refuse_tcp(self, source: Source, server_name: str | None) -> str:
        """Why a connection that is no HTTP may not pass, by the policy's name; empty: it may."""

    def choose_tcp(self, source: Source, server_name: str | None) -> TcpPlan | None:
        """What becomes of it; None: nothing, it is refused."""


@dataclass(slots=True)
class DirectPlan:
    """The simplest plan: endpoints in turn, safe repetitions only. For tests, and to measure against."""

    endpoints: Sequence[Endpoint]
    method: bytes = b"GET"
    timeout_s: float | None = None
    try_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    delay_s: float = 0.0
    replay_bytes: int = 64 * 1024
    shadows: Sequence[Endpoint] = ()

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:
        if not self.endpoints:
            return NO_HEALTHY_UPSTREAM
        return self.endpoints[len(tried) % len(self.endpoints)]

    def retry_after_failure(
        self, failure: Failure, tried: Sequence[Endpoint], *, is_body_held: bool
    ) -> float | None:
        is_safe = is_body_held and is_safe_to_repeat(failure, self.method)
        return 0.0 if is_safe and len(tried) <= MAX_SAFE_REPEATS else None

    def retry_after_response(
        self,
        status: int,  # noqa: ARG002 - the seam's
        headers: Sequence[Header],  # noqa: ARG002
        tried: Sequence[Endpoint],  # noqa: ARG002
        *,
        is_body_held: bool,  # noqa: ARG002
    ) -> float | None:
        return None

    def on_response(self, status: int, headers: list[Header]) -> None: ...

    def on_try_over(
        self, endpoint: Endpoint, status: int, failure: Failure | None, grpc_status: bytes
    ) -> None: ...

    def on_over(self, outcome: Outcome) -> None: ...


@dataclass(slots=True)
class DirectTcpPlan:
    """One endpoint, one try."""

    endpoint: Endpoint
    idle_s: float | None = None
    longest_s: float | None = None

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | None:
        return None if tried else self.endpoint

    def on_try_over(self, endpoint: Endpoint, error: MeshError | None) -> None: ...

    def on_connected(self, outcome: TcpOutcome) -> None: ...

    def on_over(self, outcome: TcpOutcome) -> None: ...
