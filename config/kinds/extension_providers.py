"""extensionProviders of MeshConfig (config-api 8.7, 14): a name, and exactly one kind of provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from config import extension_providers as inner
from config.kinds.istio_schema import Milliseconds
from config.kinds.route_schema import is_edited_name, is_field_name, is_field_value
from config.kinds.schema import Model, NonEmpty, PortNumber, complain, is_dns_label, is_dns_name, refuse
from telemetry import access_defaults
from telemetry.access_format import FormatRejected, parse_format, parse_labels
from telemetry.otlp_logs import DEFAULT_LOG_NAME

MAX_PROVIDERS: Final = 64
MAX_HEADERS: Final = 64
MAX_CHECK_BODY: Final = 8 * 1024 * 1024
MAX_CHECK_TIMEOUT_MS: Final = 3_600_000
_MAX_PREFIX: Final = 1024


class Strict(Model):
    """It protects: a null is never taken for an absent field."""

    is_null_absent: ClassVar[bool] = False


def _service(text: str) -> str:
    """`host` or `namespace/host`."""
    namespace, slash, host = text.rpartition("/")
    is_named = is_dns_label(namespace) if slash else True
    if not is_named or not is_dns_name(host.lower()):
        refuse("HOST or NAMESPACE/HOST, the name of a service of the mesh")
    return text


def _timeout(value: int) -> int:
    if value > MAX_CHECK_TIMEOUT_MS:
        refuse("at most 1h: a request waits for so long")
    return value


def _status(text: str) -> str:
    if not text.isdecimal() or not 400 <= int(text) <= 599:
        refuse('a status from "400" to "599", as text: whoever gets it was not served')
    return text


def _path_prefix(text: str) -> str:
    plain = text.isascii() and text.isprintable() and not any(char in text for char in " ?#")
    if text and (not text.startswith("/") or not plain or len(text) > _MAX_PREFIX):
        refuse("a path that begins with /, without query, fragment and blanks")
    return text


def _pattern(text: str) -> str:
    """A header's name; a * at one of its ends is any text."""
    name = text[:-1] if text.endswith("*") else text.removeprefix("*")
    if text != "*" and ("*" in name or not is_field_name(name)):
        refuse("the name of a header, a prefix of one (x-auth-*), a suffix (*-auth), or * for all")
    return text.lower()


HeaderPatterns = Annotated[
    list[Annotated[str, AfterValidator(_pattern)]], Field(default_factory=list, max_length=MAX_HEADERS)
]
Timeout = Annotated[Milliseconds, AfterValidator(_timeout)]
Status = Annotated[str, AfterValidator(_status)]


class BodySpec(Strict):
    max_bytes: Annotated[int, Field(ge=1, le=MAX_CHECK_BODY)] = Field(alias="maxRequestBytes")
    may_be_partial: bool = Field(default=False, alias="allowPartialMessage")
    as_bytes: bool = Field(default=False, alias="packAsBytes")

    def to_value(self) -> inner.CheckBody:
        return inner.CheckBody(self.max_bytes, self.may_be_partial, self.as_bytes)


class ServiceSpec(Strict):
    """What every provider has that is a service."""

    service: Annotated[NonEmpty, AfterValidator(_service)]
    port: PortNumber

    def place(self) -> inner.ProviderService:
        namespace, _, host = self.service.rpartition("/")
        return inner.ProviderService(host.lower(), self.port, namespace)


class AuthorizerSpec(ServiceSpec):
    timeout: Timeout = inner.DEFAULT_CHECK_TIMEOUT_MS
    fail_open: bool = Field(default=False, alias="failOpen")
    clear_route_cache: bool = Field(default=False, alias="clearRouteCache")
    status_on_error: Status = Field(default=str(inner.DEFAULT_ERROR_STATUS), alias="statusOnError")
    body: BodySpec | None = Field(default=None, alias="includeRequestBodyInCheck")

    def check_body(self) -> inner.CheckBody | None:
        return self.body.to_value() if self.body is not None else None


class HttpAuthorizerSpec(AuthorizerSpec):
    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = Field(default="", alias="pathPrefix")
    old_request_headers: HeaderPatterns = Field(default_factory=list, alias="includeHeadersInCheck")
    request_headers: HeaderPatterns = Field(default_factory=list, alias="includeRequestHeadersInCheck")
    additional: Annotated[dict[str, str], Field(max_length=MAX_HEADERS)] = Field(
        default_factory=dict, alias="includeAdditionalHeadersInCheck"
    )
    upstream: HeaderPatterns = Field(default_factory=list, alias="headersToUpstreamOnAllow")
    on_deny: HeaderPatterns = Field(default_factory=list, alias="headersToDownstreamOnDeny")
    on_allow: HeaderPatterns = Field(default_factory=list, alias="headersToDownstreamOnAllow")

    @model_validator(mode="after")
    def _check(self) -> HttpAuthorizerSpec:
        if self.old_request_headers and self.request_headers:
            complain(
                "includeHeadersInCheck is the old name of includeRequestHeadersInCheck: write only the new"
            )
        if self.body is not None and self.body.as_bytes:
            complain(
                "includeRequestBodyInCheck.packAsBytes is for envoyExtAuthzGrpc: HTTP sends octets anyway"
            )
        for name, value in self.additional.items():
            if not is_edited_name(name) or name.lower() == "host" or not is_field_value(value):
                complain(f'includeAdditionalHeadersInCheck: "{name}: {value}" is no header that can be added')
            if "%" in value.replace("%%", ""):
                complain(
                    f"includeAdditionalHeadersInCheck: {name} has an operator of Envoy's (%...%) in its value"
                )
        return self

    def to_config(self) -> inner.HttpAuthorizer:
        return inner.HttpAuthorizer(
            service=self.place(),
            timeout_ms=self.timeout,
            path_prefix=self.path_prefix.rstrip("/"),
            fails_open=self.fail_open,
            error_status=int(self.status_on_error),
            clears_route=self.clear_route_cache,
            request_headers=_once(self.request_headers or self.old_request_headers),
            additional_headers=tuple(
                (name.lower(), value.replace("%%", "%")) for name, value in self.additional.items()
            ),
            body=self.check_body(),
            upstream_headers=_once(self.upstream),
            deny_headers=_once(self.on_deny),
            allow_headers=_once(self.on_allow),
        )


class GrpcAuthorizerSpec(AuthorizerSpec):
    def to_config(self) -> inner.GrpcAuthorizer:
        return inner.GrpcAuthorizer(
            service=self.place(),
            timeout_ms=self.timeout,
            fails_open=self.fail_open,
            error_status=int(self.status_on_error),
            clears_route=self.clear_route_cache,
            body=self.check_body(),
        )


class PostHeaderSpec(Model):
    name: NonEmpty
    value: str

    @model_validator(mode="after")
    def _check(self) -> PostHeaderSpec:
        if not is_edited_name(self.name) or self.name.lower() == "host" or not is_field_value(self.value):
            complain(f'headers: "{self.name}: {self.value}" is no header that can be added')
        return self


class PostSpec(Model):
    path: Annotated[NonEmpty, AfterValidator(_path_prefix)]
    headers: Annotated[list[PostHeaderSpec], Field(max_length=MAX_HEADERS)] = Field(default_factory=list)


class OpenTelemetrySpec(ServiceSpec):
    """OTLP over gRPC, with `http` over HTTP; in plaintext."""

    http: PostSpec | None = None

    def to_config(self) -> inner.SpanCollector:
        if self.http is None:
            return inner.SpanCollector(self.place(), inner.SpanWire.OTLP_GRPC)
        return inner.SpanCollector(
            self.place(),
            inner.SpanWire.OTLP_HTTP,
            self.http.path,
            tuple((each.name.lower(), each.value) for each in self.http.headers),
        )


class ZipkinSpec(ServiceSpec):
    path: Annotated[NonEmpty, AfterValidator(_path_prefix)] = "/api/v2/spans"
    context: Literal["USE_B3", "USE_B3_WITH_W3C_PROPAGATION"] = Field(
        default="USE_B3", alias="traceContextOption"
    )

    def to_config(self) -> inner.SpanCollector:
        adds_w3c = self.context != "USE_B3"
        return inner.SpanCollector(self.place(), inner.SpanWire.ZIPKIN, self.path, adds_w3c=adds_w3c)


class LogFormatSpec(Model):
    text: str = ""
    labels: dict[NonEmpty, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> LogFormatSpec:
        if self.text and self.labels:
            complain("logFormat: text and labels exclude each other")
        try:
            parse_format(self.text)
            parse_labels(self.labels)
        except FormatRejected as error:
            complain(f"logFormat: {error.text}")
        return self


class FileAccessLogSpec(Model):
    path: Literal["/dev/stdout"] = "/dev/stdout"
    log_format: LogFormatSpec = Field(default_factory=LogFormatSpec, alias="logFormat")

    def to_config(self) -> inner.FileAccessLog:
        return inner.FileAccessLog(self.log_format.text, tuple(self.log_format.labels.items()))


class OtlpAccessLogSpec(ServiceSpec):
    """OTLP over gRPC; in plaintext."""

    log_name: NonEmpty = Field(default=DEFAULT_LOG_NAME, alias="logName")
    log_format: LogFormatSpec = Field(default_factory=LogFormatSpec, alias="logFormat")

    def to_config(self) -> inner.OtlpAccessLog:
        format_ = self.log_format
        return inner.OtlpAccessLog(
            self.place(), self.log_name, format_.text or access_defaults.TEXT, tuple(format_.labels.items())
        )


class ForeignSpec(Model):
    """Whatever stands in it: nobody reads it."""

    model_config = ConfigDict(extra="allow")


def _once(patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(patterns))


class ProviderSpec(Strict):
    """A field for each kind. The foreign ones are Istio's, and have no meaning here yet."""

    name: NonEmpty
    http_authorizer: HttpAuthorizerSpec | None = Field(default=None, alias="envoyExtAuthzHttp")
    grpc_authorizer: GrpcAuthorizerSpec | None = Field(default=None, alias="envoyExtAuthzGrpc")
    prometheus: ForeignSpec | None = None
    file_access_log: FileAccessLogSpec | None = Field(default=None, alias="envoyFileAccessLog")
    http_access_log: ForeignSpec | None = Field(default=None, alias="envoyHttpAls")
    tcp_access_log: ForeignSpec | None = Field(default=None, alias="envoyTcpAls")
    otel_access_log: OtlpAccessLogSpec | None = Field(default=None, alias="envoyOtelAls")
    zipkin: ZipkinSpec | None = None
    opentelemetry: OpenTelemetrySpec | None = None
    lightstep: ForeignSpec | None = None
    datadog: ForeignSpec | None = None
    opencensus: ForeignSpec | None = None
    skywalking: ForeignSpec | None = None
    stackdriver: ForeignSpec | None = None
    sds: ForeignSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> ProviderSpec:
        if len(self._kinds()) != 1:
            found = ", ".join(self._kinds()) or "none"
            complain(f"a provider has exactly one kind beside its name; found {found}")
        return self

    def _kinds(self) -> dict[str, Any]:
        """By the manifest's names."""
        return {
            field.alias or name: found
            for name, field in type(self).model_fields.items()
            if name != "name" and (found := getattr(self, name)) is not None
        }

    def to_provider(self) -> inner.ExtensionProvider:
        ((kind, spec),) = self._kinds().items()
        make = _KINDS.get(type(spec))
        return inner.ExtensionProvider(self.name, make(spec) if make else inner.ForeignProvider(kind))


_KINDS: Final[Mapping[type[Model], Callable[[Any], inner.ProviderConfig]]] = {
    HttpAuthorizerSpec: HttpAuthorizerSpec.to_config,
    GrpcAuthorizerSpec: GrpcAuthorizerSpec.to_config,
    OpenTelemetrySpec: OpenTelemetrySpec.to_config,
    ZipkinSpec: ZipkinSpec.to_config,
    FileAccessLogSpec: FileAccessLogSpec.to_config,
    OtlpAccessLogSpec: OtlpAccessLogSpec.to_config,
}
