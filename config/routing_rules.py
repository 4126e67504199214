"""What routes are made of: matches, filters, backends, rules. Values only, checked by `config.kinds`.

Durations are milliseconds, header names lower case; what an author left out is None or empty: defaults are
the compilation's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class PathKind(enum.Enum):
    """In the order of precedence."""

    EXACT = "Exact"
    PREFIX = "PathPrefix"
    REGEX = "RegularExpression"


@dataclass(frozen=True, slots=True)
class PathMatch:
    kind: PathKind = PathKind.PREFIX
    value: str = "/"


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """Of a header or query parameter."""

    name: str
    value: str
    is_regex: bool = False


@dataclass(frozen=True, slots=True)
class HttpMatch:
    path: PathMatch = field(default_factory=PathMatch)
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcMatch:
    """`is_regex` speaks of service and method; an empty one is any."""

    service: str = ""
    method: str = ""
    is_regex: bool = False
    headers: tuple[ValueMatch, ...] = ()


Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    set: Fields = ()
    add: Fields = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathEdit:
    """`value` replaces the path, or only the prefix that matched."""

    value: str
    is_prefix: bool


@dataclass(frozen=True, slots=True)
class Redirect:
    scheme: str = ""
    hostname: str = ""
    path: PathEdit | None = None
    port: int = 0
    status: int = 302


@dataclass(frozen=True, slots=True)
class Rewrite:
    hostname: str = ""
    path: PathEdit | None = None


@dataclass(frozen=True, slots=True)
class Cors:
    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age_s: int = 5


@dataclass(frozen=True, slots=True)
class BackendRef:
    group: str
    kind: str
    namespace: str
    name: str
    port: int = 0
    weight: int = 1
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None
    unsupported: tuple[str, ...] = ()  # filters that a backend cannot have here

    def __str__(self) -> str:
        place = self.name if self.kind == "Hostname" else f"{self.namespace}/{self.name}"
        return f"{self.kind} {place}" + (f" port {self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Mirror:
    backend: BackendRef
    numerator: int = 100
    denominator: int = 100


@dataclass(frozen=True, slots=True)
class Filters:
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    # Of kinds this mesh does not have: such a filter may not be skipped, its requests are refused.
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    codes: tuple[int, ...] = ()
    attempts: int | None = None
    backoff_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Persistence:
    name: str = ""
    is_header: bool = False
    absolute_timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    is_permanent: bool = False


@dataclass(frozen=True, slots=True)
class HttpRule:
    name: str = ""
    matches: tuple[HttpMatch, ...] = ()
    filters: Filters = field(default_factory=Filters)
    backends: tuple[BackendRef, ...] = ()
    request_timeout_ms: int | None = None
    backend_timeout_ms: int | None = None
    retry: Retry | None = None
    persistence: Persistence | None = None


@dataclass(frozen=True, slots=True)
class GrpcRule:
    name: str = ""
    matches: tuple[GrpcMatch, ...] = ()
    filters: Filters = field(default_factory=Filters)
    backends: tuple[BackendRef, ...] = ()
    persistence: Persistence | None = None


@dataclass(frozen=True, slots=True)
class StreamRule:
    """Of TCPRoute and TLSRoute."""

    name: str = ""
    backends: tuple[BackendRef, ...] = ()


@dataclass(frozen=True, slots=True)
class ParentRef:
    group: str
    kind: str
    namespace: str
    name: str
    port: int = 0  # 0: all
    section: str = ""  # a port's name; empty: all

    def __str__(self) -> str:
        text = f"{self.kind} {self.namespace}/{self.name}"
        text += f" port {self.port}" if self.port else ""
        return text + (f" section {self.section}" if self.section else "")
