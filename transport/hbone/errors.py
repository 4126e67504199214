"""What can go wrong with a tunnel. Each class is one cause; the ztunnel maps them to response flags."""

from __future__ import annotations

import http

from transport.errors import Blame, MeshError


class TunnelRefused(MeshError):
    """The peer answered CONNECT with a status other than 200."""

    code = "MYC-1201"
    blame = Blame.REMOTE

    def __init__(self, status: int) -> None:
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "unknown"
        super().__init__(f"http status: {status} {phrase}")
        self.status = status


class TunnelReset(MeshError):
    """The peer reset the tunnel's stream with an error code."""

    code = "MYC-1202"
    blame = Blame.REMOTE

    def __init__(self, text: str, *, error_code: int = 0) -> None:
        super().__init__(text)
        self.error_code = error_code


class TunnelUnprocessed(MeshError):
    """The peer certainly did nothing with the request (REFUSED_STREAM, or beyond its GOAWAY): it may be
    repeated.
    """

    code = "MYC-1203"
    blame = Blame.REMOTE


class HboneConnectionLost(MeshError):
    """The connection that carried the tunnel broke."""

    code = "MYC-1204"
    blame = Blame.REMOTE


class HboneKeepaliveTimeout(MeshError):
    """The peer did not acknowledge an HTTP/2 PING in time."""

    code = "MYC-1205"
    blame = Blame.REMOTE


class HboneProtocolError(MeshError):
    """The peer broke HTTP/2 so that the whole connection had to end."""

    code = "MYC-1206"
    blame = Blame.REMOTE


class HboneConnectTimeout(MeshError):
    """No TCP connection to the peer's HBONE port in time."""

    code = "MYC-1207"
    blame = Blame.ENVIRONMENT


class PoolSaturated(MeshError):
    """Too many connections wait for a tunnel to the same destination."""

    code = "MYC-1208"
    blame = Blame.LOCAL


class MalformedTunnelResponse(MeshError):
    """The peer's answer to CONNECT is not a valid response."""

    code = "MYC-1209"
    blame = Blame.REMOTE


class TunnelClosed(MeshError):
    """This side ended the tunnel: drain, removal of the workload, or the pool was closed."""

    code = "MYC-1210"
    blame = Blame.LOCAL


class TunnelTimeout(MeshError):
    """The peer accepted the connection but did not answer CONNECT in time."""

    code = "MYC-1211"
    blame = Blame.REMOTE
