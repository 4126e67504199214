"""Words for policies in tests: rules as dictionaries in, policies and facts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proto.mycelia import attachment_pb2
from proto.mycelia import authorization_l7_pb2 as pb
from transport.spiffe import SpiffeId
from waypoint.state.authorization import Policy, parse_authorization
from waypoint.state.policy_facts import PolicyFacts

FIELDS = {
    "principals": "source.principal",
    "namespaces": "source.namespace",
    "serviceAccounts": "source.serviceAccount",
    "trustDomains": "source.trustDomain",
    "ipBlocks": "source.ip",
    "remoteIpBlocks": "remote.ip",
    "requestPrincipals": "request.auth.principal",
    "hosts": "request.host",
    "ports": "destination.port",
    "methods": "request.method",
    "paths": "request.path",
}
Fields = Mapping[str, Sequence[str]]
RuleText = Mapping[str, Any]  # {"from": [Fields], "to": [Fields], "when": [(key, values, not_values)]}


def clause_set(fields: Fields) -> pb.ClauseSet:
    clauses = []
    for name, key in FIELDS.items():
        values = fields.get(name, ())
        not_values = fields.get("not" + name[0].upper() + name[1:], ())
        if values or not_values:
            clauses.append(pb.Clause(key=key, values=values, not_values=not_values))
    return pb.ClauseSet(clauses=clauses)


def message(
    *rules: RuleText, action: str = "ALLOW", name: str = "p", namespace: str = "shop", **fields: Any
) -> pb.AuthorizationPolicy:
    return pb.AuthorizationPolicy(
        namespace=namespace,
        name=name,
        action=pb.AuthorizationPolicy.Action.Value(action),
        rules=[
            pb.PolicyRule(
                sources=[clause_set(each) for each in rule.get("from", ())],
                operations=[clause_set(each) for each in rule.get("to", ())],
                conditions=[
                    pb.Clause(key=key, values=values, not_values=not_values)
                    for key, values, not_values in rule.get("when", ())
                ],
            )
            for rule in rules
        ],
        **{"attachment": attachment_pb2.Attachment(whole_mesh=True), **fields},
    )


def policy(*rules: RuleText, **fields: Any) -> Policy:
    made = message(*rules, **fields)
    return parse_authorization(f"{made.namespace}/{made.name}", made.SerializeToString())


def facts(
    path: str = "/",
    method: str = "GET",
    *,
    host: str = "web",
    headers: Sequence[tuple[str, str]] = (),
    caller: str | None = "spiffe://cluster.local/ns/shop/sa/cart",
    port: int = 80,
    ip: str = "10.0.0.1",
    **more: Any,
) -> PolicyFacts:
    pure, mark, query = path.partition("?")
    return PolicyFacts(
        identity=None if caller is None else SpiffeId.parse(caller),
        source_ip=ip,
        destination=("10.96.0.1", port),
        method=method.encode(),
        path=pure.encode(),
        query=query.encode() if mark else None,
        authority=host.encode(),
        scheme=b"http",
        headers=[(name.encode(), value.encode()) for name, value in headers],
        **more,
    )
