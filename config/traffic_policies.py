"""What DestinationRules are made of: policies for traffic to a service. Values only, checked by
`config.kinds`.

Durations are milliseconds; None is what an author left out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from config.refs import Ref


class Algorithm(enum.Enum):
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    RING_HASH = "ring hash"
    MAGLEV = "maglev"
    PASSTHROUGH = "PASSTHROUGH"


class HashSource(enum.Enum):
    HEADER = "httpHeaderName"
    COOKIE = "httpCookie"
    SOURCE_IP = "useSourceIp"
    QUERY_PARAMETER = "httpQueryParameterName"


@dataclass(frozen=True, slots=True)
class HashKey:
    """`name` of the header, cookie or parameter; path and ttl are a cookie's."""

    source: HashSource
    name: str = ""
    path: str = ""
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Warmup:
    duration_ms: int
    minimum_percent: float = 10.0
    aggression: float = 1.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """From a locality (`region/zone/subzone`, `*` for any) to weights of localities."""

    source: str
    weights: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LocalitySetting:
    """At most one of the three is set. `failover` are pairs of regions, `priorities` label keys, some with a
    value after `=`.
    """

    is_enabled: bool = True
    distributions: tuple[Distribution, ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    priorities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Balancing:
    algorithm: Algorithm = Algorithm.LEAST_REQUEST
    hash_key: HashKey | None = None
    minimum_ring_size: int = 0
    table_size: int = 0
    locality: LocalitySetting | None = None
    warmup: Warmup | None = None


@dataclass(frozen=True, slots=True)
class TcpKeepalive:
    """0 and None: the kernel's default."""

    probes: int = 0
    idle_ms: int | None = None
    interval_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionPool:
    """0 and None: Istio's default."""

    maximum_connections: int = 0
    connect_timeout_ms: int | None = None
    longest_connection_ms: int | None = None
    tcp_idle_ms: int | None = None
    maximum_pending: int = 0
    maximum_requests: int = 0
    requests_per_connection: int = 0
    maximum_retries: int = 0
    http_idle_ms: int | None = None
    upgrades_to_http2: bool = False
    uses_client_protocol: bool = False
    maximum_streams: int = 0
    keepalive: TcpKeepalive | None = None


@dataclass(frozen=True, slots=True)
class Outliers:
    consecutive_5xx: int = 5
    consecutive_gateway_errors: int = 0
    splits_local_failures: bool = False
    consecutive_local_failures: int = 5
    interval_ms: int = 10_000
    base_ejection_ms: int = 30_000
    maximum_ejection_percent: int = 10
    minimum_health_percent: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    percent: float = 20.0
    minimum_concurrency: int = 3


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to backends. `server_name` empty: the service's host; `names` empty: the service's own, else the
    server name. Without `bundles`, `trusts_system` or `is_unverified` nobody can be trusted. `problem` names
    settings without which there may be no connection, `bad_refs` references that lead nowhere.
    """

    server_name: str = ""
    names: tuple[str, ...] = ()
    is_unverified: bool = False
    trusts_system: bool = False
    bundles: tuple[Ref, ...] = ()
    credential: Ref | None = None
    shows_certificate: bool = False
    problem: str = ""
    bad_refs: tuple[str, ...] = ()

    @property
    def refs(self) -> tuple[Ref, ...]:
        own = () if self.credential is None else (self.credential,)
        return tuple(dict.fromkeys((*self.bundles, *own)))


@dataclass(frozen=True, slots=True)
class Policy:
    """`unsupported` names settings without which traffic may not flow: it is refused. They cannot be said for
    a single port.
    """

    balancing: Balancing | None = None
    pool: ConnectionPool | None = None
    outliers: Outliers | None = None
    budget: Budget | None = None
    tls: Tls | None = None
    has_tls: bool = False  # something is said about it
    unsupported: str = ""


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A policy and those that replace it whole on a port."""

    general: Policy = field(default_factory=Policy)
    ports: Mapping[int, Policy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subset:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    policies: PolicySet | None = None


NO_POLICIES: Final = PolicySet()
