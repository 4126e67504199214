"""EnvoyFilter (networking.istio.io): one pattern of it, Istio's recipe for a local rate limit, at waypoints.

Waypoints are no Envoy, so an EnvoyFilter can only be understood, never applied. The recipe (config-api 16) is
an HTTP_FILTER patch that inserts `envoy.filters.http.local_ratelimit`; it becomes a RateLimitPolicy. All else
is refused with what it was and what to write instead.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from config import objects, policy_rules
from config.kinds.istio_schema import Milliseconds
from config.kinds.rate_limit_policy import MAX_LIMITS, Number
from config.kinds.schema import Manifest, Model, NonEmpty, complain, fields, is_dns_label, refuse
from config.kinds.targets import TargetSpec

LOCAL: Final = "envoy.filters.http.local_ratelimit"
_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_STRUCTS: Final = (
    "type.googleapis.com/udpa.type.v1.TypedStruct",
    "type.googleapis.com/xds.type.v3.TypedStruct",
)
_NAME: Final = re.compile(r"[A-Za-z0-9!#$&'*+.^_`|~-]{1,64}\Z")
_FRAMING: Final = frozenset(
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"]
)
_MIN_INTERVAL_MS: Final = 50
_PARTS: Final = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
_ONLY: Final = f"of EnvoyFilter only HTTP_FILTER patches that insert {LOCAL} are understood"
# What else people write, by a word in the filter's name.
_INSTEAD: Final = (
    ("local_ratelimit", "a RateLimitPolicy"),
    ("ratelimit", "a RateLimitPolicy, with shared limits"),
    ("lua", "a FilterPolicy"),
    ("wasm", "a FilterPolicy"),
    ("ext_proc", "a FilterPolicy"),
    ("ext_authz", "an AuthorizationPolicy with action CUSTOM"),
    ("jwt_authn", "a RequestAuthentication"),
    ("rbac", "an AuthorizationPolicy"),
    ("fault", "a VirtualService with fault"),
    ("cors", "a VirtualService with corsPolicy"),
)
_INSTEAD_OF: Final = {
    "CLUSTER": "a DestinationRule",
    "HTTP_ROUTE": "an HTTPRoute or VirtualService",
    "VIRTUAL_HOST": "an HTTPRoute or VirtualService; for rate limits by descriptor a RateLimitPolicy",
    "ROUTE_CONFIGURATION": "an HTTPRoute or VirtualService",
    "NETWORK_FILTER": "for limits of connections a RateLimitPolicy with connections",
}


def _instead(applies_to: str, name: str) -> str:
    of_filter = next((text for word, text in _INSTEAD if word in name), "")
    of_patch = _INSTEAD_OF.get(applies_to, "")
    found = of_filter or of_patch if applies_to == "HTTP_FILTER" else of_patch or of_filter
    return f"; instead: {found}" if found else ""


def _header(name: str) -> str:
    if not _NAME.match(name) or name.lower() in _FRAMING:
        refuse("a header's name that says nothing of the message's form")
    return name


def _text(value: str) -> str:
    if not all(" " <= each <= "~" for each in value) or value != value.strip() or "%" in value:
        refuse("printable ASCII without % (Envoy's command operators are not understood)")
    return value


class Strict(Model):
    is_null_absent: ClassVar[bool] = False


class TokenBucket(Strict):
    max_tokens: Number
    tokens_per_fill: Number = 1
    fill_interval: Milliseconds

    @model_validator(mode="after")
    def _check(self) -> TokenBucket:
        if self.fill_interval < _MIN_INTERVAL_MS:
            complain(f"fill_interval: allowed: {_MIN_INTERVAL_MS}ms or more")
        return self


class Part(Strict):
    numerator: Annotated[int, Field(ge=0)] = 0
    denominator: Literal["HUNDRED", "TEN_THOUSAND", "MILLION"] = "HUNDRED"


class RuntimePart(Strict):
    runtime_key: str = ""
    default_value: Part = Field(default_factory=Part)

    @property
    def is_whole(self) -> bool:
        return self.default_value.numerator >= _PARTS[self.default_value.denominator]


class HeaderValue(Strict):
    key: Annotated[NonEmpty, AfterValidator(_header)]
    value: Annotated[str, Field(max_length=1024), AfterValidator(_text)] = ""


class HeaderToAdd(Strict):
    header: HeaderValue
    append: bool = False
    append_action: (
        Literal["OVERWRITE_IF_EXISTS_OR_ADD", "APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT"] | None
    ) = None


class Status(Strict):
    code: int | str = 429


class LocalRateLimit(Strict):
    stat_prefix: NonEmpty
    token_bucket: TokenBucket
    filter_enabled: RuntimePart = Field(default_factory=RuntimePart)
    filter_enforced: RuntimePart = Field(default_factory=RuntimePart)
    response_headers_to_add: Annotated[list[HeaderToAdd], Field(max_length=10)] = Field(default_factory=list)
    enable_x_ratelimit_headers: Literal["OFF", "DRAFT_VERSION_03"] = "OFF"
    status: Status = Field(default_factory=Status)
    rate_limited_as_resource_exhausted: bool = False
    local_rate_limit_per_downstream_connection: bool = False
    descriptors: list[Any] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> LocalRateLimit:
        for name in ("filter_enabled", "filter_enforced"):
            if not getattr(self, name).is_whole:
                complain(
                    f"{name} is not 100 %: a share of the requests cannot be limited here (and Envoy's "
                    "default of 0 % limits nothing); write numerator 100, denominator HUNDRED"
                )
        if self.status.code not in (429, "TooManyRequests"):
            complain(f"status.code is {self.status.code}; the answer is 429")
        if self.local_rate_limit_per_downstream_connection:
            complain(
                "local_rate_limit_per_downstream_connection is not supported; use RateLimitPolicy with by"
            )
        if self.descriptors:
            complain("descriptors are not supported; use a RateLimitPolicy: limits with by and match")
        return self


class PatchValue(Strict):
    name: NonEmpty
    typed_config: dict[str, Any]


class Patch(Strict):
    operation: Literal["INSERT_BEFORE", "INSERT_FIRST"]
    value: PatchValue


class ConfigPatch(Strict):
    apply_to: Literal["HTTP_FILTER"] = Field(alias="applyTo")
    match: dict[str, Any] = Field(default_factory=dict)
    patch: Patch

    @model_validator(mode="before")
    @classmethod
    def _recognise(cls, value: Any) -> Any:
        """Says of a patch that is another pattern what it is, before a field of it is found wrong."""
        if not isinstance(value, dict):
            return value
        applies_to, patch = str(value.get("applyTo", "")), value.get("patch")
        patch = patch if isinstance(patch, dict) else {}
        body = patch.get("value")
        name = str(body.get("name", "")) if isinstance(body, dict) else ""
        operation = str(patch.get("operation", ""))
        is_insert = operation in ("INSERT_BEFORE", "INSERT_FIRST")
        if not (applies_to == "HTTP_FILTER" and name == LOCAL and is_insert):
            found = " ".join(word for word in (applies_to, operation, name) if word) or "nothing"
            complain(f"found {found}: waypoints are no Envoy, and {_ONLY}{_instead(applies_to, name)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> ConfigPatch:
        context = self.match.get("context", "ANY")
        if context not in ("SIDECAR_INBOUND", "GATEWAY", "ANY"):
            complain(f"match.context is {context}; allowed for a waypoint: SIDECAR_INBOUND, GATEWAY, ANY")
        if unknown := sorted(self.match.keys() - {"context", "listener", "proxy"}):
            complain(f"match.{unknown[0]} is not understood; allowed: context, listener.filterChain.filter")
        self._check_listener(self.match.get("listener", {}))
        if self.match.get("proxy"):
            complain("match.proxy: waypoints are no Envoy and have no version to match; leave it out")
        return self

    @staticmethod
    def _check_listener(listener: Any) -> None:
        """Only what means every request: a limit must not hold for more or less than was written."""
        chain = listener.get("filterChain", {}) if isinstance(listener, dict) else None
        network = chain.get("filter", {}) if isinstance(chain, dict) else None
        is_plain = (
            isinstance(listener, dict)
            and isinstance(chain, dict)
            and isinstance(network, dict)
            and listener.keys() <= {"filterChain"}
            and chain.keys() <= {"filter"}
            and network.keys() <= {"name"}
            and network.get("name", "") in ("", "envoy.filters.network.http_connection_manager")
        )
        if not is_plain:
            complain(
                "match.listener: a waypoint has one listener; allowed: filterChain.filter.name "
                "envoy.filters.network.http_connection_manager (part of the requests: RateLimitPolicy, match)"
            )

    def limit(self) -> LocalRateLimit:
        """Raises ValidationError."""
        typed = self.patch.value.typed_config
        kind = typed.get("@type")
        config: Any = {key: value for key, value in typed.items() if key != "@type"}
        if kind in _STRUCTS:
            kind, config = typed.get("type_url"), typed.get("value")
        if kind != _TYPE:
            complain(
                f"typed_config is of type {kind}; allowed: {_TYPE}, or a TypedStruct with it as type_url"
            )
        if not isinstance(config, dict) or "token_bucket" not in config:
            complain(
                "typed_config has no token_bucket: it would limit nothing by itself; for a route's own limit "
                "write a RateLimitPolicy with targetRefs to the route"
            )
        return LocalRateLimit.model_validate(config)


class EnvoyFilterSpec(Strict):
    workload_selector: dict[str, Any] | None = Field(default=None, alias="workloadSelector")
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    patches: Annotated[list[ConfigPatch], Field(min_length=1, max_length=MAX_LIMITS)] = Field(
        alias="configPatches"
    )
    priority: int = 0

    @model_validator(mode="after")
    def _check(self) -> EnvoyFilterSpec:
        if self.workload_selector is not None or not self.targets:
            complain(
                "only targetRefs lead to a waypoint: name a Service or Gateway there, no workloadSelector"
            )
        for each in self.patches:
            each.limit()
        return self


class EnvoyFilter(Manifest):
    unread = fields("status")
    spec: EnvoyFilterSpec

    def to_object(self) -> objects.RateLimitPolicy:
        limits = [each.limit() for each in self.spec.patches]
        headers = [each.header for limit in limits for each in limit.response_headers_to_add]
        return objects.RateLimitPolicy(
            meta=self.meta(),
            targets=tuple(target.to_object() for target in self.spec.targets),
            limits=tuple(_limit(each, index) for index, each in enumerate(limits)),
            tells=any(each.enable_x_ratelimit_headers != "OFF" for each in limits),
            answer_headers=tuple((each.key, each.value) for each in headers),
        )


def _limit(found: LocalRateLimit, index: int) -> policy_rules.RateLimit:
    """Evenly what Envoy fills in steps: never more than there."""
    bucket = found.token_bucket
    name = found.stat_prefix if is_dns_label(found.stat_prefix) else f"configPatches[{index}]"
    return policy_rules.RateLimit(name, bucket.tokens_per_fill, bucket.fill_interval, bucket.max_tokens)
