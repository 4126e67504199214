"""RequestAuthentication to what waypoints judge; the keys are put in here. Pure."""

from __future__ import annotations

from collections.abc import Callable

from config.compile.resource import AUTHENTICATION, Resource, make_resource
from config.objects import RequestAuthentication
from config.policy_rules import JwtRule
from proto.mycelia import attachment_pb2
from proto.mycelia import authentication_pb2 as pb

KeySetText = Callable[[JwtRule], str]


def compile_authentication(
    policy: RequestAuthentication,
    attachment: attachment_pb2.Attachment,
    waypoints: tuple[str, ...],
    key_set: KeySetText,
) -> Resource:
    meta = policy.meta
    message = pb.RequestAuthentication(
        namespace=meta.namespace,
        name=meta.name,
        attachment=attachment,
        rules=[_rule(rule, key_set(rule)) for rule in policy.rules],
    )
    return make_resource(AUTHENTICATION, f"{meta.namespace}/{meta.name}", message, waypoints=waypoints)


def _rule(rule: JwtRule, key_set: str) -> pb.JwtRule:
    return pb.JwtRule(
        issuer=rule.issuer,
        audiences=rule.audiences,
        key_set=key_set,
        headers=[pb.JwtRule.Header(name=name, prefix=prefix) for name, prefix in rule.headers],
        parameters=rule.parameters,
        cookies=rule.cookies,
        forwards_token=rule.forwards_token,
        payload_header=rule.payload_header,
        claim_headers=[
            pb.JwtRule.ClaimHeader(header=header, claim=claim) for header, claim in rule.claim_headers
        ],
        space_delimited_claims=rule.space_delimited_claims,
    )
