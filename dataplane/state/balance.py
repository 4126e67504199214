"""Choice of one endpoint of a service (facts 8).

The candidates for a kind of client (its place in the network, the port it asks for) are worked out once
and kept until an endpoint or the service changes, so that a choice costs a look-up however many
endpoints there are. Invariants: an `EndpointSet` holds every workload that names the service, known or
not, healthy or not; health, ports and preferences are applied when candidates are worked out. Tables
are bounded by `_MAX_TABLES`.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from dataplane.state.model import BalancingMode, Locality, Scope, Service, Workload

_MAX_TABLES = 256


class Position(Protocol):
    """Where a client is. A workload is one."""

    @property
    def network(self) -> str: ...

    @property
    def node(self) -> str: ...

    @property
    def cluster_id(self) -> str: ...

    @property
    def locality(self) -> Locality: ...


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """Workloads to choose from; `cumulative` is None when all weigh the same."""

    workloads: tuple[Workload, ...]
    cumulative: tuple[int, ...] | None

    def pick(self, random: Callable[[], float]) -> Workload | None:
        workloads = self.workloads
        if not workloads:
            return None
        if self.cumulative is None:
            return workloads[min(int(random() * len(workloads)), len(workloads) - 1)]
        return workloads[min(bisect(self.cumulative, random() * self.cumulative[-1]), len(workloads) - 1)]


class EndpointSet:
    """All workloads that claim to be endpoints of one service, in order of arrival."""

    __slots__ = ("_tables", "workloads")

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self._tables: dict[tuple[object, ...], CandidateTable] = {}

    def put(self, workload: Workload) -> None:
        self.workloads[workload.uid] = workload
        self.forget_tables()

    def remove(self, uid: str) -> None:
        self.workloads.pop(uid, None)
        self.forget_tables()

    def forget_tables(self) -> None:
        if self._tables:
            self._tables.clear()

    def pick(
        self, service: Service, port: int, source: Workload, *, is_waypoint: bool, random: Callable[[], float]
    ) -> Workload | None:
        """One endpoint for a connection of `source` to `port`, or None where there is none to choose."""
        if service.balancing.preferences:
            key: tuple[object, ...] = (
                port, is_waypoint, source.network, source.node, source.cluster_id, source.locality
            )  # fmt: skip
        else:
            key = (port, is_waypoint, source.network)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= _MAX_TABLES:
                self._tables.clear()
            table = self._tables[key] = candidates(
                self.workloads.values(), service, port, source, is_waypoint=is_waypoint
            )
        return table.pick(random)


def candidates(
    endpoints: Iterable[Workload],
    service: Service,
    port: int,
    source: Workload,
    *,
    is_waypoint: bool = False,
    trace: list[str] | None = None,
) -> CandidateTable:
    """Filter, rank and weigh `endpoints`; `trace` receives one line for each endpoint left out."""
    best_rank = -1
    chosen: list[Workload] = []
    for workload in endpoints:
        reason = _unusable(workload, service, port, source, is_waypoint=is_waypoint)
        if reason is not None:
            if trace is not None:
                trace.append(f"endpoint {workload.uid} left out: {reason}")
            continue
        rank = rank_of(workload, service, source)
        if rank is None or rank < best_rank:
            if trace is not None:
                trace.append(f"endpoint {workload.uid} left out: routing preference")
            continue
        if rank > best_rank:
            if trace is not None:
                trace.extend(f"endpoint {worse.uid} left out: routing preference" for worse in chosen)
            best_rank = rank
            chosen = []
        chosen.append(workload)
    return _weighted(chosen)


def target_port(workload: Workload, service: Service, port: int) -> int | None:
    """The endpoint's port for the service's `port` (facts 3.3), None where nothing defines it."""
    mapped = workload.services.get(service.key, {}).get(port)
    if mapped:
        return mapped
    declared = service.ports.get(port, 0)
    if declared:
        return declared
    tunnel = workload.application_tunnel
    return port if tunnel is not None and tunnel.port else None


def _unusable(
    workload: Workload, service: Service, port: int, source: Workload, *, is_waypoint: bool
) -> str | None:
    if not workload.is_healthy and not service.balancing.is_unhealthy_allowed:
        return "unhealthy"
    if workload.capacity == 0:
        return "capacity 0"
    if not workload.addresses and not workload.hostname:
        if workload.network == source.network:
            return "no address"
        if workload.network_gateway is None:
            return "no address and no network gateway"
    declared = service.ports.get(port)
    if is_waypoint:
        if declared is None and workload.application_tunnel is None:
            return f"the service has no port {port}"
        return None
    if declared is None:
        return f"the service has no port {port}"
    if declared == 0 and not workload.services.get(service.key, {}).get(port):
        return f"no number for the named port {port}"
    return None


def rank_of(workload: Workload, service: Service, source: Position) -> int | None:
    """How many leading preferences agree; None where STRICT is not satisfied.

    NETWORK in the first place outranks all the others together, and its miss does not end the ranking.
    """
    balancing = service.balancing
    if balancing.mode is BalancingMode.ANY or not balancing.preferences:
        return 0
    rank = 0
    is_missed = False
    for position, scope in enumerate(balancing.preferences):
        is_network_first = position == 0 and scope is Scope.NETWORK
        if _agrees(scope, workload, source):
            rank += len(balancing.preferences) if is_network_first else 1
        else:
            is_missed = True
            if not is_network_first:
                break
    return None if is_missed and balancing.mode is BalancingMode.STRICT else rank


def _agrees(scope: Scope, workload: Workload, source: Position) -> bool:
    match scope:
        case Scope.REGION:
            return workload.locality.region == source.locality.region
        case Scope.ZONE:
            return workload.locality.zone == source.locality.zone
        case Scope.SUBZONE:
            return workload.locality.subzone == source.locality.subzone
        case Scope.NODE:
            return workload.node == source.node
        case Scope.CLUSTER:
            return workload.cluster_id == source.cluster_id
        case Scope.NETWORK:
            return workload.network == source.network


def _weighted(chosen: list[Workload]) -> CandidateTable:
    if len({workload.capacity for workload in chosen}) <= 1:
        return CandidateTable(tuple(chosen), None)
    return CandidateTable(tuple(chosen), tuple(accumulate(workload.capacity for workload in chosen)))
