"""XBackendTrafficPolicy and BackendTLSPolicy of the Gateway API (config-api 17, 18)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config import objects
from config.kinds.istio_schema import check_host
from config.kinds.route_schema import Duration
from config.kinds.schema import Manifest, Model, NonEmpty, complain, fields
from config.objects import BackendTarget
from config.traffic_policies import Budget, Tls


class TargetSpec(Model):
    group: str
    kind: NonEmpty
    name: NonEmpty
    section: str = Field(default="", alias="sectionName")

    @model_validator(mode="after")
    def _check(self) -> TargetSpec:
        if (self.group, self.kind) not in (
            ("", "Service"),
            ("core", "Service"),
            ("networking.istio.io", "ServiceEntry"),
        ):
            complain(
                f'kind "{self.kind}" of group "{self.group}" takes no such policy in this mesh; '
                'allowed: group "" kind Service, group networking.istio.io kind ServiceEntry'
            )
        return self

    def to_target(self) -> BackendTarget:
        return BackendTarget(self.kind, self.name, self.section)


Targets = Annotated[list[TargetSpec], Field(min_length=1, max_length=16, alias="targetRefs")]


def check_targets(targets: list[TargetSpec]) -> None:
    """One object, or one of its ports, is named once."""
    seen: set[tuple[str, str, str]] = set()
    for each in targets:
        key = (each.kind, each.name, each.section)
        if key in seen:
            complain(f"targetRefs: {each.kind} {each.name} is there twice")
        seen.add(key)


# ---- XBackendTrafficPolicy ----


class BudgetSpec(Model):
    percent: Annotated[int, Field(ge=0, le=100)] = 20
    interval: Duration = "10s"


class RateSpec(Model):
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    interval: Duration = "1s"


class RetryConstraint(Model):
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    minimum: RateSpec = Field(default_factory=RateSpec, alias="minRetryRate")


class TrafficPolicySpec(Model):
    targets: Targets
    retries: RetryConstraint | None = Field(default=None, alias="retryConstraint")
    persistence: dict[str, object] | None = Field(default=None, alias="sessionPersistence")

    @model_validator(mode="after")
    def _check(self) -> TrafficPolicySpec:
        check_targets(self.targets)
        for each in self.targets:
            if each.section:
                complain(f"targetRefs: {each.kind} {each.name}: sectionName is not a field of this kind")
        return self


class XBackendTrafficPolicy(Manifest):
    unread = fields("status")
    spec: TrafficPolicySpec

    def to_object(self) -> objects.BackendTrafficPolicy:
        retries = self.spec.retries
        return objects.BackendTrafficPolicy(
            self.meta(),
            tuple(each.to_target() for each in self.spec.targets),
            Budget(retries.budget.percent, retries.minimum.count) if retries is not None else None,
            ("sessionPersistence",) if self.spec.persistence is not None else (),
        )

    def remarks(self) -> list[tuple[str, str]]:
        retries = self.spec.retries
        if retries is None or retries.budget.interval == "10s":
            return []
        text = "has no effect: a budget is a share of the requests in flight"
        return [("spec.retryConstraint.budget.interval", text)]


# ---- BackendTLSPolicy ----


class CaReference(Model):
    group: str
    kind: NonEmpty
    name: NonEmpty


class NameSpec(Model):
    type: Literal["Hostname", "URI"]
    hostname: str = ""
    uri: str = ""

    @model_validator(mode="after")
    def _check(self) -> NameSpec:
        given, other = (self.hostname, self.uri) if self.type == "Hostname" else (self.uri, self.hostname)
        if not given or other:
            complain(f"type {self.type} needs {'hostname' if self.type == 'Hostname' else 'uri'} alone")
        if self.uri and "://" not in self.uri:
            complain("uri: a URI with a scheme and a host, such as spiffe://cluster.local/ns/x/sa/y")
        return self


class ValidationSpec(Model):
    hostname: NonEmpty
    authorities: list[CaReference] = Field(default_factory=list, alias="caCertificateRefs", max_length=8)
    well_known: Literal["System"] | None = Field(default=None, alias="wellKnownCACertificates")
    names: list[NameSpec] = Field(default_factory=list, alias="subjectAltNames", max_length=5)

    @model_validator(mode="after")
    def _check(self) -> ValidationSpec:
        if check_host(self.hostname).startswith("*"):
            complain("hostname: a wildcard is no name that a server can be asked for")
        if bool(self.authorities) == (self.well_known is not None):
            complain("one of caCertificateRefs and wellKnownCACertificates says whom to trust")
        return self


class TlsPolicySpec(Model):
    targets: Targets
    validation: ValidationSpec
    options: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> TlsPolicySpec:
        check_targets(self.targets)
        return self


class BackendTLSPolicy(Manifest):
    unread = fields("status")
    spec: TlsPolicySpec

    def to_object(self) -> objects.BackendTlsPolicy:
        meta, validation = self.meta(), self.spec.validation
        good, bad = [], []
        for each in validation.authorities:
            if (each.group, each.kind) in (("", "ConfigMap"), ("core", "ConfigMap")):
                good.append(objects.Ref("ConfigMap", meta.namespace, each.name))
            else:
                bad.append(f"kind {each.kind} is no place for a CA certificate: a ConfigMap is")
        return objects.BackendTlsPolicy(
            meta,
            tuple(each.to_target() for each in self.spec.targets),
            Tls(
                server_name=validation.hostname,
                names=tuple(each.hostname or each.uri for each in validation.names) or (validation.hostname,),
                trusts_system=validation.well_known is not None,
                bundles=tuple(good),
                bad_refs=tuple(bad),
            ),
        )
