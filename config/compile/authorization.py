"""AuthorizationPolicy to the data plane's Authorization (ztunnel-facts 7.5).

A node proxy decides on connections. What a rule says about requests cannot be judged there: an ALLOW rule
with such a part is left out (less is allowed), a DENY rule loses the part (more is denied), and the object's
status lists the parts. A clause that had only such parts becomes an empty match, which matches nothing.

One difference from Istio, on the strict side: `trustDomains` is turned into principal prefixes where that
says exactly the same; Istio's conversion drops it, which would widen an ALLOW rule.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from config.compile.resource import AUTHORIZATION, Resource, make_resource
from config.notes import Note, Reason
from config.objects import AuthorizationPolicy
from config.policy_rules import Condition, Operation, PolicyAction, PolicyRule, Source
from config.settings import MeshSettings
from proto.istio import authorization_pb2 as pb

_ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """`resource` is None where node proxies do not get the policy."""

    resource: Resource | None
    notes: tuple[Note, ...] = ()


def is_for_node_proxies(policy: AuthorizationPolicy, settings: MeshSettings) -> bool:
    """Whether ztunnels are told of the policy at all."""
    return (
        not policy.targets
        and policy.action in (PolicyAction.ALLOW, PolicyAction.DENY)
        and (settings.is_dry_run_sent or not policy.is_dry_run)
    )


def compile_policy(policy: AuthorizationPolicy, settings: MeshSettings) -> CompiledPolicy:
    if not is_for_node_proxies(policy, settings):
        return CompiledPolicy(None, (_why_not_sent(policy),))
    is_allow = policy.action is PolicyAction.ALLOW
    groups: list[pb.Group] = []
    parts: list[str] = []
    for index, rule in enumerate(policy.rules):
        group, unjudged = _compile_rule(rule, policy.meta.namespace)
        parts += [f"rules[{index}]: {part}" for part in unjudged]
        if not (is_allow and unjudged):
            groups.append(group)
    message = pb.Authorization(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        scope=_scope(policy, settings),
        action=pb.ALLOW if is_allow else pb.DENY,
        groups=groups,
        dry_run=policy.is_dry_run,
    )
    notes = _l7_notes(policy, parts)
    return CompiledPolicy(make_resource(AUTHORIZATION, policy_key(policy), message), notes)


def policy_key(policy: AuthorizationPolicy) -> str:
    return f"{policy.meta.namespace}/{policy.meta.name}"


def _scope(policy: AuthorizationPolicy, settings: MeshSettings) -> pb.Scope.ValueType:
    if policy.selector:
        return pb.WORKLOAD_SELECTOR
    return pb.GLOBAL if policy.meta.namespace == settings.root_namespace else pb.NAMESPACE


def _why_not_sent(policy: AuthorizationPolicy) -> Note:
    ref = policy.meta.ref
    assert not policy.targets, "those are for waypoints (attached_policies)"
    if policy.action in (PolicyAction.CUSTOM, PolicyAction.AUDIT):
        text = f"action {policy.action.value} is not supported by node proxies; not enforced"
        return Note(ref, Reason.UNSUPPORTED_VALUE, text)
    return Note(ref, Reason.UNSUPPORTED_VALUE, "dry-run policies are not sent to node proxies")


def _l7_notes(policy: AuthorizationPolicy, parts: Sequence[str]) -> tuple[Note, ...]:
    if not parts:
        return ()
    if policy.action is PolicyAction.ALLOW:
        effect = "rules with them are left out, so that less is allowed"
    else:
        effect = (
            "they are left out of the rules, so that more is denied "
            "(a from, to or when of nothing else never holds)"
        )
    text = f"node proxies cannot judge {'; '.join(parts)}: {effect}"
    return (Note(policy.meta.ref, Reason.UNSUPPORTED_VALUE, text),)


def _compile_rule(rule: PolicyRule, namespace: str) -> tuple[pb.Group, list[str]]:
    """The group, and the parts of the rule that it cannot express."""
    unjudged: list[str] = []
    clauses: list[pb.Rules] = []
    if rule.operations:
        matches = []
        for operation in rule.operations:
            unjudged += [f"to.{name}" for name in operation.l7_fields]
            matches.append(_operation(operation))
        clauses.append(pb.Rules(matches=matches))
    if rule.sources:
        matches = []
        for source in rule.sources:
            match, left_out = _source(source, namespace)
            unjudged += [f"from.{name}" for name in left_out]
            matches.append(match)
        clauses.append(pb.Rules(matches=matches))
    for condition in rule.conditions:
        if condition.key not in _CONDITIONS:
            unjudged.append(f"when {condition.key}")
            clauses.append(pb.Rules(matches=[pb.Match()]))
            continue
        clauses.append(pb.Rules(matches=[_condition(condition)]))
    return pb.Group(rules=clauses), unjudged


def _operation(operation: Operation) -> pb.Match:
    return pb.Match(destination_ports=operation.ports, not_destination_ports=operation.not_ports)


def _source(source: Source, namespace: str) -> tuple[pb.Match, list[str]]:
    left_out = list(source.l7_fields)
    principals = [text_match(text) for text in source.principals]
    if source.trust_domains:
        domains = _trust_domains(source.trust_domains)
        if principals or domains is None:
            left_out.append("trustDomains")
        else:
            principals = domains
    not_principals = [text_match(text) for text in source.not_principals]
    if source.not_trust_domains:
        domains = _trust_domains(source.not_trust_domains)
        if domains is None:
            left_out.append("notTrustDomains")
        else:
            not_principals += domains
    match = pb.Match(
        principals=principals,
        not_principals=not_principals,
        namespaces=[text_match(text) for text in source.namespaces],
        not_namespaces=[text_match(text) for text in source.not_namespaces],
        service_accounts=[_account(text, namespace) for text in source.service_accounts],
        not_service_accounts=[_account(text, namespace) for text in source.not_service_accounts],
        source_ips=ip_blocks(source.ip_blocks),
        not_source_ips=ip_blocks(source.not_ip_blocks),
    )
    return match, left_out


def _trust_domains(domains: Sequence[str]) -> list[pb.StringMatch] | None:
    """As prefixes of principals; None where one cannot be written so (`*suffix`)."""
    matches: list[pb.StringMatch] = []
    for domain in domains:
        if domain == _ANY:
            matches.append(text_match(_ANY))
        elif domain.startswith(_ANY):
            return None
        else:
            matches.append(
                pb.StringMatch(prefix=domain.removesuffix(_ANY) if _ANY in domain else f"{domain}/")
            )
    return matches


def _condition(condition: Condition) -> pb.Match:
    match = pb.Match()
    values, not_values = condition.values, condition.not_values
    match condition.key:
        case "source.ip":
            match.source_ips.extend(ip_blocks(values))
            match.not_source_ips.extend(ip_blocks(not_values))
        case "destination.ip":
            match.destination_ips.extend(ip_blocks(values))
            match.not_destination_ips.extend(ip_blocks(not_values))
        case "source.namespace":
            match.namespaces.extend(text_match(text) for text in values)
            match.not_namespaces.extend(text_match(text) for text in not_values)
        case "source.principal":
            match.principals.extend(text_match(text) for text in values)
            match.not_principals.extend(text_match(text) for text in not_values)
        case "destination.port":
            match.destination_ports.extend(int(text) for text in values)
            match.not_destination_ports.extend(int(text) for text in not_values)
    return match


_CONDITIONS: Final = frozenset(
    {"source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"}
)


def text_match(text: str) -> pb.StringMatch:
    """`*`, `*suffix`, `prefix*` or the exact text."""
    if text == _ANY:
        match = pb.StringMatch()
        match.presence.SetInParent()
        return match
    if text.startswith(_ANY):
        return pb.StringMatch(suffix=text[1:])
    if text.endswith(_ANY):
        return pb.StringMatch(prefix=text[:-1])
    return pb.StringMatch(exact=text)


def _account(text: str, namespace: str) -> pb.ServiceAccountMatch:
    own, _, name = text.rpartition("/")
    return pb.ServiceAccountMatch(namespace=own or namespace, serviceAccount=name)


def ip_blocks(texts: Iterable[str]) -> list[pb.Address]:
    blocks = [ipaddress.ip_network(text, strict=False) for text in texts]
    return [pb.Address(address=block.network_address.packed, length=block.prefixlen) for block in blocks]
