"""What a codec raises at its caller, and the two faults that travel inside a codec.

Nothing here is raised for what a peer sends: a peer's fault becomes an event (events.py).
"""

from __future__ import annotations

from transport.errors import Blame, MeshError
from transport.http2.error_codes import ErrorCode


class Http2Error(MeshError):
    """Base of what an HTTP/2 codec raises at its caller."""

    code = "MYC-1100"


class StreamLimitReached(Http2Error):
    """The peer does not allow one more concurrent stream on this connection."""

    code = "MYC-1101"
    blame = Blame.REMOTE


class GoingAway(Http2Error):
    """The connection takes no new streams: GOAWAY was seen or sent, it failed, or its ids are used up."""

    code = "MYC-1102"
    blame = Blame.REMOTE


class CodecMisuse(Http2Error):
    """The caller broke the codec's contract (a stream that never was, more data than the window allows)."""

    code = "MYC-1103"
    blame = Blame.LOCAL


class ConnectionFault(Exception):
    """Ends the connection with GOAWAY. `reason` is one snake_case name out of a bounded set."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def protocol_error(reason: str) -> ConnectionFault:
    """The most frequent fault of a connection."""
    return ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)
