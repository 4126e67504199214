"""Facts 7.1 to 7.4 and authz-cases 8: every row, and a naive evaluator as oracle."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.state.model import AUTHORIZATION_TYPE
from dataplane.state.policy import decode_policy
from proto.istio import authorization_pb2 as pb
from tests.dataplane.state.builders import apply, get, mesh, packed, workload
from transport.spiffe import SpiffeId
from ztunnel.state.rbac import Connection, Verdict, authorize

ALICE = SpiffeId("cluster.local", "red", "alice")
FROM_ALICE = Connection("10.0.0.1", ALICE, "10.0.0.2", 8080)
PLAINTEXT = Connection("10.0.0.1", None, "10.0.0.2", 8080)
PRESENCE = pb.StringMatch(presence=Empty())


def policy(
    name: str = "p",
    *groups: pb.Group,
    action: int = pb.ALLOW,
    scope: int = pb.NAMESPACE,
    namespace: str = "default",
    dry_run: bool = False,
) -> pb.Authorization:
    message = pb.Authorization(name=name, namespace=namespace, groups=groups, dry_run=dry_run)
    message.action = action  # type: ignore[assignment] # numbers outside of the enum are tried too
    message.scope = scope  # type: ignore[assignment]
    return message


def deny(
    name: str, *groups: pb.Group, namespace: str = "default", scope: int = pb.NAMESPACE
) -> pb.Authorization:
    return policy(name, *groups, action=pb.DENY, namespace=namespace, scope=scope)


def group(*clauses: pb.Rules) -> pb.Group:
    return pb.Group(rules=clauses)


def clause(*matches: pb.Match) -> pb.Rules:
    return pb.Rules(matches=matches)


def only(match: pb.Match) -> pb.Group:
    return group(clause(match))


ALL = group()


def verdict(
    *policies: pb.Authorization, connection: Connection = FROM_ALICE, listed: tuple[str, ...] = ()
) -> Verdict:
    state = mesh(workload("own", "10.0.0.2", policies=listed), *policies)
    own = get(state, "own")
    result = authorize(connection, own, state)
    traced = authorize(connection, own, state, is_traced=True)
    assert (traced.is_allowed, traced.policy, traced.reason) == (
        result.is_allowed,
        result.policy,
        result.reason,
    )
    return result


def matches(match: pb.Match, connection: Connection = FROM_ALICE) -> bool:
    return verdict(policy("p", only(match)), connection=connection).is_allowed


# --- 7.1 which policies ---


@pytest.mark.parametrize(
    ("candidate", "listed", "applies"),
    [
        (deny("d", ALL), (), True),
        (deny("d", ALL, namespace="other"), (), False),
        (deny("d", ALL, namespace="istio-system", scope=pb.GLOBAL), (), True),
        (deny("d", ALL, scope=pb.WORKLOAD_SELECTOR), (), False),
        (deny("d", ALL, scope=pb.WORKLOAD_SELECTOR), ("default/d",), True),
        (deny("d", ALL, scope=pb.WORKLOAD_SELECTOR, namespace="root"), ("root/d",), True),
    ],
)
def test_namespace_global_and_listed_policies_apply(
    candidate: pb.Authorization, listed: tuple[str, ...], applies: bool
) -> None:
    assert verdict(candidate, listed=listed).is_allowed is not applies


def test_unknown_listed_policy_denies() -> None:
    found = verdict(listed=("default/missing",))
    assert (found.is_allowed, found.policy) == (False, "default/missing")
    assert found.reason == "unknown policy: default/missing"
    allowed = policy("a", ALL)
    assert not verdict(allowed, listed=("default/missing",)).is_allowed


def test_explicit_deny_is_named_before_an_unknown_policy() -> None:
    found = verdict(policy("d", ALL, action=pb.DENY), listed=("default/missing",))
    assert found.policy == "default/d"


def test_removed_listed_policy_denies_and_its_return_heals() -> None:
    selected = policy("s", ALL, scope=pb.WORKLOAD_SELECTOR)
    state = mesh(workload("own", "10.0.0.2", policies=["default/s"]), selected)
    own = get(state, "own")
    assert authorize(FROM_ALICE, own, state).is_allowed
    state.apply(AUTHORIZATION_TYPE, (), ["default/s"])
    assert not authorize(FROM_ALICE, own, state).is_allowed
    apply(state, selected)
    assert authorize(FROM_ALICE, own, state).is_allowed


# --- 7.2 order ---


def test_no_policies_allow() -> None:
    assert verdict() == Verdict(is_allowed=True)


def test_deny_wins_over_allow() -> None:
    found = verdict(policy("a", ALL), policy("d", ALL, action=pb.DENY))
    assert (found.is_allowed, found.policy, found.reason) == (
        False,
        "default/d",
        "explicitly denied by: default/d",
    )


def test_denied_when_allow_policies_exist_and_none_matches() -> None:
    found = verdict(policy("a", only(pb.Match(destination_ports=[1]))))
    assert (found.is_allowed, found.reason) == (False, "allow policies exist, but none allowed")


def test_one_matching_allow_is_enough() -> None:
    found = verdict(policy("a", only(pb.Match(destination_ports=[1]))), policy("b", ALL))
    assert (found.is_allowed, found.policy) == (True, "default/b")


def test_dry_run_policies_are_noted_and_never_enforced() -> None:
    assert verdict(policy("d", ALL, action=pb.DENY, dry_run=True)).dry_run == (
        "dry-run policy default/d would deny",
    )
    found = verdict(policy("a", only(pb.Match(destination_ports=[1])), dry_run=True))
    assert found.is_allowed
    assert found.dry_run == ("enforcing the dry-run ALLOW policies would deny: none allowed",)
    assert verdict(policy("a", ALL, dry_run=True)).dry_run == ("dry-run policy default/a would allow",)
    covered = verdict(policy("a", only(pb.Match(destination_ports=[1])), dry_run=True), policy("b", ALL))
    assert covered.dry_run == ()


# --- 7.3 empty clauses ---


@pytest.mark.parametrize(
    ("what", "groups", "is_match"),
    [
        ("no rules never match", (), False),
        ("no clauses match all", (group(),), True),
        ("a clause without matches is true", (group(clause()),), True),
        ("an empty match is skipped: the clause is false", (group(clause(pb.Match())),), False),
        ("a clause of only empty matches is false", (group(clause(pb.Match(), pb.Match())),), False),
        (
            "an empty match beside a good one",
            (group(clause(pb.Match(), pb.Match(destination_ports=[8080]))),),
            True,
        ),
        ("a true clause and a false one", (group(clause(), clause(pb.Match(destination_ports=[1]))),), False),
        (
            "clauses are ANDed",
            (group(clause(pb.Match(destination_ports=[8080])), clause(pb.Match(destination_ports=[1]))),),
            False,
        ),
        (
            "matches are ORed",
            (group(clause(pb.Match(destination_ports=[1]), pb.Match(destination_ports=[8080]))),),
            True,
        ),
        (
            "rules are ORed",
            (only(pb.Match(destination_ports=[1])), only(pb.Match(destination_ports=[8080]))),
            True,
        ),
        (
            "fields of a match are ANDed",
            (
                only(
                    pb.Match(
                        destination_ports=[8080],
                        source_ips=[pb.Address(address=packed("10.9.9.9"), length=32)],
                    )
                ),
            ),
            False,
        ),
    ],
)
def test_structure(what: str, groups: tuple[pb.Group, ...], is_match: bool) -> None:
    assert verdict(policy("a", *groups)).is_allowed is is_match
    assert verdict(policy("d", *groups, action=pb.DENY)).is_allowed is not is_match


# --- 7.4 fields ---


def cidr(text: str) -> pb.Address:
    network = ip_network(text)
    return pb.Address(address=network.network_address.packed, length=network.prefixlen)


def exact(text: str) -> pb.StringMatch:
    return pb.StringMatch(exact=text)


FIELDS = [
    ("source_ips", [cidr("10.0.0.0/8")], True),
    ("source_ips", [cidr("10.0.0.1/32")], True),
    ("source_ips", [cidr("192.168.0.0/16"), cidr("10.0.0.0/30")], True),
    ("source_ips", [cidr("192.168.0.0/16")], False),
    ("source_ips", [cidr("0.0.0.0/0")], True),
    ("source_ips", [cidr("::/0")], False),
    ("source_ips", [pb.Address(address=b"\x00" * 10 + b"\xff\xff" + packed("10.0.0.0"), length=104)], True),
    ("destination_ips", [cidr("10.0.0.2/32")], True),
    ("destination_ips", [cidr("10.0.0.1/32")], False),
    ("destination_ports", [8080], True),
    ("destination_ports", [1, 2], False),
    ("destination_ports", [65536 + 8080], True),
    ("principals", [exact("cluster.local/ns/red/sa/alice")], True),
    ("principals", [exact("spiffe://cluster.local/ns/red/sa/alice")], False),
    ("principals", [exact("Cluster.local/ns/red/sa/alice")], False),
    ("principals", [pb.StringMatch(prefix="cluster.local/ns/red/")], True),
    ("principals", [pb.StringMatch(suffix="/sa/alice")], True),
    ("principals", [pb.StringMatch(prefix="other/")], False),
    ("principals", [PRESENCE], True),
    ("namespaces", [exact("red")], True),
    ("namespaces", [exact("Red")], False),
    ("namespaces", [pb.StringMatch(prefix="r"), exact("x")], True),
    ("service_accounts", [pb.ServiceAccountMatch(namespace="red", serviceAccount="alice")], True),
    ("service_accounts", [pb.ServiceAccountMatch(namespace="blue", serviceAccount="alice")], False),
]


@pytest.mark.parametrize(("field", "values", "is_hit"), FIELDS)
def test_field_and_its_negation(field: str, values: list[object], is_hit: bool) -> None:
    assert matches(pb.Match(**{field: values})) is is_hit  # type: ignore[arg-type]
    assert matches(pb.Match(**{f"not_{field}": values})) is not is_hit  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("match", "is_match"),
    [
        (pb.Match(principals=[PRESENCE]), False),
        (pb.Match(principals=[exact("")]), False),
        (pb.Match(principals=[pb.StringMatch(prefix="")]), False),
        (pb.Match(not_principals=[PRESENCE]), True),
        (pb.Match(not_principals=[exact("x")]), True),
        (pb.Match(namespaces=[exact("red")]), False),
        (pb.Match(namespaces=[exact("")]), True),
        (pb.Match(namespaces=[PRESENCE]), False),
        (pb.Match(not_namespaces=[exact("red")]), True),
        (pb.Match(service_accounts=[pb.ServiceAccountMatch(namespace="red", serviceAccount="alice")]), False),
        (
            pb.Match(not_service_accounts=[pb.ServiceAccountMatch(namespace="red", serviceAccount="alice")]),
            True,
        ),
    ],
)
def test_plaintext_has_no_identity(match: pb.Match, is_match: bool) -> None:
    assert matches(match, PLAINTEXT) is is_match


def test_strict_mtls_as_istio_writes_it() -> None:
    strict = policy(
        "istio_converted_static_strict",
        only(pb.Match(not_principals=[PRESENCE])),
        action=pb.DENY,
        scope=pb.WORKLOAD_SELECTOR,
        namespace="istio-system",
    )
    listed = ("istio-system/istio_converted_static_strict",)
    assert not verdict(strict, connection=PLAINTEXT, listed=listed).is_allowed
    assert verdict(strict, listed=listed).is_allowed


DAMAGED = [
    pb.Match(source_ips=[pb.Address(address=b"123", length=8)]),
    pb.Match(source_ips=[pb.Address(address=packed("10.0.0.0"), length=33)]),
    pb.Match(principals=[pb.StringMatch()]),
    pb.Match(not_principals=[pb.StringMatch()]),
    pb.Match(not_source_ips=[pb.Address(address=b"")]),
]


@pytest.mark.parametrize("match", DAMAGED)
def test_damaged_elements_never_open_anything(match: pb.Match) -> None:
    assert not verdict(policy("a", only(match))).is_allowed
    assert not verdict(policy("d", only(match), action=pb.DENY)).is_allowed
    still_bounded = pb.Match(destination_ports=[1])
    still_bounded.MergeFrom(match)
    assert verdict(policy("d", only(still_bounded), action=pb.DENY)).is_allowed
    assert decode_policy("default/d", policy("d", only(match)).SerializeToString()).problems != ()


def test_unknown_scope_or_action_is_refused() -> None:
    state = mesh()
    assert "unknown policy scope" in apply(state, policy("p", scope=7))["default/p"]
    assert "unknown policy scope or action" in apply(state, policy("p", action=7))["default/p"]
    assert state.apply(AUTHORIZATION_TYPE, [("x", b"\xff\xff")], ()) != {}
    assert state.policy_generation == 0


def test_trace_names_the_clause_that_failed() -> None:
    state = mesh(
        workload("own", "10.0.0.2"),
        policy(
            "a", group(clause(pb.Match(destination_ports=[8080])), clause(pb.Match(principals=[exact("x")])))
        ),
    )
    found = authorize(FROM_ALICE, get(state, "own"), state, is_traced=True)
    assert found.trace == ("ALLOW default/a: rule 0 does not match: clause 1: no match for principals",)


# --- the oracle ---


def naive_match(match: pb.Match, connection: Connection) -> bool | None:
    """None: skipped."""
    principal = None if connection.identity is None else connection.identity.principal
    namespace = "" if connection.identity is None else connection.identity.namespace
    account = None if connection.identity is None else (namespace, connection.identity.service_account)

    def string(one: pb.StringMatch, text: str | None) -> bool:
        if text is None:
            return False
        kind = one.WhichOneof("match_type")
        if kind == "exact":
            return text == one.exact
        if kind == "prefix":
            return text[: len(one.prefix)] == one.prefix
        if kind == "suffix":
            return text.endswith(one.suffix)
        return bool(text)

    def contains(one: pb.Address, ip: str) -> bool:
        network = ip_network((one.address, one.length), strict=False)
        return ip_address(ip) in network

    checks = [
        (match.source_ips, match.not_source_ips, lambda e: contains(e, connection.src_ip)),
        (match.destination_ips, match.not_destination_ips, lambda e: contains(e, connection.dst_ip)),
        (match.destination_ports, match.not_destination_ports, lambda e: e == connection.dst_port),
        (match.principals, match.not_principals, lambda e: string(e, principal)),
        (match.namespaces, match.not_namespaces, lambda e: string(e, namespace)),
        (
            match.service_accounts,
            match.not_service_accounts,
            lambda e: (e.namespace, e.serviceAccount) == account,
        ),
    ]
    if not any(positive or negative for positive, negative, _ in checks):
        return None
    return all(
        (not positive or any(hit(e) for e in positive)) and not any(hit(e) for e in negative)  # type: ignore[no-untyped-call]
        for positive, negative, hit in checks
    )


def naive_policy(candidate: pb.Authorization, connection: Connection) -> bool:
    return any(
        all(
            not rules.matches or any(naive_match(match, connection) is True for match in rules.matches)
            for rules in rule.rules
        )
        for rule in candidate.groups
    )


def naive_allowed(policies: list[pb.Authorization], connection: Connection) -> bool:
    enforced = [p for p in policies if not p.dry_run]
    if any(p.action == pb.DENY and naive_policy(p, connection) for p in enforced):
        return False
    allowing = [p for p in enforced if p.action == pb.ALLOW]
    return not allowing or any(naive_policy(p, connection) for p in allowing)


IPS = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd00::2"]
NAMES = ["red", "blue"]
IDENTITIES = [
    None,
    *(SpiffeId(td, ns, sa) for td in ("cluster.local", "other") for ns in NAMES for sa in NAMES),
]

strings = st.one_of(
    st.builds(
        lambda t: pb.StringMatch(exact=t),
        st.sampled_from(["red", "blue", "cluster.local/ns/red/sa/blue", ""]),
    ),
    st.builds(lambda t: pb.StringMatch(prefix=t), st.sampled_from(["r", "cluster.local/", ""])),
    st.builds(lambda t: pb.StringMatch(suffix=t), st.sampled_from(["d", "/sa/red", ""])),
    st.just(PRESENCE),
)
addresses = st.builds(
    lambda ip, length: pb.Address(address=packed(ip), length=length), st.sampled_from(IPS), st.integers(0, 32)
)
ports = st.integers(1, 3)
accounts = st.builds(
    lambda n, a: pb.ServiceAccountMatch(namespace=n, serviceAccount=a),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
)
match_strategy = st.builds(
    pb.Match,
    source_ips=st.lists(addresses, max_size=2),
    not_source_ips=st.lists(addresses, max_size=1),
    destination_ips=st.lists(addresses, max_size=1),
    not_destination_ips=st.lists(addresses, max_size=1),
    destination_ports=st.lists(ports, max_size=2),
    not_destination_ports=st.lists(ports, max_size=1),
    principals=st.lists(strings, max_size=1),
    not_principals=st.lists(strings, max_size=1),
    namespaces=st.lists(strings, max_size=1),
    not_namespaces=st.lists(strings, max_size=1),
    service_accounts=st.lists(accounts, max_size=1),
    not_service_accounts=st.lists(accounts, max_size=1),
)
sparse_match = st.one_of(
    st.just(pb.Match()),
    st.builds(lambda p: pb.Match(destination_ports=[p]), ports),
    st.builds(lambda s: pb.Match(principals=[s]), strings),
    st.builds(lambda s: pb.Match(not_namespaces=[s]), strings),
    st.builds(lambda a: pb.Match(source_ips=[a]), addresses),
    match_strategy,
)
group_strategy = st.builds(
    lambda clauses: group(*clauses),
    st.lists(st.builds(lambda m: clause(*m), st.lists(sparse_match, max_size=2)), max_size=3),
)
policy_strategy = st.builds(
    lambda groups, action, dry: (groups, action, dry),
    st.lists(group_strategy, max_size=3),
    st.sampled_from([pb.ALLOW, pb.DENY]),
    st.booleans(),
)
connections = st.builds(
    Connection, st.sampled_from(IPS), st.sampled_from(IDENTITIES), st.sampled_from(IPS), st.integers(1, 3)
)


@settings(deadline=None)
@given(st.lists(policy_strategy, max_size=4), st.lists(connections, min_size=1, max_size=4))
def test_agrees_with_the_naive_evaluator(
    drawn: list[tuple[list[pb.Group], int, bool]], tried: list[Connection]
) -> None:
    policies = [
        policy(f"p{number}", *groups, action=action, dry_run=dry)
        for number, (groups, action, dry) in enumerate(drawn)
    ]
    state = mesh(workload("own", "10.0.0.2"), *policies)
    own = get(state, "own")
    for connection in tried:
        expected = naive_allowed(policies, connection)
        assert authorize(connection, own, state).is_allowed is expected
        assert authorize(connection, own, state, is_traced=True).is_allowed is expected
