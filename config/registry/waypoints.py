"""Which waypoint an object goes through (config-api 5.3). Pure.

A label that cannot be honoured gives no waypoint and a note; there is no fallback from the object's own
label to the namespace's, and a namespace's waypoint of the wrong traffic type is silently not meant.

A waypoint has an address when its status says one, or else once it has a workload (label
`gateway.networking.k8s.io/gateway-name`): then it is reached by the hostname of the service that the registry
makes of it. A workload that is not ready does not take the address away, as traffic would go around the
waypoint's policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from config import keys
from config.compile.addresses import network_address
from config.kinds.gateway import WAYPOINT_CLASS
from config.notes import Note, Reason
from config.objects import AllowedFrom, Gateway, GatewayClass, LabelExpression, LabelOperator, Ref
from config.registry.selectors import is_selected
from proto.istio import workload_pb2 as pb

NO_WAYPOINT: Final = "none"
FOR_SERVICES: Final = frozenset({"service", "all"})
FOR_WORKLOADS: Final = frozenset({"workload", "all"})
CLASS_REF: Final = Ref("GatewayClass", "", WAYPOINT_CLASS)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Replicas:
    """A waypoint's own workloads."""

    known: int = 0
    ready: int = 0


class WaypointView(Protocol):
    """The index, as far as waypoints are looked up in it."""

    def gateway(self, ref: Ref) -> Gateway | None: ...
    def gateway_class(self) -> GatewayClass | None: ...
    def replicas(self, gateway: Ref) -> Replicas: ...
    def waypoint_hostname(self, gateway: Ref) -> str: ...


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The outcome: the address to publish, the Gateways looked at, and what stands against them.

    `bound` are the waypoints that serve the object, the primary first; `weighted` is empty without a canary.
    """

    address: pb.GatewayAddress | None = None
    looked: tuple[Ref, ...] = ()
    bound: tuple[Ref, ...] = ()
    weighted: tuple[tuple[pb.GatewayAddress, int], ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Enrolling:
    """The object that may go through a waypoint, and its namespace."""

    ref: Ref
    labels: Labels
    namespace: str
    namespace_labels: Labels
    traffic: frozenset[str]
    annotations: Labels = field(default_factory=dict)
    namespace_annotations: Labels = field(default_factory=dict)


def find_waypoint(enrolling: Enrolling, view: WaypointView, network: str) -> Enrolment:
    if keys.GATEWAY_NAME in enrolling.labels:
        return Enrolment()  # a waypoint's own service and pods have none
    is_own = keys.USE_WAYPOINT in enrolling.labels
    labels = enrolling.labels if is_own else enrolling.namespace_labels
    name = labels.get(keys.USE_WAYPOINT, NO_WAYPOINT)
    if name in (NO_WAYPOINT, ""):
        return Enrolment()
    ref = Ref("Gateway", labels.get(keys.USE_WAYPOINT_NAMESPACE) or enrolling.namespace, name)
    refusal = _refusal(enrolling, view, ref, keys.USE_WAYPOINT)
    if refusal is not None:
        is_meant = is_own or refusal[0] is not Reason.WAYPOINT_TRAFFIC_TYPE
        notes = (Note(enrolling.ref, *refusal),) if is_meant else ()
        return Enrolment(looked=(ref,), notes=notes)
    primary = _address(view, ref, network)
    alone = Enrolment(primary, (ref,), (ref,))
    canary = _canary_of(enrolling, is_own=is_own)
    return alone if canary is None else _with_canary(alone, canary, enrolling, view, network)


def _canary_of(enrolling: Enrolling, *, is_own: bool) -> tuple[Ref, str] | None:
    """The canary and its weight as written; the namespace's only if the object inherits the waypoint."""
    labels, annotations = enrolling.labels, enrolling.annotations
    if keys.USE_WAYPOINT_CANARY not in labels and not is_own:
        labels, annotations = enrolling.namespace_labels, enrolling.namespace_annotations
    name = labels.get(keys.USE_WAYPOINT_CANARY, NO_WAYPOINT)
    if name in (NO_WAYPOINT, ""):
        return None
    namespace = labels.get(keys.USE_WAYPOINT_CANARY_NAMESPACE) or enrolling.namespace
    return Ref("Gateway", namespace, name), annotations.get(keys.USE_WAYPOINT_CANARY_WEIGHT, "0")


def _with_canary(
    alone: Enrolment, canary: tuple[Ref, str], enrolling: Enrolling, view: WaypointView, network: str
) -> Enrolment:
    ref, text = canary
    (primary,) = alone.bound

    def only_primary(reason: Reason, why: str) -> Enrolment:
        note = Note(enrolling.ref, reason, f"{why}; only {primary.namespace}/{primary.name} is used")
        return Enrolment(alone.address, tuple(dict.fromkeys((primary, ref))), alone.bound, notes=(note,))

    weight = int(text) if text.isascii() and text.isdecimal() and len(text) <= 3 else -1
    if not 0 <= weight <= 100:
        return only_primary(
            Reason.CANARY_WEIGHT,
            f'annotation {keys.USE_WAYPOINT_CANARY_WEIGHT}: found text "{text}"; allowed: "0" to "100"',
        )
    if ref == primary:
        return only_primary(Reason.CANARY_SAME, f"canary {ref.namespace}/{ref.name} is the waypoint itself")
    refusal = _refusal(enrolling, view, ref, keys.USE_WAYPOINT_CANARY)
    if refusal is not None:
        return only_primary(Reason.CANARY_NOT_READY, refusal[1])
    replicas = view.replicas(ref)
    if replicas.known and not replicas.ready:
        return only_primary(
            Reason.CANARY_NOT_READY, f"no workload of canary {ref.namespace}/{ref.name} is ready"
        )
    assert alone.address is not None
    weighted = ((alone.address, 100 - weight), (_address(view, ref, network), weight)) if weight else ()
    return Enrolment(alone.address, (primary, ref), (primary, ref), weighted)


def _refusal(enrolling: Enrolling, view: WaypointView, ref: Ref, key: str) -> tuple[Reason, str] | None:
    """Why the object cannot have this waypoint."""
    gateway = view.gateway(ref)
    name = f"waypoint {ref.namespace}/{ref.name}"
    if gateway is None or gateway.class_name != WAYPOINT_CLASS:
        return Reason.WAYPOINT_NOT_READY, f"label {key}: there is no {name}; traffic goes without one"
    if not has_address(view, gateway):
        text = (
            f"{name} has no address yet: its status names none, and no workload has the label "
            f"{keys.GATEWAY_NAME}={ref.name}; traffic goes without it"
        )
        return Reason.WAYPOINT_NOT_READY, text
    traffic = traffic_type(view, gateway)
    if traffic not in enrolling.traffic:
        allowed = ", ".join(sorted(enrolling.traffic))
        return Reason.WAYPOINT_TRAFFIC_TYPE, f"{name} is for traffic of type {traffic}; allowed: {allowed}"
    if not _may_enrol(gateway, enrolling):
        return Reason.WAYPOINT_DENIED, f"{name} does not take objects of namespace {enrolling.namespace}"
    return None


def has_address(view: WaypointView, gateway: Gateway) -> bool:
    return bool(gateway.hostname or gateway.addresses or view.replicas(gateway.meta.ref).known)


def traffic_type(view: WaypointView, gateway: Gateway) -> str:
    """The Gateway's label, or else its class's."""
    own = gateway.meta.labels.get(keys.WAYPOINT_FOR)
    if own is not None:
        return own
    gateway_class = view.gateway_class()
    labels: Labels = gateway_class.meta.labels if gateway_class is not None else {}
    return labels.get(keys.WAYPOINT_FOR, "service")


def _may_enrol(gateway: Gateway, enrolling: Enrolling) -> bool:
    if gateway.meta.namespace == enrolling.namespace or gateway.allowed_from is AllowedFrom.ALL:
        return True
    if gateway.allowed_from is AllowedFrom.SAME:
        return False
    labels = enrolling.namespace_labels
    return is_selected(gateway.allowed_labels, labels) and all(
        _holds(expression, labels) for expression in gateway.allowed_expressions
    )


def _holds(expression: LabelExpression, labels: Labels) -> bool:
    found = labels.get(expression.key)
    match expression.operator:
        case LabelOperator.IN:
            return found in expression.values
        case LabelOperator.NOT_IN:
            return found not in expression.values
        case LabelOperator.EXISTS:
            return found is not None
        case LabelOperator.DOES_NOT_EXIST:
            return found is None


def _address(view: WaypointView, ref: Ref, network: str) -> pb.GatewayAddress:
    gateway = view.gateway(ref)
    assert gateway is not None
    address = pb.GatewayAddress(hbone_mtls_port=gateway.port)
    if gateway.addresses and not gateway.hostname:
        address.address.CopyFrom(network_address(network, gateway.addresses[0]))
    else:
        address.hostname.namespace = gateway.meta.namespace
        address.hostname.hostname = gateway.hostname or view.waypoint_hostname(ref)
    return address
