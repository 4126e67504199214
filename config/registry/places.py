"""Where namespaces, services and workloads are: networks, localities, preferences. Pure, looked up anew."""

from __future__ import annotations

from collections.abc import Mapping

from config import keys
from config.kinds.service import traffic_scope
from config.objects import Locality, Service, ServiceEntry, TrafficScope
from config.registry.object_index import ObjectIndex
from config.registry.workload_source import WorkloadSource
from config.settings import MeshSettings

_NAMESPACE_NAME = "kubernetes.io/metadata.name"


class Places:
    def __init__(self, index: ObjectIndex, settings: MeshSettings) -> None:
        self._index = index
        self._settings = settings

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        namespace = self._index.namespace(name)
        labels = namespace.meta.labels if namespace is not None else {}
        return labels if _NAMESPACE_NAME in labels else {**labels, _NAMESPACE_NAME: name}

    def mesh_network(self) -> str:
        root = self._index.namespace(self._settings.root_namespace)
        return (root.meta.labels.get(keys.NETWORK, "") if root else "") or self._settings.network

    def network(self, source: WorkloadSource) -> str:
        return (
            source.network
            or self.namespace_labels(source.namespace).get(keys.NETWORK, "")
            or self.mesh_network()
        )

    def locality(self, source: WorkloadSource) -> Locality:
        place = source.locality
        if not place and source.node and (node := self._index.node(source.node)) is not None:
            place = node.locality
        return Locality(place.region, place.zone, source.subzone) if source.subzone else place

    def labels(self, source: WorkloadSource) -> Mapping[str, str]:
        """A workload's labels, and where it is in the words of labels."""
        place = self.locality(source)
        places = {
            keys.NETWORK: self.network(source),
            keys.CLUSTER: source.cluster or self._settings.cluster_id,
            keys.REGION: place.region,
            keys.ZONE: place.zone,
            keys.SUBZONE: place.subzone,
            keys.HOSTNAME: source.node,
        }
        return {**source.labels, **{key: value for key, value in places.items() if value}}

    def scope(self, service: Service | ServiceEntry) -> TrafficScope:
        """How far a service's traffic prefers to stay, by its own word or its namespace's."""
        if isinstance(service, Service) and service.traffic_scope is not None:
            return service.traffic_scope
        namespace = self._index.namespace(service.meta.namespace)
        own = service.meta.annotations.get(keys.TRAFFIC_DISTRIBUTION)
        inherited = namespace.meta.annotations.get(keys.TRAFFIC_DISTRIBUTION) if namespace else None
        return traffic_scope(own if own is not None else inherited or "")
