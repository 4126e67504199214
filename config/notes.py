"""What the registry has to say about an object that is valid by itself: warnings and status conditions."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from config.objects import Ref


class Reason(enum.Enum):
    """Istio's condition reasons where Istio has one."""

    WAYPOINT_NOT_READY = "WaypointIsNotReady"
    WAYPOINT_TRAFFIC_TYPE = "UnsupportedTrafficType"
    WAYPOINT_DENIED = "AttachmentDenied"
    CANARY_SAME = "CanarySameAsPrimary"
    CANARY_WEIGHT = "CanaryInvalidWeight"
    CANARY_NOT_READY = "CanaryIsNotReady"
    WAYPOINT_ACCEPTED = "WaypointAccepted"
    WAITING_FOR_WAYPOINT = "AncestorNotBound"
    UNSUPPORTED_VALUE = "UnsupportedValue"
    NO_EFFECT = "NoEffect"
    SHADOWED = "Conflicted"
    PORT_NOT_FOUND = "TargetPortNotFound"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    ADDRESS_SHARED = "AddressShared"
    NO_ADDRESS = "NoAddress"
    NO_NAMESPACE = "NamespaceNotFound"
    NO_NODE = "NodeUnknown"
    # Of a waypoint that is required.
    WAYPOINT_REQUIRED = "WaypointRequired"
    NOT_CAPTURED = "NotCaptured"
    IDENTITY_SHARED = "IdentityShared"
    # Of Gateways and routes (Gateway API).
    ACCEPTED = "Accepted"
    PROGRAMMED = "Programmed"
    ADDRESS_NOT_ASSIGNED = "AddressNotAssigned"
    RESOLVED_REFS = "ResolvedRefs"
    RESOLVED = "Resolved"
    NO_PARENT = "NoMatchingParent"
    HOSTNAME_MISMATCH = "NoMatchingListenerHostname"
    INVALID_FILTER = "InvalidFilter"
    BACKEND_NOT_FOUND = "BackendNotFound"
    INVALID_KIND = "InvalidKind"
    TARGET_NOT_FOUND = "TargetNotFound"
    NO_VALID_CA = "NoValidCACertificate"
    INVALID_CA_REF = "InvalidCACertificateRef"
    # Of policies with targetRefs.
    INVALID_TARGET = "Invalid"
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    KEYS_NOT_FETCHED = "JwksNotFetched"
    PARTIALLY_INVALID = "PartiallyInvalid"


@dataclass(frozen=True, slots=True)
class Note:
    ref: Ref
    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Condition:
    """What Kubernetes calls a condition. `parent` is the parent of a route that it speaks of."""

    ref: Ref
    type: str
    is_true: bool
    reason: Reason
    message: str
    parent: str = ""
