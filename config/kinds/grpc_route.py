"""GRPCRoute (gateway.networking.k8s.io; config-api 6.5)."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from config import objects
from config import routing_rules as rules
from config.kinds.http_route import (
    MAX_MATCHES,
    MAX_MATCHES_OF_ROUTE,
    HeaderMatchSpec,
    PersistenceSpec,
    first_of_each,
    hostname_remarks,
)
from config.kinds.route_filters import GrpcBackendSpec, GrpcFilterSpec, check_filters, to_filters
from config.kinds.route_schema import (
    MAX_BACKENDS,
    MAX_FILTERS,
    MAX_RULES,
    Hostname,
    RouteSpec,
    RuleName,
    check_regex,
)
from config.kinds.schema import Manifest, Model, complain, fields
from config.kinds.service import check_unique

_SERVICE = re.compile(r"(?i:[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)\Z")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
MAX_NAME: Final = 1024
MAX_REGEXES: Final = 1000  # both become one expression


class MethodSpec(Model):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    service: Annotated[str, Field(max_length=MAX_NAME)] = ""
    method: Annotated[str, Field(max_length=MAX_NAME)] = ""

    @model_validator(mode="after")
    def _check(self) -> MethodSpec:
        if not self.service and not self.method:
            complain("method has neither service nor method; allowed: one or both")
        if self.type == "RegularExpression":
            check_regex(self.service)
            check_regex(self.method)
            if len(self.service) + len(self.method) > MAX_REGEXES:
                complain(f"service and method are more than {MAX_REGEXES} characters together")
            return self
        if self.service and not _SERVICE.match(self.service):
            complain(f'service "{self.service}"; allowed: names of letters, digits and _ with dots between')
        if self.method and not _METHOD.match(self.method):
            complain(f'method "{self.method}"; allowed: letters, digits and _')
        return self


class GrpcMatchSpec(Model):
    method: MethodSpec | None = None
    headers: list[HeaderMatchSpec] = Field(default_factory=list, max_length=16)

    def to_match(self) -> rules.GrpcMatch:
        headers = first_of_each(tuple(each.to_match() for each in self.headers))
        if self.method is None:
            return rules.GrpcMatch(headers=headers)
        is_regex = self.method.type == "RegularExpression"
        return rules.GrpcMatch(self.method.service, self.method.method, is_regex, headers)


class GrpcRuleSpec(Model):
    name: RuleName | None = None
    matches: list[GrpcMatchSpec] = Field(default_factory=list, max_length=MAX_MATCHES)
    filters: list[GrpcFilterSpec] = Field(default_factory=list, max_length=MAX_FILTERS)
    backends: list[GrpcBackendSpec] = Field(
        default_factory=list, alias="backendRefs", max_length=MAX_BACKENDS
    )
    persistence: PersistenceSpec | None = Field(default=None, alias="sessionPersistence")

    @model_validator(mode="after")
    def _check(self) -> GrpcRuleSpec:
        check_filters(self.filters)
        return self

    def to_rule(self, namespace: str) -> rules.GrpcRule:
        return rules.GrpcRule(
            name=self.name or "",
            matches=tuple(each.to_match() for each in self.matches or [GrpcMatchSpec()]),
            filters=to_filters(self.filters, namespace),
            backends=tuple(each.to_ref(namespace) for each in self.backends),
            persistence=self.persistence.to_persistence() if self.persistence is not None else None,
        )


class GrpcRouteSpec(RouteSpec):
    unread = fields("useDefaultGateways")
    hostnames: list[Hostname] = Field(default_factory=list, max_length=16)
    rules: Annotated[list[GrpcRuleSpec], Field(min_length=1, max_length=MAX_RULES)] = Field(
        default_factory=lambda: [GrpcRuleSpec()]
    )

    @model_validator(mode="after")
    def _check(self) -> GrpcRouteSpec:
        check_unique("rules: name", [each.name for each in self.rules if each.name])
        total = sum(len(each.matches) for each in self.rules)
        if total > MAX_MATCHES_OF_ROUTE:
            complain(f"rules: {total} matches; allowed: at most {MAX_MATCHES_OF_ROUTE} over all rules")
        return self


class GRPCRoute(Manifest):
    unread = fields("status")
    spec: GrpcRouteSpec

    def to_object(self) -> objects.GrpcRoute:
        meta = self.meta()
        return objects.GrpcRoute(
            meta,
            self.spec.parent_refs(meta.namespace),
            tuple(each.to_rule(meta.namespace) for each in self.spec.rules),
        )

    def remarks(self) -> list[tuple[str, str]]:
        return hostname_remarks(self.spec.hostnames)
