"""What a codec raises at its caller, and the fault that travels inside a codec.

Nothing here is raised for what a peer sends: a peer's fault becomes an event (events.py).
"""

from __future__ import annotations

from transport.errors import Blame, MeshError


class Http1Error(MeshError):
    """Base of what an HTTP/1 codec raises at its caller."""

    code = "MYC-1150"


class ExchangeInProgress(Http1Error):
    """The connection takes its next request only when the exchange before it has ended both ways."""

    code = "MYC-1151"
    blame = Blame.LOCAL


class ConnectionSpent(Http1Error):
    """The connection takes no further request: its end was announced, came or was forced."""

    code = "MYC-1152"
    blame = Blame.REMOTE


class CodecMisuse(Http1Error):
    """The caller broke the codec's contract, as with a body that is longer than its content-length."""

    code = "MYC-1153"
    blame = Blame.LOCAL


class UnwritableHead(Http1Error):
    """A header list cannot be written as HTTP/1: something in it would change what the message means."""

    code = "MYC-1154"
    blame = Blame.LOCAL


class Fault(Exception):
    """A fault of the peer, caught inside the codec, never an error of ours.

    `reason` is one snake_case name out of a bounded set; `status` is what a server answers with.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
