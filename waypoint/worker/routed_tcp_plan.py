"""The plan of a connection that is no HTTP: hosts of one cluster in turn until one answers the connect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from transport.errors import MeshError
from waypoint.state.cluster import Cluster
from waypoint.state.hosts import Endpoint, Host
from waypoint.state.routes import TcpRule
from waypoint.state.stickiness import source_hash
from waypoint.worker.plan import Source, TcpOutcome
from waypoint.worker.ways import ServedPort

if TYPE_CHECKING:
    from waypoint.worker.decider import RoutingDecider

_MAX_CONNECTS: Final = 3  # nothing was sent before a connection is there, so another host is safe


class RoutedTcpPlan:
    """Implements TcpPlan."""

    __slots__ = (
        "_cluster",
        "_decider",
        "_has_overflown",
        "_host",
        "_hosts",
        "_port",
        "_rule",
        "_source",
        "idle_s",
        "longest_s",
    )

    def __init__(
        self, decider: RoutingDecider, source: Source, port: ServedPort, rule: TcpRule, cluster: Cluster
    ) -> None:
        self._decider = decider
        self._source = source
        self._port = port
        self._rule = rule
        self._cluster = cluster
        self._has_overflown = False
        self._hosts: list[Host] = []
        self._host: Host | None = None
        pool = cluster.policy.pool
        self.idle_s: float | None = pool.tcp_idle_s
        self.longest_s = pool.longest_connection_s

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | None:
        cluster = self._cluster
        if len(tried) >= _MAX_CONNECTS:
            return None
        if not cluster.circuit.may_connect():
            self._has_overflown = True
            return None
        target = None
        if cluster.passes_through:
            target = self._decider.state.endpoint_at(cluster, self._source.destination)
        if target is None:
            target = self._pick_host()
        if target is None or target in tried:
            self._host = None
            cluster.circuit.end_connection()
            return None
        if self._host is not None:
            self._host.active += 1
            self._hosts.append(self._host)
        return target

    def _pick_host(self) -> Endpoint | None:
        cluster, source = self._cluster, self._source
        key_hash = source_hash(cluster.hash_key, source.address[0])
        host = cluster.balancer.pick(self._decider.reactor.now, key_hash, self._hosts)
        self._host = host
        if host is None:
            return None
        is_ipv6 = ":" in source.destination[0]
        return host.endpoint6 if is_ipv6 and host.endpoint6 is not None else host.endpoint

    def on_try_over(self, endpoint: Endpoint, error: MeshError | None) -> None:  # noqa: ARG002
        self._cluster.circuit.end_connection()
        host, self._host = self._host, None
        if host is None:
            return
        host.active -= 1
        now = self._decider.reactor.now
        if error is not None:
            self._cluster.on_local_failure(host, now)

    def on_connected(self, outcome: TcpOutcome) -> None:
        self.on_over(outcome)

    def on_over(self, outcome: TcpOutcome) -> None:
        outcome.route_name = self._rule.name
        outcome.service = self._port.service
        outcome.service_port = self._port.port
        outcome.cluster = self._cluster.text
        if self._has_overflown:
            outcome.flag = "UO"
        if self._hosts:
            outcome.workload = self._hosts[-1].workload
