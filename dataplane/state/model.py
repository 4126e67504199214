"""The mesh's address book as the data plane sees it: immutable workloads, services and references.

Built from the protobuf resources of the control plane (proto/istio/workload.proto, facts 5.7); what cannot be
meant is refused with `ResourceRejected`. Addresses are canonical text (IPv4-mapped IPv6 is IPv4), ports
are ints truncated to 16 bits as Istio's node proxy does. Strings that repeat over thousands of
workloads are interned.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import DecodeError

from dataplane.state.errors import ResourceRejected
from proto.istio import workload_pb2 as pb
from transport.errors import MeshError
from transport.spiffe import SpiffeId

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
WORKLOAD_TYPE = "type.googleapis.com/istio.workload.Workload"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"

HBONE_PORT = 15008
DEFAULT_TRUST_DOMAIN = "cluster.local"
DEFAULT_SERVICE_ACCOUNT = "default"
DEFAULT_CLUSTER = "Kubernetes"

_PORT_MASK = 0xFFFF
_intern = sys.intern


class Scope(enum.IntEnum):
    """What an endpoint can have in common with a client (LoadBalancing.Scope)."""

    REGION = 1
    ZONE = 2
    SUBZONE = 3
    NODE = 4
    CLUSTER = 5
    NETWORK = 6


class BalancingMode(enum.IntEnum):
    ANY = 0
    STRICT = 1
    FAILOVER = 2
    PASSTHROUGH = 3


class HealthPolicy(enum.IntEnum):
    ONLY_HEALTHY = 0
    ALLOW_ALL = 1


class IpFamilies(enum.IntEnum):
    AUTOMATIC = 0
    IPV4_ONLY = 1
    IPV6_ONLY = 2
    DUAL = 3


class WorkloadType(enum.IntEnum):
    DEPLOYMENT = 0
    CRONJOB = 1
    POD = 2
    JOB = 3


class AppProtocol(enum.IntEnum):
    """What a service's port is declared to speak."""

    UNKNOWN = 0
    HTTP11 = 1
    HTTP2 = 2
    GRPC = 3
    TCP = 4
    TLS = 5


class _Tunnel(enum.IntEnum):
    NONE = 0
    HBONE = 1


class _Status(enum.IntEnum):
    HEALTHY = 0
    UNHEALTHY = 1


class _NetworkMode(enum.IntEnum):
    STANDARD = 0
    HOST_NETWORK = 1


class _AppTunnelProtocol(enum.IntEnum):
    NONE = 0
    PROXY = 1


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""


NO_LOCALITY = Locality()


@dataclass(frozen=True, slots=True)
class GatewayRef:
    """Where a waypoint or network gateway is: an address (`address` set) or a hostname (`hostname` set)."""

    hbone_port: int
    network: str = ""
    address: str = ""
    namespace: str = ""
    hostname: str = ""

    def __str__(self) -> str:
        if self.address:
            return f"{self.network}/{self.address}:{self.hbone_port}"
        return f"{self.namespace}/{self.hostname}:{self.hbone_port}"


@dataclass(frozen=True, slots=True)
class WeightedGateway:
    gateway: GatewayRef
    weight: int


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """How a workload wants its inbound connections; port 0 means the requested port."""

    is_proxy: bool
    port: int


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual address; `length` is set only for a CIDR wider than one address."""

    network: str
    address: str
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Balancing:
    mode: BalancingMode = BalancingMode.ANY
    preferences: tuple[Scope, ...] = ()
    is_unhealthy_allowed: bool = False


DEFAULT_BALANCING = Balancing()
NO_PORTS: Mapping[int, int] = MappingProxyType({})
NO_PROTOCOLS: Mapping[int, AppProtocol] = MappingProxyType({})
NO_SERVICES: Mapping[str, Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Service:
    """A service; `ports` maps service port to target port, 0 meaning named (resolved for each endpoint).
    `protocols` has the ports that declare one.
    """

    name: str
    namespace: str
    hostname: str
    vips: tuple[Vip, ...] = ()
    ports: Mapping[int, int] = field(default_factory=lambda: NO_PORTS)
    identities: tuple[SpiffeId, ...] = ()
    waypoint: GatewayRef | None = None
    weighted_waypoints: tuple[WeightedGateway, ...] = ()
    balancing: Balancing = DEFAULT_BALANCING
    ip_families: IpFamilies = IpFamilies.AUTOMATIC
    is_canonical: bool = False
    is_namespace_private: bool = False
    protocols: Mapping[int, AppProtocol] = field(default_factory=lambda: NO_PROTOCOLS)

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.hostname}"

    def is_visible_to(self, namespace: str) -> bool:
        return not self.is_namespace_private or self.namespace == namespace


@dataclass(frozen=True, slots=True)
class Workload:
    """One endpoint of the mesh; `uid` is its key, no address is there twice. `services` maps
    `namespace/hostname` to its ports there.
    """

    uid: str
    name: str
    namespace: str
    identity: SpiffeId
    addresses: tuple[str, ...] = ()
    network: str = ""
    is_hbone: bool = False
    native_tunnel: bool = False
    waypoint: GatewayRef | None = None
    network_gateway: GatewayRef | None = None
    node: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: WorkloadType = WorkloadType.DEPLOYMENT
    workload_name: str = ""
    authorization_policies: tuple[str, ...] = ()
    is_healthy: bool = True
    cluster_id: str = DEFAULT_CLUSTER
    hostname: str = ""
    services: Mapping[str, Mapping[int, int]] = field(default_factory=lambda: NO_SERVICES)
    application_tunnel: ApplicationTunnel | None = None
    locality: Locality = NO_LOCALITY
    is_host_network: bool = False
    capacity: int = 1


def canonical_ip(raw: bytes) -> str:
    """Text of a 4- or 16-byte address; IPv4-mapped IPv6 becomes IPv4. Raises `ResourceRejected`."""
    if len(raw) == 4:
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"
    if len(raw) != 16:
        raise ResourceRejected(f"an address has {len(raw)} bytes, not 4 or 16")
    address = IPv6Address(raw)
    mapped = address.ipv4_mapped
    return str(mapped if mapped is not None else address)


@lru_cache(maxsize=16384)
def ip_number(ip: str) -> tuple[int, int]:
    """(bits of the family, the address as a number) of a canonical address; (0, 0) for what is none."""
    try:
        address: IPv4Address | IPv6Address = ip_address(ip)
    except ValueError:
        return 0, 0
    return (32 if address.version == 4 else 128), int(address)


def is_ipv6(ip: str) -> bool:
    return ":" in ip


def socket_text(ip: str, port: int) -> str:
    """`ip:port`, IPv6 in brackets: the form of an authority."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def decode_address(value: bytes) -> Workload | Service:
    """One `istio.workload.Address` from its bytes."""
    message = pb.Address()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise ResourceRejected(f"not a valid Address message: {error}") from error
    kind = message.WhichOneof("type")
    if kind == "workload":
        return workload_from(message.workload)
    if kind == "service":
        return service_from(message.service)
    raise ResourceRejected("an Address that is neither a workload nor a service")


def decode_workload(value: bytes) -> Workload:
    """One bare `istio.workload.Workload` (Istio's older resource type)."""
    message = pb.Workload()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise ResourceRejected(f"not a valid Workload message: {error}") from error
    return workload_from(message)


def workload_from(message: pb.Workload) -> Workload:
    if not message.uid:
        raise ResourceRejected("a workload without uid")
    namespace = _intern(message.namespace)
    trust_domain = message.trust_domain or DEFAULT_TRUST_DOMAIN
    account = message.service_account or DEFAULT_SERVICE_ACCOUNT
    tunnel = _choice(_Tunnel, message.tunnel_protocol, "tunnel protocol")
    return Workload(
        uid=_intern(message.uid),
        name=message.name,
        namespace=namespace,
        identity=_identity(trust_domain, namespace, account),
        addresses=tuple(dict.fromkeys(canonical_ip(raw) for raw in message.addresses)),
        network=_intern(message.network),
        is_hbone=tunnel is _Tunnel.HBONE,
        native_tunnel=message.native_tunnel,
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        network_gateway=_gateway(message.network_gateway) if message.HasField("network_gateway") else None,
        node=_intern(message.node),
        canonical_name=_intern(message.canonical_name),
        canonical_revision=_intern(message.canonical_revision),
        workload_type=_choice(WorkloadType, message.workload_type, "workload type"),
        workload_name=_intern(message.workload_name),
        authorization_policies=_interned(message.authorization_policies),
        is_healthy=_choice(_Status, message.status, "workload status") is _Status.HEALTHY,
        cluster_id=_intern(message.cluster_id or DEFAULT_CLUSTER),
        hostname=message.hostname,
        services=_services(message) if message.services else NO_SERVICES,
        application_tunnel=_tunnel(message) if message.HasField("application_tunnel") else None,
        locality=_locality(message.locality) if message.HasField("locality") else NO_LOCALITY,
        is_host_network=_choice(_NetworkMode, message.network_mode, "network mode")
        is _NetworkMode.HOST_NETWORK,
        capacity=message.capacity.value if message.HasField("capacity") else 1,
    )


def service_from(message: pb.Service) -> Service:
    if not message.hostname:
        raise ResourceRejected("a service without hostname")
    identities = (SpiffeId.try_parse(name) for name in message.subject_alt_names)
    return Service(
        name=message.name,
        namespace=_intern(message.namespace),
        hostname=_intern(message.hostname),
        vips=tuple(dict.fromkeys(_vip(address) for address in message.addresses)),
        ports=_ports(message.ports),
        identities=tuple(identity for identity in identities if identity is not None),
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        weighted_waypoints=tuple(_weighted(waypoint) for waypoint in message.weighted_waypoints),
        balancing=_balancing(message.load_balancing)
        if message.HasField("load_balancing")
        else DEFAULT_BALANCING,
        ip_families=_choice(IpFamilies, message.ip_families, "IP families"),
        is_canonical=message.canonical,
        is_namespace_private=message.visibility == pb.Service.NAMESPACE,
        protocols=_protocols(message.ports),
    )


_Choice = TypeVar("_Choice", bound=enum.IntEnum)


def _choice(kind: type[_Choice], number: int, what: str) -> _Choice:
    try:
        return kind(number)
    except ValueError as error:
        raise ResourceRejected(f"unknown {what} {number}") from error


@lru_cache(maxsize=65536)
def _identity(trust_domain: str, namespace: str, account: str) -> SpiffeId:
    try:
        return SpiffeId.parse(f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
    except MeshError as error:
        raise ResourceRejected(f"its identity is not usable: {error}") from error


def _interned(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(_intern(text) for text in texts)


def _services(message: pb.Workload) -> Mapping[str, Mapping[int, int]]:
    """Sorted: the order of a protobuf map differs from process to process, and "the first" must not."""
    services = {}
    for key in sorted(message.services):
        if "/" not in key:
            raise ResourceRejected(f"service key {key!r} is not namespace/hostname")
        services[_intern(key)] = _ports(message.services[key].ports)
    return services


def _ports(ports: Iterable[pb.Port]) -> Mapping[int, int]:
    return {port.service_port & _PORT_MASK: port.target_port & _PORT_MASK for port in ports}


def _protocols(ports: Iterable[pb.Port]) -> Mapping[int, AppProtocol]:
    """One that is new to us is as good as none: then the first bytes tell."""
    declared = {
        port.service_port & _PORT_MASK: AppProtocol(port.app_protocol)
        for port in ports
        if 0 < int(port.app_protocol) <= max(AppProtocol)
    }
    return declared or NO_PROTOCOLS


def _gateway(message: pb.GatewayAddress) -> GatewayRef:
    port = message.hbone_mtls_port & _PORT_MASK
    kind = message.WhichOneof("destination")
    if kind == "hostname":
        return _hostname_gateway(port, message.hostname.namespace, message.hostname.hostname)
    if kind == "address":
        return GatewayRef(
            port, network=_intern(message.address.network), address=canonical_ip(message.address.address)
        )
    raise ResourceRejected("a gateway reference without destination")


@lru_cache(maxsize=4096)
def _hostname_gateway(port: int, namespace: str, hostname: str) -> GatewayRef:
    return GatewayRef(port, namespace=namespace, hostname=hostname)


def _weighted(message: pb.WeightedWaypoint) -> WeightedGateway:
    return WeightedGateway(_gateway(message.destination), message.weight)


def _vip(message: pb.NetworkAddress) -> Vip:
    address = canonical_ip(message.address)
    bits = 128 if ":" in address else 32
    length: int | None = message.length if message.HasField("length") else None
    if length is not None and bits == 32 and len(message.address) == 16:
        length -= 96  # the prefix of an IPv4-mapped range
    if length is not None and not 0 <= length <= bits:
        raise ResourceRejected(f"prefix length {length} does not fit {address}")
    return Vip(_intern(message.network), address, None if length == bits else length)


def _balancing(message: pb.LoadBalancing) -> Balancing:
    return Balancing(
        mode=_choice(BalancingMode, message.mode, "balancing mode"),
        preferences=tuple(
            _choice(Scope, scope, "routing preference") for scope in message.routing_preference
        ),
        is_unhealthy_allowed=_choice(HealthPolicy, message.health_policy, "health policy")
        is HealthPolicy.ALLOW_ALL,
    )


def _tunnel(message: pb.Workload) -> ApplicationTunnel:
    tunnel = message.application_tunnel
    protocol = _choice(_AppTunnelProtocol, tunnel.protocol, "application tunnel protocol")
    return ApplicationTunnel(protocol is _AppTunnelProtocol.PROXY, tunnel.port & _PORT_MASK)


def _locality(message: pb.Locality) -> Locality:
    return _shared_locality(message.region, message.zone, message.subzone)


@lru_cache(maxsize=4096)
def _shared_locality(region: str, zone: str, subzone: str) -> Locality:
    return Locality(_intern(region), _intern(zone), _intern(subzone))
