"""AuthorizationPolicy at a waypoint: policies as they are told, and the judgement by all of them. Pure.

Order (config-api 8.5): AUDIT notes, DENY refuses, then ALLOW: without such a policy everything passes, else
one rule must hold. CUSTOM is judged apart, before credentials are read. Dry-run policies are judged beside
the others and never enforced.

A connection that is no HTTP has no method, path, host or header: an ALLOW rule that names one never holds for
it, and of a DENY rule only the rest counts, so that more is denied, as at Istio's proxies.

With many policies a request is not held against each: rules that name exact paths, or prefixes with a whole
first segment, or exact callers or namespaces, are found by these; the others are tried one by one
(`RuleTable`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from proto.mycelia import authorization_l7_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.policies import Attached, check_name
from waypoint.state.policy_clauses import SERVER_NAME_KEY, Test, clause_test, is_about_requests, octets, texts
from waypoint.state.policy_facts import PolicyFacts

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
        "callers",
        "index",
        "is_void",
        "namespaces",
        "needs_server_name",
        "paths",
        "policy",
        "segments",
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
        self.paths, self.segments = _path_keys(message.operations)
        self.callers = _caller_keys(message.sources, "source.principal")
        self.namespaces = _caller_keys(message.sources, "source.namespace")
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


# ---- many policies ----


def _path_keys(operations: Sequence[pb.ClauseSet]) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Exact paths and first segments, one of which each request that the rule can hold for has."""
    paths: set[bytes] = set()
    segments: set[bytes] = set()
    for operation in operations:
        values = next((each.values for each in operation.clauses if each.key == "request.path"), ())
        plain = octets(value for value in values if "{" not in value)
        prefixes = {first_segment(prefix) for prefix in plain.prefixes}
        is_narrow = values and not any("{" in value for value in values)
        if not is_narrow or plain.is_any or plain.suffixes or b"" in prefixes:
            return frozenset(), frozenset()
        paths |= plain.exact
        segments |= prefixes
    return frozenset(paths), frozenset(segments)


def first_segment(path: bytes) -> bytes:
    """`/a/` of `/a/b`; empty where the path has no whole segment."""
    end = path.find(b"/", 1)
    return path[: end + 1] if path[:1] == b"/" and end > 0 else b""


def _caller_keys(sources: Sequence[pb.ClauseSet], key: str) -> frozenset[str]:
    """Exact values of `key`, one of which each caller has for whom the rule can hold."""
    found: set[str] = set()
    for source in sources:
        values = next((each.values for each in source.clauses if each.key == key), ())
        plain = texts(values)
        if not values or plain.is_any or plain.prefixes or plain.suffixes:
            return frozenset()
        found |= plain.exact
    return frozenset(found)


_Entry = tuple[int, Rule]


class RuleTable:
    """The rules of some policies of one action, in order: for requests, or else for other connections."""

    __slots__ = (
        "_by_caller",
        "_by_namespace",
        "_by_path",
        "_by_segment",
        "_is_for_streams",
        "_others",
        "policies",
    )

    def __init__(self, policies: Sequence[Policy], *, is_for_streams: bool = False) -> None:
        self.policies = tuple(policies)
        self._is_for_streams = is_for_streams
        self._by_path: dict[bytes, list[_Entry]] = {}
        self._by_segment: dict[bytes, list[_Entry]] = {}
        self._by_caller: dict[str, list[_Entry]] = {}
        self._by_namespace: dict[str, list[_Entry]] = {}
        self._others: list[_Entry] = []
        rules = (rule for policy in policies for rule in self.rules_of(policy))
        for entry in enumerate(rules):
            self._file(entry)

    def rules_of(self, policy: Policy) -> Sequence[Rule]:
        return policy.stream_rules if self._is_for_streams else policy.rules

    def _file(self, entry: _Entry) -> None:
        rule = entry[1]
        if rule.is_void:
            return
        if rule.paths or rule.segments:
            for path in rule.paths:
                self._by_path.setdefault(path, []).append(entry)
            for segment in rule.segments:
                self._by_segment.setdefault(segment, []).append(entry)
        elif rule.callers:
            for caller in rule.callers:
                self._by_caller.setdefault(caller, []).append(entry)
        elif rule.namespaces:
            for namespace in rule.namespaces:
                self._by_namespace.setdefault(namespace, []).append(entry)
        else:
            self._others.append(entry)

    def __bool__(self) -> bool:
        return bool(self.policies)

    def first(self, facts: PolicyFacts) -> Rule | None:
        """The first rule that holds."""
        best: _Entry | None = None
        for entries in self._candidates(facts):
            for entry in entries:
                if best is not None and entry[0] >= best[0]:
                    break
                if entry[1].holds(facts):
                    best = entry
                    break
        return None if best is None else best[1]

    def all(self, facts: PolicyFacts) -> list[Rule]:
        """Every rule that holds, in order."""
        found = {entry for entries in self._candidates(facts) for entry in entries if entry[1].holds(facts)}
        return [rule for _, rule in sorted(found, key=lambda entry: entry[0])]

    def _candidates(self, facts: PolicyFacts) -> Iterator[Sequence[_Entry]]:
        if self._by_path and (found := self._by_path.get(facts.path)):
            yield found
        if self._by_segment and (found := self._by_segment.get(first_segment(facts.path))):
            yield found
        if self._by_caller and (found := self._by_caller.get(facts.principal)):
            yield found
        identity = facts.identity
        if self._by_namespace and identity and (found := self._by_namespace.get(identity.namespace)):
            yield found
        if self._others:
            yield self._others


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
