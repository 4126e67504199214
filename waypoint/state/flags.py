"""Words for what happened: response flags, details, and the answers that the proxy makes itself.

The names are Envoy's (waypoint-facts 12.1, 15), so that existing dashboards and habits work. An answer made
here always carries a flag or details that say so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from waypoint.state.request import Header


class Flag(enum.StrEnum):
    """`response_flags` of logs and metrics."""

    NONE = "-"
    NO_HEALTHY_UPSTREAM = "UH"
    UPSTREAM_CONNECTION_FAILURE = "UF"
    UPSTREAM_OVERFLOW = "UO"
    NO_ROUTE = "NR"
    RETRY_LIMIT = "URX"
    NO_CLUSTER = "NC"
    DOWNSTREAM_MAX_DURATION = "DT"
    DOWNSTREAM_CLOSED = "DC"
    DOWNSTREAM_PROTOCOL_ERROR = "DPE"
    UPSTREAM_CLOSED = "UC"
    UPSTREAM_RESET = "UR"
    LOCAL_RESET = "LR"
    UPSTREAM_TIMEOUT = "UT"
    UPSTREAM_PROTOCOL_ERROR = "UPE"
    LOCAL_HEALTH_CHECK_FAILED = "LH"
    DELAY_INJECTED = "DI"
    FAULT_INJECTED = "FI"
    RATE_LIMITED = "RL"
    RATE_LIMIT_SERVICE_ERROR = "RLSE"
    EXTERNAL_AUTHORIZATION_DENIED = "UAEX"
    STREAM_IDLE_TIMEOUT = "SI"
    INVALID_HEADER = "IH"
    MAX_STREAM_DURATION = "UMSDR"
    OVERLOADED = "OM"
    DNS_FAILURE = "DF"
    NO_FILTER_CONFIG = "NFCF"


class Details(enum.StrEnum):
    """`response_code_details`; those that take more are made by the functions below."""

    VIA_UPSTREAM = "via_upstream"
    DIRECT_RESPONSE = "direct_response"
    ROUTE_NOT_FOUND = "route_not_found"
    CLUSTER_NOT_FOUND = "cluster_not_found"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    OVERFLOW = "overflow"
    RESPONSE_TIMEOUT = "response_timeout"
    PER_TRY_TIMEOUT = "upstream_per_try_timeout"
    RETRY_BUFFER_EXCEEDED = "request_payload_exceeded_retry_buffer_limit"
    FAULT_ABORT = "fault_filter_abort"
    EXTERNAL_AUTHORIZATION_DENIED = "ext_authz_denied"
    EXTERNAL_AUTHORIZATION_ERROR = "ext_authz_error"
    RATE_LIMITED = "request_rate_limited"
    PATH_NORMALIZATION_FAILED = "path_normalization_failed"
    MISSING_HOST = "missing_host_header"
    LOW_VERSION = "low_version"
    UPGRADE_FAILED = "upgrade_failed"
    CODEC_ERROR = "http1.codec_error"
    LENGTH_AND_CHUNKED = "http1.content_length_and_chunked_not_allowed"
    INVALID_CHARACTERS = "http1.invalid_characters"
    HEADERS_TOO_LARGE = "http1.headers_too_large"
    TOO_MANY_HEADERS = "http1.too_many_headers"
    HEADERS_TOO_SLOW = "request_header_timeout"
    DNS_FAILURE = "dns_resolution_failure"
    STREAM_IDLE_TIMEOUT = "stream_idle_timeout"
    DOWNSTREAM_DISCONNECT = "downstream_remote_disconnect"
    EMPTY_FRAMES_FLOOD = "http2.inbound_empty_frames_flood"
    OUTBOUND_FLOOD = "http2.outbound_frames_flood"
    CORS_PREFLIGHT = "cors_response"
    INVALID_BACKEND = "invalid_backend"


def reset_before_response(reason: str) -> str:
    return f"upstream_reset_before_response_started{{{reason}}}"


def reset_after_response(reason: str) -> str:
    return f"upstream_reset_after_response_started{{{reason}}}"


def denied_by_policy(policy: str) -> str:
    return f"rbac_access_denied_matched_policy[{policy or 'none'}]"


def http2_violation(kind: str) -> str:
    return f"http2.violation.{kind}"


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """An answer made by the proxy. With `grpc_status` it goes out as headers only, status 200."""

    status: int
    body: bytes = b""
    flag: Flag = Flag.NONE
    details: str = ""
    headers: tuple[Header, ...] = ()
    grpc_status: int | None = None


OVERLOADED: Header = (b"x-envoy-overloaded", b"true")

NO_ROUTE = LocalAnswer(404, b"", Flag.NO_ROUTE, Details.ROUTE_NOT_FOUND)
NO_HEALTHY_UPSTREAM = LocalAnswer(
    503, b"no healthy upstream", Flag.NO_HEALTHY_UPSTREAM, Details.NO_HEALTHY_UPSTREAM
)
UPSTREAM_OVERFLOW = LocalAnswer(
    503,
    b"upstream connect error or disconnect/reset before headers. reset reason: overflow",
    Flag.UPSTREAM_OVERFLOW,
    Details.OVERFLOW,
    (OVERLOADED,),
)
REQUEST_TIMEOUT = LocalAnswer(
    504, b"upstream request timeout", Flag.UPSTREAM_TIMEOUT, Details.RESPONSE_TIMEOUT
)
PER_TRY_TIMEOUT = LocalAnswer(
    504, b"upstream request timeout", Flag.UPSTREAM_TIMEOUT, Details.PER_TRY_TIMEOUT
)
NO_BACKEND = LocalAnswer(500, b"", Flag.NO_CLUSTER, Details.CLUSTER_NOT_FOUND)
RATE_LIMITED = LocalAnswer(
    429,
    b"local_rate_limited",
    Flag.RATE_LIMITED,
    Details.RATE_LIMITED,
    ((b"x-envoy-ratelimited", b"true"),),
)

_GRPC_FROM_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_HTTP_FROM_GRPC = {
    0: 200, 1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400,
    12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip


def grpc_status_of(http_status: int) -> int:
    """gRPC's own table (doc/http-grpc-status-mapping.md) as Envoy has it; unknown (2) for the rest."""
    return _GRPC_FROM_HTTP.get(http_status, 2)


def http_status_of(grpc_status: int) -> int:
    """What a gRPC status counts as for outlier detection (waypoint-facts 8)."""
    return _HTTP_FROM_GRPC.get(grpc_status, 500)


def invalid_backend(status: int, problem: str, *, is_grpc: bool) -> LocalAnswer:
    """The answer for the share of a backend that does not exist; gRPC says UNAVAILABLE (config-api 6.4)."""
    return LocalAnswer(
        status,
        b"",
        Flag.NO_CLUSTER,
        f"{Details.INVALID_BACKEND}{{{problem}}}" if problem else Details.CLUSTER_NOT_FOUND,
        grpc_status=14 if is_grpc else None,
    )


def as_grpc(answer: LocalAnswer) -> LocalAnswer:
    """The same answer for a gRPC client: its status becomes gRPC's and the body goes into grpc-message."""
    if answer.grpc_status is not None:
        return answer
    return LocalAnswer(
        answer.status,
        answer.body,
        answer.flag,
        answer.details,
        answer.headers,
        grpc_status=grpc_status_of(answer.status),
    )
