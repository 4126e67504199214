"""Where an accepted tunnel stream goes (facts 4.2-4.4, 2.12, 1.2): pure decisions over the mesh state."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.state.addressing import resolve_reference
from dataplane.state.model import Service, Workload, is_ipv6
from dataplane.state.store import MeshState

ILLEGAL_PORTS = frozenset({15001, 15006, 15008})


@dataclass(frozen=True, slots=True)
class InboundTarget:
    """Where to connect.

    `address` is what policies see and, unless `is_localhost`, what is dialled; with `is_localhost` dial
    127.0.0.1 or ::1 (the family of `address`) at its port, from a loopback address.
    `proxy_destination` is set where a PROXY v2 header is due.
    """

    address: tuple[str, int]
    service: Service | None = None
    is_localhost: bool = False
    proxy_destination: tuple[str, int] | None = None

    @property
    def dial_address(self) -> tuple[str, int]:
        if not self.is_localhost:
            return self.address
        return ("::1" if is_ipv6(self.address[0]) else "127.0.0.1"), self.address[1]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The CONNECT is answered with `status`."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Authority:
    """A parsed `:authority`: `ip` or `hostname` is set."""

    port: int
    ip: str = ""
    hostname: str = ""


def parse_authority(authority: bytes | str) -> Authority | None:
    """A socket address, else host and port (both required); None where it is neither (facts 2.3)."""
    try:
        text = authority if isinstance(authority, str) else authority.decode("ascii")
    except UnicodeDecodeError:
        return None
    host, colon, port_text = text.rpartition(":")
    if not colon or not host or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5:
        return None
    port = int(port_text)
    if port > 0xFFFF:
        return None
    is_bracketed = host.startswith("[")
    if is_bracketed:
        if not host.endswith("]"):
            return None
        host = host[1:-1]
    elif ":" in host:
        return None
    ip = _canonical(host)
    if ip is not None:
        if is_bracketed is not (":" in host):
            return None
        return Authority(port, ip=ip)
    if is_bracketed or not _is_hostname(host):
        return None
    return Authority(port, hostname=host.lower())


def resolve_inbound(
    authority: bytes | str,
    local_ip: str,
    own: Workload,
    state: MeshState,
    network: str,
    *,
    is_localhost_tunnel: bool = True,
    illegal_ports: frozenset[int] = ILLEGAL_PORTS,
) -> InboundTarget | Refusal:
    """Decide on a CONNECT for `authority` that arrived at `local_ip`, an address of `own`."""
    wanted = parse_authority(authority)
    if wanted is None:
        return Refusal(400, "the authority is neither ip:port nor host:port")
    service: Service | None = None
    port = wanted.port
    if wanted.ip:
        reason = _mismatch(wanted.ip, local_ip, own, state, network)
        if reason is not None:
            return Refusal(400, reason)
    else:
        service = state.service_by_hostname(wanted.hostname, own.namespace)
        if service is None:
            return Refusal(503, f"unknown service hostname: {wanted.hostname}")
        mapped = own.services.get(service.key, {}).get(port) or service.ports.get(port, 0)
        if mapped == 0:
            return Refusal(503, f"service {service.hostname} has no port {port} here")
        port = mapped
    is_localhost = False
    proxy_destination: tuple[str, int] | None = None
    tunnel = own.application_tunnel
    if tunnel is not None:
        port = tunnel.port or port
        if tunnel.is_proxy:
            is_localhost = is_localhost_tunnel
            destination = _proxy_destination(wanted, service, network)
            if destination is None:
                return Refusal(503, f"service {wanted.hostname} has no address for the PROXY header")
            proxy_destination = destination
    if port in illegal_ports:
        return Refusal(503, f"port {port} is the proxy's own")
    return InboundTarget((local_ip, port), service, is_localhost, proxy_destination)


def spoofed_source(peer_ip: str, target: InboundTarget, *, is_spoofing: bool) -> str | None:
    """The source address for the connection to the application, None for none (facts 4.4)."""
    if target.is_localhost:
        return target.dial_address[0]
    if not is_spoofing or peer_ip == target.address[0] or is_ipv6(peer_ip) is not is_ipv6(target.address[0]):
        return None
    return peer_ip


def is_self_call(destination: tuple[str, int], illegal_ports: frozenset[int] = ILLEGAL_PORTS) -> bool:
    """Outbound recursion guard: one of the proxy's ports on a loopback address (facts 1.2)."""
    ip, port = destination
    return port in illegal_ports and (ip.startswith("127.") or ip == "::1")


def is_illegal_inbound(destination: tuple[str, int], illegal_ports: frozenset[int] = ILLEGAL_PORTS) -> bool:
    """Inbound plaintext recursion guard: one of the proxy's ports, whatever the address (facts 1.2)."""
    return destination[1] in illegal_ports


def _mismatch(ip: str, local_ip: str, own: Workload, state: MeshState, network: str) -> str | None:
    """None where `own` may answer for `ip`: it is dialled there, or is the waypoint of what is there."""
    if ip == local_ip or own.application_tunnel is not None:
        return None
    owner: Workload | Service | None = state.workload_by_ip(network, ip)
    if owner is None:
        owner = state.service_by_vip(network, ip, own.namespace)
    if owner is not None and owner.waypoint is not None:
        found = resolve_reference(owner.waypoint, state, own.namespace)
        if isinstance(found, Workload) and local_ip in found.addresses:
            return None
        if isinstance(found, Service):
            endpoints = state.endpoints(found)
            if endpoints is not None and own.uid in endpoints.workloads:
                return None
    return f"ip mismatch: {ip} != {local_ip}"


def _proxy_destination(wanted: Authority, service: Service | None, network: str) -> tuple[str, int] | None:
    """The address for the PROXY header: as asked, else a VIP (own network first, then IPv4)."""
    if wanted.ip:
        return wanted.ip, wanted.port
    assert service is not None
    vips = [vip for vip in service.vips if vip.length is None]
    if not vips:
        return None
    best = min(vips, key=lambda vip: (vip.network != network, is_ipv6(vip.address)))
    return best.address, wanted.port


def _canonical(host: str) -> str | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def _is_hostname(host: str) -> bool:
    return len(host) <= 253 and all(c.isascii() and (c.isalnum() or c in "-._*") for c in host)
