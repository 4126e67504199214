"""RequestAuthentication (security.istio.io): whose tokens are valid, and where they stand (config-api 10)."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from config import objects, policy_rules
from config.kinds.istio_schema import Milliseconds
from config.kinds.schema import Manifest, Model, NonEmpty, Selector, complain, fields, refuse
from config.kinds.targets import TargetSpec

MAX_RULES: Final = 4096
MAX_URI: Final = 2048
MAX_NAMES: Final = 64
MAX_JWKS_BYTES: Final = 256 * 1024
DEFAULT_TIMEOUT_MS: Final = 5000
MAX_TIMEOUT_MS: Final = 60_000
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_TOKEN_CHARACTERS: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_HEADER_CHARACTERS: Final = frozenset("-_") | {each for each in _TOKEN_CHARACTERS if each.isalnum()}


def _uri(text: str) -> str:
    parts = urlsplit(text)
    if len(text) > MAX_URI or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        refuse(f"an http or https URI with a host and without a user, at most {MAX_URI} characters")
    return text


def _jwks(text: str) -> str:
    if len(text) > MAX_JWKS_BYTES:
        refuse(f"a JSON Web Key Set of at most {MAX_JWKS_BYTES} characters")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        refuse("a JSON Web Key Set: this is no JSON")
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        refuse('a JSON Web Key Set: an object with a list "keys"')
    if any(isinstance(each, dict) and _PRIVATE_MEMBERS & each.keys() for each in document["keys"]):
        refuse("a JSON Web Key Set of public keys: this one holds a private or a shared key")
    return text


def _fetch_timeout(milliseconds: int) -> int:
    if milliseconds > MAX_TIMEOUT_MS:
        refuse(f"a duration of at most {MAX_TIMEOUT_MS // 1000}s: fetches share a few places")
    return milliseconds


def _field_name(text: str) -> str:
    if not text or not _TOKEN_CHARACTERS.issuperset(text):
        refuse("a header name")
    return text


def _output_header(text: str) -> str:
    if not text or not _HEADER_CHARACTERS.issuperset(text):
        refuse("a header name of letters, digits, '-' and '_'")
    if text.lower() in ("host", "content-length", "connection", "upgrade", "te", "cookie"):
        refuse("a header name that HTTP does not use itself")
    return text


Words = Annotated[list[NonEmpty], Field(max_length=MAX_NAMES)]


class Strict(Model):
    is_null_absent: ClassVar[bool] = False


class FromHeader(Strict):
    name: Annotated[str, AfterValidator(_field_name)]
    prefix: str = ""


class ClaimToHeader(Strict):
    header: Annotated[str, AfterValidator(_output_header)]
    claim: NonEmpty


class JwtRuleSpec(Strict):
    issuer: NonEmpty
    audiences: Words = Field(default_factory=list)
    jwks: Annotated[str, AfterValidator(_jwks)] | None = None
    jwks_uri: Annotated[str, AfterValidator(_uri)] | None = Field(default=None, alias="jwksUri")
    from_headers: Annotated[list[FromHeader], Field(max_length=MAX_NAMES)] = Field(
        default_factory=list, alias="fromHeaders"
    )
    from_params: Words = Field(default_factory=list, alias="fromParams")
    from_cookies: Words = Field(default_factory=list, alias="fromCookies")
    forward_original_token: bool = Field(default=False, alias="forwardOriginalToken")
    output_payload_to_header: Annotated[str, AfterValidator(_output_header)] | None = Field(
        default=None, alias="outputPayloadToHeader"
    )
    output_claim_to_headers: Annotated[list[ClaimToHeader], Field(max_length=MAX_NAMES)] = Field(
        default_factory=list, alias="outputClaimToHeaders"
    )
    timeout: Annotated[Milliseconds, AfterValidator(_fetch_timeout)] = DEFAULT_TIMEOUT_MS
    space_delimited_claims: Words = Field(default_factory=list, alias="spaceDelimitedClaims")

    @model_validator(mode="after")
    def _check(self) -> JwtRuleSpec:
        if self.jwks is not None and self.jwks_uri is not None:
            complain("jwks and jwksUri exclude each other")
        if self.jwks is None and self.jwks_uri is None:
            parts = urlsplit(self.issuer)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                complain(
                    f'issuer "{self.issuer}" is no http or https URI, so it cannot say where its keys are: '
                    "give jwks or jwksUri"
                )
        return self

    def to_object(self) -> policy_rules.JwtRule:
        return policy_rules.JwtRule(
            issuer=self.issuer,
            audiences=tuple(self.audiences),
            jwks=self.jwks or "",
            jwks_uri=self.jwks_uri or "",
            timeout_ms=self.timeout,
            headers=tuple((each.name.lower(), each.prefix) for each in self.from_headers),
            parameters=tuple(self.from_params),
            cookies=tuple(self.from_cookies),
            forwards_token=self.forward_original_token,
            payload_header=(self.output_payload_to_header or "").lower(),
            claim_headers=tuple((each.header.lower(), each.claim) for each in self.output_claim_to_headers),
            space_delimited_claims=tuple(self.space_delimited_claims),
        )


class AuthenticationSpec(Strict):
    selector: Selector | None = None
    target: TargetSpec | None = Field(default=None, alias="targetRef")
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    rules: Annotated[list[JwtRuleSpec], Field(max_length=MAX_RULES)] = Field(
        default_factory=list, alias="jwtRules"
    )

    @model_validator(mode="after")
    def _check(self) -> AuthenticationSpec:
        if self.target is not None and self.targets:
            complain("targetRef and targetRefs exclude each other")
        if self.selector is not None and (self.target is not None or self.targets):
            complain("selector and targetRefs exclude each other")
        return self


class RequestAuthentication(Manifest):
    unread = fields("status")
    spec: AuthenticationSpec = Field(default_factory=AuthenticationSpec)

    def to_object(self) -> objects.RequestAuthentication:
        spec = self.spec
        targets = [spec.target] if spec.target is not None else spec.targets
        return objects.RequestAuthentication(
            meta=self.meta(),
            selector=spec.selector.match_labels if spec.selector is not None else {},
            targets=tuple(target.to_object() for target in targets),
            rules=tuple(rule.to_object() for rule in spec.rules),
        )
