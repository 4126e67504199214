"""Answers that the waypoint gives itself: status, flag, detail and words, for HTTP and for gRPC.

Source: waypoint-facts 4, 12.1 and 15. A gRPC client gets a trailers-only response, because it looks at
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from transport.http2.events import Header
from waypoint.state.flags import LocalAnswer
from waypoint.worker.headers import SERVER

_GRPC_OF_STATUS: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_GRPC_UNKNOWN: Final = 2
_GRPC_DEADLINE_EXCEEDED: Final = 4
_SAFE_IN_MESSAGE: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response made here. `flag` is one of Envoy's response flags (`-`: none), `details` says why."""

    status: int
    details: str
    flag: str = "-"
    body: bytes = b""
    headers: tuple[Header, ...] = ()
    grpc_status: int | None = None  # None: what the status means to gRPC

    def head(self, *, is_grpc: bool, is_bodiless: bool) -> tuple[list[Header], bytes]:
        """The header list and the body to send; without a body the headers end the stream."""
        if is_grpc:
            status = self.grpc_status
            if status is None:
                status = _GRPC_OF_STATUS.get(self.status, _GRPC_UNKNOWN)
            message = quote(self.body.decode("utf-8", "replace"), safe=_SAFE_IN_MESSAGE)
            head = [
                (b":status", b"200"),
                (b"content-type", b"application/grpc"),
                (b"grpc-status", b"%d" % status),
            ]
            if message:
                head.append((b"grpc-message", message.encode()))
            return [*head, *self.headers, SERVER], b""
        head = [(b":status", b"%d" % self.status)]
        if self.status >= 200 and self.status not in (204, 304):
            head.append((b"content-length", b"%d" % len(self.body)))
        if self.body and not any(name == b"content-type" for name, _ in self.headers):
            head.append((b"content-type", b"text/plain"))
        head += self.headers
        head.append(SERVER)
        return head, b"" if is_bodiless else self.body


NO_ROUTE: Final = Answer(404, "route_not_found", "NR")
NO_HEALTHY_UPSTREAM: Final = Answer(503, "no_healthy_upstream", "UH", b"no healthy upstream")
RESPONSE_TIMEOUT: Final = Answer(
    504, "response_timeout", "UT", b"upstream request timeout", grpc_status=_GRPC_DEADLINE_EXCEEDED
)
TRY_TIMEOUT: Final = Answer(
    504, "upstream_per_try_timeout", "UT", b"upstream request timeout", grpc_status=_GRPC_DEADLINE_EXCEEDED
)
UPGRADE_REFUSED: Final = Answer(403, "upgrade_failed")
STREAM_IDLE: Final = Answer(504, "stream_idle_timeout", "SI", b"stream timeout")
REQUEST_IDLE: Final = Answer(408, "stream_idle_timeout", "SI", b"stream timeout")  # the client's turn
NAME_NOT_RESOLVED: Final = Answer(503, "dns_resolution_failure", "DF", b"DNS resolution failure")
OVERFLOW: Final = Answer(
    503,
    "overflow",
    "UO",
    b"upstream connect error or disconnect/reset before headers. reset reason: overflow",
    ((b"x-envoy-overloaded", b"true"),),
)
UNWRITABLE_REQUEST: Final = Answer(
    400, "http1.invalid_characters", "DPE", b"the request cannot be sent over HTTP/1"
)
UNWRITABLE_RESPONSE: Final = Answer(
    502, "upstream_reset_before_response_started{protocol_error}", "UPE", b"the response cannot be passed on"
)


def of_local(answer: LocalAnswer) -> Answer:
    """What a decision says that is answered."""
    return Answer(
        answer.status,
        answer.details,
        answer.flag,
        answer.body,
        answer.headers,
        grpc_status=answer.grpc_status,
    )


def refused_before_response(flag: str, reason: str, status: int = 503, *, details: str = "") -> Answer:
    """The upstream failed before its response began; `reason` is snake_case, and what the client is told.
    `details` says more to the log."""
    return Answer(
        status,
        f"upstream_reset_before_response_started{{{details or reason}}}",
        flag,
        b"upstream connect error or disconnect/reset before headers. reset reason: "
        + reason.replace("_", " ").encode(),
    )


def normalisation_refused(reason: str, status: int) -> Answer:
    """The request has no one meaning."""
    details = reason if status != 400 or reason == "missing_host_header" else "path_normalization_failed"
    return Answer(status, details, "-" if status == 404 else "DPE")


def too_large(status: int, details: str) -> Answer:
    """The request is more than the waypoint lets pass (docs/limits.md)."""
    return Answer(status, details, "DPE", details.replace("_", " ").encode())
