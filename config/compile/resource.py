"""A data-plane resource: what xDS carries. Equal configuration gives equal bytes, hence equal versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NewType

from google.protobuf.message import Message

TypeUrl = NewType("TypeUrl", str)

ADDRESS: Final = TypeUrl("type.googleapis.com/istio.workload.Address")
WORKLOAD: Final = TypeUrl("type.googleapis.com/istio.workload.Workload")  # legacy name for ADDRESS
AUTHORIZATION: Final = TypeUrl("type.googleapis.com/istio.security.Authorization")
SERVICE_ROUTES: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.ServiceRoutes")
MESH_SETTINGS: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.MeshSettings")
DESTINATION: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.Destination")
AUTHENTICATION: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.RequestAuthentication")
FILTER: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.FilterPolicy")
RATE_LIMIT: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.RateLimitPolicy")
TELEMETRY: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.Telemetry")
# For node proxies, by the workload's uid.
CONNECTION_LIMITS: Final = TypeUrl("type.googleapis.com/mycelia.ztunnel.ConnectionLimits")
REQUEST_AUTHORIZATION: Final = TypeUrl("type.googleapis.com/mycelia.waypoint.AuthorizationPolicy")
# What protects or observes at waypoints: a type for each kind of policy, in the order of telling.
PROTECTION_TYPES: Final = (AUTHENTICATION, REQUEST_AUTHORIZATION, RATE_LIMIT, FILTER, TELEMETRY)
# Sent to the waypoints that a resource names, not to everybody. Routes last: what they lead to and what
# protects them is known before.
WAYPOINT_TYPES: Final = (MESH_SETTINGS, DESTINATION, *PROTECTION_TYPES, SERVICE_ROUTES)


@dataclass(frozen=True, slots=True)
class Resource:
    """`aliases`, `services` and `node` let a server find it for clients that ask for single resources,
    `waypoints` (`namespace/name`) are those it is for.
    """

    type_url: TypeUrl
    name: str
    version: str
    payload: bytes
    aliases: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    node: str = ""
    waypoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """Resources that are new or different, and names that are gone: (type, name)."""

    upserts: tuple[Resource, ...] = ()
    removed: tuple[tuple[TypeUrl, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removed)


def make_resource(
    type_url: TypeUrl,
    name: str,
    message: Message,
    *,
    aliases: tuple[str, ...] = (),
    services: tuple[str, ...] = (),
    node: str = "",
    waypoints: tuple[str, ...] = (),
) -> Resource:
    payload = message.SerializeToString(deterministic=True)
    return Resource(type_url, name, version_of(payload), payload, aliases, services, node, waypoints)


def version_of(payload: bytes) -> str:
    """16 hex digits; the same for the same bytes in every process and release."""
    return hashlib.blake2b(payload, digest_size=8).hexdigest()
