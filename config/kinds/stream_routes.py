"""TCPRoute, TLSRoute and ReferenceGrant (gateway.networking.k8s.io; config-api 6.6, 6.7)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from config import objects
from config import routing_rules as rules
from config.kinds.route_schema import MAX_BACKENDS, Hostname, RouteSpec, RuleName, StreamBackendSpec
from config.kinds.schema import DnsLabel, Manifest, Model, NonEmpty, complain, fields


class StreamRuleSpec(Model):
    name: RuleName | None = None
    backends: Annotated[list[StreamBackendSpec], Field(min_length=1, max_length=MAX_BACKENDS)] = Field(
        alias="backendRefs"
    )

    def to_rule(self, namespace: str) -> rules.StreamRule:
        return rules.StreamRule(self.name or "", tuple(each.to_ref(namespace) for each in self.backends))


class TcpRouteSpec(RouteSpec):
    unread = fields("useDefaultGateways")
    rules: Annotated[list[StreamRuleSpec], Field(min_length=1, max_length=1)]


class TCPRoute(Manifest):
    unread = fields("status")
    spec: TcpRouteSpec

    def to_object(self) -> objects.TcpRoute:
        meta = self.meta()
        return objects.TcpRoute(
            meta,
            self.spec.parent_refs(meta.namespace),
            tuple(each.to_rule(meta.namespace) for each in self.spec.rules),
        )


class TlsRouteSpec(RouteSpec):
    unread = fields("useDefaultGateways")
    hostnames: list[Hostname] = Field(default_factory=list, max_length=16)
    rules: Annotated[list[StreamRuleSpec], Field(min_length=1, max_length=1)]


class TLSRoute(Manifest):
    unread = fields("status")
    spec: TlsRouteSpec

    @model_validator(mode="after")
    def _check(self) -> TLSRoute:
        version = self.api_version.rpartition("/")[2]
        if version != "v1alpha2" and not self.spec.hostnames:
            complain(f"spec.hostnames is missing; a TLSRoute of {version} needs at least one")
        return self

    def to_object(self) -> objects.TlsRoute:
        meta = self.meta()
        return objects.TlsRoute(
            meta,
            self.spec.parent_refs(meta.namespace),
            tuple(self.spec.hostnames),
            tuple(each.to_rule(meta.namespace) for each in self.spec.rules),
        )


class GrantFrom(Model):
    group: str
    kind: NonEmpty
    namespace: DnsLabel

    @model_validator(mode="after")
    def _check(self) -> GrantFrom:
        if not self.namespace:
            complain("namespace is empty; allowed: the namespace that may refer to objects here")
        return self


class GrantTo(Model):
    group: str
    kind: NonEmpty
    name: NonEmpty | None = None


class GrantSpec(Model):
    sources: Annotated[list[GrantFrom], Field(min_length=1, max_length=16)] = Field(alias="from")
    targets: Annotated[list[GrantTo], Field(min_length=1, max_length=16)] = Field(alias="to")


class ReferenceGrant(Manifest):
    unread = fields("status")
    spec: GrantSpec

    def to_object(self) -> objects.ReferenceGrant:
        return objects.ReferenceGrant(
            self.meta(),
            tuple((each.group, each.kind, each.namespace) for each in self.spec.sources),
            tuple((each.group, each.kind, each.name or "") for each in self.spec.targets),
        )
