"""Which port of a workload a service's port leads to (config-api 1.2, 13). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from config.objects import Service, ServiceEntry
from config.registry.workload_source import WorkloadSource

PortPairs = tuple[tuple[int, int], ...]


def service_ports(service: Service, source: WorkloadSource) -> tuple[PortPairs, tuple[str, ...]]:
    """(service port, target port) pairs, and the named targets that this workload does not have.

    Such a port is left out for this workload only.
    """
    pairs: list[tuple[int, int]] = []
    missing: list[str] = []
    for port in service.ports:
        target = port.target
        if isinstance(target, str):
            number = source.named_ports.get(target)
            if number is None:
                missing.append(target)
                continue
            target = number
        pairs.append((port.number, target))
    return tuple(pairs), tuple(missing)


def entry_ports(entry: ServiceEntry, source: WorkloadSource) -> PortPairs:
    """The workload's port of the same name, else the entry's targetPort, else the same number."""
    return tuple(
        (port.number, source.named_ports.get(port.name) or port.target or port.number) for port in entry.ports
    )


def slice_ports(service: Service, ports: Mapping[str, int]) -> PortPairs:
    """Ports of a slice go with the service's ports of the same name."""
    return tuple((port.number, ports[port.name]) for port in service.ports if port.name in ports)
