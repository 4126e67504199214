"""What a VirtualService does with requests: redirects, rewrites, retries, faults, mirrors, CORS."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Final, Literal

from pydantic import Field, PlainValidator, model_validator

from config import virtual_routes as inner
from config.kinds.istio_schema import (
    MILLION,
    Count,
    DecidedMatch,
    DestinationSpec,
    Headers,
    Milliseconds,
    MillisecondsOrZero,
    Percent,
)
from config.kinds.route_schema import FieldName, check_regex, is_edited_name
from config.kinds.schema import Model, NonEmpty, PortNumber, RequiredName, complain, refuse

MAX_BODY_BYTES: Final = 1 << 20
MAX_PATH: Final = 8192
# What waypoints know; `waypoint.state.rules` has the same list, and a test compares them.
RETRY_CONDITIONS: Final = frozenset(
    {
        "5xx",
        "cancelled",
        "connect-failure",
        "deadline-exceeded",
        "envoy-ratelimited",
        "gateway-error",
        "http3-post-connect-failure",
        "internal",
        "refused-stream",
        "reset",
        "reset-before-request",
        "resource-exhausted",
        "retriable-4xx",
        "retriable-status-codes",
        "unavailable",
    }
)
GRPC_STATUSES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_PATH = re.compile(r"[\x21-\x22\x24-\x3e\x40-\x7e]*\Z")  # printable, without space, # and ?
_AUTHORITY = re.compile(r"[A-Za-z0-9.\-_\[\]:]{1,259}\Z")
_STRAY_BACKSLASH = re.compile(r"\\(?![0-9\\])")


def _path(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_PATH or not _PATH.match(value):
        refuse("a path: printable ASCII without space, ? and #")
    return value


def _authority(value: object) -> str:
    if not isinstance(value, str) or not _AUTHORITY.match(value):
        refuse("a host name or address, perhaps with a port")
    return value


Path = Annotated[str, PlainValidator(_path)]
Authority = Annotated[str, PlainValidator(_authority)]
HttpStatus = Annotated[int, Field(ge=200, le=599)]


class RegexRewrite(Model):
    match: NonEmpty
    substitution: str = Field(alias="rewrite")

    @model_validator(mode="after")
    def _check(self) -> RegexRewrite:
        check_regex(self.match)
        if _STRAY_BACKSLASH.search(self.substitution):
            complain(
                f'rewrite "{self.substitution}": after a backslash comes the digit of a group, or another one'
            )
        return self

    def to_edit(self) -> inner.PathEdit:
        return inner.PathEdit(regex=inner.RegexEdit(self.match, self.substitution))


class RedirectSpec(Model):
    uri: Path | None = None
    prefix: Path | None = Field(default=None, alias="prefixRewrite")
    regex: RegexRewrite | None = Field(default=None, alias="uriRegexRewrite")
    authority: Authority | None = None
    port: PortNumber | None = None
    derived_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = Field(
        default=None, alias="derivePort"
    )
    scheme: Literal["http", "https"] | None = None
    status: Literal[301, 302, 303, 307, 308] = Field(default=301, alias="redirectCode")

    @model_validator(mode="after")
    def _check(self) -> RedirectSpec:
        if sum(each is not None for each in (self.uri, self.prefix, self.regex)) > 1:
            complain("uri, prefixRewrite and uriRegexRewrite exclude each other")
        if self.port is not None and self.derived_port is not None:
            complain("port and derivePort exclude each other")
        has_port = self.authority is not None and re.search(r":[0-9]+\Z", self.authority)
        if has_port and (self.port is not None or self.derived_port == "FROM_REQUEST_PORT"):
            complain(f'authority "{self.authority}" has a port of its own; leave it out there, or port here')
        return self

    def to_redirect(self) -> inner.Redirect:
        path = None
        if self.uri is not None:
            path = inner.PathEdit(full=self.uri)
        elif self.prefix is not None:
            path = inner.PathEdit(prefix=self.prefix)
        elif self.regex is not None:
            path = self.regex.to_edit()
        return inner.Redirect(
            path,
            self.authority or "",
            self.scheme or "",
            self.port or 0,
            inner.DerivedPort(self.derived_port) if self.derived_port is not None else None,
            self.status,
        )


class BodySpec(Model):
    text: str | None = Field(default=None, alias="string")
    octets: str | None = Field(default=None, alias="bytes")

    @model_validator(mode="after")
    def _check(self) -> BodySpec:
        if (self.text is None) == (self.octets is None):
            complain("a body is string or bytes: one of them")
        if len(self.to_bytes()) > MAX_BODY_BYTES:
            complain(f"a body of more than {MAX_BODY_BYTES} bytes")
        return self

    def to_bytes(self) -> bytes:
        if self.text is not None:
            return self.text.encode()
        try:
            return base64.b64decode(self.octets or "", validate=True)
        except binascii.Error:
            complain("bytes is not base64")


class DirectResponseSpec(Model):
    status: HttpStatus
    body: BodySpec | None = None

    def to_response(self) -> inner.DirectResponse:
        return inner.DirectResponse(self.status, self.body.to_bytes() if self.body is not None else b"")


class DelegateSpec(Model):
    name: RequiredName
    namespace: str = ""

    def to_delegate(self, namespace: str) -> inner.Delegate:
        return inner.Delegate(self.namespace or namespace, self.name)


class RewriteSpec(Model):
    uri: Path | None = None
    authority: Authority | None = None
    regex: RegexRewrite | None = Field(default=None, alias="uriRegexRewrite")

    @model_validator(mode="after")
    def _check(self) -> RewriteSpec:
        if self.uri is not None and self.regex is not None:
            complain("uri and uriRegexRewrite exclude each other")
        if self.uri is None and self.regex is None and self.authority is None:
            complain("says nothing; allowed: uri, authority, uriRegexRewrite")
        return self

    def to_rewrite(self) -> inner.Rewrite:
        path = inner.PathEdit(prefix=self.uri) if self.uri is not None else None
        return inner.Rewrite(self.authority or "", self.regex.to_edit() if self.regex is not None else path)


class RetriesSpec(Model):
    attempts: Count = 0
    per_try: MillisecondsOrZero | None = Field(default=None, alias="perTryTimeout")
    on: str = Field(default="", alias="retryOn")
    remote: bool | None = Field(default=None, alias="retryRemoteLocalities")
    avoids_hosts: bool | None = Field(default=None, alias="retryIgnorePreviousHosts")
    backoff: Milliseconds | None = None

    @model_validator(mode="after")
    def _check(self) -> RetriesSpec:
        for word in self._words():
            if word.isdecimal() and not 200 <= int(word[:4]) <= 599:
                complain(f"retryOn: {word} is not a status; allowed: 200 to 599")
            if not word.isdecimal() and word not in RETRY_CONDITIONS:
                allowed = ", ".join(sorted(RETRY_CONDITIONS))
                complain(f'retryOn: "{word}" is not supported; allowed: a status, {allowed}')
        if not self.attempts and (self.per_try or self.backoff or self.on or self.remote):
            complain("attempts is missing or 0, which means no retries; the other fields then mean nothing")
        return self

    def _words(self) -> list[str]:
        return [word for part in self.on.split(",") if (word := part.strip().lower())]

    def to_retries(self) -> inner.Retries:
        words = self._words()
        return inner.Retries(
            self.attempts,
            self.per_try or None,
            tuple(dict.fromkeys(word for word in words if not word.isdecimal())),
            tuple(dict.fromkeys(int(word) for word in words if word.isdecimal())),
            self.backoff,
            bool(self.remote),
            self.avoids_hosts is False,
        )


class DelaySpec(Model):
    percentage: Percent | None = None
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    fixed: Milliseconds = Field(alias="fixedDelay")

    def to_share(self) -> int:
        if self.percentage is not None:
            return self.percentage.to_share()
        return (self.percent or 0) * MILLION // 100


def _grpc_status(value: object) -> int:
    number = GRPC_STATUSES.index(value) if value in GRPC_STATUSES else -1
    if isinstance(value, str) and value.isdecimal() and int(value[:3]) < len(GRPC_STATUSES):
        number = int(value[:3])
    if number < 1:
        refuse(f"a gRPC status other than OK: {', '.join(GRPC_STATUSES[1:])}")
    return number


class AbortSpec(Model):
    percentage: Percent | None = None
    http: HttpStatus | None = Field(default=None, alias="httpStatus")
    grpc: Annotated[int, PlainValidator(_grpc_status)] | None = Field(default=None, alias="grpcStatus")

    @model_validator(mode="after")
    def _check(self) -> AbortSpec:
        if (self.http is None) == (self.grpc is None):
            complain("an abort has httpStatus or grpcStatus: one of them")
        return self


class FaultSpec(Model):
    delay: DelaySpec | None = None
    abort: AbortSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> FaultSpec:
        if self.delay is None and self.abort is None:
            complain("says nothing; allowed: delay, abort")
        return self

    def to_fault(self) -> inner.Fault:
        delay, abort = self.delay, self.abort
        return inner.Fault(
            delay.to_share() if delay is not None else 0,
            delay.fixed if delay is not None else 0,
            abort.percentage.to_share() if abort is not None and abort.percentage is not None else 0,
            (abort.http or 0) if abort is not None else 0,
            (abort.grpc or 0) if abort is not None else 0,
        )


class MirrorPolicy(Model):
    destination: DestinationSpec
    percentage: Percent | None = None

    def to_mirror(self) -> inner.Mirror:
        share = self.percentage.to_share() if self.percentage is not None else MILLION
        return inner.Mirror(self.destination.to_target(), share)


class CorsPolicy(Model):
    plain_origins: list[NonEmpty] = Field(default_factory=list, alias="allowOrigin")
    origins: list[DecidedMatch] = Field(default_factory=list, alias="allowOrigins")
    methods: list[NonEmpty] = Field(default_factory=list, alias="allowMethods")
    headers: list[FieldName] = Field(default_factory=list, alias="allowHeaders")
    exposed: list[FieldName] = Field(default_factory=list, alias="exposeHeaders")
    max_age: MillisecondsOrZero | None = Field(default=None, alias="maxAge")
    credentials: bool = Field(default=False, alias="allowCredentials")
    unmatched: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = Field(
        default="UNSPECIFIED", alias="unmatchedPreflights"
    )

    @model_validator(mode="after")
    def _check(self) -> CorsPolicy:
        if self.plain_origins and self.origins:
            complain("allowOrigin (deprecated) and allowOrigins exclude each other")
        for method in self.methods:
            if method != "*" and not is_edited_name(method):
                complain(f'allowMethods: "{method}" is not a method')
        return self

    def to_cors(self) -> inner.Cors:
        origins = tuple(text for each in self.origins if (text := each.to_text()) is not None)
        plain = tuple(inner.TextMatch(inner.TextKind.EXACT, each) for each in self.plain_origins)
        return inner.Cors(
            origins or plain,
            tuple(self.methods),
            tuple(self.headers),
            tuple(self.exposed),
            self.max_age // 1000 if self.max_age is not None else None,
            self.credentials,
            self.unmatched != "IGNORE",
        )


class HttpDestination(Model):
    destination: DestinationSpec
    weight: Count = 0
    headers: Headers = Field(default_factory=Headers)

    def to_target(self) -> inner.WeightedTarget:
        return inner.WeightedTarget(
            self.destination.to_target(),
            self.weight,
            self.headers.request.to_edit(),
            self.headers.response.to_edit(),
        )


class StreamDestination(Model):
    destination: DestinationSpec
    weight: Count = 0

    def to_target(self) -> inner.WeightedTarget:
        return inner.WeightedTarget(self.destination.to_target(), self.weight)


def check_weights(weights: list[int]) -> None:
    if len(weights) > 1 and not sum(weights):
        complain("route: all weights are 0 (or missing); at least one destination needs a weight")
    if sum(weights) >= 2**32:
        complain("route: the weights add up to 2^32 or more")
