"""Which VirtualServices count for a service, and where their destinations lead (config-api 12). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from config.compile.messages import Target
from config.notes import Reason
from config.objects import Ref, Service, ServiceEntry, VirtualService
from config.registry.delegation import Merged, is_exported, merge
from config.registry.host_index import resolve_host, specificity
from config.registry.object_index import ObjectIndex
from config.virtual_routes import Target as HostTarget
from config.virtual_routes import VirtualRoutes


@dataclass(frozen=True, slots=True)
class ServiceHost:
    """A host of a service, and the namespaces of the waypoints that serve it."""

    service: Ref
    hostname: str
    waypoint_namespaces: frozenset[str]


def refusal_of(virtual: VirtualService, at: ServiceHost) -> tuple[Reason, str] | None:
    """Why a VirtualService with the right host does not count."""
    namespace = virtual.meta.namespace
    if namespace != at.service.namespace and namespace not in at.waypoint_namespaces:
        text = "a VirtualService counts in the namespace of the service or of its waypoint only"
        return Reason.UNSUPPORTED_VALUE, text
    if not any(is_exported(virtual.export_to, namespace, each) for each in at.waypoint_namespaces):
        text = f"exportTo leaves the waypoint's namespace out: {', '.join(sorted(at.waypoint_namespaces))}"
        return Reason.UNSUPPORTED_VALUE, text
    return None


def virtual_services_on(index: ObjectIndex, at: ServiceHost) -> list[VirtualService]:
    """Those that count, the most specific host first, then the oldest."""
    found: dict[Ref, tuple[tuple[bool, int], VirtualService]] = {}
    for pattern, ref in index.virtual.on(at.hostname):
        virtual = index.objects.get(ref)
        if isinstance(virtual, VirtualService) and refusal_of(virtual, at) is None:
            found.setdefault(ref, (specificity(pattern), virtual))
    ranked = sorted(found.values(), key=lambda each: (each[0], each[1].meta.age_key))
    return [virtual for _, virtual in ranked]


def merged(index: ObjectIndex, virtual: VirtualService) -> Merged:
    return merge(virtual, lambda ref: _virtual(index, ref))


def _virtual(index: ObjectIndex, ref: Ref) -> VirtualService | None:
    found = index.objects.get(ref)
    return found if isinstance(found, VirtualService) else None


def routes_of(index: ObjectIndex, virtual: VirtualService) -> VirtualRoutes:
    meta = virtual.meta
    name = f"{meta.namespace}/{meta.name}"
    return VirtualRoutes(meta.namespace, name, merged(index, virtual).parts, virtual.tls, virtual.tcp)


class TargetResolver:
    """Resolves destinations for the waypoints of certain namespaces."""

    def __init__(self, index: ObjectIndex, waypoint_namespaces: Iterable[str]) -> None:
        self._index = index
        self._waypoint_namespaces = tuple(sorted(waypoint_namespaces))

    def resolve(self, namespace: str, target: HostTarget, called_port: int) -> Target:
        """`namespace` is the VirtualService's: short names are looked up there."""
        index = self._index
        host = resolve_host(target.host, namespace, index.cluster_domain)
        owner = index.owner_of(f"{namespace}/{host}") or index.canonical_entry(host)
        service = index.service(owner) if owner is not None else None
        if owner is None or service is None:
            return Target(problem=f"no service has the host {host}")
        port = target.port or _default_port(service, called_port)
        if port not in {each.number for each in service.ports}:
            return Target(problem=f"{service.meta.ref} has no port {port}")
        if target.subset and not self._has_subset(host, owner.namespace, target.subset):
            return Target(problem=f"no DestinationRule for {host} has a subset {target.subset}")
        return Target(f"{owner.namespace}/{host}", port)

    def _has_subset(self, host: str, service_namespace: str, subset: str) -> bool:
        return any(
            self._index.rules.effective(host, service_namespace, waypoint).has_subset(subset)
            for waypoint in self._waypoint_namespaces
        )


def _default_port(service: Service | ServiceEntry, called_port: int) -> int:
    numbers = [each.number for each in service.ports]
    return numbers[0] if len(numbers) == 1 else called_port


def unresolved_targets(
    resolver: TargetResolver, parts: Iterable[tuple[str, HostTarget]], ports: Iterable[int]
) -> Iterator[str]:
    """Why (namespace, destination) pairs lead nowhere, for any of the ports that may be called."""
    called = tuple(ports)
    for namespace, target in parts:
        problems = {
            problem for port in called if (problem := resolver.resolve(namespace, target, port).problem)
        }
        yield from sorted(problems)
