"""Telemetry (telemetry.istio.io): what waypoints log, trace and count (config-api 14).

It is observed, not protected: fields that have no effect here are refused by name, as everywhere, and a
provider that is not known is reported where the object is attached.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import objects, observing
from config.kinds.istio_schema import Milliseconds
from config.kinds.route_schema import is_field_name
from config.kinds.schema import Manifest, Model, NonEmpty, Selector, complain, fields, refuse
from config.kinds.targets import TargetSpec
from telemetry.cel import ExpressionRejected, parse_condition, parse_label

MAX_STEPS: Final = 16
MAX_TAGS: Final = 32
PROMETHEUS: Final = "prometheus"
_CLIENT: Final = "CLIENT"
_BARE: Final = ("TCP_", "GRPC_")
# Labels of metrics of gRPC messages and connections (waypoint-facts 12).
FLOW_LABELS: Final = frozenset(
    {
        *("source_workload", "source_canonical_service", "source_canonical_revision", "source_cluster"),
        *("source_workload_namespace", "source_principal", "source_app", "source_version"),
        *("destination_service", "destination_service_namespace", "destination_service_name"),
        *("destination_workload", "destination_canonical_service", "destination_canonical_revision"),
        *("destination_workload_namespace", "destination_principal", "destination_app"),
        *("destination_version", "destination_cluster", "request_protocol", "response_flags"),
        "connection_security_policy",
    }
)
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}").fullmatch


def _condition(text: str) -> str:
    try:
        parse_condition(text)
    except ExpressionRejected as error:
        complain(error.text)
    return text


def _header_name(text: str) -> str:
    if not is_field_name(text):
        refuse("the name of a header")
    return text


class ProviderRef(Model):
    name: NonEmpty


class ModeMatch(Model):
    mode: Literal["CLIENT_AND_SERVER", "CLIENT", "SERVER"] = "CLIENT_AND_SERVER"


class Filter(Model):
    expression: Annotated[NonEmpty, AfterValidator(_condition)]


class AccessLogging(Model):
    match: ModeMatch = Field(default_factory=ModeMatch)
    providers: Annotated[list[ProviderRef], Field(max_length=8)] = Field(default_factory=list)
    disabled: bool = False
    filter: Filter | None = None

    @property
    def is_for_waypoints(self) -> bool:
        """A waypoint is the server's side (config-api 14)."""
        return self.match.mode != _CLIENT

    def to_object(self) -> observing.LoggingStep:
        return observing.LoggingStep(
            tuple(each.name for each in self.providers),
            self.disabled,
            self.filter.expression if self.filter is not None else "",
        )


class LiteralTag(Model):
    value: NonEmpty


class EnvironmentTag(Model):
    name: NonEmpty
    default: str = Field(default="", alias="defaultValue")


class HeaderTag(Model):
    name: Annotated[NonEmpty, AfterValidator(_header_name)]
    default: str = Field(default="", alias="defaultValue")


class CustomTag(Model):
    literal: LiteralTag | None = None
    environment: EnvironmentTag | None = None
    header: HeaderTag | None = None

    @model_validator(mode="after")
    def _check(self) -> CustomTag:
        if sum(each is not None for each in (self.literal, self.environment, self.header)) != 1:
            complain("a tag has exactly one of literal, environment, header")
        return self

    def to_object(self, name: str) -> observing.SpanTag:
        if self.literal is not None:
            return observing.SpanTag(name, literal=self.literal.value)
        if self.environment is not None:
            return observing.SpanTag(
                name, environment=self.environment.name, default=self.environment.default
            )
        assert self.header is not None
        return observing.SpanTag(name, header=self.header.name.lower(), default=self.header.default)


class Tracing(Model):
    match: ModeMatch = Field(default_factory=ModeMatch)
    providers: Annotated[list[ProviderRef], Field(max_length=8)] = Field(default_factory=list)
    percent: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, alias="randomSamplingPercentage"
    )
    is_silent: bool | None = Field(default=None, alias="disableSpanReporting")
    tags: Annotated[dict[str, CustomTag], Field(max_length=MAX_TAGS)] = Field(
        default_factory=dict, alias="customTags"
    )
    uses_request_id: bool | None = Field(default=None, alias="useRequestIdForTraceSampling")
    has_istio_tags: bool | None = Field(default=None, alias="enableIstioTags")

    @property
    def is_for_waypoints(self) -> bool:
        return self.match.mode != _CLIENT

    def to_object(self) -> observing.TracingStep:
        return observing.TracingStep(
            tuple(each.name for each in self.providers),
            self.percent,
            self.is_silent,
            tuple(tag.to_object(name) for name, tag in sorted(self.tags.items())),
            self.uses_request_id,
            self.has_istio_tags,
        )


class TagOverride(Model):
    operation: Literal["UPSERT", "REMOVE"] = "UPSERT"
    value: str = ""

    @model_validator(mode="after")
    def _check(self) -> TagOverride:
        if (self.operation == "REMOVE") == bool(self.value):
            complain("UPSERT needs a value, and REMOVE has none")
        if self.value:
            try:
                parse_label(self.value)
            except ExpressionRejected as error:
                complain(error.text)
        return self


class MetricMatch(ModeMatch):
    metric: Literal[
        "ALL_METRICS",
        "REQUEST_COUNT",
        "REQUEST_DURATION",
        "REQUEST_SIZE",
        "RESPONSE_SIZE",
        "TCP_OPENED_CONNECTIONS",
        "TCP_CLOSED_CONNECTIONS",
        "TCP_SENT_BYTES",
        "TCP_RECEIVED_BYTES",
        "GRPC_REQUEST_MESSAGES",
        "GRPC_RESPONSE_MESSAGES",
    ] = "ALL_METRICS"


class MetricOverride(Model):
    match: MetricMatch = Field(default_factory=MetricMatch)
    disabled: bool | None = None
    tags: Annotated[dict[str, TagOverride], Field(max_length=MAX_TAGS)] = Field(
        default_factory=dict, alias="tagOverrides"
    )

    @model_validator(mode="after")
    def _check(self) -> MetricOverride:
        for name in self.tags:
            if not _LABEL(name) or name.startswith("__") or name in ("reporter", "le"):
                complain(f'tagOverrides: "{name}" is not the name of a label that can be changed')
            if self.match.metric.startswith(_BARE) and name not in FLOW_LABELS:
                complain(
                    f'tagOverrides: {self.match.metric} has no label "{name}", and only metrics of requests '
                    "get labels of one's own"
                )
        return self

    def to_object(self) -> observing.MetricOverride:
        labels = tuple((name, tag.value or None) for name, tag in sorted(self.tags.items()))
        return observing.MetricOverride(self.match.metric, self.disabled, labels)


class Metrics(Model):
    providers: Annotated[list[ProviderRef], Field(max_length=8)] = Field(default_factory=list)
    overrides: Annotated[list[MetricOverride], Field(max_length=MAX_STEPS)] = Field(default_factory=list)
    # Of connections: ours are as of the scrape, whatever it says.
    interval: Milliseconds | None = Field(default=None, alias="reportingInterval")

    @property
    def is_for_waypoints(self) -> bool:
        """There is one provider, and it is meant where none is named."""
        return not self.providers or any(each.name == PROMETHEUS for each in self.providers)


class TelemetrySpec(Model):
    selector: Selector | None = None
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    access_logging: Annotated[list[AccessLogging], Field(max_length=MAX_STEPS)] = Field(
        default_factory=list, alias="accessLogging"
    )
    tracing: Annotated[list[Tracing], Field(max_length=MAX_STEPS)] = Field(default_factory=list)
    metrics: Annotated[list[Metrics], Field(max_length=MAX_STEPS)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> TelemetrySpec:
        if self.selector is not None and self.targets:
            complain("selector and targetRefs exclude each other")
        return self


class Telemetry(Manifest):
    unread = fields("status")
    spec: TelemetrySpec = Field(default_factory=TelemetrySpec)

    def to_object(self) -> objects.Telemetry:
        spec = self.spec
        return objects.Telemetry(
            meta=self.meta(),
            selector=spec.selector.match_labels if spec.selector is not None else {},
            targets=tuple(target.to_object() for target in spec.targets),
            logging=tuple(each.to_object() for each in spec.access_logging if each.is_for_waypoints),
            tracing=tuple(each.to_object() for each in spec.tracing if each.is_for_waypoints),
            overrides=tuple(
                each.to_object()
                for metrics in spec.metrics
                if metrics.is_for_waypoints
                for each in metrics.overrides
                if each.match.mode != _CLIENT
            ),
            metric_providers=tuple(each.name for metrics in spec.metrics for each in metrics.providers),
        )
