"""RateLimitPolicy (mycelia.io): how often requests may come (docs/rate-limits.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field, model_validator

from config import objects
from config.kinds.istio_schema import Milliseconds
from config.kinds.schema import Manifest, Model, NonEmpty, complain, fields, refuse
from config.kinds.targets import RouteTargetSpec

MAX_LIMITS: Final = 16
MAX_KEYS: Final = 4
MAX_NUMBER: Final = 1_000_000_000
PLAIN_KEYS: Final = ("caller", "sourceAddress", "route", "service")
_PREFIXES: Final = ("header:", "claim:")


def _key(text: str) -> str:
    if text not in PLAIN_KEYS and not any(text.startswith(p) and len(text) > len(p) for p in _PREFIXES):
        refuse(f"{', '.join(PLAIN_KEYS)}, header:NAME or claim:NAME")
    return text


Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


class Strict(Model):
    """It protects: a null is never taken for an absent field."""

    is_null_absent: ClassVar[bool] = False


class MatchSpec(Strict):
    methods: Annotated[list[NonEmpty], Field(max_length=16)] = Field(default_factory=list)
    paths: Annotated[list[NonEmpty], Field(max_length=64)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> MatchSpec:
        if not self.methods and not self.paths:
            complain("match says nothing; allowed: methods, paths, or no match at all")
        return self


class LimitSpec(Strict):
    name: str = ""
    requests: Number
    per: Milliseconds
    burst: Number | None = None
    by: Annotated[list[Annotated[str, AfterValidator(_key)]], Field(max_length=MAX_KEYS)] = Field(
        default_factory=list
    )
    match: MatchSpec | None = None

    def to_object(self, index: int) -> objects.RateLimit:
        match = self.match or MatchSpec.model_construct(methods=[], paths=[])
        return objects.RateLimit(
            name=self.name or f"limits[{index}]",
            requests=self.requests,
            per_ms=self.per,
            burst=self.burst or 0,
            keys=tuple(self.by),
            methods=tuple(match.methods),
            paths=tuple(match.paths),
        )


class RateLimitSpec(Strict):
    targets: Annotated[list[RouteTargetSpec], Field(min_length=1, max_length=16)] = Field(alias="targetRefs")
    limits: Annotated[list[LimitSpec], Field(min_length=1, max_length=MAX_LIMITS)]
    headers: bool = True


class RateLimitPolicy(Manifest):
    unread = fields("status")
    spec: RateLimitSpec

    def to_object(self) -> objects.RateLimitPolicy:
        return objects.RateLimitPolicy(
            meta=self.meta(),
            targets=tuple(target.to_object() for target in self.spec.targets),
            limits=tuple(limit.to_object(index) for index, limit in enumerate(self.spec.limits)),
            tells=self.spec.headers,
        )
