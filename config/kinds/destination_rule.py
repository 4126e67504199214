"""DestinationRule (networking.istio.io; config-api 11)."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from config import objects
from config import traffic_policies as inner
from config.kinds.istio_schema import check_host
from config.kinds.schema import (
    Labels,
    Manifest,
    Model,
    NonEmpty,
    Selector,
    complain,
    fields,
    is_dns_label,
    refuse,
)
from config.kinds.service import check_unique
from config.kinds.traffic_policy import TrafficPolicySpec


def _host(text: str) -> str:
    return text if text == "*" else check_host(text)


def _subset_name(text: str) -> str:
    if not is_dns_label(text):
        refuse("a DNS label: lower-case letters, digits and '-', at most 63 characters")
    return text


class SubsetSpec(Model):
    name: Annotated[str, AfterValidator(_subset_name)]
    labels: Labels = Field(default_factory=dict)
    policy: TrafficPolicySpec | None = Field(default=None, alias="trafficPolicy")

    def to_subset(self, namespace: str) -> inner.Subset:
        return inner.Subset(
            self.name, self.labels, self.policy.to_policies(namespace) if self.policy is not None else None
        )


class DestinationRuleSpec(Model):
    host: Annotated[str, AfterValidator(_host)]
    policy: TrafficPolicySpec | None = Field(default=None, alias="trafficPolicy")
    subsets: list[SubsetSpec] = Field(default_factory=list, max_length=1024)
    export_to: list[NonEmpty] = Field(default_factory=list, alias="exportTo", max_length=1024)
    selector: Selector | None = Field(default=None, alias="workloadSelector")

    @model_validator(mode="after")
    def _check(self) -> DestinationRuleSpec:
        check_unique("subset", [each.name for each in self.subsets])
        if self.selector is not None and not self.selector.match_labels:
            complain("workloadSelector.matchLabels is empty; allowed: at least one label")
        return self


class DestinationRule(Manifest):
    unread = fields("status")
    spec: DestinationRuleSpec

    def to_object(self) -> objects.DestinationRule:
        spec, meta = self.spec, self.meta()
        return objects.DestinationRule(
            meta=meta,
            host=spec.host,
            policies=spec.policy.to_policies(meta.namespace)
            if spec.policy is not None
            else inner.NO_POLICIES,
            has_policies=spec.policy is not None,
            subsets=tuple(each.to_subset(meta.namespace) for each in spec.subsets),
            export_to=tuple(spec.export_to),
            is_for_workloads=spec.selector is not None,
        )

    def remarks(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.spec.policy is not None:
            found += self.spec.policy.remarks("spec.trafficPolicy")
        for index, subset in enumerate(self.spec.subsets):
            if subset.policy is not None:
                found += subset.policy.remarks(f"spec.subsets[{index}].trafficPolicy")
        return found
