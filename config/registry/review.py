"""What is suspicious about the objects together. Looked at when somebody asks, never on a change. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config import keys
from config.compile.resource import ADDRESS
from config.notes import Note, Reason
from config.objects import (
    AuthorizationPolicy,
    EndpointSlice,
    Kind,
    PeerAuthentication,
    Ref,
    Service,
    ServiceEntry,
    WorkloadEntry,
)
from config.registry.conditions import complaints
from config.registry.object_views import WAYPOINT_SERVICE
from config.registry.registry import Registry
from config.registry.waypoints import FOR_SERVICES, FOR_WORKLOADS, Enrolling, find_waypoint


def review(registry: Registry) -> list[Note]:
    """All notes, those of the compilation included, by object."""
    notes = [
        *registry.notes(),
        *_shared_addresses(registry),
        *_namespaces(registry),
        *_idle(registry),
        *complaints(registry),
    ]
    return sorted(set(notes), key=lambda note: (note.ref, note.reason.value, note.text))


def _shared_addresses(registry: Registry) -> Iterator[Note]:
    """Two workloads, or two services, on one address: a node proxy takes one of them for the other."""
    holders: dict[tuple[str, bool], list[Ref]] = {}
    for resource in registry.resources[ADDRESS].values():
        source = registry.index.sources.get(resource.name)
        owner = source.owner if source is not None else registry.index.owner_of(resource.name)
        for alias in resource.aliases if owner is not None else ():
            assert owner is not None
            holders.setdefault((alias, source is not None), []).append(owner)
    for (alias, is_workload), refs in holders.items():
        if len(set(refs)) < 2:
            continue
        what = "workload" if is_workload else "service"
        address = alias.partition("/")[2]
        for ref in set(refs):
            others = ", ".join(sorted(str(each) for each in set(refs) - {ref}))
            yield Note(ref, Reason.ADDRESS_SHARED, f"its {what} address {address} is also that of {others}")


def _namespaces(registry: Registry) -> Iterator[Note]:
    index = registry.index
    used = {ref.namespace for ref in index.objects if ref.namespace}
    for name in sorted(used):
        namespace = index.namespace(name)
        ref = Ref(Kind.NAMESPACE.value, "", name)
        if namespace is None:
            text = "is used but not declared: it has no labels, so nothing in it is captured"
            yield Note(ref, Reason.NO_NAMESPACE, text)
            continue
        labels = namespace.meta.labels
        if keys.USE_WAYPOINT in labels:
            traffic = FOR_SERVICES | FOR_WORKLOADS
            enrolling = Enrolling(ref, {}, name, labels, traffic, {}, namespace.meta.annotations)
            yield from find_waypoint(enrolling, index, "").notes


def _idle(registry: Registry) -> Iterator[Note]:
    index = registry.index
    serving = {name for resource in registry.resources[ADDRESS].values() for name in resource.services}
    for ref, value in index.objects.items():
        match value:
            case WorkloadEntry(meta=meta) if (
                keys.NODE not in meta.labels and meta.labels.get(keys.DATAPLANE_MODE) != "none"
            ):
                text = f"has no label {keys.NODE}: no node can capture it or speak for it"
                yield Note(ref, Reason.NO_NODE, text)
            case EndpointSlice(service=service) if service:
                if Ref(Kind.SERVICE.value, ref.namespace, service) not in index.objects:
                    yield Note(
                        ref, Reason.SERVICE_NOT_FOUND, f"there is no Service {ref.namespace}/{service}"
                    )
            case Service() if ref.kind == WAYPOINT_SERVICE:
                pass
            case Service(selector=selector) | ServiceEntry(selector=selector) if selector:
                names = [f"{ref.namespace}/{host}" for host in index.hosts_of(value)]
                if names and not any(name in serving for name in names):
                    yield Note(ref, Reason.NO_EFFECT, "its selector finds no workload")
            case AuthorizationPolicy(selector=selector) | PeerAuthentication(selector=selector) if selector:
                place = "" if ref.namespace == registry.root_namespace else ref.namespace
                if not index.is_any_selected(place, selector):
                    yield Note(ref, Reason.NO_EFFECT, "its selector finds no workload")
            case _:
                pass
