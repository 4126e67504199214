"""Traffic policies of DestinationRules, with the checks that Istio's validation makes (config-api 11)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from config import traffic_policies as inner
from config.kinds.istio_schema import Count, Milliseconds, MillisecondsOrZero, PortSelector
from config.kinds.route_schema import FieldName
from config.kinds.schema import Model, NonEmpty, RequiredName, complain
from config.kinds.service import check_unique
from config.refs import Ref

MAX_TABLE: Final = 5_000_011
MAX_USED_TABLE: Final = 65537  # waypoint.state.hashing has the same limits
MAX_USED_RING: Final = 1 << 16
_LOCALITY = re.compile(r"[^/*]+(?:/[^/*]+){0,2}(?:/\*)?\Z")
_LABEL_TERM = re.compile(r"[^=\s]+(?:=[^=\s]+)?\Z")

Percentage = Annotated[int, Field(ge=0, le=100)]
_ALGORITHMS: Final = {
    "UNSPECIFIED": inner.Algorithm.LEAST_REQUEST,
    "LEAST_CONN": inner.Algorithm.LEAST_REQUEST,
    "LEAST_REQUEST": inner.Algorithm.LEAST_REQUEST,
    "ROUND_ROBIN": inner.Algorithm.ROUND_ROBIN,
    "RANDOM": inner.Algorithm.RANDOM,
    "PASSTHROUGH": inner.Algorithm.PASSTHROUGH,
}


class CookieSpec(Model):
    name: FieldName
    path: str = ""
    ttl: MillisecondsOrZero | None = None
    attributes: list[object] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> CookieSpec:
        if self.attributes:
            complain("attributes is not supported; leave it out")
        if any(letter in self.path for letter in ";,\r\n"):
            complain("path has a character that ends it in a cookie")
        return self


class RingSpec(Model):
    size: Annotated[int, Field(ge=0, le=8 << 20)] = Field(default=0, alias="minimumRingSize")


class MaglevSpec(Model):
    size: Annotated[int, Field(ge=0, le=MAX_TABLE)] = Field(default=0, alias="tableSize")

    @model_validator(mode="after")
    def _check(self) -> MaglevSpec:
        if self.size and not _is_prime(self.size):
            complain(f"tableSize {self.size} is not prime")
        return self


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


class ConsistentHashSpec(Model):
    header: FieldName | None = Field(default=None, alias="httpHeaderName")
    cookie: CookieSpec | None = Field(default=None, alias="httpCookie")
    source_ip: bool | None = Field(default=None, alias="useSourceIp")
    parameter: NonEmpty | None = Field(default=None, alias="httpQueryParameterName")
    ring: RingSpec | None = Field(default=None, alias="ringHash")
    maglev: MaglevSpec | None = None
    old_size: Annotated[int, Field(ge=0, le=8 << 20)] = Field(default=0, alias="minimumRingSize")

    @model_validator(mode="after")
    def _check(self) -> ConsistentHashSpec:
        keys = [self.header, self.cookie, self.source_ip or None, self.parameter]
        if sum(each is not None for each in keys) != 1:
            names = "httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName"
            complain(f"a consistent hash needs one key; allowed: one of {names}")
        if self.maglev is not None and (self.ring is not None or self.old_size):
            complain("ringHash and maglev exclude each other")
        return self

    def to_key(self) -> inner.HashKey:
        if self.header is not None:
            return inner.HashKey(inner.HashSource.HEADER, self.header.lower())
        if self.cookie is not None:
            cookie = self.cookie
            return inner.HashKey(inner.HashSource.COOKIE, cookie.name, cookie.path, cookie.ttl)
        if self.parameter is not None:
            return inner.HashKey(inner.HashSource.QUERY_PARAMETER, self.parameter)
        return inner.HashKey(inner.HashSource.SOURCE_IP)


class DistributeSpec(Model):
    source: NonEmpty = Field(alias="from")
    to: dict[str, Annotated[int, Field(ge=1, le=100)]]

    @model_validator(mode="after")
    def _check(self) -> DistributeSpec:
        for text in (self.source, *self.to):
            if text != "*" and not _LOCALITY.match(text):
                complain(
                    f'"{text}" is not a locality; allowed: region/zone/subzone, with * for all of the rest'
                )
        if sum(self.to.values()) != 100:
            complain(f"to: the weights add up to {sum(self.to.values())}; allowed: 100 together")
        return self


class FailoverSpec(Model):
    source: NonEmpty = Field(alias="from")
    target: NonEmpty = Field(alias="to")

    @model_validator(mode="after")
    def _check(self) -> FailoverSpec:
        for text in (self.source, self.target):
            if "/" in text or "*" in text:
                complain(f'"{text}" is not a region; failover is between regions, without / and *')
        if self.source == self.target:
            complain(f"failover from {self.source} to itself")
        return self


class LocalitySpec(Model):
    distribute: list[DistributeSpec] = Field(default_factory=list, max_length=256)
    failover: list[FailoverSpec] = Field(default_factory=list, max_length=256)
    priority: list[NonEmpty] = Field(default_factory=list, alias="failoverPriority", max_length=64)
    is_enabled: bool = Field(default=True, alias="enabled")

    @model_validator(mode="after")
    def _check(self) -> LocalitySpec:
        if sum(bool(each) for each in (self.distribute, self.failover, self.priority)) > 1:
            complain("distribute, failover and failoverPriority exclude each other")
        check_unique("distribute: from", [each.source for each in self.distribute])
        check_unique("failover: from", [each.source for each in self.failover])
        for term in self.priority:
            if not _LABEL_TERM.match(term):
                complain(f'failoverPriority: "{term}" is not a label; allowed: key, key=value')
        check_unique("failoverPriority: label", [term.partition("=")[0] for term in self.priority])
        return self

    def to_setting(self) -> inner.LocalitySetting:
        return inner.LocalitySetting(
            self.is_enabled,
            tuple(inner.Distribution(each.source, tuple(each.to.items())) for each in self.distribute),
            tuple((each.source, each.target) for each in self.failover),
            tuple(self.priority),
        )


class WarmupSpec(Model):
    duration: Milliseconds
    minimum: Annotated[float, Field(ge=0, le=100)] = Field(default=10.0, alias="minimumPercent")
    aggression: Annotated[float, Field(ge=1, le=100)] = 1.0

    def to_warmup(self) -> inner.Warmup:
        return inner.Warmup(self.duration, self.minimum, self.aggression)


class LoadBalancerSpec(Model):
    simple: (
        Literal["UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "PASSTHROUGH"] | None
    ) = None
    consistent_hash: ConsistentHashSpec | None = Field(default=None, alias="consistentHash")
    locality: LocalitySpec | None = Field(default=None, alias="localityLbSetting")
    zone_aware: dict[str, object] | None = Field(default=None, alias="zoneAwareLbSetting")
    warmup: WarmupSpec | None = None
    warmup_duration: Milliseconds | None = Field(default=None, alias="warmupDurationSecs")

    @model_validator(mode="after")
    def _check(self) -> LoadBalancerSpec:
        if self.simple is not None and self.consistent_hash is not None:
            complain("simple and consistentHash exclude each other")
        if self.zone_aware is not None:
            complain("zoneAwareLbSetting is not supported at waypoints; use localityLbSetting")
        if self.warmup is not None and self.warmup_duration is not None:
            complain("warmup and warmupDurationSecs (deprecated) exclude each other")
        has_warmup = self.warmup is not None or self.warmup_duration is not None
        if has_warmup and (self.consistent_hash is not None or self.simple in ("RANDOM", "PASSTHROUGH")):
            complain("warmup goes with simple LEAST_REQUEST or ROUND_ROBIN only")
        return self

    def to_balancing(self) -> inner.Balancing:
        hashed = self.consistent_hash
        warmup = self.warmup.to_warmup() if self.warmup is not None else None
        if self.warmup_duration is not None:
            warmup = inner.Warmup(self.warmup_duration)
        algorithm = _ALGORITHMS[self.simple or "UNSPECIFIED"]
        ring, table = 0, 0
        if hashed is not None:
            is_maglev = hashed.maglev is not None
            algorithm = inner.Algorithm.MAGLEV if is_maglev else inner.Algorithm.RING_HASH
            ring = hashed.old_size or (hashed.ring.size if hashed.ring is not None else 0)
            table = hashed.maglev.size if hashed.maglev is not None else 0
        return inner.Balancing(
            algorithm,
            hashed.to_key() if hashed is not None else None,
            ring,
            table,
            self.locality.to_setting() if self.locality is not None else None,
            warmup,
        )


class KeepaliveSpec(Model):
    """Of connections without a tunnel."""

    probes: Annotated[int, Field(ge=0, le=127)] = 0
    time: Milliseconds | None = None
    interval: Milliseconds | None = None

    def to_keepalive(self) -> inner.TcpKeepalive:
        return inner.TcpKeepalive(self.probes, self.time, self.interval)


class TcpPoolSpec(Model):
    connections: Count = Field(default=0, alias="maxConnections")
    connect_timeout: Milliseconds | None = Field(default=None, alias="connectTimeout")
    keepalive: KeepaliveSpec | None = Field(default=None, alias="tcpKeepalive")
    longest: Milliseconds | None = Field(default=None, alias="maxConnectionDuration")
    idle: Milliseconds | None = Field(default=None, alias="idleTimeout")


class HttpPoolSpec(Model):
    pending: Count = Field(default=0, alias="http1MaxPendingRequests")
    requests: Count = Field(default=0, alias="http2MaxRequests")
    per_connection: Count = Field(default=0, alias="maxRequestsPerConnection")
    retries: Count = Field(default=0, alias="maxRetries")
    idle: Milliseconds | None = Field(default=None, alias="idleTimeout")
    upgrade: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = Field(
        default="DEFAULT", alias="h2UpgradePolicy"
    )
    uses_client_protocol: bool = Field(default=False, alias="useClientProtocol")
    streams: Count = Field(default=0, alias="maxConcurrentStreams")
    keepalive: dict[str, object] | None = Field(default=None, alias="http2KeepAlive")

    @model_validator(mode="after")
    def _check(self) -> HttpPoolSpec:
        if self.keepalive is not None:
            complain("http2KeepAlive is not supported; leave it out")
        if self.upgrade == "UPGRADE" and self.uses_client_protocol:
            complain("useClientProtocol and h2UpgradePolicy UPGRADE exclude each other")
        return self


class ConnectionPoolSpec(Model):
    tcp: TcpPoolSpec = Field(default_factory=TcpPoolSpec)
    http: HttpPoolSpec = Field(default_factory=HttpPoolSpec)

    def to_pool(self) -> inner.ConnectionPool:
        tcp, http = self.tcp, self.http
        return inner.ConnectionPool(
            maximum_connections=tcp.connections,
            connect_timeout_ms=tcp.connect_timeout,
            longest_connection_ms=tcp.longest,
            tcp_idle_ms=tcp.idle,
            maximum_pending=http.pending,
            maximum_requests=http.requests,
            requests_per_connection=http.per_connection,
            maximum_retries=http.retries,
            http_idle_ms=http.idle,
            upgrades_to_http2=http.upgrade == "UPGRADE",
            uses_client_protocol=http.uses_client_protocol,
            maximum_streams=http.streams,
            keepalive=tcp.keepalive.to_keepalive() if tcp.keepalive is not None else None,
        )


class OutlierSpec(Model):
    old_errors: Count | None = Field(default=None, alias="consecutiveErrors")
    consecutive_5xx: Count = Field(default=5, alias="consecutive5xxErrors")
    gateway_errors: Count = Field(default=0, alias="consecutiveGatewayErrors")
    splits: bool = Field(default=False, alias="splitExternalLocalOriginErrors")
    local_failures: Count = Field(default=5, alias="consecutiveLocalOriginFailures")
    interval: Milliseconds = 10_000
    base_ejection: Milliseconds = Field(default=30_000, alias="baseEjectionTime")
    maximum_ejection: Percentage = Field(default=10, alias="maxEjectionPercent")
    minimum_health: Percentage = Field(default=0, alias="minHealthPercent")

    @model_validator(mode="after")
    def _check(self) -> OutlierSpec:
        if self.old_errors is not None:
            complain("consecutiveErrors is gone; use consecutiveGatewayErrors or consecutive5xxErrors")
        return self

    def to_outliers(self) -> inner.Outliers:
        return inner.Outliers(
            self.consecutive_5xx,
            self.gateway_errors,
            self.splits,
            self.local_failures,
            self.interval,
            self.base_ejection,
            self.maximum_ejection,
            self.minimum_health,
        )


class TlsSpec(Model):
    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = Field(default="", alias="clientCertificate")
    private_key: str = Field(default="", alias="privateKey")
    ca_certificates: str = Field(default="", alias="caCertificates")
    credential: str = Field(default="", alias="credentialName")
    names: list[str] = Field(default_factory=list, alias="subjectAltNames")
    sni: str = ""
    is_unchecked: bool = Field(default=False, alias="insecureSkipVerify")
    revocations: str = Field(default="", alias="caCrl")

    @model_validator(mode="after")
    def _check(self) -> TlsSpec:
        has_own = self.client_certificate or self.private_key or self.ca_certificates or self.credential
        if self.mode in ("DISABLE", "ISTIO_MUTUAL") and has_own:
            complain(f"certificates and keys do not go with mode {self.mode}")
        has_pair = self.client_certificate and self.private_key
        if self.mode == "MUTUAL" and not self.credential and not has_pair:
            complain("mode MUTUAL needs clientCertificate and privateKey, or credentialName")
        is_simple = self.mode == "SIMPLE"
        if self.is_unchecked and (self.ca_certificates or self.names or (is_simple and self.credential)):
            complain("insecureSkipVerify does not go with caCertificates, credentialName or subjectAltNames")
        if self.sni and not self.sni.isascii():
            complain("sni: a host name in ASCII")
        return self

    def to_tls(self, namespace: str) -> inner.Tls | None:
        """None: nothing is encrypted, other than by the tunnel."""
        if self.mode in ("DISABLE", "ISTIO_MUTUAL"):
            return None
        files = {
            "clientCertificate": self.client_certificate,
            "privateKey": self.private_key,
            "caCertificates": self.ca_certificates,
            "caCrl": self.revocations,
        }
        given = ", ".join(f"tls.{name}" for name, value in files.items() if value)
        secret = Ref("Secret", namespace, self.credential) if self.credential else None
        return inner.Tls(
            server_name=self.sni,
            names=tuple(self.names),
            is_unverified=self.is_unchecked,
            trusts_system=secret is None,
            bundles=() if secret is None else (secret,),
            credential=secret,
            shows_certificate=self.mode == "MUTUAL",
            problem=f"{given} (files; a Secret by credentialName is)" if given else "",
        )


class BudgetSpec(Model):
    percent: Annotated[float, Field(ge=0, le=100)] = 20.0
    minimum: Count = Field(default=3, alias="minRetryConcurrency")


class PortPolicySpec(Model):
    port: PortSelector
    balancer: LoadBalancerSpec | None = Field(default=None, alias="loadBalancer")
    pool: ConnectionPoolSpec | None = Field(default=None, alias="connectionPool")
    outliers: OutlierSpec | None = Field(default=None, alias="outlierDetection")
    tls: TlsSpec | None = None

    def to_policy(self, namespace: str) -> inner.Policy:
        return inner.Policy(
            self.balancer.to_balancing() if self.balancer is not None else None,
            self.pool.to_pool() if self.pool is not None else None,
            self.outliers.to_outliers() if self.outliers is not None else None,
            tls=self.tls.to_tls(namespace) if self.tls is not None else None,
            has_tls=self.tls is not None,
        )


class ProxyProtocolSpec(Model):
    version: Literal["V1", "V2"] = "V1"


class TunnelSpec(Model):
    protocol: str = ""
    host: RequiredName = Field(alias="targetHost")
    port: int = Field(alias="targetPort")


def policy_remarks(where: str, policy: PortPolicySpec | TrafficPolicySpec) -> Iterator[tuple[str, str]]:
    """What is accepted but has another effect than its author may think."""
    balancer, pool, outliers = policy.balancer, policy.pool, policy.outliers
    if pool is not None and pool.tcp.keepalive is not None:
        text = "is for endpoints outside of the mesh: tunnels have a keepalive of their own"
        yield f"{where}.connectionPool.tcp.tcpKeepalive", text
    if balancer is None:
        return
    hashed = balancer.consistent_hash
    if hashed is not None and hashed.maglev is not None and hashed.maglev.size > MAX_USED_TABLE:
        text = f"a waypoint uses tables of at most {MAX_USED_TABLE}"
        yield f"{where}.loadBalancer.consistentHash.maglev.tableSize", text
    ring = max(hashed.old_size, hashed.ring.size if hashed.ring is not None else 0) if hashed else 0
    if ring > MAX_USED_RING:
        text = f"a waypoint uses rings of at most {MAX_USED_RING}"
        yield f"{where}.loadBalancer.consistentHash.minimumRingSize", text
    locality = balancer.locality
    if locality is not None and locality.is_enabled and not locality.distribute and outliers is None:
        text = "has no effect without outlierDetection in the same policy: only distribute works without"
        yield f"{where}.loadBalancer.localityLbSetting", text


class TrafficPolicySpec(Model):
    balancer: LoadBalancerSpec | None = Field(default=None, alias="loadBalancer")
    pool: ConnectionPoolSpec | None = Field(default=None, alias="connectionPool")
    outliers: OutlierSpec | None = Field(default=None, alias="outlierDetection")
    tls: TlsSpec | None = None
    ports: list[PortPolicySpec] = Field(default_factory=list, alias="portLevelSettings", max_length=4096)
    tunnel: TunnelSpec | None = None
    proxy_protocol: ProxyProtocolSpec | None = Field(default=None, alias="proxyProtocol")
    budget: BudgetSpec | None = Field(default=None, alias="retryBudget")

    @model_validator(mode="after")
    def _check(self) -> TrafficPolicySpec:
        check_unique("portLevelSettings: port", [each.port.number for each in self.ports])
        return self

    def remarks(self, where: str) -> Iterator[tuple[str, str]]:
        yield from policy_remarks(where, self)
        for index, each in enumerate(self.ports):
            yield from policy_remarks(f"{where}.portLevelSettings[{index}]", each)

    def to_policies(self, namespace: str) -> inner.PolicySet:
        parts = (
            "tunnel" if self.tunnel is not None else "",
            "proxyProtocol" if self.proxy_protocol is not None else "",
        )
        budget = self.budget
        return inner.PolicySet(
            inner.Policy(
                self.balancer.to_balancing() if self.balancer is not None else None,
                self.pool.to_pool() if self.pool is not None else None,
                self.outliers.to_outliers() if self.outliers is not None else None,
                inner.Budget(budget.percent, budget.minimum) if budget is not None else None,
                self.tls.to_tls(namespace) if self.tls is not None else None,
                self.tls is not None,
                ", ".join(filter(None, parts)),
            ),
            {each.port.number: each.to_policy(namespace) for each in self.ports},
        )
