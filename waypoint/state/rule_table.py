"""Many rules of policies: those that can hold for a request are found, the others are not looked at. Pure.

A rule is filed under what each request that it can hold for has: a path, a caller, a namespace, a header, a
method, whichever comes first in this order; one that demands nothing of these is tried for every request.
Filing is about speed only: what is found is still judged as a whole, and the first in order decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proto.mycelia import authorization_l7_pb2 as pb
from waypoint.state.policy_clauses import octets, texts
from waypoint.state.policy_facts import PolicyFacts

if TYPE_CHECKING:
    from waypoint.state.authorization import Policy, Rule

_HEADER: Final = re.compile(r"request\.headers\[([^\[\]:]+)\]")
_NO_HEADERS: Final = frozenset({"host"})  # known from the authority too


@dataclass(frozen=True, slots=True)
class Keys:
    """What a rule demands; of the first field that is not empty a request has one value. `ends` goes with
    `paths` and `segments`: loose prefixes and suffixes of paths."""

    paths: frozenset[bytes] = frozenset()
    segments: frozenset[bytes] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    suffixes: tuple[bytes, ...] = ()
    callers: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    header: bytes = b""
    methods: frozenset[bytes] = frozenset()

    @property
    def has_path(self) -> bool:
        return bool(self.paths or self.segments or self.prefixes or self.suffixes)

    @classmethod
    def of(cls, rule: pb.PolicyRule) -> Keys:
        paths = _paths(rule.operations)
        if paths is not None:
            return paths
        return cls(
            callers=_exact_texts(rule.sources, "source.principal"),
            namespaces=_exact_texts(rule.sources, "source.namespace"),
            header=_header(rule.conditions),
            methods=frozenset(each.encode() for each in _exact_texts(rule.operations, "request.method")),
        )


def _paths(operations: Sequence[pb.ClauseSet]) -> Keys | None:
    """None: some operation takes any path, or one that only an expression tells."""
    paths: set[bytes] = set()
    segments: set[bytes] = set()
    prefixes: list[bytes] = []
    suffixes: list[bytes] = []
    for operation in operations:
        values = next((each.values for each in operation.clauses if each.key == "request.path"), ())
        plain = octets(values)
        if not values or plain.is_any or any("{" in value for value in values):
            return None
        paths |= plain.exact
        suffixes += plain.suffixes
        for prefix in plain.prefixes:
            segment = first_segment(prefix)
            if segment:
                segments.add(segment)
            else:
                prefixes.append(prefix)
    if not operations:
        return None
    return Keys(frozenset(paths), frozenset(segments), tuple(prefixes), tuple(suffixes))


def first_segment(path: bytes) -> bytes:
    """`/a/` of `/a/b`; empty where the path has no whole segment."""
    end = path.find(b"/", 1)
    return path[: end + 1] if path[:1] == b"/" and end > 0 else b""


def _exact_texts(sets: Sequence[pb.ClauseSet], key: str) -> frozenset[str]:
    """Exact values of `key`, one of which each has for whom the rule can hold."""
    found: set[str] = set()
    for each in sets:
        values = next((clause.values for clause in each.clauses if clause.key == key), ())
        plain = texts(values)
        if not values or plain.is_any or plain.prefixes or plain.suffixes:
            return frozenset()
        found |= plain.exact
    return frozenset(found)


def _header(conditions: Sequence[pb.Clause]) -> bytes:
    """A header without which no value can match."""
    for clause in conditions:
        named = _HEADER.fullmatch(clause.key)
        if named is not None and clause.values and named[1].lower() not in _NO_HEADERS:
            return named[1].lower().encode()
    return b""


_Entry = tuple[int, "Rule"]


class RuleTable:
    """The rules of some policies of one action, in order: for requests, or else for other connections."""

    __slots__ = (
        "_by_caller",
        "_by_ends",
        "_by_header",
        "_by_method",
        "_by_namespace",
        "_by_path",
        "_by_segment",
        "_is_for_streams",
        "_others",
        "_prefixes",
        "_suffixes",
        "policies",
    )

    def __init__(self, policies: Sequence[Policy], *, is_for_streams: bool = False) -> None:
        self.policies = tuple(policies)
        self._is_for_streams = is_for_streams
        self._by_path: dict[bytes, list[_Entry]] = {}
        self._by_segment: dict[bytes, list[_Entry]] = {}
        self._by_ends: list[_Entry] = []
        self._prefixes: tuple[bytes, ...] = ()
        self._suffixes: tuple[bytes, ...] = ()
        self._by_caller: dict[str, list[_Entry]] = {}
        self._by_namespace: dict[str, list[_Entry]] = {}
        self._by_header: dict[bytes, list[_Entry]] = {}
        self._by_method: dict[bytes, list[_Entry]] = {}
        self._others: list[_Entry] = []
        rules = (rule for policy in policies for rule in self.rules_of(policy))
        for entry in enumerate(rules):
            if not entry[1].is_void:
                self._file(entry, entry[1].keys)

    def rules_of(self, policy: Policy) -> Sequence[Rule]:
        return policy.stream_rules if self._is_for_streams else policy.rules

    def _file(self, entry: _Entry, keys: Keys) -> None:
        if keys.has_path:
            for path in keys.paths:
                self._by_path.setdefault(path, []).append(entry)
            for segment in keys.segments:
                self._by_segment.setdefault(segment, []).append(entry)
            if keys.prefixes or keys.suffixes:
                self._by_ends.append(entry)
                self._prefixes += keys.prefixes
                self._suffixes += keys.suffixes
        elif keys.callers:
            for caller in keys.callers:
                self._by_caller.setdefault(caller, []).append(entry)
        elif keys.namespaces:
            for namespace in keys.namespaces:
                self._by_namespace.setdefault(namespace, []).append(entry)
        elif keys.header:
            self._by_header.setdefault(keys.header, []).append(entry)
        elif keys.methods:
            for method in keys.methods:
                self._by_method.setdefault(method, []).append(entry)
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
        path = facts.path
        if self._by_path and (found := self._by_path.get(path)):
            yield found
        if self._by_segment and (found := self._by_segment.get(first_segment(path))):
            yield found
        if self._by_ends and (path.endswith(self._suffixes) or path.startswith(self._prefixes)):
            yield self._by_ends
        if self._by_caller and (found := self._by_caller.get(facts.principal)):
            yield found
        identity = facts.identity
        if self._by_namespace and identity and (found := self._by_namespace.get(identity.namespace)):
            yield found
        by_header = self._by_header
        if by_header:
            for name, _ in facts.headers:
                if name in by_header:
                    yield by_header[name]
        if self._by_method and (found := self._by_method.get(facts.method)):
            yield found
        if self._others:
            yield self._others
