"""AuthorizationPolicy at a waypoint: policies as they are told, and the judgement by all of them. Pure.

Order (config-api 8.5): AUDIT notes, DENY refuses, then ALLOW: without such a policy everything passes, else
one rule must hold. CUSTOM is judged apart, before credentials are read. Dry-run policies are judged beside
the others and never enforced.

A connection that is no HTTP has no method, path, host or header: an ALLOW rule that names one never holds for
it, and of a DENY rule only the rest counts, so that more is denied, as at Istio's proxies.

With many policies a request is not held against each: see rule_table.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from proto.mycelia import authorization_l7_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.external_authorizer import ExternalAuthorizer, parse_authorizer
from waypoint.state.policies import Attached, check_name
from waypoint.state.policy_clauses import SERVER_NAME_KEY, Test, clause_test, header_name, is_about_requests
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.rule_table import Keys, RuleTable

AUTHORIZATION_TYPE: Final = "type.googleapis.com/mycelia.waypoint.AuthorizationPolicy"
_MAX_REASONS: Final = 3


class Action(enum.Enum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


_ACTIONS: Final = {
    pb.AuthorizationPolicy.ALLOW: Action.ALLOW,
    pb.AuthorizationPolicy.DENY: Action.DENY,
    pb.AuthorizationPolicy.AUDIT: Action.AUDIT,
    pb.AuthorizationPolicy.CUSTOM: Action.CUSTOM,
}

# One source, operation or condition: all of its clauses must hold.
_Set = tuple[Test, ...]


class Rule:
    """One rule of a policy. `index` is its place in the manifest; one that `is_void` never holds."""

    __slots__ = (
        "_conditions",
        "_operations",
        "_sources",
        "header_names",
        "index",
        "is_void",
        "keys",
        "needs_server_name",
        "policy",
    )

    def __init__(
        self,
        policy: Policy,
        index: int,
        message: pb.PolicyRule,
        *,
        is_refusing: bool,
        is_void: bool = False,
    ) -> None:
        def sets(found: Iterable[pb.ClauseSet]) -> tuple[_Set, ...]:
            return tuple(
                tuple(clause_test(clause, is_refusing=is_refusing) for clause in each.clauses)
                for each in found
            )

        self.policy = policy
        self.index = index
        self.is_void = is_void
        self._sources = sets(message.sources)
        self._operations = sets(message.operations)
        self._conditions = tuple(clause_test(each, is_refusing=is_refusing) for each in message.conditions)
        self.keys = Keys.of(message)
        clauses = [each for part in (*message.sources, *message.operations) for each in part.clauses]
        self.header_names = frozenset(header_name(each.key) for each in (*clauses, *message.conditions))
        self.needs_server_name = any(each.key == SERVER_NAME_KEY for each in message.conditions)

    def holds(self, facts: PolicyFacts) -> bool:
        for parts in (self._operations, self._sources):
            if parts:
                for tests in parts:
                    for test in tests:
                        if not test(facts):
                            break
                    else:
                        break
                else:
                    return False
        return all(test(facts) for test in self._conditions)

    @property
    def name(self) -> str:
        """As Istio's logs name a rule."""
        return f"ns[{self.policy.namespace}]-policy[{self.policy.name}]-rule[{self.index}]"

    def clause(self, facts: PolicyFacts) -> str:
        """Which parts of the rule hold, or which is the first that does not: `from[1] to[0]`, `no to`."""
        if self.is_void:
            return "is about requests, and this is none"
        words = []
        for word, parts in (("from", self._sources), ("to", self._operations)):
            if not parts:
                continue
            number = next((i for i, each in enumerate(parts) if all(test(facts) for test in each)), None)
            if number is None:
                return f"no {word}"
            words.append(f"{word}[{number}]")
        for number, test in enumerate(self._conditions):
            if not test(facts):
                return f"no when[{number}]"
        if self._conditions:
            words.append("when")
        return " ".join(words) or "everything"


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One policy. Implements policies.Policy."""

    key: str
    namespace: str
    name: str
    attached: Attached
    action: Action
    is_dry_run: bool
    provider: str
    authorizer: ExternalAuthorizer | None  # whom action CUSTOM asks; None: nobody can be asked
    rules: list[Rule]
    stream_rules: list[Rule]  # the same, for connections that are no HTTP

    def __str__(self) -> str:
        return f"AuthorizationPolicy/{self.key}"


def parse_authorization(name: str, content: bytes) -> Policy:
    """Raises `RoutesRejected` with the reason."""
    message = pb.AuthorizationPolicy()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected("it is no AuthorizationPolicy") from error
    action = _ACTIONS.get(message.action)
    if action is None:
        raise RoutesRejected(f"action {message.action} is not known")
    policy = Policy(
        f"{message.namespace}/{message.name}",
        message.namespace,
        message.name,
        Attached.of(message.attachment),
        action,
        message.is_dry_run,
        message.provider,
        parse_authorizer(message.authorizer) if message.HasField("authorizer") else None,
        [],
        [],
    )
    check_name(name, policy.key)
    is_refusing = action in (Action.DENY, Action.CUSTOM)
    for index, rule in enumerate(message.rules):
        try:
            policy.rules.append(Rule(policy, index, rule, is_refusing=is_refusing))
            policy.stream_rules.append(_stream_rule(policy, index, rule, is_refusing=is_refusing))
        except RoutesRejected as error:
            raise RoutesRejected(f"rules[{index}]: {error.text}") from error
    return policy


def _stream_rule(policy: Policy, index: int, rule: pb.PolicyRule, *, is_refusing: bool) -> Rule:
    """The rule for connections. What allows or audits by something of requests is void as a whole: a
    connection has no method that could be one of `notMethods`, so to judge it would let it pass.
    """
    if is_refusing:
        return Rule(policy, index, _without_requests(rule), is_refusing=True)
    clauses = [each for part in (*rule.sources, *rule.operations) for each in part.clauses]
    is_void = any(is_about_requests(each.key) for each in (*clauses, *rule.conditions))
    return Rule(policy, index, rule, is_refusing=False, is_void=is_void)


def _without_requests(rule: pb.PolicyRule) -> pb.PolicyRule:
    """What a rule says of connections."""

    def rest(sets: Iterable[pb.ClauseSet]) -> list[pb.ClauseSet]:
        return [
            pb.ClauseSet(clauses=[each for each in one.clauses if not is_about_requests(each.key)])
            for one in sets
        ]

    return pb.PolicyRule(
        sources=rest(rule.sources),
        operations=rest(rule.operations),
        conditions=[each for each in rule.conditions if not is_about_requests(each.key)],
    )


def custom_table(
    policies: Iterable[Policy], *, is_dry_run: bool = False, is_for_streams: bool = False
) -> RuleTable:
    """Which CUSTOM policies want their provider asked: those that are enforced, or else those only tried."""
    found = [each for each in policies if each.action is Action.CUSTOM and each.is_dry_run is is_dry_run]
    return RuleTable(found, is_for_streams=is_for_streams)


@dataclass(frozen=True, slots=True)
class Refusal:
    """`matched` is what Istio's details name (`none`: no ALLOW rule holds), `policy` says it in full."""

    matched: str
    policy: str


class Authorizer:
    """Those policies of one place that are enforced, or else those that are only tried (dry-run)."""

    __slots__ = ("allow", "audit", "deny")

    def __init__(self, policies: Iterable[Policy], *, is_for_streams: bool = False) -> None:
        policies = list(policies)

        def table(action: Action) -> RuleTable:
            found = [each for each in policies if each.action is action]
            return RuleTable(found, is_for_streams=is_for_streams)

        self.allow = table(Action.ALLOW)
        self.deny = table(Action.DENY)
        self.audit = table(Action.AUDIT)

    def __bool__(self) -> bool:
        return bool(self.allow or self.deny or self.audit)

    def judge(self, facts: PolicyFacts) -> Refusal | None:
        """None: it may pass."""
        if self.deny:
            rule = self.deny.first(facts)
            if rule is not None:
                said = f"{rule.policy} rules[{rule.index}] {rule.clause(facts)}"
                return Refusal(rule.name, said)
        if self.allow and self.allow.first(facts) is None:
            return Refusal("none", self._why_not_allowed(facts))
        return None

    def _why_not_allowed(self, facts: PolicyFacts) -> str:
        reasons = []
        for policy in self.allow.policies:
            rules = self.allow.rules_of(policy)
            if not rules:
                reasons.append(f"{policy} has no rules")
            reasons += [f"{policy} rules[{rule.index}] {rule.clause(facts)}" for rule in rules]
            if len(reasons) > _MAX_REASONS:
                break
        left = len(reasons) > _MAX_REASONS
        return "no ALLOW rule holds: " + "; ".join(reasons[:_MAX_REASONS]) + (" ..." if left else "")
