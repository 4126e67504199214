"""Which waypoint an object goes through (config-api 5.3). Pure.

A label that cannot be honoured gives no waypoint and a note; there is no fallback from the object's own
label to the namespace's, and a namespace's waypoint of the wrong traffic type is silently not meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from config import keys
from config.compile.addresses import network_address
from config.kinds.gateway import WAYPOINT_CLASS
from config.notes import Note, Reason
from config.objects import AllowedFrom, Gateway, Ref
from config.registry.selectors import is_selected
from proto.istio import workload_pb2 as pb

NO_WAYPOINT: Final = "none"
FOR_SERVICES: Final = frozenset({"service", "all"})
FOR_WORKLOADS: Final = frozenset({"workload", "all"})

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The outcome: the address to publish, the Gateway that was looked at, and what stands against it."""

    address: pb.GatewayAddress | None = None
    gateway: Ref | None = None
    note: Note | None = None


@dataclass(frozen=True, slots=True)
class Enrolling:
    """The object that may go through a waypoint, and its namespace's labels."""

    ref: Ref
    labels: Labels
    namespace: str
    namespace_labels: Labels
    traffic: frozenset[str]


def find_waypoint(
    enrolling: Enrolling, gateway_of: Callable[[Ref], Gateway | None], network: str
) -> Enrolment:
    if keys.GATEWAY_NAME in enrolling.labels:
        return Enrolment()  # a waypoint's own service and pods have none
    is_own = keys.USE_WAYPOINT in enrolling.labels
    labels = enrolling.labels if is_own else enrolling.namespace_labels
    name = labels.get(keys.USE_WAYPOINT, NO_WAYPOINT)
    if name in (NO_WAYPOINT, ""):
        return Enrolment()
    ref = Ref("Gateway", labels.get(keys.USE_WAYPOINT_NAMESPACE) or enrolling.namespace, name)
    gateway = gateway_of(ref)

    def refused(reason: Reason, text: str) -> Enrolment:
        return Enrolment(None, ref, Note(enrolling.ref, reason, text))

    if gateway is None or gateway.class_name != WAYPOINT_CLASS:
        return refused(
            Reason.WAYPOINT_NOT_READY,
            f"label {keys.USE_WAYPOINT}: there is no waypoint {ref.namespace}/{ref.name}; "
            "traffic goes without one",
        )
    if not gateway.hostname and not gateway.addresses:
        return refused(
            Reason.WAYPOINT_NOT_READY,
            f"waypoint {ref.namespace}/{ref.name} has no address yet; traffic goes without it",
        )
    traffic = gateway.meta.labels.get(keys.WAYPOINT_FOR, "service")
    if traffic not in enrolling.traffic:
        if not is_own:
            return Enrolment(None, ref)
        return refused(
            Reason.WAYPOINT_TRAFFIC_TYPE,
            f"waypoint {ref.namespace}/{ref.name} is for traffic of type {traffic}; "
            f"allowed: {', '.join(sorted(enrolling.traffic))}",
        )
    if not _may_enrol(gateway, enrolling):
        return refused(
            Reason.WAYPOINT_DENIED,
            f"waypoint {ref.namespace}/{ref.name} does not take objects of namespace {enrolling.namespace}",
        )
    return Enrolment(_address(gateway, network), ref)


def _may_enrol(gateway: Gateway, enrolling: Enrolling) -> bool:
    if gateway.meta.namespace == enrolling.namespace or gateway.allowed_from is AllowedFrom.ALL:
        return True
    if gateway.allowed_from is AllowedFrom.SAME:
        return False
    return is_selected(gateway.allowed_labels, enrolling.namespace_labels)


def _address(gateway: Gateway, network: str) -> pb.GatewayAddress:
    address = pb.GatewayAddress(hbone_mtls_port=gateway.port)
    if gateway.hostname:
        address.hostname.namespace = gateway.meta.namespace
        address.hostname.hostname = gateway.hostname
    else:
        address.address.CopyFrom(network_address(network, gateway.addresses[0]))
    return address
