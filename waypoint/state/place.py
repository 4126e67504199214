"""Which waypoint this is, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.state.model import NO_LOCALITY, GatewayRef, Locality
from dataplane.state.store import MeshState


@dataclass(frozen=True, slots=True)
class Place:
    """`namespace` and `name` are its Gateway's; the rest is this replica's own. Implements Position."""

    namespace: str
    name: str
    network: str = ""
    node: str = ""
    cluster_id: str = ""
    locality: Locality = NO_LOCALITY

    def is_meant_by(self, reference: GatewayRef, mesh: MeshState) -> bool:
        """Whether a workload or service that has `reference` for its waypoint is behind this one.

        Gateway and service have one name (config-api 5.2), so a hostname begins with it.
        """
        if reference.hostname:
            return reference.namespace == self.namespace and self._is_own(reference.hostname)
        services = mesh.services_by_vip(reference.network, reference.address)
        if any(self._has_name(service.key) for service in services):
            return True
        replica = mesh.workload_by_ip(reference.network, reference.address)
        return replica is not None and any(self._has_name(key) for key in replica.services)

    def _has_name(self, service_key: str) -> bool:
        namespace, _, hostname = service_key.partition("/")
        return namespace == self.namespace and self._is_own(hostname)

    def _is_own(self, hostname: str) -> bool:
        return hostname.partition(".")[0] == self.name
