"""What can go wrong with a TLS connection."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class TlsSettingsInvalid(MeshError):
    """A certificate, key or root bundle cannot be used."""

    code = "MYC-1040"
    blame = Blame.ENVIRONMENT


class HandshakeFailed(MeshError):
    """The TLS handshake failed: protocol, certificate chain or validity."""

    code = "MYC-1041"
    blame = Blame.REMOTE


class HandshakeTimedOut(MeshError):
    """The peer did not finish the TLS handshake in time."""

    code = "MYC-1042"
    blame = Blame.REMOTE


class PeerRejected(MeshError):
    """The peer's certificate is valid, but its identity is not acceptable here."""

    code = "MYC-1043"
    blame = Blame.POLICY


class ProtocolNotAgreed(MeshError):
    """The peer did not agree to HTTP/2 by ALPN."""

    code = "MYC-1044"
    blame = Blame.REMOTE


class TlsBroken(MeshError):
    """The peer sent TLS records that are malformed, forged or out of place."""

    code = "MYC-1045"
    blame = Blame.REMOTE


class TlsTruncated(MeshError):
    """The peer closed the TCP connection without the TLS closing message."""

    code = "MYC-1046"
    blame = Blame.REMOTE


class PeerStalled(MeshError):
    """The peer stopped taking what was still to be sent when we closed the connection."""

    code = "MYC-1048"
    blame = Blame.REMOTE


class HandlerFailed(MeshError):
    """A defect in our own code above the TLS connection ended it."""

    code = "MYC-1047"
    blame = Blame.LOCAL
