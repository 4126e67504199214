"""What VirtualServices are made of: matches, actions, destinations. Values only, checked by `config.kinds`.

Durations are milliseconds, header names lower case, host names as written; what an author left out is None or
empty: defaults and the resolution of names are the compilation's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from config.routing_rules import HeaderEdit


class TextKind(enum.Enum):
    EXACT = "exact"
    PREFIX = "prefix"  # by characters
    REGEX = "regex"  # RE2, the whole text


@dataclass(frozen=True, slots=True)
class TextMatch:
    kind: TextKind
    value: str


@dataclass(frozen=True, slots=True)
class NamedMatch:
    """Of a header or query parameter; without a text it must be there."""

    name: str
    text: TextMatch | None = None


@dataclass(frozen=True, slots=True)
class RequestMatch:
    """`unsupported` names parts that a waypoint cannot judge: such a match never holds there.

    `is_for_mesh` is False where its gateways leave the mesh out.
    """

    name: str = ""
    uri: TextMatch | None = None
    is_case_ignored: bool = False
    scheme: TextMatch | None = None
    method: TextMatch | None = None
    authority: TextMatch | None = None
    headers: tuple[NamedMatch, ...] = ()
    without_headers: tuple[NamedMatch, ...] = ()
    query: tuple[NamedMatch, ...] = ()
    port: int = 0
    source_namespace: str = ""
    unsupported: tuple[str, ...] = ()
    is_for_mesh: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """`port` 0: the host's only port, or else the one that was called."""

    host: str
    subset: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"host {self.host}" + (f" subset {self.subset}" if self.subset else "")


@dataclass(frozen=True, slots=True)
class WeightedTarget:
    target: Target
    weight: int = 0
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None


@dataclass(frozen=True, slots=True)
class RegexEdit:
    match: str
    substitution: str


@dataclass(frozen=True, slots=True)
class PathEdit:
    """One of them: the whole path, what the match matched, or every match of an expression."""

    full: str | None = None
    prefix: str | None = None
    regex: RegexEdit | None = None


class DerivedPort(enum.Enum):
    PROTOCOL_DEFAULT = "FROM_PROTOCOL_DEFAULT"
    REQUEST_PORT = "FROM_REQUEST_PORT"


@dataclass(frozen=True, slots=True)
class Redirect:
    path: PathEdit | None = None
    authority: str = ""
    scheme: str = ""
    port: int = 0
    derived_port: DerivedPort | None = None
    status: int = 301


@dataclass(frozen=True, slots=True)
class DirectResponse:
    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Delegate:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    authority: str = ""
    path: PathEdit | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """`attempts` after the first; `on` are Envoy's names. Without names and statuses: Istio's."""

    attempts: int = 0
    per_try_timeout_ms: int | None = None
    on: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    backoff_ms: int | None = None
    may_use_remote_localities: bool = False
    may_repeat_hosts: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Shares are millionths of the requests."""

    delay_share: int = 0
    delay_ms: int = 0
    abort_share: int = 0
    abort_status: int = 0
    abort_grpc_status: int = 0


@dataclass(frozen=True, slots=True)
class Mirror:
    """`share` in millionths."""

    target: Target
    share: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Cors:
    allow_origins: tuple[TextMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age_s: int | None = None
    allow_credentials: bool = False
    forwards_unmatched_preflights: bool = True


@dataclass(frozen=True, slots=True)
class HttpPart:
    """One entry of `http`: without matches it takes every request. `mirrors` None: not said."""

    name: str = ""
    matches: tuple[RequestMatch, ...] = ()
    targets: tuple[WeightedTarget, ...] = ()
    redirect: Redirect | None = None
    direct_response: DirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: Rewrite | None = None
    timeout_ms: int | None = None
    retries: Retries | None = None
    fault: Fault | None = None
    mirrors: tuple[Mirror, ...] | None = None
    cors: Cors | None = None
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None


@dataclass(frozen=True, slots=True)
class StreamMatch:
    """Of `tls` and `tcp`; `sni_hosts` is empty for `tcp`."""

    sni_hosts: tuple[str, ...] = ()
    destination_subnets: tuple[str, ...] = ()
    port: int = 0
    unsupported: tuple[str, ...] = ()
    is_for_mesh: bool = True


@dataclass(frozen=True, slots=True)
class StreamPart:
    matches: tuple[StreamMatch, ...] = ()
    targets: tuple[WeightedTarget, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class SourcedPart:
    """A route of a VirtualService or of its delegate; short host names are looked up in `namespace`.

    `name` is `namespace/name/route`, for logs.
    """

    part: HttpPart
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class VirtualRoutes:
    """A VirtualService with the routes of its delegates merged in. `name` is `namespace/name`."""

    namespace: str
    name: str
    http: tuple[SourcedPart, ...] = ()
    tls: tuple[StreamPart, ...] = ()
    tcp: tuple[StreamPart, ...] = ()
