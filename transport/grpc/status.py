"""gRPC status codes, the error that carries one, and how HTTP/2 outcomes map to them.

Sources: gRPC "PROTOCOL-HTTP2", "statuscodes" and "http-grpc-status-mapping" documents.
"""

from __future__ import annotations

import enum
from typing import ClassVar
from urllib.parse import unquote_to_bytes

from transport.errors import Blame, MeshError


class GrpcStatus(enum.IntEnum):
    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(MeshError):
    """A gRPC call ended with a status other than OK.

    `message` is what travels in grpc-message: a handler that raises this decides what its client sees.
    """

    code: ClassVar[str] = "MYC-1301"
    blame: ClassVar[Blame] = Blame.REMOTE

    def __init__(self, status: GrpcStatus, message: str = "", *, next_step: str = "") -> None:
        super().__init__(
            f"gRPC {status.name}: {message}" if message else f"gRPC {status.name}", next_step=next_step
        )
        self.status = status
        self.message = message


class ChannelUnavailable(GrpcError):
    """The channel to a gRPC server could not be made, or was lost."""

    code: ClassVar[str] = "MYC-1302"

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(GrpcStatus.UNAVAILABLE, message, next_step=next_step)


MAX_MESSAGE_TEXT_BYTES = 4096


def encode_message(text: str) -> bytes:
    """The grpc-message header value: printable ASCII as it is, all else and `%` percent-encoded."""
    raw = text.encode("utf-8", "replace")[:MAX_MESSAGE_TEXT_BYTES]
    if raw.isascii() and raw.decode("ascii").isprintable() and b"%" not in raw:
        return _guard_edges(raw)
    encoded = b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in raw
    )
    return _guard_edges(encoded)


def _guard_edges(value: bytes) -> bytes:
    """HTTP/2 forbids blanks at the ends of a field value; percent-encoding keeps them."""
    if value[:1] == b" ":
        value = b"%20" + value[1:]
    if value[-1:] == b" ":
        value = value[:-1] + b"%20"
    return value


def decode_message(value: bytes) -> str:
    """Never fails: a peer's broken escape stays as it is, undecodable bytes become U+FFFD."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def status_from_text(value: bytes | None) -> GrpcStatus:
    """UNKNOWN for a missing, malformed or unassigned code."""
    if value is None or not value.isdigit() or len(value) > 2:
        return GrpcStatus.UNKNOWN
    number = int(value)
    return GrpcStatus(number) if number <= GrpcStatus.UNAUTHENTICATED else GrpcStatus.UNKNOWN


_FROM_HTTP = {
    400: GrpcStatus.INTERNAL,
    401: GrpcStatus.UNAUTHENTICATED,
    403: GrpcStatus.PERMISSION_DENIED,
    404: GrpcStatus.UNIMPLEMENTED,
    429: GrpcStatus.UNAVAILABLE,
    502: GrpcStatus.UNAVAILABLE,
    503: GrpcStatus.UNAVAILABLE,
    504: GrpcStatus.UNAVAILABLE,
}


def status_from_http(http_status: int) -> GrpcStatus:
    """What a response without gRPC's own status means."""
    return _FROM_HTTP.get(http_status, GrpcStatus.UNKNOWN)


_FROM_RESET = {
    0x7: GrpcStatus.UNAVAILABLE,  # REFUSED_STREAM: never processed, safe to repeat
    0x8: GrpcStatus.CANCELLED,
    0xB: GrpcStatus.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: GrpcStatus.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def status_from_reset(error_code: int) -> GrpcStatus:
    """What RST_STREAM with this HTTP/2 error code means."""
    return _FROM_RESET.get(error_code, GrpcStatus.INTERNAL)
