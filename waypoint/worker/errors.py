"""What goes wrong between a waypoint and the ends that it connects. Codes 7051 to 7099."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class ConnectTimeout(MeshError):
    """No connection to an endpoint in time."""

    code = "MYC-7051"
    blame = Blame.ENVIRONMENT


class HandlingFailed(MeshError):
    """A defect: what a connection's bytes led to could not be handled, and the connection was ended."""

    code = "MYC-7054"
    blame = Blame.LOCAL


class StreamBroken(MeshError):
    """The other end of a byte stream broke it off."""

    code = "MYC-7055"
    blame = Blame.REMOTE


class IdleTooLong(MeshError):
    """A relayed connection carried nothing for its destination's idle time."""

    code = "MYC-7056"
    blame = Blame.POLICY


class OpenTooLong(MeshError):
    """A relayed connection was open for as long as its destination allows."""

    code = "MYC-7057"
    blame = Blame.POLICY


class EndpointTlsFailed(MeshError):
    """TLS to an endpoint cannot be had: its certificate, ours, or the protocol. Nothing was sent."""

    code = "MYC-7059"
    blame = Blame.REMOTE


class PlaintextRefused(MeshError):
    """A defect: an endpoint that wants TLS was to be connected to by who speaks none. Nothing was sent."""

    code = "MYC-7060"
    blame = Blame.LOCAL


class NameNotResolved(MeshError):
    """An endpoint is known by a name only, and the name has no address."""

    code = "MYC-7058"
    blame = Blame.ENVIRONMENT
