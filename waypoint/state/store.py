"""All that a worker of a waypoint knows: the mesh's address book, routes, destinations, policies, and the
clusters that requests have asked for.

Invariants: a refused resource leaves its last good version in place. The waypoint serves the services that it
has routes for, and the workloads that name it for their waypoint. A cluster is made at the first question and
brought up to date with each change of what it is made of; one whose service or subset has gone stays as it
was for `_GRACE_S`, because the routes that no longer lead there may be on their way, and is taken out then.
Bounds: `_MAX_CLUSTERS`, beyond which those without requests are forgotten, the oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from dataplane.state.model import ADDRESS_TYPE, BalancingMode, Service, Workload
from dataplane.state.store import MeshState
from waypoint.state.cluster import Cluster, ClusterKey
from waypoint.state.destinations import (
    DEFAULT_TRAFFIC_POLICY,
    DESTINATION_TYPE,
    Destination,
    parse_destination,
)
from waypoint.state.errors import RoutesRejected
from waypoint.state.hosts import Endpoint
from waypoint.state.members import Wanted, application, endpoint_of, protocol_of
from waypoint.state.mesh_settings import MESH_SETTINGS_TYPE, MeshSettings, updated
from waypoint.state.place import Place
from waypoint.state.policies import PolicyBook
from waypoint.state.policy_kinds import POLICY_KINDS
from waypoint.state.routes import ROUTES_TYPE, PortTable, ServiceTable, parse_routes
from waypoint.state.telemetry import TELEMETRY_TYPE, TelemetryBook

_MAX_CLUSTERS = 16_384
_GRACE_S = 5.0
_Parsed = TypeVar("_Parsed", ServiceTable, Destination)


class WaypointState:
    """One worker's; not thread-safe. `clock` is in seconds, `random` gives numbers in [0, 1),
    `environment` is the process's, for the tags of spans.

    `generation` changes with whatever a decision that was prepared depends on. `on_gone` is to be set by
    whoever has connections: it hears of endpoints that are no more.
    """

    def __init__(
        self,
        place: Place,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.place = place
        self.mesh = MeshState(on_workload=self._on_workload)
        self.policies = PolicyBook(POLICY_KINDS, f"{place.namespace}/{place.name}")
        self.telemetry = TelemetryBook(place, environment)
        self.mesh_settings = MeshSettings()
        self.generation = 0
        self.on_gone: Callable[[Endpoint], None] = _nobody_cares
        self._clock = clock
        self._random = random
        self._tables: dict[str, ServiceTable] = {}
        self._destinations: dict[str, Destination] = {}
        self._clusters: dict[ClusterKey, Cluster] = {}
        self._clusters_of: dict[str, dict[ClusterKey, Cluster]] = {}
        self._orphans: dict[Cluster, float] = {}  # what they are about is no more -> since when
        self._changed: set[str] = set()  # services whose clusters are to be brought up to date

    # --- changes ---

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
    ) -> dict[str, str]:
        """Apply one batch; returns name -> reason of each resource refused, and applies the others."""
        upserts, removed = tuple(upserts), tuple(removed)
        match type_url:
            case _ if type_url == ROUTES_TYPE:
                rejected = self._take(self._tables, parse_routes, upserts, removed)
            case _ if type_url == DESTINATION_TYPE:
                rejected = self._take(self._destinations, parse_destination, upserts, removed)
            case _ if type_url == TELEMETRY_TYPE:
                rejected = self.telemetry.apply(upserts, removed)
            case _ if type_url == MESH_SETTINGS_TYPE:
                self.mesh_settings, rejected = updated(self.mesh_settings, upserts, removed)
                self._changed.update(self._clusters_of)
            case _ if type_url in POLICY_KINDS:
                rejected = self.policies.apply(type_url, upserts, removed)
            case _:
                rejected = self.mesh.apply(type_url, upserts, removed)
                if type_url == ADDRESS_TYPE:
                    self._changed.update(name for name, _ in upserts)
                    self._changed.update(removed)
        self.generation += 1
        self._update_clusters()
        return rejected

    def stand_at(self, place: Place) -> None:
        """The waypoint has learnt where it stands: what is near is weighed anew."""
        if place == self.place:
            return
        self.place = place
        self.generation += 1
        self._changed.update(self._clusters_of)
        self._update_clusters()

    def _take(
        self,
        held: dict[str, _Parsed],
        parse: Callable[[bytes], _Parsed],
        upserts: Iterable[tuple[str, bytes]],
        removed: Iterable[str],
    ) -> dict[str, str]:
        rejected: dict[str, str] = {}
        for name, content in upserts:
            try:
                parsed = parse(content)
            except RoutesRejected as error:
                rejected[name] = error.text
                continue
            if parsed.key != name:
                rejected[name] = f"it is about {parsed.key}"
                continue
            held[name] = parsed
            self._changed.add(name)
        for name in removed:
            held.pop(name, None)
            self._changed.add(name)
        return rejected

    def _on_workload(self, old: Workload | None, new: Workload | None) -> None:
        for workload in (old, new):
            if workload is not None:
                self._changed.update(workload.services)

    def _update_clusters(self) -> None:
        changed, self._changed = self._changed, set()
        for key in changed & self._clusters_of.keys():
            for cluster in list(self._clusters_of[key].values()):
                if self._update(cluster):
                    self._orphans.pop(cluster, None)
                else:
                    self._orphans.setdefault(cluster, self._clock())

    def _update(self, cluster: Cluster) -> bool:
        """False: what the cluster is about is no more."""
        key = cluster.key
        if key.address:
            return self._update_workload(cluster)
        service = self.mesh.services.get(key.service)
        if service is None:
            return False
        destination = self._destinations.get(key.service)
        subset = None
        if key.subset:
            known = None if destination is None else destination.subsets.get(key.subset)
            if known is None:
                return False
            subset = known.workloads
        policy = DEFAULT_TRAFFIC_POLICY
        if destination is not None:
            policy = destination.policy_for(key.port, key.subset)
        endpoints = self.mesh.endpoints(service)
        cluster.update(
            service,
            () if endpoints is None else endpoints.workloads.values(),
            self.mesh_settings.completed(policy),
            application(self.protocol(service, key.port), policy),
            self.place,
            now=self._clock(),
            subset=subset,
        )
        return True

    def _update_workload(self, cluster: Cluster) -> bool:
        """A service of one: the workload as whoever called its address must find it, ready or not."""
        key = cluster.key
        workload = self.mesh.workload_by_uid(key.service)
        if workload is None or key.address not in workload.addresses:
            return False
        service = Service(workload.name, workload.namespace, "", ports={key.port: key.port})
        own = replace(workload, addresses=(key.address,), is_healthy=True, capacity=1)
        policy = self.mesh_settings.completed(DEFAULT_TRAFFIC_POLICY)
        cluster.update(service, (own,), policy, None, self.place, now=self._clock())
        return True

    def _drop(self, cluster: Cluster) -> None:
        key = cluster.key
        self._orphans.pop(cluster, None)
        del self._clusters[key]
        siblings = self._clusters_of[key.service]
        del siblings[key]
        if not siblings:
            del self._clusters_of[key.service]
        cluster.retire()
        self.generation += 1

    # --- questions ---

    @property
    def tables(self) -> Mapping[str, ServiceTable]:
        return MappingProxyType(self._tables)

    @property
    def destinations(self) -> Mapping[str, Destination]:
        return MappingProxyType(self._destinations)

    @property
    def clusters(self) -> Mapping[ClusterKey, Cluster]:
        """Those that were asked for."""
        return MappingProxyType(self._clusters)

    def table(self, service_key: str, port: int) -> PortTable | None:
        """The routes of a port of a service that this waypoint serves."""
        table = self._tables.get(service_key)
        return None if table is None else table.ports.get(port)

    def served_service(self, ip: str) -> Service | None:
        """The served service that an address denotes: an exact one first, then the most specific range."""
        network = self.place.network
        exact = [each for each in self.mesh.services_by_vip(network, ip) if each.key in self._tables]
        if exact:
            return min(
                exact, key=lambda each: (each.namespace != self.place.namespace, not each.is_canonical)
            )
        for service in self.mesh.services_by_range(network, ip):
            if service.key in self._tables:
                return service
        return None

    def served_workload(self, ip: str) -> Workload | None:
        """The workload at an address, if it names this waypoint."""
        workload = self.mesh.workload_by_ip(self.place.network, ip)
        if workload is None or workload.waypoint is None:
            return None
        return workload if self.place.is_meant_by(workload.waypoint, self.mesh) else None

    def protocol(self, service: Service, port: int) -> int:
        """waypoint.proto's Protocol of a port: as the routes say, else as the address book says."""
        table = self.table(service.key, port)
        return protocol_of(service, port) if table is None else table.protocol

    def cluster(self, service_key: str, port: int, subset: str = "") -> Cluster | None:
        """The cluster; None: there is no such service, or no such subset of it."""
        return self._cluster(ClusterKey(service_key, port, subset))

    def workload_cluster(self, workload: Workload, address: tuple[str, int]) -> Cluster | None:
        """The cluster of a workload that is called by an address of its own: sniffed, no policy."""
        return self._cluster(ClusterKey(workload.uid, address[1], address=address[0]))

    def _cluster(self, key: ClusterKey) -> Cluster | None:
        cluster = self._clusters.get(key)
        if cluster is not None:
            return cluster
        if len(self._clusters) >= _MAX_CLUSTERS:
            self._make_room()
        cluster = Cluster(key, DEFAULT_TRAFFIC_POLICY, random=self._random, on_gone=self._on_gone)
        if not self._update(cluster):
            return None
        self._clusters[key] = cluster
        self._clusters_of.setdefault(key.service, {})[key] = cluster
        return cluster

    def endpoint_at(self, cluster: Cluster, address: tuple[str, int]) -> Endpoint | None:
        """For a cluster that passes through: the address itself; None where it chooses among its hosts."""
        service = cluster.service
        if service is None:
            return None
        ip, port = address
        if service.balancing.mode is not BalancingMode.PASSTHROUGH and any(
            vip.address == ip and vip.length is None for vip in service.vips
        ):
            return None
        workload = self.mesh.workload_by_ip(self.place.network, ip)
        if workload is None:
            return Endpoint(address, cluster.application, circuit=cluster.circuit, tls=cluster.policy.tls)
        wanted = Wanted(service, port, cluster.policy, cluster.application, cluster.circuit, self.place)
        return endpoint_of(workload, port, wanted, ip)

    def sweep(self) -> None:
        """To be called each second or so: ejected hosts come back, what is no more is taken out."""
        now = self._clock()
        for orphan, since in list(self._orphans.items()):
            if now - since >= _GRACE_S:
                self._drop(orphan)
        for cluster in self._clusters.values():
            if cluster.detector is not None:
                cluster.sweep(now)

    def _on_gone(self, endpoint: Endpoint) -> None:
        self.on_gone(endpoint)

    def _make_room(self) -> None:
        for cluster in list(self._clusters.values()):
            if cluster.circuit.requests == 0 and cluster.circuit.connections == 0:
                self._drop(cluster)
                if len(self._clusters) < _MAX_CLUSTERS // 2:
                    return


def _nobody_cares(endpoint: Endpoint) -> None:
    """Nobody has connections."""
