"""Telemetry (telemetry.istio.io): what is logged, as far as waypoints do it (config-api 14).

It is observed, not protected: fields that have no effect here are refused by name, as everywhere, and a
provider that is not known is reported where the object is attached.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import objects
from config.kinds.schema import Manifest, Model, NonEmpty, Selector, complain, fields
from config.kinds.targets import TargetSpec
from telemetry.cel import ExpressionRejected, parse_condition

MAX_STEPS: Final = 16
_CLIENT: Final = "CLIENT"


def _condition(text: str) -> str:
    try:
        parse_condition(text)
    except ExpressionRejected as error:
        complain(error.text)
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


class TelemetrySpec(Model):
    selector: Selector | None = None
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    access_logging: Annotated[list[AccessLogging], Field(max_length=MAX_STEPS)] = Field(
        default_factory=list, alias="accessLogging"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_missing(cls, data: object) -> object:
        for name in ("tracing", "metrics"):
            if isinstance(data, dict) and data.get(name):
                complain(f"spec.{name} is not supported yet; allowed: selector, targetRefs, accessLogging")
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
        )
