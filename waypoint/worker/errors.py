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
