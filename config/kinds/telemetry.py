"""Telemetry (telemetry.istio.io): what is logged and traced, as far as waypoints do it (config-api 14).

It is observed, not protected: fields that have no effect here are refused by name, as everywhere, and a
provider that is not known is reported where the object is attached.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import objects
from config.kinds.route_schema import is_field_name
from config.kinds.schema import Manifest, Model, NonEmpty, Selector, complain, fields, refuse
from config.kinds.targets import TargetSpec
from telemetry.cel import ExpressionRejected, parse_condition

MAX_STEPS: Final = 16
MAX_TAGS: Final = 32
_CLIENT: Final = "CLIENT"


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

    def to_object(self) -> objects.LoggingStep:
        return objects.LoggingStep(
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

    def to_object(self, name: str) -> objects.SpanTag:
        if self.literal is not None:
            return objects.SpanTag(name, literal=self.literal.value)
        if self.environment is not None:
            return objects.SpanTag(name, environment=self.environment.name, default=self.environment.default)
        assert self.header is not None
        return objects.SpanTag(name, header=self.header.name.lower(), default=self.header.default)


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

    def to_object(self) -> objects.TracingStep:
        return objects.TracingStep(
            tuple(each.name for each in self.providers),
            self.percent,
            self.is_silent,
            tuple(tag.to_object(name) for name, tag in sorted(self.tags.items())),
            self.uses_request_id,
            self.has_istio_tags,
        )


class TelemetrySpec(Model):
    selector: Selector | None = None
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    access_logging: Annotated[list[AccessLogging], Field(max_length=MAX_STEPS)] = Field(
        default_factory=list, alias="accessLogging"
    )
    tracing: Annotated[list[Tracing], Field(max_length=MAX_STEPS)] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_missing(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("metrics"):
            complain(
                "spec.metrics is not supported yet; allowed: selector, targetRefs, accessLogging, tracing"
            )
        return data

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
        )
