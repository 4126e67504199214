"""How a try at an upstream ends other than well, and what may be repeated without anyone's leave.

Repeating is safe for what was provably never processed: no connection, or the peer said so (REFUSED_STREAM,
a GOAWAY below the stream). A kept-alive connection that ends before the first octet of an answer very likely
was closed before it saw the request, but that is no proof: then only what is idempotent is repeated (RFC 9110
9.2.2).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from waypoint.worker.answers import NAME_NOT_RESOLVED, OVERFLOW, TRY_TIMEOUT, Answer, refused_before_response

_MAX_REASON: Final = 300
_UNSAFE: Final = re.compile(r"[^!-z|~]+")  # blanks, braces, what is not printable
IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class Cause(enum.Enum):
    """Why a try failed. Values are Envoy's reasons."""

    CONNECT_FAILURE = "connection_failure"
    CONNECT_TIMEOUT = "connection_timeout"
    NAME = "dns_resolution_failure"  # the endpoint's name has no address
    REFUSED = "remote_refused_stream_reset"
    STALE = "stale_connection"  # a reused connection ended before the first octet of the answer
    CLOSED = "connection_termination"
    RESET = "remote_reset"
    PROTOCOL = "protocol_error"
    OVERFLOW = "overflow"
    TRY_TIMEOUT = "per_try_timeout"


@dataclass(frozen=True, slots=True)
class Failure:
    """`text` is the transport's own words, for the log; `code` an HTTP/2 error code, where there was one;
    `transport` why there is no TLS to the endpoint."""

    cause: Cause
    text: str = ""
    code: int = 0
    transport: str = ""

    @property
    def reason(self) -> str:
        """In an answer's details: as Envoy writes it."""
        if not self.transport:
            return self.cause.value
        text = _UNSAFE.sub("_", self.transport[:_MAX_REASON])
        return f"{self.cause.value}|TLS_error:{text}"


_FLAGS: Final = {
    Cause.CONNECT_FAILURE: "UF",
    Cause.CONNECT_TIMEOUT: "UF",
    Cause.NAME: "DF",
    Cause.REFUSED: "UR",
    Cause.STALE: "UC",
    Cause.CLOSED: "UC",
    Cause.RESET: "UR",
    Cause.PROTOCOL: "UPE",
}
_UNPROCESSED: Final = frozenset({Cause.CONNECT_FAILURE, Cause.CONNECT_TIMEOUT, Cause.NAME, Cause.REFUSED})


def is_safe_to_repeat(failure: Failure, method: bytes) -> bool:
    """Whether nobody could tell the repetition from a first try."""
    return failure.cause in _UNPROCESSED or (failure.cause is Cause.STALE and method in IDEMPOTENT)


def answer_to(failure: Failure) -> Answer:
    """What the client is told when there is no further try."""
    match failure.cause:
        case Cause.OVERFLOW:
            return OVERFLOW
        case Cause.NAME:
            return NAME_NOT_RESOLVED
        case Cause.TRY_TIMEOUT:
            return TRY_TIMEOUT
        case Cause.STALE:
            return refused_before_response("UC", Cause.CLOSED.value)
        case Cause.PROTOCOL:
            return refused_before_response("UPE", Cause.PROTOCOL.value, 502)
        case cause:
            return refused_before_response(_FLAGS[cause], cause.value, details=failure.reason)


def flag_of(failure: Failure) -> str:
    """The response flag of a failure after the response began."""
    return _FLAGS.get(failure.cause, "UR")
