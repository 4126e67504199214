"""What the registry has to say about an object that is valid by itself: a warning with a stable reason."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from config.objects import Ref


class Reason(enum.Enum):
    """Istio's condition reasons where Istio has one."""

    WAYPOINT_NOT_READY = "WaypointIsNotReady"
    WAYPOINT_TRAFFIC_TYPE = "UnsupportedTrafficType"
    WAYPOINT_DENIED = "AttachmentDenied"
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


@dataclass(frozen=True, slots=True)
class Note:
    ref: Ref
    reason: Reason
    text: str
