"""Status conditions of VirtualServices: what they apply to, and what in them has no effect here. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.notes import Condition, Reason
from config.objects import Ref, Service, ServiceEntry, VirtualService
from config.registry.attachment import attach, candidates_on, parts_on, ports_of
from config.registry.host_index import is_matched, resolve_host
from config.registry.registry import Registry
from config.registry.virtual_attachment import (
    ServiceHost,
    TargetResolver,
    merged,
    refusal_of,
    unresolved_targets,
)
from config.registry.virtual_index import http_targets
from config.virtual_routes import Target


def of_virtual_service(registry: Registry, virtual: VirtualService) -> Iterator[Condition]:
    if not virtual.hosts:
        yield _of_delegate(registry, virtual)
        return
    if not virtual.is_for_mesh:
        text = "gateways leave the mesh out (mesh is not among them): it applies to nothing here"
        yield _condition(virtual, "Accepted", Reason.UNSUPPORTED_VALUE, text)
        return
    places = list(_places(registry, virtual))
    for host in virtual.hosts:
        full = resolve_host(host, virtual.meta.namespace, registry.index.cluster_domain)
        if not registry.index.services_named([full]):
            text = f"no service has the host {full}"
            yield _condition(virtual, "Accepted", Reason.NO_PARENT, text, f"host {host}")
    for at, service in places:
        reason, text = _acceptance(registry, virtual, at, service)
        yield _condition(virtual, "Accepted", reason, text, str(at.service))
        yield _waypoints(registry, virtual, at.service, service)
    problems = [*merged(registry.index, virtual).problems, *_unsupported(virtual)]
    if problems:
        text = "; ".join(problems)
        yield Condition(
            virtual.meta.ref,
            "PartiallyInvalid",
            is_true=True,
            reason=Reason.UNSUPPORTED_VALUE,
            message=text,
        )
    if places:
        yield _resolved(registry, virtual, places)


def _condition(virtual: VirtualService, type_: str, reason: Reason, text: str, parent: str = "") -> Condition:
    is_true = reason in (Reason.ACCEPTED, Reason.RESOLVED, Reason.RESOLVED_REFS)
    return Condition(virtual.meta.ref, type_, is_true, reason, text, parent)


def _of_delegate(registry: Registry, virtual: VirtualService) -> Condition:
    roots = registry.index.virtual.delegators(virtual.meta.ref)
    if roots:
        text = f"its routes are taken over by {', '.join(map(str, roots))}"
        return _condition(virtual, "Accepted", Reason.ACCEPTED, text)
    text = "has no hosts, and no VirtualService delegates to it"
    return _condition(virtual, "Accepted", Reason.NO_PARENT, text)


def _places(
    registry: Registry, virtual: VirtualService
) -> Iterator[tuple[ServiceHost, Service | ServiceEntry]]:
    """The hosts of services that it names, in order."""
    index = registry.index
    patterns = [resolve_host(host, virtual.meta.namespace, index.cluster_domain) for host in virtual.hosts]
    for ref in sorted(index.services_named(patterns)):
        service = index.service(ref)
        if service is None:
            continue
        bound = registry.enrolment(service).bound
        for host in index.hosts_of(service):
            is_meant = any(is_matched(pattern, host) for pattern in patterns)
            if is_meant and index.owner_of(f"{ref.namespace}/{host}") == ref:
                yield ServiceHost(ref, host, frozenset(each.namespace for each in bound)), service


def _acceptance(
    registry: Registry, virtual: VirtualService, at: ServiceHost, service: Service | ServiceEntry
) -> tuple[Reason, str]:
    if at.waypoint_namespaces or virtual.meta.namespace != at.service.namespace:
        refusal = refusal_of(virtual, at)
        if refusal is not None:
            return refusal
    ports = ports_of(service)
    attachment = attach(registry.index, at, ports, candidates_on(registry.index, at))
    lost = {(each.port, each.part): each for each in attachment.refusals if each.route == virtual.meta.ref}
    won = [
        str(port.number)
        for port in ports
        if any((port.number, part) not in lost for part in parts_on(virtual, port))
    ]
    if won:
        but = "".join(f"; {part} not on port {port}: {each.text}" for (port, part), each in lost.items())
        return Reason.ACCEPTED, f"attached to port {', '.join(won)} of host {at.hostname}{but}"
    for each in lost.values():
        return each.reason, each.text
    return Reason.NO_PARENT, f"no port of {at.service} speaks what it has routes for"


def _waypoints(
    registry: Registry, virtual: VirtualService, ref: Ref, service: Service | ServiceEntry
) -> Condition:
    enrolment = registry.enrolment(service)
    if enrolment.bound:
        names = ", ".join(f"{each.namespace}/{each.name}" for each in enrolment.bound)
        text = f"{ref} goes through waypoint {names}"
        return _condition(virtual, "ResolvedWaypoints", Reason.RESOLVED, text, str(ref))
    why = f" ({enrolment.notes[0].text})" if enrolment.notes else ""
    text = f"{ref} goes through no waypoint{why}: nothing applies the routes"
    return _condition(virtual, "ResolvedWaypoints", Reason.WAYPOINT_NOT_READY, text, str(ref))


def _unsupported(virtual: VirtualService) -> Iterator[str]:
    for index, part in enumerate(virtual.http):
        for number, match in enumerate(part.matches):
            if match.unsupported:
                where = f"http[{index}].match[{number}]"
                yield f"{where}: {', '.join(match.unsupported)} is unknown to waypoints: it never matches"
    for kind, streams in (("tls", virtual.tls), ("tcp", virtual.tcp)):
        for index, stream in enumerate(streams):
            for number, each in enumerate(stream.matches):
                if each.unsupported:
                    where = f"{kind}[{index}].match[{number}]"
                    yield f"{where}: {', '.join(each.unsupported)} is not supported: it never matches"


def _resolved(
    registry: Registry,
    virtual: VirtualService,
    places: list[tuple[ServiceHost, Service | ServiceEntry]],
) -> Condition:
    namespaces = {name for at, _ in places for name in at.waypoint_namespaces or (at.service.namespace,)}
    ports = sorted({port.number for _, service in places for port in ports_of(service)})
    problems = dict.fromkeys(
        unresolved_targets(TargetResolver(registry.index, namespaces), _targets(registry, virtual), ports)
    )
    if problems:
        text = f"{'; '.join(problems)}; requests that go there get 503"
        return _condition(virtual, "ResolvedRefs", Reason.BACKEND_NOT_FOUND, text)
    return _condition(virtual, "ResolvedRefs", Reason.RESOLVED_REFS, "all destinations are there")


def _targets(registry: Registry, virtual: VirtualService) -> Iterator[tuple[str, Target]]:
    """With the namespace in which short names are looked up."""
    for sourced in merged(registry.index, virtual).parts:
        for target in http_targets(sourced.part):
            yield sourced.namespace, target
    for stream in (*virtual.tls, *virtual.tcp):
        for each in stream.targets:
            yield virtual.meta.namespace, each.target
