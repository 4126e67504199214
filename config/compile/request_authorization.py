"""AuthorizationPolicy to what waypoints judge (config-api 8.1): every field as clauses of one form. Pure.

Service accounts get their namespace here, so that a waypoint compares texts and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from config.compile.resource import REQUEST_AUTHORIZATION, Resource, make_resource
from config.objects import AuthorizationPolicy
from config.policy_rules import Operation, PolicyAction, PolicyRule, Source
from proto.mycelia import attachment_pb2
from proto.mycelia import authorization_l7_pb2 as pb

UNSUPPORTED_PREFIX = "experimental.envoy.filters."
_ACCOUNT_KEY = "source.serviceAccount"
_NEVER = pb.Clause(key="request.method", values=["\0"])


def compile_for_waypoints(
    policy: AuthorizationPolicy,
    attachment: attachment_pb2.Attachment,
    waypoints: tuple[str, ...],
    authorizer: pb.ExternalAuthorizer | None = None,
) -> Resource:
    meta = policy.meta
    is_refusing = policy.action in (PolicyAction.DENY, PolicyAction.CUSTOM)
    message = pb.AuthorizationPolicy(
        namespace=meta.namespace,
        name=meta.name,
        attachment=attachment,
        action=pb.AuthorizationPolicy.Action.Value(policy.action.value),
        is_dry_run=policy.is_dry_run,
        provider=policy.provider,
        authorizer=authorizer,
        rules=[_rule(rule, meta.namespace, is_refusing=is_refusing) for rule in policy.rules],
    )
    return make_resource(REQUEST_AUTHORIZATION, f"{meta.namespace}/{meta.name}", message, waypoints=waypoints)


def unsupported_keys(policy: AuthorizationPolicy) -> list[str]:
    """Conditions on what other proxies' filters say: no waypoint of this mesh has any."""
    return [
        f"rules[{index}]: when {condition.key}"
        for index, rule in enumerate(policy.rules)
        for condition in rule.conditions
        if condition.key.startswith(UNSUPPORTED_PREFIX)
    ]


def _rule(rule: PolicyRule, namespace: str, *, is_refusing: bool) -> pb.PolicyRule:
    conditions = []
    for condition in rule.conditions:
        if condition.key.startswith(UNSUPPORTED_PREFIX):
            # It fails closed: what allows never holds, what refuses holds without it.
            if not is_refusing:
                conditions.append(_NEVER)
            continue
        values: Sequence[str] = condition.values
        not_values: Sequence[str] = condition.not_values
        if condition.key == _ACCOUNT_KEY:
            values, not_values = _accounts(values, namespace), _accounts(not_values, namespace)
        conditions.append(pb.Clause(key=condition.key, values=values, not_values=not_values))
    return pb.PolicyRule(
        sources=[_source(source, namespace) for source in rule.sources],
        operations=[_operation(operation) for operation in rule.operations],
        conditions=conditions,
    )


def _source(source: Source, namespace: str) -> pb.ClauseSet:
    return _set(
        ("source.principal", source.principals, source.not_principals),
        (
            _ACCOUNT_KEY,
            _accounts(source.service_accounts, namespace),
            _accounts(source.not_service_accounts, namespace),
        ),
        ("source.namespace", source.namespaces, source.not_namespaces),
        ("source.trustDomain", source.trust_domains, source.not_trust_domains),
        ("source.ip", source.ip_blocks, source.not_ip_blocks),
        ("remote.ip", source.remote_ip_blocks, source.not_remote_ip_blocks),
        ("request.auth.principal", source.request_principals, source.not_request_principals),
    )


def _operation(operation: Operation) -> pb.ClauseSet:
    return _set(
        ("request.path", operation.paths, operation.not_paths),
        ("request.method", operation.methods, operation.not_methods),
        ("destination.port", _texts(operation.ports), _texts(operation.not_ports)),
        ("request.host", operation.hosts, operation.not_hosts),
    )


def _set(*clauses: tuple[str, Sequence[str], Sequence[str]]) -> pb.ClauseSet:
    """Those that say something."""
    return pb.ClauseSet(
        clauses=[
            pb.Clause(key=key, values=values, not_values=not_values)
            for key, values, not_values in clauses
            if values or not_values
        ]
    )


def _texts(ports: Iterable[int]) -> list[str]:
    return [str(port) for port in ports]


def _accounts(texts: Iterable[str], namespace: str) -> list[str]:
    return [text if "/" in text else f"{namespace}/{text}" for text in texts]
