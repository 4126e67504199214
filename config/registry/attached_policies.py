"""Policies with targetRefs: which waypoints they are for, and on what of their traffic they hold. Pure.

A target is a Service or ServiceEntry, a Gateway, the GatewayClass of waypoints (for all of them; only from
the root namespace) or, where the kind allows it, a route. All are in the policy's own namespace (config-api
8.3). A target that is not there, or that no waypoint serves, is reported; the others hold nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from config.compile.service import service_name
from config.kinds.gateway import WAYPOINT_CLASS
from config.notes import Note, Reason
from config.objects import (
    ROUTE_KINDS,
    Gateway,
    Kind,
    Meta,
    Ref,
    Route,
    Service,
    ServiceEntry,
    TargetRef,
)
from config.registry.object_index import ObjectIndex
from config.registry.route_index import parents_of
from config.registry.waypoints import CLASS_REF, Enrolment
from proto.mycelia import attachment_pb2 as pb


class Targeting(Protocol):
    """A policy object."""

    @property
    def meta(self) -> Meta: ...
    @property
    def targets(self) -> tuple[TargetRef, ...]: ...


class Enrolments(Protocol):
    """The registry, as far as it knows who serves a service."""

    @property
    def index(self) -> ObjectIndex: ...
    @property
    def root_namespace(self) -> str: ...
    def enrolment(self, service: Service | ServiceEntry) -> Enrolment: ...


@dataclass(frozen=True, slots=True)
class Bound:
    """What became of one target. `waypoints` are those it leads to; empty: `reason` and `text` say why."""

    target: TargetRef
    waypoints: tuple[Ref, ...] = ()
    services: tuple[str, ...] = ()
    route: str = ""
    is_whole: bool = False
    reason: Reason = Reason.ACCEPTED
    text: str = ""


@dataclass(frozen=True, slots=True)
class Attaching:
    """All targets of a policy. `depends_on`: a change of one of these may change the outcome."""

    bound: tuple[Bound, ...]
    depends_on: frozenset[Ref]

    @property
    def waypoints(self) -> tuple[str, ...]:
        found = {f"{each.namespace}/{each.name}" for one in self.bound for each in one.waypoints}
        return tuple(sorted(found))

    def message(self) -> pb.Attachment:
        whole = {
            f"{each.namespace}/{each.name}" for one in self.bound if one.is_whole for each in one.waypoints
        }
        return pb.Attachment(
            waypoints=sorted(whole),
            services=sorted({name for one in self.bound for name in one.services}),
            routes=sorted({one.route for one in self.bound if one.route}),
        )

    def notes(self, ref: Ref) -> tuple[Note, ...]:
        return tuple(
            Note(ref, one.reason, f"{one.target}: {one.text}") for one in self.bound if not one.waypoints
        )


def target_refs(policy: Targeting) -> Iterator[tuple[TargetRef, Ref]]:
    for target in policy.targets:
        namespace = "" if target.kind == Kind.GATEWAY_CLASS.value else policy.meta.namespace
        yield target, Ref(target.kind, namespace, target.name)


def attach_policy(policy: Targeting, registry: Enrolments) -> Attaching:
    depends: set[Ref] = set()
    bound = []
    for target, ref in target_refs(policy):
        depends.add(ref)
        if ref.kind == Kind.GATEWAY.value:
            bound.append(_to_gateway(target, ref, registry.index))
        elif ref.kind == Kind.GATEWAY_CLASS.value:
            bound.append(_to_class(target, ref, policy, registry))
        elif ref.kind in ROUTE_KINDS:
            bound.append(_to_route(target, ref, registry, depends))
        else:
            bound.append(_to_service(target, ref, registry))
    return Attaching(tuple(bound), frozenset(depends))


def _missing(target: TargetRef, namespace: str) -> Bound:
    text = f"there is no such object in namespace {namespace}; nothing is protected there"
    return Bound(target, reason=Reason.TARGET_NOT_FOUND, text=text)


def _to_service(target: TargetRef, ref: Ref, registry: Enrolments) -> Bound:
    service = registry.index.service(ref)
    if service is None:
        return _missing(target, ref.namespace)
    waypoints = registry.enrolment(service).bound
    if not waypoints:
        text = "no waypoint serves it; not enforced (label it, or its namespace, istio.io/use-waypoint)"
        return Bound(target, reason=Reason.WAITING_FOR_WAYPOINT, text=text)
    names = tuple(service_name(ref.namespace, host) for host in registry.index.hosts_of(service))
    return Bound(target, waypoints, names)


def _to_gateway(target: TargetRef, ref: Ref, index: ObjectIndex) -> Bound:
    gateway = index.gateway(ref)
    if gateway is None:
        return _missing(target, ref.namespace)
    if gateway.class_name != WAYPOINT_CLASS:
        text = f"it is of class {gateway.class_name}, not {WAYPOINT_CLASS}: this mesh does not run it"
        return Bound(target, reason=Reason.WAITING_FOR_WAYPOINT, text=text)
    return Bound(target, (ref,), is_whole=True)


def _to_class(target: TargetRef, ref: Ref, policy: Targeting, registry: Enrolments) -> Bound:
    root = registry.root_namespace
    if policy.meta.namespace != root:
        text = f"only policies of namespace {root} may be for a GatewayClass; not enforced"
        return Bound(target, reason=Reason.INVALID_TARGET, text=text)
    if ref != CLASS_REF:
        text = f"the class of waypoints is {WAYPOINT_CLASS}; not enforced"
        return Bound(target, reason=Reason.INVALID_TARGET, text=text)
    waypoints = all_waypoints(registry.index)
    if not waypoints:
        return Bound(target, reason=Reason.WAITING_FOR_WAYPOINT, text="there is no waypoint; not enforced")
    return Bound(target, waypoints, is_whole=True)


def all_waypoints(index: ObjectIndex) -> tuple[Ref, ...]:
    return tuple(
        sorted(
            each.meta.ref
            for each in index.objects.values()
            if isinstance(each, Gateway) and each.class_name == WAYPOINT_CLASS
        )
    )


def _to_route(target: TargetRef, ref: Ref, registry: Enrolments, depends: set[Ref]) -> Bound:
    route = registry.index.objects.get(ref)
    if not isinstance(route, Route):
        return _missing(target, ref.namespace)
    waypoints: dict[Ref, None] = {}
    for parent in parents_of(route):
        depends.add(parent)
        service = registry.index.service(parent)
        if service is not None:
            waypoints.update(dict.fromkeys(registry.enrolment(service).bound))
    if not waypoints:
        text = "no waypoint serves a service that it is attached to; not enforced"
        return Bound(target, reason=Reason.WAITING_FOR_WAYPOINT, text=text)
    return Bound(target, tuple(waypoints), route=f"{ref.kind}/{ref.namespace}/{ref.name}")


class Attachments:
    """Which policies depend on which objects."""

    def __init__(self) -> None:
        self._on: dict[Ref, set[Ref]] = {}
        self._of: dict[Ref, frozenset[Ref]] = {}

    def put(self, policy: Ref, depends_on: frozenset[Ref]) -> None:
        for ref in self._of.pop(policy, frozenset()):
            held = self._on[ref]
            held.discard(policy)
            if not held:
                del self._on[ref]
        if depends_on:
            self._of[policy] = depends_on
        for ref in depends_on:
            self._on.setdefault(ref, set()).add(policy)

    def dependent(self, changed: Iterable[Ref]) -> set[Ref]:
        """Policies that one of these may change."""
        if not self._of:
            return set()
        found: set[Ref] = set()
        for ref in changed:
            found |= self._on.get(ref, set())
            if ref.kind in (Kind.GATEWAY.value, Kind.GATEWAY_CLASS.value):
                found |= self._on.get(CLASS_REF, set())
        return found
