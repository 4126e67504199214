"""Services and ServiceEntries to the data plane's Service (ztunnel-facts 5.7, 5.10, config-api 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from config.compile.addresses import address_key, network_address
from config.compile.protocols import app_protocol
from config.compile.resource import ADDRESS, Resource, make_resource
from config.objects import Resolution, Service, ServiceEntry, TrafficScope
from proto.istio import workload_pb2 as pb

_ZONE: Final = (pb.LoadBalancing.NETWORK, pb.LoadBalancing.REGION, pb.LoadBalancing.ZONE)
_PREFERENCES: Final[
    Mapping[
        TrafficScope, tuple[pb.LoadBalancing.Mode.ValueType, tuple[pb.LoadBalancing.Scope.ValueType, ...]]
    ]
] = {
    TrafficScope.LOCAL_ONLY: (pb.LoadBalancing.STRICT, (pb.LoadBalancing.NODE,)),
    TrafficScope.SAME_ZONE: (pb.LoadBalancing.FAILOVER, _ZONE),
    TrafficScope.SAME_NODE: (
        pb.LoadBalancing.FAILOVER,
        (*_ZONE, pb.LoadBalancing.SUBZONE, pb.LoadBalancing.NODE),
    ),
}
_FAMILIES: Final = {
    frozenset({"IPv4"}): pb.IPV4_ONLY,
    frozenset({"IPv6"}): pb.IPV6_ONLY,
    frozenset({"IPv4", "IPv6"}): pb.DUAL,
}


@dataclass(frozen=True, slots=True)
class ServiceSurroundings:
    """What a service's resource depends on beside the object itself."""

    hostname: str
    addresses: tuple[str, ...] = ()  # IP or CIDR
    network: str = ""
    scope: TrafficScope = TrafficScope.ANYWHERE
    waypoint: pb.GatewayAddress | None = None
    weighted_waypoints: tuple[tuple[pb.GatewayAddress, int], ...] = ()
    is_canonical: bool = True
    is_ingress_through_waypoint: bool = False


def service_name(namespace: str, hostname: str) -> str:
    return f"{namespace}/{hostname}"


def compile_service(service: Service | ServiceEntry, around: ServiceSurroundings) -> Resource:
    meta = service.meta
    message = pb.Service(
        name=meta.name,
        namespace=meta.namespace,
        hostname=around.hostname,
        addresses=[network_address(around.network, text) for text in around.addresses],
        ports=_service_ports(service) if isinstance(service, Service) else _entry_ports(service),
        subject_alt_names=() if isinstance(service, Service) else service.subject_alt_names,
        waypoint=around.waypoint,
        weighted_waypoints=[
            pb.WeightedWaypoint(destination=destination, weight=weight)
            for destination, weight in around.weighted_waypoints
        ],
        canonical=around.is_canonical,
        ingress_use_waypoint=around.is_ingress_through_waypoint,
    )
    if isinstance(service, Service):
        message.ip_families = _FAMILIES.get(frozenset(service.ip_families), pb.AUTOMATIC)
    balancing = _balancing(service, around.scope)
    if balancing is not None:
        message.load_balancing.CopyFrom(balancing)
    return make_resource(
        ADDRESS,
        service_name(meta.namespace, around.hostname),
        pb.Address(service=message),
        aliases=tuple(address_key(around.network, text) for text in around.addresses),
    )


def takes_unready(service: Service | ServiceEntry) -> bool:
    if isinstance(service, Service):
        return service.is_unready_published
    return service.resolution is Resolution.NONE


def _service_ports(service: Service) -> list[pb.Port]:
    return [
        pb.Port(
            service_port=port.number,
            # Named: each endpoint has its own number.
            target_port=port.target if isinstance(port.target, int) else 0,
            app_protocol=app_protocol(port.number, port.name, port.app_protocol),
        )
        for port in service.ports
    ]


def _entry_ports(entry: ServiceEntry) -> list[pb.Port]:
    return [
        pb.Port(
            service_port=port.number,
            target_port=port.target or port.number,
            app_protocol=app_protocol(port.number, port.name, port.protocol),
        )
        for port in entry.ports
    ]


def _balancing(service: Service | ServiceEntry, scope: TrafficScope) -> pb.LoadBalancing | None:
    if isinstance(service, ServiceEntry) and service.resolution is Resolution.NONE:
        return pb.LoadBalancing(mode=pb.LoadBalancing.PASSTHROUGH, health_policy=pb.LoadBalancing.ALLOW_ALL)
    preference = _PREFERENCES.get(scope)
    if preference is None and not takes_unready(service):
        return None
    balancing = pb.LoadBalancing()
    if preference is not None:
        balancing.mode = preference[0]
        balancing.routing_preference.extend(preference[1])
    if takes_unready(service):
        balancing.health_policy = pb.LoadBalancing.ALLOW_ALL
    return balancing
