"""How a service is treated as a destination: immutable forms of waypoint.proto's Destination."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.client_tls import ClientTls, client_tls
from waypoint.state.errors import RoutesRejected
from waypoint.state.hashing import MAGLEV_SIZE, is_prime
from waypoint.state.locality import LocalityPolicy, locality_policy
from waypoint.state.rules import seconds

DESTINATION_TYPE: Final = "type.googleapis.com/mycelia.waypoint.Destination"
UNLIMITED: Final = (1 << 32) - 1


class Algorithm(enum.IntEnum):
    """Values of waypoint.proto's Balancer."""

    LEAST_REQUEST = 0
    ROUND_ROBIN = 1
    RANDOM = 2
    RING_HASH = 3
    MAGLEV = 4
    PASSTHROUGH = 5


@dataclass(frozen=True, slots=True)
class HeaderKey:
    name: bytes


@dataclass(frozen=True, slots=True)
class ParameterKey:
    name: bytes


@dataclass(frozen=True, slots=True)
class SourceKey:
    """The client's address."""


@dataclass(frozen=True, slots=True)
class CookieKey:
    """`ttl_s` None: only the client's own cookie counts; 0: a session cookie; else one for so long."""

    name: bytes
    path: bytes = b"/"
    ttl_s: int | None = None


HashKey: TypeAlias = HeaderKey | ParameterKey | SourceKey | CookieKey


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """A count of 0 switches that kind of detection off."""

    consecutive_5xx: int = 5
    consecutive_gateway_errors: int = 0
    consecutive_local_failures: int = 5
    splits_local_failures: bool = False
    interval_s: float = 10.0
    base_ejection_s: float = 30.0
    maximum_ejection_percent: int = 10
    minimum_health_percent: int = 0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """In seconds and as the kernel counts."""

    probes: int
    idle_s: int
    interval_s: int


@dataclass(frozen=True, slots=True)
class ConnectionPool:
    """Limits; the largest number (of a time: None) means none."""

    maximum_connections: int = UNLIMITED
    maximum_pending: int = UNLIMITED
    maximum_requests: int = UNLIMITED
    maximum_retries: int = UNLIMITED
    requests_per_connection: int = UNLIMITED
    maximum_streams: int = UNLIMITED
    connect_timeout_s: float = 10.0
    has_connect_timeout: bool = False  # of its own
    keepalive: Keepalive | None = None  # of connections without a tunnel; None: the waypoint's own
    tcp_idle_s: float = 3600.0
    http_idle_s: float = 3600.0
    longest_connection_s: float | None = None
    upgrades_to_http2: bool = False
    uses_client_protocol: bool = False


@dataclass(frozen=True, slots=True)
class RetryBudget:
    percent: int = 20
    minimum_concurrency: int = 3


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """All of it is what the control plane says, with Istio's defaults for what it leaves out."""

    algorithm: Algorithm = Algorithm.LEAST_REQUEST
    hash_key: HashKey | None = None
    minimum_ring_size: int = 1024
    table_size: int = MAGLEV_SIZE
    slow_start_s: float = 0.0
    slow_start_minimum: float = 0.1  # of its weight has a new endpoint
    slow_start_aggression: float = 1.0
    outlier_detection: OutlierSettings | None = None
    pool: ConnectionPool = field(default_factory=ConnectionPool)
    locality: LocalityPolicy | None = None  # None: as the service says
    retry_budget: RetryBudget | None = None
    tls: ClientTls | None = None  # None: what is sent is not encrypted, other than by the tunnel
    refusal: str = ""  # why nothing may be sent there

    @property
    def panic_percent(self) -> int:
        """Below this share of healthy hosts all are used; outlier detection replaces the default."""
        if self.outlier_detection is None:
            return 50
        return self.outlier_detection.minimum_health_percent


DEFAULT_TRAFFIC_POLICY = TrafficPolicy()


@dataclass(frozen=True, slots=True)
class Subset:
    """Some of the endpoints, by the uids of their workloads."""

    name: str
    workloads: frozenset[str]
    policy: TrafficPolicy | None = None
    port_policies: Mapping[int, TrafficPolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Destination:
    key: str
    policy: TrafficPolicy = DEFAULT_TRAFFIC_POLICY
    port_policies: Mapping[int, TrafficPolicy] = field(default_factory=dict)
    subsets: Mapping[str, Subset] = field(default_factory=dict)

    def policy_for(self, port: int, subset: str = "") -> TrafficPolicy:
        """The most specific: the subset's for the port, the subset's, the port's, the service's."""
        special = self.subsets.get(subset)
        if special is not None:
            policy = special.port_policies.get(port, special.policy)
            if policy is not None:
                return policy
        return self.port_policies.get(port, self.policy)


def parse_destination(content: bytes) -> Destination:
    """Raises `RoutesRejected` with the reason."""
    message = pb.Destination()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected(f"not a Destination message: {error}") from error
    return destination(message)


def destination(message: pb.Destination) -> Destination:
    if not message.namespace or not message.hostname:
        raise RoutesRejected("a destination without a namespace or hostname")
    key = f"{message.namespace}/{message.hostname}"
    try:
        return Destination(
            key,
            _policy(message.policy) if message.HasField("policy") else DEFAULT_TRAFFIC_POLICY,
            {port: _policy(policy) for port, policy in message.port_policies.items()},
            {subset.name: _subset(subset) for subset in message.subsets},
        )
    except RoutesRejected as error:
        raise RoutesRejected(f"{key}: {error.text}") from error


def _subset(message: pb.Subset) -> Subset:
    return Subset(
        message.name,
        frozenset(message.workloads),
        _policy(message.policy) if message.HasField("policy") else None,
        {port: _policy(policy) for port, policy in message.port_policies.items()},
    )


def _policy(message: pb.TrafficPolicy) -> TrafficPolicy:
    try:
        algorithm = Algorithm(message.balancer)
    except ValueError as error:
        raise RoutesRejected(f"unknown balancer {message.balancer}") from error
    refusal = message.refusal
    tls = None
    if message.HasField("tls"):
        # No reason to reject the message: then the version before it, perhaps one without TLS, would hold.
        try:
            tls = client_tls(message.tls)
        except RoutesRejected as error:
            refusal = ", ".join(filter(None, (refusal, error.text)))
    return TrafficPolicy(
        algorithm=algorithm,
        hash_key=_hash_key(message.hash_key) if message.HasField("hash_key") else None,
        minimum_ring_size=message.minimum_ring_size or 1024,
        table_size=_table_size(message.table_size),
        slow_start_s=seconds(message.slow_start),
        slow_start_minimum=_slow_start_minimum(message.slow_start_minimum_percent),
        slow_start_aggression=_slow_start_aggression(message.slow_start_aggression),
        outlier_detection=(
            _outlier(message.outlier_detection) if message.HasField("outlier_detection") else None
        ),
        pool=_pool(message.connection_pool) if message.HasField("connection_pool") else ConnectionPool(),
        locality=locality_policy(message.locality) if message.HasField("locality") else None,
        retry_budget=(
            RetryBudget(message.retry_budget.percent, message.retry_budget.minimum_concurrency)
            if message.HasField("retry_budget")
            else None
        ),
        tls=tls,
        refusal=refusal,
    )


def _table_size(size: int) -> int:
    """A larger table only evens out shares further, and takes seconds to build."""
    if size and not is_prime(size):
        raise RoutesRejected(f"a table of {size} slots: not prime")
    return min(size or MAGLEV_SIZE, MAGLEV_SIZE)


def _slow_start_minimum(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise RoutesRejected(f"a slow start from {percent} percent")
    return (percent or 10.0) / 100


def _slow_start_aggression(aggression: float) -> float:
    if aggression and not 1 <= aggression <= 100:
        raise RoutesRejected(f"a slow start with aggression {aggression}")
    return aggression or 1.0


def _hash_key(message: pb.HashKey) -> HashKey:
    match message.WhichOneof("kind"):
        case "header":
            return HeaderKey(message.header.lower().encode())
        case "query_parameter":
            return ParameterKey(message.query_parameter.encode())
        case "source_ip":
            return SourceKey()
        case "cookie":
            cookie = message.cookie
            ttl_s = int(seconds(cookie.ttl)) if cookie.HasField("ttl") else None
            return CookieKey(cookie.name.encode(), cookie.path.encode() or b"/", ttl_s)
        case _:
            raise RoutesRejected("a hash key says nothing")


def _outlier(message: pb.OutlierDetection) -> OutlierSettings:
    return OutlierSettings(
        consecutive_5xx=message.consecutive_5xx,
        consecutive_gateway_errors=message.consecutive_gateway_errors,
        consecutive_local_failures=message.consecutive_local_failures,
        splits_local_failures=message.splits_local_failures,
        interval_s=seconds(message.interval) or 10.0,
        base_ejection_s=seconds(message.base_ejection) or 30.0,
        maximum_ejection_percent=min(message.maximum_ejection_percent, 100),
        minimum_health_percent=min(message.minimum_health_percent, 100),
    )


def tcp_keepalive(message: pb.TcpKeepalive) -> Keepalive:
    """What is not said is the kernel's default (tcp(7))."""
    return Keepalive(
        message.probes or 9,
        math.ceil(seconds(message.idle)) or 7200,
        math.ceil(seconds(message.interval)) or 75,
    )


def _pool(message: pb.ConnectionPool) -> ConnectionPool:
    return ConnectionPool(
        maximum_connections=message.maximum_connections or UNLIMITED,
        maximum_pending=message.maximum_pending or UNLIMITED,
        maximum_requests=message.maximum_requests or UNLIMITED,
        maximum_retries=message.maximum_retries or UNLIMITED,
        requests_per_connection=message.requests_per_connection or UNLIMITED,
        maximum_streams=message.maximum_streams or UNLIMITED,
        connect_timeout_s=seconds(message.connect_timeout) or 10.0,
        has_connect_timeout=bool(seconds(message.connect_timeout)),
        keepalive=tcp_keepalive(message.keepalive) if message.HasField("keepalive") else None,
        tcp_idle_s=seconds(message.tcp_idle) or 3600.0,
        http_idle_s=seconds(message.http_idle) or 3600.0,
        longest_connection_s=seconds(message.longest_connection) or None,
        upgrades_to_http2=message.upgrades_to_http2,
        uses_client_protocol=message.uses_client_protocol,
    )
