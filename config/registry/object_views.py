"""What of an object decides about others: the parts of it that, if they change, make others change. Pure."""

from __future__ import annotations

from typing import Final

from config import keys, objects
from config.kinds.gateway import HBONE_PORT, WAYPOINT_CLASS
from config.objects import MeshObject, Meta, Ref, Service, ServiceEntry, ServicePort, TrafficScope

# The service that the registry makes of a waypoint, filed as if a manifest had it.
WAYPOINT_SERVICE: Final = "WaypointService"
STATUS_PORT: Final = 15021
_WAYPOINT_LABELS: Final = (
    keys.WAYPOINT_REQUIRED,
    keys.USE_WAYPOINT,
    keys.USE_WAYPOINT_NAMESPACE,
    keys.USE_WAYPOINT_CANARY,
    keys.USE_WAYPOINT_CANARY_NAMESPACE,
)


def waypoint_service(gateway: MeshObject | None) -> Service | None:
    """What a controller makes of a waypoint whose status names no address (config-api 5.2)."""
    if not isinstance(gateway, objects.Gateway) or gateway.class_name != WAYPOINT_CLASS:
        return None
    if gateway.hostname or gateway.addresses:
        return None
    ref = gateway.meta.ref
    label = {keys.GATEWAY_NAME: ref.name}
    return Service(
        Meta(Ref(WAYPOINT_SERVICE, ref.namespace, ref.name), labels=label, created=gateway.meta.created),
        ports=(
            ServicePort(STATUS_PORT, "status-port", STATUS_PORT),
            ServicePort(HBONE_PORT, "mesh", HBONE_PORT, "tcp"),
        ),
        selector=label,
        traffic_scope=TrafficScope.SAME_ZONE,
    )


def endpoints_view(service: MeshObject | None) -> object:
    """The part of a service that its endpoints' resources repeat."""
    match service:
        case Service(is_external_name=is_external, ports=ports, selector=selector, meta=meta):
            return is_external, ports, selector, _waypoint_view(meta)
        case ServiceEntry(hosts=hosts, resolution=resolution, ports=ports, selector=selector, meta=meta):
            return hosts, resolution, ports, selector, _waypoint_view(meta)
        case _:
            return None


def _waypoint_view(meta: Meta) -> object:
    """What decides by whom a service's endpoints may be reached where a waypoint is required."""
    labels = tuple(meta.labels.get(key) for key in _WAYPOINT_LABELS)
    return labels, meta.annotations.get(keys.USE_WAYPOINT_CANARY_WEIGHT)


def addresses_of(service: MeshObject | None) -> tuple[str, ...]:
    match service:
        case Service(is_external_name=False, addresses=addresses) | ServiceEntry(addresses=addresses):
            return addresses
        case _:
            return ()


def label_of(namespace: MeshObject | None, key: str) -> str:
    return namespace.meta.labels.get(key, "") if namespace is not None else ""
