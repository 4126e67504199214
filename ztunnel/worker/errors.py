"""What a data worker refuses or gives up on, and each cause's response flag in logs and metrics."""

from __future__ import annotations

from dataplane.state import labels
from dataplane.worker.errors import IdentityUnavailable
from transport.errors import Blame, MeshError
from transport.hbone.errors import HboneConnectTimeout, HboneProtocolError
from transport.tls.errors import TlsSettingsInvalid


class UnknownSource(MeshError):
    """No workload of the mesh state belongs to the namespace that a connection was captured in."""

    code = "MYC-4510"
    blame = Blame.POLICY


class SelfCall(MeshError):
    """A connection leads to one of the proxy's own ports and would run in a circle."""

    code = "MYC-4511"
    blame = Blame.REMOTE


class NoRouteFound(MeshError):
    """The mesh state has no way to the destination."""

    code = "MYC-4512"
    blame = Blame.POLICY


class RouteUnsupported(MeshError):
    """The route is of a kind that this version cannot serve."""

    code = "MYC-4513"
    blame = Blame.LOCAL


class PolicyDenied(MeshError):
    """Authorization policy does not allow the connection."""

    code = "MYC-4514"
    blame = Blame.POLICY


class PolicyChanged(MeshError):
    """Authorization policy does not allow a connection any more that was open."""

    code = "MYC-4515"
    blame = Blame.POLICY


class ConnectionLimited(MeshError):
    """A limit on connections to the workload has no room for another."""

    code = "MYC-4518"
    blame = Blame.POLICY


class ApplicationUnreachable(MeshError):
    """The TCP connection to the application did not come about in time."""

    code = "MYC-4520"
    blame = Blame.ENVIRONMENT


_FLAGS: tuple[tuple[type[MeshError], str], ...] = (
    (PolicyDenied, labels.DENY),
    (PolicyChanged, labels.DENY),
    (ConnectionLimited, labels.RATE_LIMITED),
    (IdentityUnavailable, labels.IDENTITY_ERROR),
    (HboneConnectTimeout, labels.NETWORK_POLICY),
    (HboneProtocolError, labels.H2_HANDSHAKE_FAILURE),
    (TlsSettingsInvalid, labels.TLS_FAILURE),
)


def response_flag(error: MeshError | None) -> str:
    """The flag of facts 11.2; whatever has none of its own is CONNECT."""
    if error is None:
        return labels.NO_FLAG
    for kind, flag in _FLAGS:
        if isinstance(error, kind):
            return flag
    return labels.CONNECT
