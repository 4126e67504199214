"""Short ways to write mesh resources in tests: keyword arguments in, protobuf bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE, Service, Workload
from dataplane.state.store import MeshState
from proto.istio import authorization_pb2 as auth
from proto.istio import workload_pb2 as pb

Ports = Mapping[int, int]
Gateway = str  # "ns/host:port" or "net|ip:port"


def packed(ip: str) -> bytes:
    return ip_address(ip).packed


def gateway(text: Gateway) -> pb.GatewayAddress:
    """`ns/hostname:port`, or `network|ip:port`."""
    place, _, port = text.rpartition(":")
    message = pb.GatewayAddress(hbone_mtls_port=int(port))
    if "|" in place:
        network, _, ip = place.partition("|")
        message.address.network = network
        message.address.address = packed(ip)
    else:
        namespace, _, hostname = place.partition("/")
        message.hostname.namespace = namespace
        message.hostname.hostname = hostname
    return message


def workload(
    uid: str,
    *ips: str,
    namespace: str = "default",
    account: str = "app",
    network: str = "",
    hbone: bool = True,
    services: Mapping[str, Ports] | None = None,
    waypoint: Gateway | None = None,
    network_gateway: Gateway | None = None,
    policies: Iterable[str] = (),
    app_tunnel: tuple[bool, int] | None = None,
    locality: tuple[str, str, str] | None = None,
    capacity: int | None = None,
    healthy: bool = True,
    **fields: object,
) -> pb.Workload:
    message = pb.Workload(uid=uid, name=str(fields.pop("name", uid)), namespace=namespace, network=network)
    message.service_account = account
    message.addresses.extend(packed(ip) for ip in ips)
    message.tunnel_protocol = pb.HBONE if hbone else pb.NONE
    message.status = pb.HEALTHY if healthy else pb.UNHEALTHY
    for key, ports in (services or {}).items():
        mapped = message.services[key]
        for port, target in ports.items():
            mapped.ports.add(service_port=port, target_port=target)
    if waypoint:
        message.waypoint.CopyFrom(gateway(waypoint))
    if network_gateway:
        message.network_gateway.CopyFrom(gateway(network_gateway))
    message.authorization_policies.extend(policies)
    if app_tunnel is not None:
        is_proxy, port = app_tunnel
        message.application_tunnel.protocol = (
            pb.ApplicationTunnel.PROXY if is_proxy else pb.ApplicationTunnel.NONE
        )
        message.application_tunnel.port = port
    if locality is not None:
        message.locality.region, message.locality.zone, message.locality.subzone = locality
    if capacity is not None:
        message.capacity.value = capacity
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def service(
    hostname: str,
    *vips: str,
    namespace: str = "default",
    ports: Ports | None = None,
    waypoint: Gateway | None = None,
    weighted: Mapping[Gateway, int] | None = None,
    mode: int = 0,
    preferences: Iterable[int] = (),
    health: int = 0,
    sans: Iterable[str] = (),
    **fields: object,
) -> pb.Service:
    """VIPs are `ip`, `network|ip` or with `/length`."""
    message = pb.Service(name=hostname.partition(".")[0], namespace=namespace, hostname=hostname)
    for vip in vips:
        network, separator, rest = vip.partition("|")
        if not separator:
            network, rest = "", vip
        ip, slash, length = rest.partition("/")
        entry = message.addresses.add(network=network, address=packed(ip))
        if slash:
            entry.length = int(length)
    for port, target in ({80: 8080} if ports is None else ports).items():
        message.ports.add(service_port=port, target_port=target)
    if waypoint:
        message.waypoint.CopyFrom(gateway(waypoint))
    for place, weight in (weighted or {}).items():
        message.weighted_waypoints.add(destination=gateway(place), weight=weight)
    if mode or health or preferences:
        message.load_balancing.mode = mode  # type: ignore[assignment]
        message.load_balancing.health_policy = health  # type: ignore[assignment]
        message.load_balancing.routing_preference.extend(preferences)  # type: ignore[arg-type]
    message.subject_alt_names.extend(sans)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def address(resource: pb.Workload | pb.Service) -> tuple[str, bytes]:
    """Resource name and bytes of an Address."""
    if isinstance(resource, pb.Workload):
        return resource.uid, pb.Address(workload=resource).SerializeToString()
    return f"{resource.namespace}/{resource.hostname}", pb.Address(service=resource).SerializeToString()


def apply(state: MeshState, *resources: pb.Workload | pb.Service | auth.Authorization) -> dict[str, str]:
    rejected: dict[str, str] = {}
    for resource in resources:
        if isinstance(resource, auth.Authorization):
            key = f"{resource.namespace}/{resource.name}"
            rejected |= state.apply(AUTHORIZATION_TYPE, [(key, resource.SerializeToString())], ())
        else:
            rejected |= state.apply(ADDRESS_TYPE, [address(resource)], ())
    return rejected


def mesh(*resources: pb.Workload | pb.Service | auth.Authorization) -> MeshState:
    state = MeshState()
    assert apply(state, *resources) == {}
    return state


def get(state: MeshState, uid: str) -> Workload:
    found = state.workload_by_uid(uid)
    assert found is not None, uid
    return found


def get_service(state: MeshState, key: str) -> Service:
    return state.services[key]


def first(_: object = None) -> float:
    """A source of randomness that always chooses the first."""
    return 0.0
