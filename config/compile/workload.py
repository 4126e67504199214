"""A workload source and its surroundings to the data plane's Workload (ztunnel-facts 5.7, 5.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from config import keys
from config.compile.addresses import address_key, packed
from config.compile.resource import ADDRESS, Resource, make_resource
from config.objects import NO_LOCALITY, Locality
from config.registry.workload_source import WorkloadSource
from config.settings import MeshSettings
from proto.istio import workload_pb2 as pb

# Left out on the wire: what a node proxy takes an empty field for.
WIRE_TRUST_DOMAIN: Final = "cluster.local"
LATEST: Final = "latest"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that a workload's resource depends on beside the workload itself."""

    network: str = ""
    locality: Locality = NO_LOCALITY
    services: Mapping[str, tuple[tuple[int, int], ...]] = field(
        default_factory=dict
    )  # ports: (service, target)
    policies: tuple[str, ...] = ()
    waypoint: pb.GatewayAddress | None = None
    is_captured: bool = False
    is_ready: bool = True


def compile_workload(source: WorkloadSource, around: Surroundings, settings: MeshSettings) -> Resource:
    is_hbone = around.is_captured or source.is_native_tunnel
    workload = pb.Workload(
        uid=source.uid,
        name=source.name,
        namespace=source.namespace,
        addresses=[packed(address) for address in source.addresses],
        hostname=source.hostname,
        network=around.network,
        tunnel_protocol=pb.HBONE if is_hbone else pb.NONE,
        native_tunnel=source.is_native_tunnel,
        trust_domain="" if settings.trust_domain == WIRE_TRUST_DOMAIN else settings.trust_domain,
        service_account=source.service_account,
        node=source.node,
        canonical_name=_first(source, keys.CANONICAL_NAME, source.workload_name),
        canonical_revision=_first(source, keys.CANONICAL_REVISION, LATEST),
        workload_type=pb.POD,
        workload_name=source.workload_name,
        authorization_policies=around.policies,
        status=pb.HEALTHY if around.is_ready else pb.UNHEALTHY,
        cluster_id=source.cluster or settings.cluster_id,
        network_mode=pb.HOST_NETWORK if source.is_host_network else pb.STANDARD,
        waypoint=around.waypoint,
        services={
            name: pb.PortList(ports=[pb.Port(service_port=own, target_port=target) for own, target in ports])
            for name, ports in around.services.items()
        },
    )
    if around.locality:
        place = around.locality
        workload.locality.CopyFrom(pb.Locality(region=place.region, zone=place.zone, subzone=place.subzone))
    if source.weight is not None:
        workload.capacity.value = source.weight
    return make_resource(
        ADDRESS,
        source.uid,
        pb.Address(workload=workload),
        aliases=tuple(address_key(around.network, address) for address in source.addresses),
        services=tuple(around.services),
        node=source.node,
    )


def _first(source: WorkloadSource, label_keys: tuple[str, ...], otherwise: str) -> str:
    return next((found for key in label_keys if (found := source.labels.get(key))), otherwise)
