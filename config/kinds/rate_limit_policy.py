"""RateLimitPolicy (mycelia.io): how often requests and connections may come (docs/rate-limits.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import objects, policy_rules
from config.kinds.istio_schema import Milliseconds
from config.kinds.schema import Manifest, Model, NonEmpty, Selector, complain, fields, refuse
from config.kinds.targets import RouteTargetSpec

MAX_LIMITS: Final = 16
MAX_KEYS: Final = 4
MAX_NUMBER: Final = 1_000_000_000
MAX_BYTES: Final = 1_000_000_000_000
CONNECTION_TARGETS: Final = ("Service", "ServiceEntry")
PLAIN_KEYS: Final = ("caller", "sourceAddress", "route", "service")
_PREFIXES: Final = ("header:", "claim:")


def _key(text: str) -> str:
    if text not in PLAIN_KEYS and not any(text.startswith(p) and len(text) > len(p) for p in _PREFIXES):
        refuse(f"{', '.join(PLAIN_KEYS)}, header:NAME or claim:NAME")
    return text


ConnectionKey = Literal["caller", "callerNamespace", "sourceAddress", "port"]
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
    shared: bool = False

    def to_object(self, index: int) -> policy_rules.RateLimit:
        match = self.match or MatchSpec.model_construct(methods=[], paths=[])
        return policy_rules.RateLimit(
            name=self.name or f"limits[{index}]",
            requests=self.requests,
            per_ms=self.per,
            burst=self.burst or 0,
            keys=tuple(self.by),
            methods=tuple(match.methods),
            paths=tuple(match.paths),
            is_shared=self.shared,
        )


class ConnectionSpec(Strict):
    name: str = ""
    new_per_second: Number | None = Field(default=None, alias="newPerSecond")
    burst: Number | None = None
    open: Number | None = None
    bytes_per_second: Annotated[int, Field(ge=1024, le=MAX_BYTES)] | None = Field(
        default=None, alias="bytesPerSecond"
    )
    burst_bytes: Annotated[int, Field(ge=1, le=MAX_BYTES)] | None = Field(default=None, alias="burstBytes")
    by: Annotated[list[ConnectionKey], Field(max_length=MAX_KEYS)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> ConnectionSpec:
        if not (self.new_per_second or self.open or self.bytes_per_second):
            complain("a limit of connections needs newPerSecond, open or bytesPerSecond")
        if self.burst and not self.new_per_second:
            complain("burst goes with newPerSecond")
        if self.burst_bytes:
            if not self.bytes_per_second:
                complain("burstBytes goes with bytesPerSecond")
            if self.burst_bytes * 8 < self.bytes_per_second:
                complain("burstBytes is less than an eighth of bytesPerSecond: it would not be reached")
        return self

    def to_object(self, index: int) -> policy_rules.ConnectionLimit:
        return policy_rules.ConnectionLimit(
            name=self.name or f"connections[{index}]",
            new_per_second=self.new_per_second or 0,
            burst=self.burst or 0,
            open=self.open or 0,
            bytes_per_second=self.bytes_per_second or 0,
            burst_bytes=self.burst_bytes or 0,
            keys=tuple(self.by),
        )


class RateLimitSpec(Strict):
    targets: Annotated[list[RouteTargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    selector: Selector | None = None
    limits: Annotated[list[LimitSpec], Field(max_length=MAX_LIMITS)] = Field(default_factory=list)
    connections: Annotated[list[ConnectionSpec], Field(max_length=MAX_LIMITS)] = Field(default_factory=list)
    headers: bool = True
    failure_mode: Literal["Local", "Open", "Closed"] | None = Field(default=None, alias="failureMode")

    @model_validator(mode="after")
    def _check(self) -> RateLimitSpec:
        if not self.limits and not self.connections:
            complain("a policy needs limits (of requests, at waypoints) or connections (at node proxies)")
        if self.limits and not self.targets:
            complain("limits of requests need targetRefs: they are counted at waypoints")
        if self.failure_mode is not None and not any(limit.shared for limit in self.limits):
            complain("failureMode goes with a limit that is shared")
        if self.selector is not None and self.targets:
            complain("selector and targetRefs exclude each other")
        for target in self.targets if self.connections else ():
            if target.kind not in CONNECTION_TARGETS:
                complain(
                    f"connections are counted at workloads, not at a {target.kind}; allowed with them: "
                    f"targetRefs to {', '.join(CONNECTION_TARGETS)}, a selector, or neither for all workloads"
                )
        return self


class RateLimitPolicy(Manifest):
    unread = fields("status")
    spec: RateLimitSpec

    def to_object(self) -> objects.RateLimitPolicy:
        return objects.RateLimitPolicy(
            meta=self.meta(),
            targets=tuple(target.to_object() for target in self.spec.targets),
            limits=tuple(limit.to_object(index) for index, limit in enumerate(self.spec.limits)),
            tells=self.spec.headers,
            failure_mode=self.spec.failure_mode or "Local",
            selector=self.spec.selector.match_labels if self.spec.selector is not None else {},
            connections=tuple(each.to_object(index) for index, each in enumerate(self.spec.connections)),
        )
