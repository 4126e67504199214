"""The delta xDS method, its types, and protobuf in and out of bytes."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from config.errors import XdsProtocolError
from proto.envoy import discovery_pb2 as pb

METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
WORKLOAD_TYPE: Final = "type.googleapis.com/istio.workload.Workload"  # the former name of ADDRESS_TYPE
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"
SERVICE_ROUTES_TYPE: Final = "type.googleapis.com/mycelia.waypoint.ServiceRoutes"
CONNECTION_LIMITS_TYPE: Final = "type.googleapis.com/mycelia.ztunnel.ConnectionLimits"
# Of our own, for clients that other control planes serve too: those need not answer.
OPTIONAL_TYPES: Final = frozenset({CONNECTION_LIMITS_TYPE})
EVERYTHING: Final = "*"


def parse_request(message: bytes) -> pb.DeltaDiscoveryRequest:
    """Raises XdsProtocolError."""
    try:
        return pb.DeltaDiscoveryRequest.FromString(message)
    except DecodeError as error:
        raise XdsProtocolError("a discovery request cannot be decoded") from error


def parse_response(message: bytes) -> pb.DeltaDiscoveryResponse:
    """Raises XdsProtocolError."""
    try:
        return pb.DeltaDiscoveryResponse.FromString(message)
    except DecodeError as error:
        raise XdsProtocolError("a discovery response cannot be decoded") from error
