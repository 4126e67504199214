"""HTTPRoute (gateway.networking.k8s.io), with the checks of its schema (config-api 6.1)."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from config import objects
from config import routing_rules as rules
from config.kinds.route_filters import FilterSpec, HttpBackendSpec, Method, check_filters, to_filters
from config.kinds.route_schema import (
    MAX_BACKENDS,
    MAX_FILTERS,
    MAX_RULES,
    Duration,
    FieldName,
    Hostname,
    RouteSpec,
    RuleName,
    SessionName,
    check_regex,
    milliseconds,
)
from config.kinds.schema import Manifest, Model, NonEmpty, complain, fields
from config.kinds.service import check_unique
from config.routing_rules import PathKind

MAX_MATCHES: Final = 64
MAX_MATCHES_OF_ROUTE: Final = 128
MAX_VALUE: Final = 4096
MAX_PARAMETER: Final = 1024
_PATH = re.compile(r"(?:[A-Za-z0-9/\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+\Z")
_BAD_PARTS: Final = ("//", "/./", "/../", "%2f", "%2F", "#")
_BAD_ENDS: Final = ("/..", "/.")


class PathSpec(Model):
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: Annotated[str, Field(max_length=1024)] = "/"

    @model_validator(mode="after")
    def _check(self) -> PathSpec:
        text = self.value
        if self.type == "RegularExpression":
            check_regex(text)
            return self
        if not text.startswith("/"):
            complain(f'value "{text}" does not begin with /')
        for part in _BAD_PARTS:
            if part in text:
                complain(f'value "{text}" has "{part}" in it, which no normalised path has')
        for end in _BAD_ENDS:
            if text.endswith(end):
                complain(f'value "{text}" ends in "{end}", which no normalised path does')
        if not _PATH.match(text):
            complain(f'value "{text}" has a character that no path has; allowed: RFC 3986, others as %xx')
        return self

    def to_match(self) -> rules.PathMatch:
        return rules.PathMatch(PathKind(self.type), self.value)


class HeaderMatchSpec(Model):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: FieldName
    value: Annotated[NonEmpty, Field(max_length=MAX_VALUE)]

    @model_validator(mode="after")
    def _check(self) -> HeaderMatchSpec:
        if self.type == "RegularExpression":
            check_regex(self.value)
        return self

    def to_match(self) -> rules.ValueMatch:
        return rules.ValueMatch(self.name.lower(), self.value, self.type == "RegularExpression")


class QueryMatchSpec(Model):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: FieldName
    value: Annotated[NonEmpty, Field(max_length=MAX_PARAMETER)]

    @model_validator(mode="after")
    def _check(self) -> QueryMatchSpec:
        if self.type == "RegularExpression":
            check_regex(self.value)
        return self

    def to_match(self) -> rules.ValueMatch:
        return rules.ValueMatch(self.name, self.value, self.type == "RegularExpression")


def first_of_each(matches: tuple[rules.ValueMatch, ...]) -> tuple[rules.ValueMatch, ...]:
    """Where two entries have one name, the first counts."""
    first: dict[str, rules.ValueMatch] = {}
    for each in matches:
        first.setdefault(each.name, each)
    return tuple(first.values())


class MatchSpec(Model):
    path: PathSpec = Field(default_factory=PathSpec)
    headers: list[HeaderMatchSpec] = Field(default_factory=list, max_length=16)
    query: list[QueryMatchSpec] = Field(default_factory=list, alias="queryParams", max_length=16)
    method: Method | None = None

    def to_match(self) -> rules.HttpMatch:
        return rules.HttpMatch(
            self.path.to_match(),
            self.method or "",
            first_of_each(tuple(each.to_match() for each in self.headers)),
            first_of_each(tuple(each.to_match() for each in self.query)),
        )


class TimeoutsSpec(Model):
    request: Duration | None = None
    backend: Duration | None = Field(default=None, alias="backendRequest")

    @model_validator(mode="after")
    def _check(self) -> TimeoutsSpec:
        whole, part = milliseconds(self.request), milliseconds(self.backend)
        if whole and part and part > whole:
            complain(f"backendRequest {self.backend} is longer than request {self.request}")
        return self


class RetrySpec(Model):
    codes: list[Annotated[int, Field(ge=400, le=599)]] = Field(default_factory=list)
    attempts: Annotated[int, Field(ge=0)] | None = None
    backoff: Duration | None = None

    def to_retry(self) -> rules.Retry:
        return rules.Retry(tuple(dict.fromkeys(self.codes)), self.attempts, milliseconds(self.backoff))


class CookieSpec(Model):
    lifetime: Literal["Session", "Permanent"] = Field(default="Session", alias="lifetimeType")


class PersistenceSpec(Model):
    name: SessionName = Field(default="", alias="sessionName")
    type: Literal["Cookie", "Header"] = "Cookie"
    absolute: Duration | None = Field(default=None, alias="absoluteTimeout")
    idle: Duration | None = Field(default=None, alias="idleTimeout")
    cookie: CookieSpec | None = Field(default=None, alias="cookieConfig")

    @model_validator(mode="after")
    def _check(self) -> PersistenceSpec:
        if self.cookie is not None and self.type != "Cookie":
            complain(f"cookieConfig does not go with type {self.type}")
        if self.cookie is not None and self.cookie.lifetime == "Permanent" and self.absolute is None:
            complain("lifetimeType Permanent needs absoluteTimeout")
        return self

    def to_persistence(self) -> rules.Persistence:
        return rules.Persistence(
            self.name,
            self.type == "Header",
            milliseconds(self.absolute),
            milliseconds(self.idle),
            self.cookie is not None and self.cookie.lifetime == "Permanent",
        )


class HttpRuleSpec(Model):
    name: RuleName | None = None
    matches: list[MatchSpec] = Field(default_factory=list, max_length=MAX_MATCHES)
    filters: list[FilterSpec] = Field(default_factory=list, max_length=MAX_FILTERS)
    backends: list[HttpBackendSpec] = Field(
        default_factory=list, alias="backendRefs", max_length=MAX_BACKENDS
    )
    timeouts: TimeoutsSpec = Field(default_factory=TimeoutsSpec)
    retry: RetrySpec | None = None
    persistence: PersistenceSpec | None = Field(default=None, alias="sessionPersistence")

    @model_validator(mode="after")
    def _check(self) -> HttpRuleSpec:
        check_filters(self.filters)
        if self.backends and any(each.type == "RequestRedirect" for each in self.filters):
            complain("a RequestRedirect answers by itself: backendRefs do not go with it")
        is_prefix_replaced = any(
            path is not None and path.type == "ReplacePrefixMatch"
            for each in (*self.filters, *(item for backend in self.backends for item in backend.filters))
            for path in (
                each.redirect.path if each.redirect is not None else None,
                each.rewrite.path if each.rewrite is not None else None,
            )
        )
        paths = [each.path.type for each in self.matches or [MatchSpec()]]
        if is_prefix_replaced and paths != ["PathPrefix"]:
            complain("ReplacePrefixMatch needs exactly one match of the rule, with a path of type PathPrefix")
        return self

    def to_rule(self, namespace: str) -> rules.HttpRule:
        return rules.HttpRule(
            name=self.name or "",
            matches=tuple(each.to_match() for each in self.matches or [MatchSpec()]),
            filters=to_filters(self.filters, namespace),
            backends=tuple(each.to_ref(namespace) for each in self.backends),
            request_timeout_ms=milliseconds(self.timeouts.request),
            backend_timeout_ms=milliseconds(self.timeouts.backend),
            retry=self.retry.to_retry() if self.retry is not None else None,
            persistence=self.persistence.to_persistence() if self.persistence is not None else None,
        )


class HttpRouteSpec(RouteSpec):
    unread = fields("useDefaultGateways")
    hostnames: list[Hostname] = Field(default_factory=list, max_length=16)
    rules: Annotated[list[HttpRuleSpec], Field(min_length=1, max_length=MAX_RULES)] = Field(
        default_factory=lambda: [HttpRuleSpec()]
    )

    @model_validator(mode="after")
    def _check(self) -> HttpRouteSpec:
        check_unique("rules: name", [each.name for each in self.rules if each.name])
        total = sum(len(each.matches) for each in self.rules)
        if total > MAX_MATCHES_OF_ROUTE:
            complain(f"rules: {total} matches; allowed: at most {MAX_MATCHES_OF_ROUTE} over all rules")
        return self


class HTTPRoute(Manifest):
    unread = fields("status")
    spec: HttpRouteSpec

    def to_object(self) -> objects.HttpRoute:
        meta = self.meta()
        return objects.HttpRoute(
            meta,
            self.spec.parent_refs(meta.namespace),
            tuple(each.to_rule(meta.namespace) for each in self.spec.rules),
        )

    def remarks(self) -> list[tuple[str, str]]:
        return hostname_remarks(self.spec.hostnames)


def hostname_remarks(hostnames: list[str]) -> list[tuple[str, str]]:
    if not hostnames:
        return []
    return [("spec.hostnames", "has no effect on a Service: its address decides, whatever Host says")]
