"""L4 policies as compiled, immutable matchers (proto/istio/authorization.proto, facts 7.3 and 7.4).

A policy is alternatives of rules, a rule the conjunction of clauses, a clause alternatives of matches,
a match the conjunction of its lists. Empty means: no rules never match, no clauses match all, no
matches in a clause is true, a match without lists is skipped.

Stricter than Istio's node proxy in one point: an element that cannot be decoded (bad address bytes, a
string match without a kind) is not silently dropped. It counts as "matches" in a DENY policy and as
"does not match" in an ALLOW policy, so that damage never opens anything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from dataplane.state.errors import ResourceRejected
from dataplane.state.model import canonical_ip, ip_number
from proto.istio import authorization_pb2 as pb
from transport.spiffe import SpiffeId

_PORT_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Connection:
    """What policies look at: the TCP peer, its identity (None: plaintext) and the final upstream address."""

    src_ip: str
    identity: SpiffeId | None
    dst_ip: str
    dst_port: int


class PolicyScope(enum.IntEnum):
    GLOBAL = 0
    NAMESPACE = 1
    WORKLOAD_SELECTOR = 2


class Action(enum.IntEnum):
    ALLOW = 0
    DENY = 1


# One list of a match, compiled: does it agree with the connection?
Test = Callable[[Connection], bool]


@dataclass(frozen=True, slots=True)
class Field:
    """A named test, for traces."""

    name: str
    agrees: Test


@dataclass(frozen=True, slots=True)
class Match:
    fields: tuple[Field, ...]

    def holds(self, connection: Connection) -> bool:
        return all(test.agrees(connection) for test in self.fields)


# Alternatives; an empty clause is true.
Clause = tuple[Match, ...]
# All must hold; a rule without clauses matches everything.
Rule = tuple[Clause | None, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy under its resource name. In a rule, None stands for a clause without matches (true)."""

    key: str
    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    rules: tuple[Rule, ...]
    is_dry_run: bool
    # Elements that could not be decoded, for the operator.
    problems: tuple[str, ...] = ()

    def matches(self, connection: Connection) -> bool:
        for rule in self.rules:
            for clause in rule:
                if clause is None:
                    continue
                for match in clause:
                    if match.holds(connection):
                        break
                else:
                    break
            else:
                return True
        return False

    def explain(self, connection: Connection) -> list[str]:
        """Per rule, the first clause that fails and why; for people."""
        lines = []
        for number, rule in enumerate(self.rules):
            failed = next(
                (
                    i
                    for i, clause in enumerate(rule)
                    if clause is not None and not any(m.holds(connection) for m in clause)
                ),
                None,
            )
            if failed is None:
                lines.append(f"rule {number} matches")
                continue
            clause = rule[failed] or ()
            misses = sorted(
                {field.name for match in clause for field in match.fields if not field.agrees(connection)}
            )
            why = f"no match for {', '.join(misses)}" if misses else "it has no usable match"
            lines.append(f"rule {number} does not match: clause {failed}: {why}")
        return lines or ["it has no rules and never matches"]


def decode_policy(key: str, value: bytes) -> Policy:
    """One `istio.security.Authorization` from its bytes; raises `ResourceRejected`."""
    message = pb.Authorization()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise ResourceRejected(f"not a valid Authorization message: {error}") from error
    return policy_from(key, message)


def policy_from(key: str, message: pb.Authorization) -> Policy:
    try:
        scope = PolicyScope(message.scope)
        action = Action(message.action)
    except ValueError as error:
        raise ResourceRejected(f"unknown policy scope or action: {error}") from error
    compiler = _Compiler(action)
    rules = tuple(
        tuple(compiler.clause(clause) if clause.matches else None for clause in group.rules)
        for group in message.groups
    )
    return Policy(
        key=key,
        name=message.name,
        namespace=message.namespace,
        scope=scope,
        action=action,
        rules=rules,
        is_dry_run=message.dry_run,
        problems=tuple(compiler.problems),
    )


class _Damaged(Exception):
    """An element of a list cannot be decoded."""


class _Compiler:
    """Turns matches into tests, keeping count of elements that cannot be decoded."""

    def __init__(self, action: Action) -> None:
        self._action = action
        self.problems: list[str] = []

    def clause(self, clause: pb.Rules) -> Clause:
        matches = (self._match(match) for match in clause.matches)
        return tuple(match for match in matches if match is not None)

    def _match(self, match: pb.Match) -> Match | None:
        fields: list[Field] = []
        is_damaged = False
        for name, build in _lists(match):
            try:
                test = build()
            except _Damaged as damage:
                self.problems.append(f"{name}: {damage}")
                is_damaged = True
                continue
            if test is not None:
                fields.append(Field(name, test))
        if is_damaged:
            # DENY: the damaged list is taken as agreeing. ALLOW: the match can never hold.
            return Match(tuple(fields)) if self._action is Action.DENY else None
        return Match(tuple(fields)) if fields else None


def _lists(match: pb.Match) -> Iterable[tuple[str, Callable[[], Test | None]]]:
    yield "source_ips", lambda: _addresses(match.source_ips, _source_ip, is_negative=False)
    yield "not_source_ips", lambda: _addresses(match.not_source_ips, _source_ip, is_negative=True)
    yield "destination_ips", lambda: _addresses(match.destination_ips, _destination_ip, is_negative=False)
    yield (
        "not_destination_ips",
        lambda: _addresses(match.not_destination_ips, _destination_ip, is_negative=True),
    )
    yield "destination_ports", lambda: _port_test(match.destination_ports, is_negative=False)
    yield "not_destination_ports", lambda: _port_test(match.not_destination_ports, is_negative=True)
    yield "principals", lambda: _strings(match.principals, _principal, is_negative=False)
    yield "not_principals", lambda: _strings(match.not_principals, _principal, is_negative=True)
    yield "namespaces", lambda: _strings(match.namespaces, _namespace, is_negative=False)
    yield "not_namespaces", lambda: _strings(match.not_namespaces, _namespace, is_negative=True)
    yield "service_accounts", lambda: _account_test(match.service_accounts, is_negative=False)
    yield "not_service_accounts", lambda: _account_test(match.not_service_accounts, is_negative=True)


def _source_ip(connection: Connection) -> str:
    return connection.src_ip


def _destination_ip(connection: Connection) -> str:
    return connection.dst_ip


def _principal(connection: Connection) -> str | None:
    return None if connection.identity is None else connection.identity.principal


def _namespace(connection: Connection) -> str:
    return "" if connection.identity is None else connection.identity.namespace


def _addresses(
    addresses: Iterable[pb.Address], ip_of: Callable[[Connection], str], *, is_negative: bool
) -> Test | None:
    blocks = tuple(_block(address) for address in addresses)
    if not blocks:
        return None

    def agrees(connection: Connection) -> bool:
        bits, number = ip_number(ip_of(connection))
        for block_bits, shift, prefix in blocks:
            if block_bits == bits and number >> shift == prefix:
                return not is_negative
        return is_negative

    return agrees


def _block(address: pb.Address) -> tuple[int, int, int]:
    try:
        text = canonical_ip(address.address)
    except ResourceRejected as error:
        raise _Damaged(error.text) from error
    bits, number = ip_number(text)
    length = address.length - 96 if bits == 32 and len(address.address) == 16 else address.length
    if not 0 <= length <= bits:
        raise _Damaged(f"prefix length {address.length} does not fit {text}")
    return bits, bits - length, number >> (bits - length)


def _port_test(ports: Iterable[int], *, is_negative: bool) -> Test | None:
    wanted = frozenset(port & _PORT_MASK for port in ports)
    if not wanted:
        return None
    if is_negative:
        return lambda connection: connection.dst_port not in wanted
    return lambda connection: connection.dst_port in wanted


def _strings(
    matches: Iterable[pb.StringMatch], text_of: Callable[[Connection], str | None], *, is_negative: bool
) -> Test | None:
    exact: set[str] = set()
    prefixes: list[str] = []
    suffixes: list[str] = []
    is_presence = False
    is_empty = True
    for match in matches:
        is_empty = False
        kind = match.WhichOneof("match_type")
        if kind == "exact":
            exact.add(match.exact)
        elif kind == "prefix":
            prefixes.append(match.prefix)
        elif kind == "suffix":
            suffixes.append(match.suffix)
        elif kind == "presence":
            is_presence = True
        else:
            raise _Damaged("a string match without a kind")
    if is_empty:
        return None
    starts, ends = tuple(prefixes), tuple(suffixes)

    def agrees(connection: Connection) -> bool:
        text = text_of(connection)
        if text is None:
            return is_negative
        is_hit = (
            text in exact or (is_presence and text != "") or text.startswith(starts) or text.endswith(ends)
        )
        return is_hit is not is_negative

    return agrees


def _account_test(accounts: Iterable[pb.ServiceAccountMatch], *, is_negative: bool) -> Test | None:
    wanted = frozenset((account.namespace, account.serviceAccount) for account in accounts)
    if not wanted:
        return None

    def agrees(connection: Connection) -> bool:
        identity = connection.identity
        is_hit = identity is not None and (identity.namespace, identity.service_account) in wanted
        return is_hit is not is_negative

    return agrees
