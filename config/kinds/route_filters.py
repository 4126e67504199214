"""Filters of HTTPRoute and GRPCRoute (config-api 6.3).

A filter of a kind that this mesh does not have is accepted by the reader: the API says that requests it would
have seen are refused, so the compilation must know of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import routing_rules as rules
from config.kinds.route_schema import (
    MAX_FILTERS,
    EditedName,
    FieldName,
    FieldValue,
    PreciseHostname,
    RemovedName,
    TargetSpec,
    Weight,
)
from config.kinds.schema import Model, PortNumber, complain, refuse

Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:\*|(?:\*\.)?[A-Za-z0-9][-A-Za-z0-9.]*)(?::[0-9]{1,5})?\Z")
_PATH_LETTERS = re.compile(r"(?:[A-Za-z0-9/\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*\Z")


def _replacement(text: str) -> str:
    if len(text) > 1024 or not _PATH_LETTERS.match(text):
        refuse("at most 1024 characters of a path (others as %xx), without ? and #")
    return text


def _origin(text: str) -> str:
    if text != "*" and not _ORIGIN.match(text):
        refuse("* or scheme://host[:port], with at most one wildcard as the first label of the host")
    return text


class HeaderField(Model):
    name: EditedName
    value: FieldValue


class HeaderModifier(Model):
    set_fields: list[HeaderField] = Field(default_factory=list, alias="set", max_length=16)
    add: list[HeaderField] = Field(default_factory=list, max_length=16)
    remove: list[RemovedName] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _check(self) -> HeaderModifier:
        edited = [each.name for each in (*self.set_fields, *self.add)]
        for what, names in (("set and add together", edited), ("remove", self.remove)):
            seen: set[str] = set()
            for name in names:
                if name.lower() in seen:
                    complain(f"header {name} is there twice; allowed: once in {what}")
                seen.add(name.lower())
        return self

    def to_edit(self) -> rules.HeaderEdit:
        return rules.HeaderEdit(
            tuple((each.name.lower(), each.value) for each in self.set_fields),
            tuple((each.name.lower(), each.value) for each in self.add),
            tuple(name.lower() for name in self.remove),
        )


class PathModifier(Model):
    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    full: Annotated[str, AfterValidator(_replacement)] | None = Field(default=None, alias="replaceFullPath")
    prefix: Annotated[str, AfterValidator(_replacement)] | None = Field(
        default=None, alias="replacePrefixMatch"
    )

    @model_validator(mode="after")
    def _check(self) -> PathModifier:
        wanted, other = ("full", "prefix") if self.type == "ReplaceFullPath" else ("prefix", "full")
        names = {"full": "replaceFullPath", "prefix": "replacePrefixMatch"}
        if getattr(self, wanted) is None:
            complain(f"type {self.type} needs {names[wanted]}")
        if getattr(self, other) is not None:
            complain(f"{names[other]} does not go with type {self.type}")
        return self

    def to_edit(self) -> rules.PathEdit:
        is_prefix = self.type == "ReplacePrefixMatch"
        return rules.PathEdit((self.prefix if is_prefix else self.full) or "", is_prefix)


class RedirectSpec(Model):
    scheme: Literal["http", "https"] | None = None
    hostname: PreciseHostname | None = None
    path: PathModifier | None = None
    port: PortNumber | None = None
    status: Literal[301, 302, 303, 307, 308] = Field(default=302, alias="statusCode")

    def to_redirect(self) -> rules.Redirect:
        path = self.path.to_edit() if self.path is not None else None
        return rules.Redirect(self.scheme or "", self.hostname or "", path, self.port or 0, self.status)


class RewriteSpec(Model):
    hostname: PreciseHostname | None = None
    path: PathModifier | None = None

    def to_rewrite(self) -> rules.Rewrite:
        return rules.Rewrite(self.hostname or "", self.path.to_edit() if self.path is not None else None)


class FractionSpec(Model):
    numerator: Annotated[int, Field(ge=0)]
    denominator: Annotated[int, Field(ge=1, le=2**31 - 1)] = 100

    @model_validator(mode="after")
    def _check(self) -> FractionSpec:
        if self.numerator > self.denominator:
            complain(f"fraction: {self.numerator} of {self.denominator} is more than all")
        return self


class MirrorSpec(Model):
    backend: TargetSpec = Field(alias="backendRef")
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    fraction: FractionSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> MirrorSpec:
        if self.percent is not None and self.fraction is not None:
            complain("percent and fraction exclude each other")
        return self

    def to_mirror(self, namespace: str) -> rules.Mirror:
        backend = self.backend.to_ref(namespace)
        if self.fraction is not None:
            return rules.Mirror(backend, self.fraction.numerator, self.fraction.denominator)
        return rules.Mirror(backend, 100 if self.percent is None else self.percent)


class CorsSpec(Model):
    origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        default_factory=list, alias="allowOrigins", max_length=64
    )
    credentials: bool = Field(default=False, alias="allowCredentials")
    methods: list[
        Literal["*", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
    ] = Field(default_factory=list, alias="allowMethods", max_length=9)
    headers: list[FieldName] = Field(default_factory=list, alias="allowHeaders", max_length=64)
    exposed: list[FieldName] = Field(default_factory=list, alias="exposeHeaders", max_length=64)
    max_age: Annotated[int, Field(ge=1)] = Field(default=5, alias="maxAge")

    @model_validator(mode="after")
    def _check(self) -> CorsSpec:
        lists: dict[str, Sequence[str]] = {
            "allowOrigins": self.origins,
            "allowMethods": self.methods,
            "allowHeaders": self.headers,
            "exposeHeaders": self.exposed,
        }
        for name, texts in lists.items():
            if "*" in texts and len(texts) > 1:
                complain(f"{name}: * stands alone")
        return self

    def to_cors(self) -> rules.Cors:
        return rules.Cors(
            tuple(self.origins),
            tuple(self.methods),
            tuple(self.headers),
            tuple(self.exposed),
            self.credentials,
            self.max_age,
        )


class FilterSpec(Model):
    type: Literal[
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestRedirect",
        "URLRewrite",
        "RequestMirror",
        "CORS",
        "ExtensionRef",
        "ExternalAuth",
    ]
    request_headers: HeaderModifier | None = Field(default=None, alias="requestHeaderModifier")
    response_headers: HeaderModifier | None = Field(default=None, alias="responseHeaderModifier")
    redirect: RedirectSpec | None = Field(default=None, alias="requestRedirect")
    rewrite: RewriteSpec | None = Field(default=None, alias="urlRewrite")
    mirror: MirrorSpec | None = Field(default=None, alias="requestMirror")
    cors: CorsSpec | None = None
    extension: dict[str, object] | None = Field(default=None, alias="extensionRef")
    external_auth: dict[str, object] | None = Field(default=None, alias="externalAuth")

    @model_validator(mode="after")
    def _check(self) -> FilterSpec:
        check_filter_field(self, _FIELDS)
        return self


class GrpcFilterSpec(Model):
    type: Literal["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"]
    request_headers: HeaderModifier | None = Field(default=None, alias="requestHeaderModifier")
    response_headers: HeaderModifier | None = Field(default=None, alias="responseHeaderModifier")
    mirror: MirrorSpec | None = Field(default=None, alias="requestMirror")
    extension: dict[str, object] | None = Field(default=None, alias="extensionRef")

    @model_validator(mode="after")
    def _check(self) -> GrpcFilterSpec:
        check_filter_field(self, _FIELDS)
        return self


AnyFilter = FilterSpec | GrpcFilterSpec

_FIELDS: Final = {
    "RequestHeaderModifier": "request_headers",
    "ResponseHeaderModifier": "response_headers",
    "RequestRedirect": "redirect",
    "URLRewrite": "rewrite",
    "RequestMirror": "mirror",
    "CORS": "cors",
    "ExtensionRef": "extension",
    "ExternalAuth": "external_auth",
}
UNSUPPORTED: Final = frozenset({"ExtensionRef", "ExternalAuth"})
_ON_BACKENDS: Final = frozenset({"RequestHeaderModifier", "ResponseHeaderModifier"})


def check_filter_field(spec: AnyFilter, by_type: dict[str, str]) -> None:
    """A filter has the field of its type and no other's."""
    wanted = by_type[spec.type]
    aliases = {name: field.alias or name for name, field in type(spec).model_fields.items()}
    if getattr(spec, wanted) is None:
        complain(f"a filter of type {spec.type} needs {aliases[wanted]}")
    for name, alias in aliases.items():
        if name not in ("type", wanted) and getattr(spec, name) is not None:
            complain(f"{alias} does not go with type {spec.type}")


def check_filters(filters: Sequence[AnyFilter]) -> None:
    seen: set[str] = set()
    for each in filters:
        if each.type in seen and each.type not in ("RequestMirror", "ExtensionRef"):
            complain(f"filters: {each.type} is there twice")
        seen.add(each.type)
    if {"RequestRedirect", "URLRewrite"} <= seen:
        complain("filters: RequestRedirect and URLRewrite exclude each other")


class HttpBackendSpec(TargetSpec):
    weight: Weight = 1
    filters: list[FilterSpec] = Field(default_factory=list, max_length=MAX_FILTERS)

    @model_validator(mode="after")
    def _check_filters(self) -> HttpBackendSpec:
        check_filters(self.filters)
        return self

    def to_ref(self, namespace: str) -> rules.BackendRef:
        return backend_ref(self, self.filters, self.weight, namespace)


class GrpcBackendSpec(TargetSpec):
    weight: Weight = 1
    filters: list[GrpcFilterSpec] = Field(default_factory=list, max_length=MAX_FILTERS)

    @model_validator(mode="after")
    def _check_filters(self) -> GrpcBackendSpec:
        check_filters(self.filters)
        return self

    def to_ref(self, namespace: str) -> rules.BackendRef:
        return backend_ref(self, self.filters, self.weight, namespace)


def backend_ref(
    target: TargetSpec, filters: Iterable[AnyFilter], weight: int, namespace: str
) -> rules.BackendRef:
    made = to_filters(filters, namespace)
    unsupported = sorted({each.type for each in filters} - _ON_BACKENDS)
    return rules.BackendRef(
        "" if target.group == "core" else target.group,
        target.kind,
        target.namespace or namespace,
        target.name,
        target.port or 0,
        weight,
        made.request_headers,
        made.response_headers,
        tuple(unsupported),
    )


def to_filters(filters: Iterable[AnyFilter], namespace: str) -> rules.Filters:
    by_type = {each.type: each for each in filters}
    request, response = by_type.get("RequestHeaderModifier"), by_type.get("ResponseHeaderModifier")
    redirect = rewrite = cors = None
    mirrors: list[rules.Mirror] = []
    for each in filters:
        if each.mirror is not None:
            mirrors.append(each.mirror.to_mirror(namespace))
        if isinstance(each, FilterSpec):
            redirect = each.redirect.to_redirect() if each.redirect is not None else redirect
            rewrite = each.rewrite.to_rewrite() if each.rewrite is not None else rewrite
            cors = each.cors.to_cors() if each.cors is not None else cors
    return rules.Filters(
        request_headers=request.request_headers.to_edit() if request and request.request_headers else None,
        response_headers=response.response_headers.to_edit()
        if response and response.response_headers
        else None,
        redirect=redirect,
        rewrite=rewrite,
        mirrors=tuple(mirrors),
        cors=cors,
        unsupported=tuple(sorted(by_type.keys() & UNSUPPORTED)),
    )
