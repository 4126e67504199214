"""Status of what asks for a waypoint (`mycelia.io/waypoint-required`): who may pass, and where it is hollow.

False where nobody may pass, where a workload concerned is out of the mesh (no node proxy is there to refuse
anything), and where others have the waypoint's identity. Worked out when somebody asks. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.notes import Condition, Reason
from config.objects import Namespace, Pod, Ref, Service, ServiceEntry, WorkloadEntry
from config.registry.capture import by_labels
from config.registry.registry import Registry
from config.registry.requirement import asks, asks_whole, is_exempt, principals
from config.registry.waypoints import FOR_SERVICES, FOR_WORKLOADS, Enrolling, Enrolment, find_waypoint
from config.registry.workload_source import WorkloadSource

WAYPOINT_REQUIRED = "mycelia.io/WaypointRequired"
MAX_NAMED = 5

Asking = Namespace | Service | ServiceEntry | Pod | WorkloadEntry


def requirement_conditions(registry: Registry, asking: Asking) -> Iterator[Condition]:
    """One, if the object asks."""
    ref = asking.meta.ref
    if not asks(asking.meta.labels):
        return
    sources, enrolment = _concerned(registry, asking)
    reason, text = _verdict(registry, sources, enrolment)
    is_true = reason is Reason.WAYPOINT_REQUIRED
    yield Condition(ref, WAYPOINT_REQUIRED, is_true=is_true, reason=reason, message=text)


def _concerned(registry: Registry, asking: Asking) -> tuple[list[WorkloadSource], Enrolment]:
    """The workloads that are protected, and the waypoint that comes first to mind for them."""
    index, meta = registry.index, asking.meta
    match asking:
        case Service() | ServiceEntry():
            members = [index.sources[uid] for uid in sorted(index.members(meta.ref, asking))]
            return members, registry.enrolment(asking)
        case Namespace():
            traffic = FOR_SERVICES | FOR_WORKLOADS
            enrolling = Enrolling(meta.ref, {}, meta.name, meta.labels, traffic, {}, meta.annotations)
            found = (each for each in index.sources_in(meta.name) if asks_whole(each, meta.labels))
            return list(found), find_waypoint(enrolling, index, "")
        case Pod() | WorkloadEntry():
            sources = [
                each for each in index.sources_at(meta.ref.namespace, meta.name) if each.owner == meta.ref
            ]
            own = registry.enrolment_of(sources[0]) if sources else Enrolment()
            return sources, own


def _verdict(registry: Registry, sources: list[WorkloadSource], enrolment: Enrolment) -> tuple[Reason, str]:
    bound = frozenset(enrolment.bound)
    passing = sorted(principals(bound, registry.index, registry.settings))
    outside = [str(each.owner) for each in sources if not _is_protected(registry, each)]
    if outside:
        text = f"not enforced on {_listed(outside)}: not captured, so no node proxy refuses anything there"
        return Reason.NOT_CAPTURED, text
    if not bound:
        why = f" ({enrolment.notes[0].text})" if enrolment.notes else ""
        text = f"no waypoint is bound{why}: what does not come through another one is refused"
        return Reason.WAYPOINT_NOT_READY, text
    impostors = [str(each.owner) for each in _impostors(registry, bound)]
    if impostors:
        text = f"{_listed(impostors)} has the waypoint's service account and passes as well"
        return Reason.IDENTITY_SHARED, text
    names = ", ".join(f"{each.namespace}/{each.name}" for each in sorted(bound))
    return Reason.WAYPOINT_REQUIRED, f"only waypoint {names} may connect ({', '.join(passing)})"


def _is_protected(registry: Registry, source: WorkloadSource) -> bool:
    if registry.index.is_waypoint(source):
        return True  # exempt
    is_captured = source.is_redirected or (source.joins_by_labels and by_labels(source, registry)[0])
    return is_captured and not source.is_host_network and not is_exempt(source, registry.index)


def _impostors(registry: Registry, waypoints: Iterable[Ref]) -> Iterator[WorkloadSource]:
    """Plain workloads that run under a waypoint's service account."""
    for waypoint in sorted(waypoints):
        for account in sorted(registry.index.waypoint_accounts(waypoint)):
            for source in registry.index.sources_as(waypoint.namespace, account):
                if not registry.index.is_waypoint(source):
                    yield source


def _listed(names: list[str]) -> str:
    shown = sorted(set(names))
    more = len(shown) - MAX_NAMED
    return ", ".join(shown[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
