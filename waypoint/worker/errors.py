"""What goes wrong between a waypoint and the ends that it connects. Codes 7051 to 7099."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class ConnectTimeout(MeshError):
    """No connection to an endpoint in time."""

    code = "MYC-7051"
    blame = Blame.ENVIRONMENT


class UpstreamOverflow(MeshError):
    """Too many requests wait for a connection to one endpoint."""

    code = "MYC-7052"
    blame = Blame.LOCAL


class UpstreamsClosed(MeshError):
    """The connections to endpoints are closed, since the waypoint ends."""

    code = "MYC-7053"
    blame = Blame.LOCAL


class HandlingFailed(MeshError):
    """A defect: what a connection's bytes led to could not be handled, and the connection was ended."""

    code = "MYC-7054"
    blame = Blame.LOCAL


class StreamBroken(MeshError):
    """The other end of a byte stream broke it off."""

    code = "MYC-7055"
    blame = Blame.REMOTE


class IdleTooLong(MeshError):
    """Nothing happened on a connection for the time that it may be idle."""

    code = "MYC-7056"
    blame = Blame.REMOTE
