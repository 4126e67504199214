"""MeshConfig's extensionProviders: services beside the mesh that policies name. Values only, checked by
`config.kinds.extension_providers`.

A new kind of provider is a dataclass here, a member of `ProviderConfig`, and a spec with a line in the table
there; whoever uses it asks `MeshConfig.provider` and matches on the type.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

DEFAULT_CHECK_TIMEOUT_MS = 600_000
DEFAULT_ERROR_STATUS = 403


@dataclass(frozen=True, slots=True)
class ProviderService:
    """Where a provider is: a host of the registry, and perhaps only that of one namespace."""

    host: str
    port: int
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.host}" if self.namespace else self.host


@dataclass(frozen=True, slots=True)
class CheckBody:
    """How much of a request's body the provider gets to see."""

    max_bytes: int
    may_be_partial: bool = False
    as_bytes: bool = False


@dataclass(frozen=True, slots=True)
class HttpAuthorizer:
    """envoyExtAuthzHttp. The lists of headers hold exact names, `prefix*` and `*suffix`, in lower case."""

    service: ProviderService
    timeout_ms: int = DEFAULT_CHECK_TIMEOUT_MS
    path_prefix: str = ""
    fails_open: bool = False
    error_status: int = DEFAULT_ERROR_STATUS
    clears_route: bool = False
    request_headers: tuple[str, ...] = ()
    additional_headers: tuple[tuple[str, str], ...] = ()
    body: CheckBody | None = None
    upstream_headers: tuple[str, ...] = ()
    deny_headers: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcAuthorizer:
    """envoyExtAuthzGrpc."""

    service: ProviderService
    timeout_ms: int = DEFAULT_CHECK_TIMEOUT_MS
    fails_open: bool = False
    error_status: int = DEFAULT_ERROR_STATUS
    clears_route: bool = False
    body: CheckBody | None = None


@dataclass(frozen=True, slots=True)
class FileAccessLog:
    """envoyFileAccessLog on standard output: `text`, or labels of a JSON object, or Istio's format."""

    text: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OtlpAccessLog:
    """envoyOtelAls: OTLP over gRPC; `text` is a record's body, labels are its attributes."""

    service: ProviderService
    log_name: str
    text: str
    labels: tuple[tuple[str, str], ...] = ()


class SpanWire(enum.Enum):
    OTLP_GRPC = "OTLP/gRPC"
    OTLP_HTTP = "OTLP/HTTP"
    ZIPKIN = "Zipkin"


@dataclass(frozen=True, slots=True)
class SpanCollector:
    """opentelemetry and zipkin. `adds_w3c`: contexts in W3C's headers beside Zipkin's own."""

    service: ProviderService
    wire: SpanWire
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    adds_w3c: bool = False


@dataclass(frozen=True, slots=True)
class ForeignProvider:
    """One of a kind that Istio knows and this mesh does not have: kept, so that it can be named."""

    kind: str


AccessLog = FileAccessLog | OtlpAccessLog
ProviderConfig = HttpAuthorizer | GrpcAuthorizer | SpanCollector | AccessLog | ForeignProvider


@dataclass(frozen=True, slots=True)
class ExtensionProvider:
    name: str
    config: ProviderConfig
