"""How waypoints treat a service: DestinationRules, subsets, localities (config-api 3, 11). Pure.

A port's policy replaces the general one whole; a subset's overrides, part by part, what holds for its port.
All of it is worked out here: of the policies in the message exactly one holds for a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from config import keys
from config.compile.client_tls import compile_tls
from config.compile.messages import duration, keepalive
from config.compile.resource import DESTINATION, Resource, make_resource
from config.objects import Ref, TlsMaterial, TrafficScope
from config.traffic_policies import (
    Algorithm,
    Balancing,
    ConnectionPool,
    HashKey,
    HashSource,
    LocalitySetting,
    Outliers,
    Policy,
    PolicySet,
    Subset,
    Warmup,
)
from proto.mycelia import waypoint_pb2 as pb

_ALGORITHMS: Final = {
    Algorithm.LEAST_REQUEST: pb.TrafficPolicy.LEAST_REQUEST,
    Algorithm.ROUND_ROBIN: pb.TrafficPolicy.ROUND_ROBIN,
    Algorithm.RANDOM: pb.TrafficPolicy.RANDOM,
    Algorithm.RING_HASH: pb.TrafficPolicy.RING_HASH,
    Algorithm.MAGLEV: pb.TrafficPolicy.MAGLEV,
    Algorithm.PASSTHROUGH: pb.TrafficPolicy.PASSTHROUGH,
}
_ZONE: Final = (pb.Locality.NETWORK, pb.Locality.REGION, pb.Locality.ZONE)
_NEAREST: Final = (pb.Locality.REGION, pb.Locality.ZONE, pb.Locality.SUBZONE)
_SCOPES: Final = {
    TrafficScope.LOCAL_ONLY: (pb.Locality.NODE,),
    TrafficScope.SAME_ZONE: _ZONE,
    TrafficScope.SAME_NODE: (*_ZONE, pb.Locality.SUBZONE, pb.Locality.NODE),
}
# Label keys of failoverPriority that say where a workload is.
PLACES: Final = {
    keys.NETWORK: pb.Locality.NETWORK,
    keys.CLUSTER: pb.Locality.CLUSTER,
    keys.REGION: pb.Locality.REGION,
    keys.ZONE: pb.Locality.ZONE,
    keys.SUBZONE: pb.Locality.SUBZONE,
    keys.HOSTNAME: pb.Locality.NODE,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload of the service; `labels` include those that say where it is."""

    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Treated:
    """A service as the waypoints of one namespace see it."""

    namespace: str
    hostname: str
    waypoint_namespace: str
    waypoints: tuple[str, ...]
    policies: PolicySet
    subsets: tuple[Subset, ...] = ()
    scope: TrafficScope = TrafficScope.ANYWHERE
    passes_through: bool = False
    endpoints: tuple[Endpoint, ...] = ()
    names: tuple[str, ...] = ()  # that its certificates have, where the service says so itself
    materials: Mapping[Ref, TlsMaterial] = field(default_factory=dict)


def destination_name(waypoint_namespace: str, service: str) -> str:
    """What the resource is called in the registry: clients call it by the service's name."""
    return f"{waypoint_namespace}/{service}"


def compile_destination(treated: Treated) -> Resource:
    message = pb.Destination(namespace=treated.namespace, hostname=treated.hostname)
    compiled = _Compilation(treated)
    whole = compiled.policy(treated.policies.general)
    if whole != pb.TrafficPolicy():
        message.policy.CopyFrom(whole)
    for port in sorted(treated.policies.ports):
        message.port_policies[port].CopyFrom(compiled.policy(policy_for(treated.policies, None, port)))
    for subset in treated.subsets:
        message.subsets.append(compiled.subset(subset))
    name = destination_name(treated.waypoint_namespace, f"{treated.namespace}/{treated.hostname}")
    return make_resource(DESTINATION, name, message, waypoints=treated.waypoints)


def with_subsets_of(new: Resource, old: Resource | None) -> Resource:
    """The new destination with the subsets that only the old one has; itself if there are none."""
    if old is None or old.version == new.version:
        return new
    message = pb.Destination.FromString(new.payload)
    known = {each.name for each in message.subsets}
    gone = [each for each in pb.Destination.FromString(old.payload).subsets if each.name not in known]
    if not gone:
        return new
    message.subsets.extend(gone)
    return make_resource(DESTINATION, new.name, message, waypoints=new.waypoints)


def policy_for(general: PolicySet, subset: PolicySet | None, port: int | None) -> Policy:
    """What holds for a port (None: for those that nothing is said about)."""
    base = _at_port(general, port)[0]
    if subset is None:
        return base
    own, replaces = _at_port(subset, port)
    return Policy(
        balancing=own.balancing if own.balancing is not None or replaces else base.balancing,
        pool=own.pool if own.pool is not None or replaces else base.pool,
        outliers=own.outliers if own.outliers is not None or replaces else base.outliers,
        budget=own.budget if own.budget is not None else base.budget,
        tls=own.tls if own.has_tls or replaces else base.tls,
        has_tls=own.has_tls or base.has_tls,
        unsupported=own.unsupported or base.unsupported,
    )


def _at_port(policies: PolicySet, port: int | None) -> tuple[Policy, bool]:
    """The policy and whether it is the port's own. What no port can say is the general one's."""
    own = policies.ports.get(port) if port is not None else None
    if own is None:
        return policies.general, False
    general = policies.general
    return replace(own, budget=general.budget, unsupported=general.unsupported), True


def unsupported_priority(setting: LocalitySetting) -> str:
    """The first label of failoverPriority that cannot be judged, with those after it; empty if all can."""
    for index, term in enumerate(setting.priorities):
        if "=" not in term and term not in PLACES:
            return ", ".join(setting.priorities[index:])
    return ""


def materials_needed(policies: PolicySet, subsets: Iterable[Subset]) -> set[Ref]:
    """The ConfigMaps and Secrets that are referred to."""
    sets = [policies, *(each.policies for each in subsets if each.policies is not None)]
    every = (policy for each in sets for policy in (each.general, *each.ports.values()))
    return {ref for policy in every if policy.tls is not None for ref in policy.tls.refs}


def needs_endpoints(policies: PolicySet, subsets: Iterable[Subset]) -> bool:
    """Whether workloads are told by name: then their labels and comings and goings matter."""
    chosen = tuple(subsets)
    if chosen:
        return True
    settings = (
        each.balancing.locality
        for each in (policies.general, *policies.ports.values())
        if each.balancing is not None
    )
    return any("=" in term for each in settings if each is not None for term in each.priorities)


class _Compilation:
    def __init__(self, treated: Treated) -> None:
        self._treated = treated

    def subset(self, subset: Subset) -> pb.Subset:
        general, own = self._treated.policies, subset.policies
        made = pb.Subset(
            name=subset.name,
            workloads=self._having(lambda labels: subset.labels.items() <= labels.items()),
        )
        if own is None:
            return made
        made.policy.CopyFrom(self.policy(policy_for(general, own, None)))
        for port in sorted({*general.ports, *own.ports}):
            made.port_policies[port].CopyFrom(self.policy(policy_for(general, own, port)))
        return made

    def _having(self, is_meant: Callable[[Mapping[str, str]], bool]) -> list[str]:
        return sorted(each.uid for each in self._treated.endpoints if is_meant(each.labels))

    def policy(self, policy: Policy) -> pb.TrafficPolicy:
        made = pb.TrafficPolicy()
        if policy.balancing is not None:
            _balance(made, policy.balancing)
        if self._treated.passes_through:
            made.balancer = pb.TrafficPolicy.PASSTHROUGH
        if policy.outliers is not None:
            made.outlier_detection.CopyFrom(_outliers(policy.outliers))
        if policy.pool is not None:
            made.connection_pool.CopyFrom(_pool(policy.pool))
        if policy.budget is not None:
            made.retry_budget.percent = round(policy.budget.percent)
            made.retry_budget.minimum_concurrency = policy.budget.minimum_concurrency
        locality = self._locality(policy)
        if locality is not None:
            made.locality.CopyFrom(locality)
        refusals = [f"{policy.unsupported} is not supported"] if policy.unsupported else []
        if policy.tls is not None:
            treated = self._treated
            tls = compile_tls(policy.tls, treated.hostname, treated.names, treated.materials)
            if isinstance(tls, str):
                refusals.insert(0, tls)
            else:
                made.tls.CopyFrom(tls)
        made.refusal = ", ".join(refusals)
        return made

    def _locality(self, policy: Policy) -> pb.Locality | None:
        """In Istio's order: strictly local services, the rule's setting, the service's, the nearest first."""
        scope = self._treated.scope
        if scope is TrafficScope.LOCAL_ONLY:
            return pb.Locality(terms=_terms(_SCOPES[scope]), is_strict=True)
        setting = policy.balancing.locality if policy.balancing is not None else None
        if setting is not None:
            return self._of_setting(setting, is_failing_over=policy.outliers is not None)
        if scope in _SCOPES:
            return pb.Locality(terms=_terms(_SCOPES[scope]))
        return pb.Locality(terms=_terms(_NEAREST)) if policy.outliers is not None else None

    def _of_setting(self, setting: LocalitySetting, *, is_failing_over: bool) -> pb.Locality:
        if not setting.is_enabled:
            return pb.Locality()
        if setting.distributions:
            return pb.Locality(
                distributions=[
                    pb.Locality.Distribution(to=dict(each.weights), **{"from": each.source})
                    for each in setting.distributions
                ]
            )
        if not is_failing_over:
            return pb.Locality()
        if setting.priorities:
            return pb.Locality(terms=self._priorities(setting.priorities))
        pairs = [pb.Locality.RegionFailover(to=to, **{"from": source}) for source, to in setting.failover]
        return pb.Locality(terms=_terms(_NEAREST), failovers=pairs)

    def _priorities(self, priorities: Iterable[str]) -> list[pb.Locality.Term]:
        """Up to the first label that cannot be judged: those after it would count in the wrong order."""
        found: list[pb.Locality.Term] = []
        for term in priorities:
            key, mark, value = term.partition("=")
            if mark:
                uids = self._having(lambda labels, key=key, value=value: labels.get(key) == value)  # type: ignore[misc]
                found.append(pb.Locality.Term(workloads=pb.Locality.Workloads(uids=uids)))
            elif key in PLACES:
                found.append(pb.Locality.Term(same=PLACES[key]))
            else:
                break
        return found


def _terms(scopes: Iterable[pb.Locality.Scope.ValueType]) -> list[pb.Locality.Term]:
    return [pb.Locality.Term(same=scope) for scope in scopes]


def _balance(made: pb.TrafficPolicy, balancing: Balancing) -> None:
    made.balancer = _ALGORITHMS[balancing.algorithm]
    if balancing.hash_key is not None:
        made.hash_key.CopyFrom(_hash_key(balancing.hash_key))
    made.minimum_ring_size = balancing.minimum_ring_size
    made.table_size = balancing.table_size
    if balancing.warmup is not None:
        _warm_up(made, balancing.warmup)


def _warm_up(made: pb.TrafficPolicy, warmup: Warmup) -> None:
    made.slow_start.CopyFrom(duration(warmup.duration_ms))
    made.slow_start_minimum_percent = warmup.minimum_percent
    made.slow_start_aggression = warmup.aggression


def _hash_key(key: HashKey) -> pb.HashKey:
    match key.source:
        case HashSource.HEADER:
            return pb.HashKey(header=key.name)
        case HashSource.QUERY_PARAMETER:
            return pb.HashKey(query_parameter=key.name)
        case HashSource.SOURCE_IP:
            return pb.HashKey(source_ip=True)
        case HashSource.COOKIE:
            cookie = pb.HashKey.Cookie(name=key.name, path=key.path)
            if key.ttl_ms is not None:
                cookie.ttl.CopyFrom(duration(key.ttl_ms))
            return pb.HashKey(cookie=cookie)


def _outliers(outliers: Outliers) -> pb.OutlierDetection:
    return pb.OutlierDetection(
        consecutive_5xx=outliers.consecutive_5xx,
        consecutive_gateway_errors=outliers.consecutive_gateway_errors,
        consecutive_local_failures=outliers.consecutive_local_failures,
        splits_local_failures=outliers.splits_local_failures,
        interval=duration(outliers.interval_ms),
        base_ejection=duration(outliers.base_ejection_ms),
        maximum_ejection_percent=outliers.maximum_ejection_percent,
        minimum_health_percent=outliers.minimum_health_percent,
    )


def _pool(pool: ConnectionPool) -> pb.ConnectionPool:
    made = pb.ConnectionPool(
        maximum_connections=pool.maximum_connections,
        maximum_pending=pool.maximum_pending,
        maximum_requests=pool.maximum_requests,
        maximum_retries=pool.maximum_retries,
        requests_per_connection=pool.requests_per_connection,
        maximum_streams=pool.maximum_streams,
        upgrades_to_http2=pool.upgrades_to_http2,
        uses_client_protocol=pool.uses_client_protocol,
    )
    times = {
        "connect_timeout": pool.connect_timeout_ms,
        "tcp_idle": pool.tcp_idle_ms,
        "http_idle": pool.http_idle_ms,
        "longest_connection": pool.longest_connection_ms,
    }
    for name, milliseconds in times.items():
        if milliseconds is not None:
            getattr(made, name).CopyFrom(duration(milliseconds))
    if pool.keepalive is not None:
        made.keepalive.CopyFrom(keepalive(pool.keepalive))
    return made
