"""AuthorizationPolicy (security.istio.io), with the checks that Istio's validation makes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from config import keys, objects
from config.kinds.schema import (
    MAX_PORT,
    Manifest,
    Model,
    NonEmpty,
    Selector,
    complain,
    fields,
    is_dns_label,
    is_dns_name,
    parse_network,
    refuse,
)
from config.kinds.targets import TargetSpec
from config.policy_rules import Condition, Operation, PolicyAction, PolicyRule, Source

MAX_RULES: Final = 512
MAX_ACCOUNTS: Final = 16
MAX_ACCOUNT_TEXT: Final = 320

IP_KEYS: Final = frozenset({"source.ip", "remote.ip", "destination.ip"})
PLAIN_KEYS: Final = IP_KEYS | {
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.port",
    "connection.sni",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
}
KEY_FORMS: Final = "request.headers[name], request.auth.claims[name], experimental.envoy.filters.name[key]"
_BRACKETED = re.compile(
    r"(?:request\.headers\[[^\[\]]+\]|request\.auth\.claims(?:\[[^\[\]]+\])+"
    r"|experimental\.envoy\.filters\.[^\[\]]+(?:\[[^\[\]]+\])+)\Z"
)
_CUSTOM_FORBIDDEN_FIELDS: Final = frozenset(
    [
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "trustDomains",
        "notTrustDomains",
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
    ]
)
_PATH_LITERAL = re.compile(r"[A-Za-z0-9\-._~%!$&'()+,;:@=]*\Z")
_OPERATOR = re.compile(r"\{[^/]*\}")


def _ip_block(text: str) -> str:
    block = parse_network(text)
    if block is None:
        refuse("an IPv4 or IPv6 address, or a CIDR block")
    return block


def _port(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_PORT):
        refuse(f'a port number from 1 to {MAX_PORT} as text, such as "8080"')
    return text


def _trust_domain(text: str) -> str:
    inner = text.removeprefix("*") if text.startswith("*") else text.removesuffix("*")
    if "/" in text or "*" in inner:
        refuse("a trust domain without '/', with at most one * at an end")
    return text


def _account(text: str) -> str:
    namespace, slash, name = text.rpartition("/")
    if len(text) > MAX_ACCOUNT_TEXT or not is_dns_name(name) or (slash and not is_dns_label(namespace)):
        refuse(
            "a service account as name or namespace/name, without wildcards, "
            f"at most {MAX_ACCOUNT_TEXT} characters"
        )
    return text


def _path(text: str) -> str:
    """Paths with `{`: a template. `{*}` is one segment, `{**}` any number of them and the last operator."""
    if "{" not in text and "}" not in text:
        return text
    after_rest = False
    for segment in text.removeprefix("/").split("/"):
        operators = _OPERATOR.findall(segment)
        if not operators and not ("{" in segment or "}" in segment):
            if not _PATH_LITERAL.match(segment):
                refuse(f'a path template; the segment "{segment}" has a character that is not allowed in one')
            continue
        if segment not in ("{*}", "{**}"):
            refuse(f'a path template with {{*}} or {{**}} alone in a segment; found the segment "{segment}"')
        if after_rest:
            refuse("a path template with {**} as the last operator")
        after_rest = segment == "{**}"
    return text


def _scalar_port(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        refuse(f'a port number from 1 to {MAX_PORT} as text, quoted: "{value}"')
    return value


Words = Annotated[list[NonEmpty], Field(min_length=1)]
IpBlocks = Annotated[list[Annotated[NonEmpty, AfterValidator(_ip_block)]], Field(min_length=1)]
Ports = Annotated[
    list[Annotated[NonEmpty, AfterValidator(_port), BeforeValidator(_scalar_port)]], Field(min_length=1)
]
TrustDomains = Annotated[list[Annotated[NonEmpty, AfterValidator(_trust_domain)]], Field(min_length=1)]
Accounts = Annotated[
    list[Annotated[NonEmpty, AfterValidator(_account)]], Field(min_length=1, max_length=MAX_ACCOUNTS)
]
Paths = Annotated[list[Annotated[NonEmpty, AfterValidator(_path)]], Field(min_length=1)]
NONE: Final[tuple[str, ...]] = ()


class Strict(Model):
    """Security decides on these: a null is never taken for an absent field."""

    is_null_absent: ClassVar[bool] = False


class SourceSpec(Strict):
    principals: Words | None = None
    not_principals: Words | None = Field(default=None, alias="notPrincipals")
    request_principals: Words | None = Field(default=None, alias="requestPrincipals")
    not_request_principals: Words | None = Field(default=None, alias="notRequestPrincipals")
    namespaces: Words | None = None
    not_namespaces: Words | None = Field(default=None, alias="notNamespaces")
    service_accounts: Accounts | None = Field(default=None, alias="serviceAccounts")
    not_service_accounts: Accounts | None = Field(default=None, alias="notServiceAccounts")
    trust_domains: TrustDomains | None = Field(default=None, alias="trustDomains")
    not_trust_domains: TrustDomains | None = Field(default=None, alias="notTrustDomains")
    ip_blocks: IpBlocks | None = Field(default=None, alias="ipBlocks")
    not_ip_blocks: IpBlocks | None = Field(default=None, alias="notIpBlocks")
    remote_ip_blocks: IpBlocks | None = Field(default=None, alias="remoteIpBlocks")
    not_remote_ip_blocks: IpBlocks | None = Field(default=None, alias="notRemoteIpBlocks")

    @model_validator(mode="after")
    def _check(self) -> SourceSpec:
        given = self.model_fields_set
        if not given:
            complain("source has no field; allowed: at least one")
        if given & {"service_accounts", "not_service_accounts"} and given & {
            "principals",
            "not_principals",
            "namespaces",
            "not_namespaces",
        }:
            complain("serviceAccounts cannot stand beside principals or namespaces in one source")
        return self

    def names(self) -> Iterable[str]:
        return (type(self).model_fields[name].alias or name for name in self.model_fields_set)

    def to_object(self) -> Source:
        return Source(
            principals=tuple(self.principals or NONE),
            not_principals=tuple(self.not_principals or NONE),
            service_accounts=tuple(self.service_accounts or NONE),
            not_service_accounts=tuple(self.not_service_accounts or NONE),
            namespaces=tuple(self.namespaces or NONE),
            not_namespaces=tuple(self.not_namespaces or NONE),
            trust_domains=tuple(self.trust_domains or NONE),
            not_trust_domains=tuple(self.not_trust_domains or NONE),
            ip_blocks=tuple(self.ip_blocks or NONE),
            not_ip_blocks=tuple(self.not_ip_blocks or NONE),
            request_principals=tuple(self.request_principals or NONE),
            not_request_principals=tuple(self.not_request_principals or NONE),
            remote_ip_blocks=tuple(self.remote_ip_blocks or NONE),
            not_remote_ip_blocks=tuple(self.not_remote_ip_blocks or NONE),
            l7_fields=tuple(sorted(set(self.names()) & L7_SOURCE)),
        )


L7_SOURCE: Final = frozenset(
    ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"]
)
L7_OPERATION: Final = frozenset(["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"])


class OperationSpec(Strict):
    hosts: Words | None = None
    not_hosts: Words | None = Field(default=None, alias="notHosts")
    ports: Ports | None = None
    not_ports: Ports | None = Field(default=None, alias="notPorts")
    methods: Words | None = None
    not_methods: Words | None = Field(default=None, alias="notMethods")
    paths: Paths | None = None
    not_paths: Paths | None = Field(default=None, alias="notPaths")

    @model_validator(mode="after")
    def _check(self) -> OperationSpec:
        if not self.model_fields_set:
            complain("operation has no field; allowed: at least one")
        return self

    def to_object(self) -> Operation:
        names = {type(self).model_fields[name].alias or name for name in self.model_fields_set}
        return Operation(
            ports=tuple(int(port) for port in self.ports or NONE),
            not_ports=tuple(int(port) for port in self.not_ports or NONE),
            hosts=tuple(self.hosts or NONE),
            not_hosts=tuple(self.not_hosts or NONE),
            methods=tuple(self.methods or NONE),
            not_methods=tuple(self.not_methods or NONE),
            paths=tuple(self.paths or NONE),
            not_paths=tuple(self.not_paths or NONE),
            l7_fields=tuple(sorted(names & L7_OPERATION)),
        )


class From(Strict):
    source: SourceSpec


class To(Strict):
    operation: OperationSpec


class When(Strict):
    key: NonEmpty
    values: Words | None = None
    not_values: Words | None = Field(default=None, alias="notValues")

    @model_validator(mode="after")
    def _check(self) -> When:
        if self.key not in PLAIN_KEYS and not _BRACKETED.match(self.key):
            complain(f'key "{self.key}" is unknown; allowed: {", ".join(sorted(PLAIN_KEYS))}, {KEY_FORMS}')
        if self.values is None and self.not_values is None:
            complain("a condition needs values or notValues")
        texts = [*(self.values or NONE), *(self.not_values or NONE)]
        if self.key in IP_KEYS:
            for text in texts:
                if parse_network(text) is None:
                    complain(f'"{text}" is no address for {self.key}; allowed: an IP address or CIDR block')
        if self.key == "destination.port":
            for text in texts:
                if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_PORT):
                    complain(f'"{text}" is no port; allowed: 1 to {MAX_PORT}')
        return self

    def to_object(self) -> Condition:
        return Condition(self.key, tuple(self.values or NONE), tuple(self.not_values or NONE))


class RuleSpec(Strict):
    source: Annotated[list[From], Field(min_length=1)] | None = Field(default=None, alias="from")
    target: Annotated[list[To], Field(min_length=1)] | None = Field(default=None, alias="to")
    when: Annotated[list[When], Field(min_length=1)] | None = None

    def to_object(self) -> PolicyRule:
        return PolicyRule(
            sources=tuple(item.source.to_object() for item in self.source or ()),
            operations=tuple(item.operation.to_object() for item in self.target or ()),
            conditions=tuple(item.to_object() for item in self.when or ()),
        )


class Provider(Strict):
    name: NonEmpty


class PolicySpec(Strict):
    selector: Selector | None = None
    target: TargetSpec | None = Field(default=None, alias="targetRef")
    targets: Annotated[list[TargetSpec], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None
    rules: list[RuleSpec] = Field(default_factory=list, max_length=MAX_RULES)

    @model_validator(mode="after")
    def _check(self) -> PolicySpec:
        if self.target is not None and self.targets:
            complain("targetRef and targetRefs exclude each other")
        if self.selector is not None and (self.target is not None or self.targets):
            complain("selector and targetRefs exclude each other")
        if self.action == "CUSTOM" and self.provider is None:
            complain("action CUSTOM needs provider.name")
        if self.action != "CUSTOM" and self.provider is not None:
            complain(f"provider goes with action CUSTOM only; the action is {self.action}")
        if self.action in ("DENY", "CUSTOM") and not self.rules:
            complain(f"action {self.action} needs at least one rule; to deny everything write rules: [{{}}]")
        if self.action == "CUSTOM":
            self._check_custom()
        return self

    def _check_custom(self) -> None:
        for index, rule in enumerate(self.rules):
            for item in rule.source or ():
                for name in sorted(set(item.source.names()) & _CUSTOM_FORBIDDEN_FIELDS):
                    complain(f"rules[{index}]: {name} cannot be used with action CUSTOM")
            for condition in rule.when or ():
                is_identity = condition.key.startswith("source.") and condition.key != "source.ip"
                if is_identity or condition.key.startswith("request.auth."):
                    complain(f"rules[{index}]: key {condition.key} cannot be used with action CUSTOM")


class AuthorizationPolicy(Manifest):
    unread = fields("status")
    spec: PolicySpec = Field(default_factory=PolicySpec)

    def to_object(self) -> objects.AuthorizationPolicy:
        spec = self.spec
        targets = [spec.target] if spec.target is not None else spec.targets
        meta = self.meta()
        return objects.AuthorizationPolicy(
            meta=meta,
            action=PolicyAction(spec.action),
            selector=spec.selector.match_labels if spec.selector is not None else {},
            targets=tuple(target.to_object() for target in targets),
            rules=tuple(rule.to_object() for rule in spec.rules),
            provider=spec.provider.name if spec.provider is not None else "",
            is_dry_run=meta.annotations.get(keys.DRY_RUN, "").lower() == "true",
        )

    def remarks(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for index, rule in enumerate(self.spec.rules):
            for position, item in enumerate(rule.source or ()):
                for name in ("principals", "not_principals"):
                    alias = SourceSpec.model_fields[name].alias or name
                    path = f"spec.rules[{index}].from[{position}].source.{alias}"
                    for text in getattr(item.source, name) or ():
                        found += [(path, remark) for remark in _principal_remarks(text)]
        dry_run = self.metadata.annotations.get(keys.DRY_RUN)
        if dry_run is not None and dry_run.lower() not in ("true", "false"):
            found.append(
                (f"metadata.annotations[{keys.DRY_RUN}]", f'found text "{dry_run}"; allowed: "true", "false"')
            )
        return found


def _principal_remarks(text: str) -> Iterable[str]:
    if text.startswith("spiffe://"):
        yield f'"{text}" matches nobody: principals are written without spiffe://'
    if "*" in text[1:-1]:
        yield f'"{text}": a * inside is taken literally; wildcards stand at one end'
