"""What a reference to a gateway names, and which of a workload's addresses a client gets."""

from __future__ import annotations

from dataplane.state.model import GatewayRef, IpFamilies, Service, Workload, is_ipv6
from dataplane.state.store import MeshState


def resolve_reference(reference: GatewayRef, state: MeshState, namespace: str) -> Workload | Service | None:
    """What a reference names; an address is a workload before it is a service."""
    if reference.address:
        workload = state.workload_by_ip(reference.network, reference.address)
        if workload is not None:
            return workload
        return state.service_by_vip(reference.network, reference.address, namespace)
    service = state.service_by_key(reference.namespace, reference.hostname)
    if service is not None:
        return service
    return state.workload_by_hostname(reference.namespace, reference.hostname)


def pick_ip(workload: Workload, wanted_ip: str, service: Service | None) -> str | None:
    """The address of `workload` for a client that dialled `wanted_ip` (facts 3.3), None where there is
    none.
    """
    addresses = workload.addresses
    if wanted_ip in addresses:
        return wanted_ip
    if service is not None and service.ip_families in (IpFamilies.IPV4_ONLY, IpFamilies.IPV6_ONLY):
        is_v6_only = service.ip_families is IpFamilies.IPV6_ONLY
        addresses = tuple(ip for ip in addresses if is_ipv6(ip) is is_v6_only)
    wants_v6 = is_ipv6(wanted_ip)
    for ip in addresses:
        if is_ipv6(ip) is wants_v6:
            return ip
    return addresses[0] if addresses else None
