"""Status conditions of services, Gateways and routes (config-api 5.1, 5.4, 7). Worked out when somebody asks,
never on a change. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from config.compile.attached import AttachedPolicy
from config.kinds.gateway import WAYPOINT_CLASS
from config.notes import Condition, Note, Reason
from config.objects import (
    BackendTlsPolicy,
    BackendTrafficPolicy,
    DestinationRule,
    Gateway,
    GatewayClass,
    GrpcRoute,
    HttpRoute,
    Namespace,
    Pod,
    RateLimitPolicy,
    Ref,
    Route,
    Service,
    ServiceEntry,
    TcpRoute,
    Telemetry,
    TlsRoute,
    VirtualService,
    WorkloadEntry,
)
from config.registry.attached_policies import Bound, attach_policy
from config.registry.attachment import attach, candidates_on, ports_of, speaks_of, unresolved
from config.registry.backend_conditions import of_backend_policy
from config.registry.object_views import WAYPOINT_SERVICE
from config.registry.registry import Registry
from config.registry.requirement_conditions import requirement_conditions
from config.registry.route_index import backends_of, parent_key
from config.registry.rule_conditions import of_destination_rule
from config.registry.telemetry import attach_telemetry
from config.registry.virtual_attachment import ServiceHost
from config.registry.virtual_conditions import of_virtual_service
from config.registry.waypoint_processes import troubles
from config.registry.waypoints import CLASS_REF, Enrolment
from config.routing_rules import ParentRef

WAYPOINT_BOUND = "istio.io/WaypointBound"
WAYPOINT_ACCEPTED = "WaypointAccepted"


def conditions(registry: Registry) -> list[Condition]:
    """By object, in the order in which its parents are written."""
    found: list[Condition] = []
    for ref in sorted(registry.index.objects):
        match registry.index.objects[ref]:
            case Namespace() | Pod() | WorkloadEntry() as asking:
                found += requirement_conditions(registry, asking)
            case Service() | ServiceEntry() as service if ref.kind != WAYPOINT_SERVICE:
                found += _of_service(registry, service)
                found += requirement_conditions(registry, service)
            case Gateway() as gateway if gateway.class_name == WAYPOINT_CLASS:
                found += _of_gateway(registry, gateway)
            case GatewayClass() if ref == CLASS_REF:
                text = "this mesh runs Gateways of this class"
                found.append(Condition(ref, "Accepted", is_true=True, reason=Reason.ACCEPTED, message=text))
            case HttpRoute() | GrpcRoute() | TcpRoute() | TlsRoute() as route:
                found += _of_route(registry, route)
            case VirtualService() as virtual:
                found += of_virtual_service(registry, virtual)
            case BackendTrafficPolicy() | BackendTlsPolicy() as policy:
                found += of_backend_policy(registry, policy)
            case RateLimitPolicy() as policy if not policy.limits:
                pass  # no waypoint has to accept it
            case policy if isinstance(policy, AttachedPolicy) and policy.targets:
                found.append(of_attached(registry, policy))
            case Telemetry() as telemetry:
                found.append(of_telemetry(registry, telemetry))
            case DestinationRule() as rule:
                found += of_destination_rule(registry, rule)
            case _:
                pass
    return found


def complaints(registry: Registry) -> Iterator[Note]:
    """What conditions of routes and Gateways say against them, as notes."""
    for each in conditions(registry):
        is_bad = not each.is_true or each.type == "PartiallyInvalid"
        if is_bad and each.type not in (WAYPOINT_BOUND, WAYPOINT_ACCEPTED):  # the registry's own notes
            where = f"parent {each.parent}: " if each.parent else ""
            yield Note(each.ref, each.reason, f"{where}{each.message}")


# ---- policies ----


def of_telemetry(registry: Registry, telemetry: Telemetry) -> Condition:
    """Whether it counts as it is written."""
    notes = attach_telemetry(telemetry, registry).notes
    reason = notes[0].reason if notes else Reason.ACCEPTED
    text = "; ".join(note.text for note in notes) or "it counts at waypoints"
    return Condition(telemetry.meta.ref, WAYPOINT_ACCEPTED, is_true=not notes, reason=reason, message=text)


def of_attached(registry: Registry, policy: AttachedPolicy) -> Condition:
    """Whether all targets of a policy lead to a waypoint (config-api 8.6)."""
    bound = attach_policy(policy, registry).bound
    good = [one for one in bound if one.waypoints]
    words = [f"{one.target}: bound to {_names(one)}" for one in good]
    words += [f"{one.target}: {one.text}" for one in bound if not one.waypoints]
    reason = Reason.ACCEPTED
    if len(good) < len(bound):
        reason = Reason.PARTIALLY_INVALID if good else bound[0].reason
    is_true = bool(good)
    return Condition(policy.meta.ref, WAYPOINT_ACCEPTED, is_true, reason, "; ".join(words))


def _names(bound: Bound) -> str:
    return ", ".join(f"waypoint {each.namespace}/{each.name}" for each in bound.waypoints)


# ---- services and Gateways ----


def _of_service(registry: Registry, service: Service | ServiceEntry) -> Iterator[Condition]:
    ref, enrolment = service.meta.ref, registry.enrolment(service)
    if enrolment.bound:
        text = bound_text(registry, enrolment)
        yield Condition(ref, WAYPOINT_BOUND, is_true=True, reason=Reason.WAYPOINT_ACCEPTED, message=text)
    elif enrolment.notes:
        note = enrolment.notes[0]
        yield Condition(ref, WAYPOINT_BOUND, is_true=False, reason=note.reason, message=note.text)


def bound_text(registry: Registry, enrolment: Enrolment) -> str:
    """Names the waypoints that serve something, and what is wrong with them."""
    primary = enrolment.bound[0]
    parts = [f"bound to waypoint {primary.namespace}/{primary.name}"]
    if enrolment.weighted:
        canary, weight = enrolment.bound[1], enrolment.weighted[1][1]
        parts.append(f"{weight} % of new connections go to canary {canary.namespace}/{canary.name}")
    parts += [note.text for note in enrolment.notes]
    for each in enrolment.bound:
        replicas = registry.index.replicas(each)
        name = f"{each.namespace}/{each.name}"
        if not replicas.known:
            parts.append(f"{name} has an address by its status, but none of its workloads is known here")
        elif not replicas.ready:
            parts.append(f"no workload of {name} is ready: what goes to it fails")
    return "; ".join(parts)


def _of_gateway(registry: Registry, gateway: Gateway) -> Iterator[Condition]:
    ref = gateway.meta.ref
    text = "one HBONE listener on port 15008"
    yield Condition(ref, "Accepted", is_true=True, reason=Reason.ACCEPTED, message=text)
    replicas = registry.index.replicas(ref)
    sources = registry.index.replica_sources(ref)
    trouble = "; ".join(troubles((source, registry.index.word_of(source)) for source in sources))
    is_elsewhere = bool(gateway.hostname or gateway.addresses) and not replicas.known
    if replicas.ready:
        text = f"{replicas.ready} of {replicas.known} workloads are ready"
        text += f" ({trouble})" if trouble else ""
    elif is_elsewhere:
        text = "its status names an address; none of its workloads is known here"
    elif replicas.known:
        text = f"none of its {replicas.known} workloads is ready"
        text += f" ({trouble})" if trouble else ""
    else:
        text = f"no workload has the label gateway.networking.k8s.io/gateway-name={ref.name}"
    is_up = bool(replicas.ready) or is_elsewhere
    reason = Reason.PROGRAMMED if is_up else Reason.ADDRESS_NOT_ASSIGNED
    yield Condition(ref, "Programmed", is_true=is_up, reason=reason, message=text)


# ---- routes ----


def _of_route(registry: Registry, route: Route) -> Iterator[Condition]:
    if not route.parents:
        text = "has no parentRefs: it is attached to nothing"
        yield Condition(route.meta.ref, "Accepted", is_true=False, reason=Reason.NO_PARENT, message=text)
    for parent in route.parents:
        for type_, is_true, reason, message in _at_parent(registry, route, parent):
            yield Condition(route.meta.ref, type_, is_true, reason, message, str(parent))


_Verdict = tuple[str, bool, Reason, str]


def _at_parent(registry: Registry, route: Route, parent: ParentRef) -> Iterator[_Verdict]:
    key = parent_key(parent)
    service = registry.index.service(key) if key is not None else None
    if key is None or service is None:
        yield "Accepted", False, Reason.NO_PARENT, _why_no_parent(key, parent)
    else:
        enrolment = registry.enrolment(service)
        reason, text = _acceptance(registry, route, service, parent, enrolment)
        yield "Accepted", reason is Reason.ACCEPTED, reason, text
        yield from _partial(route)
        yield _waypoints(key, enrolment)
    problems = list(unresolved(registry.index, backends_of(route)))
    if problems:
        texts = dict.fromkeys(each.target.problem for each in problems)
        yield "ResolvedRefs", False, problems[0].reason, "; ".join(texts)
    else:
        yield "ResolvedRefs", True, Reason.RESOLVED_REFS, "all backends are there"


def _why_no_parent(key: Ref | None, parent: ParentRef) -> str:
    if key is not None:
        return f"there is no {key}"
    return (
        f'kind "{parent.kind}" of group "{parent.group}" takes no routes in this mesh; '
        'allowed: group "" kind Service, group networking.istio.io kind ServiceEntry'
    )


def _acceptance(
    registry: Registry,
    route: Route,
    service: Service | ServiceEntry,
    parent: ParentRef,
    enrolment: Enrolment,
) -> tuple[Reason, str]:
    key = service.meta.ref
    ports = [port for port in ports_of(service) if speaks_of(parent, key, port)]
    if not ports:
        return Reason.NO_PARENT, f"{key} has no such port"
    namespaces = {each.namespace for each in enrolment.bound}
    if route.meta.namespace not in {key.namespace, *namespaces}:
        text = "a route counts in the namespace of the service or of its waypoint only"
        return Reason.UNSUPPORTED_VALUE, text
    refused = sorted(_unsupported_rules(route))
    if refused and len(refused) == len(route.rules):
        return Reason.UNSUPPORTED_VALUE, _refused_text(route, refused)
    lost: dict[int, tuple[Reason, str]] = {}
    won: set[int] = set()
    for host in registry.index.hosts_of(service):
        at = ServiceHost(key, host, frozenset(namespaces))
        refusals = {
            each.port: (each.reason, each.text)
            for each in attach(registry.index, at, ports, candidates_on(registry.index, at)).refusals
            if each.route == route.meta.ref
        }
        lost |= refusals
        won |= {port.number for port in ports} - refusals.keys()
    if won:
        but = "".join(f"; not on port {port}: {text}" for port, (_, text) in lost.items() if port not in won)
        return Reason.ACCEPTED, f"attached to port {', '.join(map(str, sorted(won)))}{but}"
    if lost:
        return next(iter(lost.values()))
    return Reason.NO_PARENT, f"{key} has no part in the mesh"


def _unsupported_rules(route: Route) -> list[int]:
    if not isinstance(route, HttpRoute | GrpcRoute):
        return []
    filters = [rule.filters.unsupported for rule in route.rules]
    return [index for index, unsupported in enumerate(filters) if unsupported]


def _refused_text(route: Route, indexes: list[int]) -> str:
    assert isinstance(route, HttpRoute | GrpcRoute)
    filters = [rule.filters.unsupported for rule in route.rules]
    texts = [f"rules[{index}]: filter {', '.join(filters[index])} is not supported" for index in indexes]
    return f"{'; '.join(texts)}; requests that match get 500"


def _partial(route: Route) -> Iterator[_Verdict]:
    refused = _unsupported_rules(route)
    if refused and len(refused) < len(route.rules):
        yield "PartiallyInvalid", True, Reason.UNSUPPORTED_VALUE, _refused_text(route, refused)


def _waypoints(key: Ref, enrolment: Enrolment) -> _Verdict:
    if enrolment.bound:
        names = ", ".join(f"{each.namespace}/{each.name}" for each in enrolment.bound)
        return "ResolvedWaypoints", True, Reason.RESOLVED, f"{key} goes through waypoint {names}"
    why = f" ({enrolment.notes[0].text})" if enrolment.notes else ""
    text = f"{key} goes through no waypoint{why}: nothing applies the route"
    return "ResolvedWaypoints", False, Reason.WAYPOINT_NOT_READY, text
