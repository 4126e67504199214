"""What guards the services of the loads about protection: a hundred policies, tokens, a filter."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Final

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from proto.mycelia import attachment_pb2, authentication_pb2, authorization_l7_pb2, filter_pb2
from proto.mycelia.worker_pb2 import Resources
from waypoint.state.authentication import AUTHENTICATION_TYPE
from waypoint.state.authorization import AUTHORIZATION_TYPE
from waypoint.state.filters import FILTER_TYPE

POLICIES: Final = 100
GUARDED: Final = "guarded"
TOKENS: Final = "tokens"
FILTERED: Final = "filtered"
ISSUER: Final = "https://issuer.bench"
_ALLOW, _DENY = authorization_l7_pb2.AuthorizationPolicy.ALLOW, authorization_l7_pb2.AuthorizationPolicy.DENY

Clause = authorization_l7_pb2.Clause
ClauseSet = authorization_l7_pb2.ClauseSet
Rule = authorization_l7_pb2.PolicyRule


def policies(service: str) -> Iterator[authorization_l7_pb2.AuthorizationPolicy]:
    """As a large shop has them: callers and paths that are allowed, paths and headers that are denied.

    The load's request is allowed by the last one and matches no other.
    """
    for number in range(POLICIES):
        path = f"/api/v{number % 7}/resource-{number}/*"
        if number == POLICIES - 1:
            action, rule = _ALLOW, Rule(sources=[_set(("source.namespace", "default"))])
        elif number % 10 < 7:
            caller = f"cluster.local/ns/team-{number % 12}/sa/app-{number}"
            rule = Rule(
                sources=[_set(("source.principal", caller))],
                operations=[_set(("request.path", path), ("request.method", "GET"))],
            )
            action = _ALLOW
        elif number % 10 < 9:
            rule = Rule(
                operations=[_set(("request.path", path)), _set(("request.path", f"*.private-{number}"))]
            )
            action = _DENY
        else:
            rule = Rule(conditions=[Clause(key=f"request.headers[x-tenant-{number}]", values=["blocked"])])
            action = _DENY
        yield authorization_l7_pb2.AuthorizationPolicy(
            namespace="default",
            name=f"policy-{number}",
            attachment=attachment_pb2.Attachment(services=[service]),
            action=action,
            rules=[rule],
        )


def _set(*pairs: tuple[str, str]) -> authorization_l7_pb2.ClauseSet:
    return ClauseSet(clauses=[Clause(key=key, values=[value]) for key, value in pairs])


class Issuer:
    """Signs the load's token; its public key is what the waypoint gets."""

    def __init__(self) -> None:
        self._key = RSAKey.generate_key(2048)

    @property
    def token(self) -> str:
        claims = {"iss": ISSUER, "sub": "load", "exp": int(time.time()) + 3600, "scope": "read write"}
        text: str = jwt.encode({"alg": "RS256"}, claims, self._key)
        return text

    def authentication(self, service: str) -> authentication_pb2.RequestAuthentication:
        keys = json.dumps(KeySet([self._key]).as_dict(private=False))
        return authentication_pb2.RequestAuthentication(
            namespace="default",
            name="tokens",
            attachment=attachment_pb2.Attachment(services=[service]),
            rules=[authentication_pb2.JwtRule(issuer=ISSUER, key_set=keys)],
        )


def noop_filter(service: str) -> filter_pb2.FilterPolicy:
    """A filter that looks at each request and leaves it as it is, in its process."""
    policy = filter_pb2.FilterPolicy(
        namespace="default",
        name="noop",
        source="def on_request(request): pass",
        memory_bytes=512 << 20,
        attachment=attachment_pb2.Attachment(services=[service]),
    )
    policy.deadline.FromSeconds(5)
    return policy


def resources(guarded: str, tokens: str, filtered: str, issuer: Issuer) -> Iterator[Resources]:
    """For the waypoint's worker."""
    policy = noop_filter(filtered).SerializeToString()
    yield Resources(type_url=FILTER_TYPE, upserts=[Resources.Resource(name="default/noop", value=policy)])
    yield Resources(
        type_url=AUTHORIZATION_TYPE,
        upserts=[
            Resources.Resource(name=f"{each.namespace}/{each.name}", value=each.SerializeToString())
            for each in policies(guarded)
        ],
    )
    authentication = issuer.authentication(tokens).SerializeToString()
    yield Resources(
        type_url=AUTHENTICATION_TYPE,
        upserts=[Resources.Resource(name="default/tokens", value=authentication)],
    )
